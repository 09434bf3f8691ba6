use serde_json::json;

use crate::billing::stores::postgres;
use crate::support::*;

/// [`PASSWORD`], hashed as cheaply as Argon2id can.
const CHEAP_HASH: &str =
    "$argon2id$v=19$m=8,t=1,p=1$c2l4dGVlbiBieXRlcyBvaw$JstIM51//NA/dUwa6zDBwqkAkW6yiNMpSQIcldEnqvs";

#[tokio::test]
async fn a_hash_of_former_cost_is_replaced_by_one_of_todays() {
    let api = Api::of_router();
    let (person, mut database) = (api.sign_up().await, postgres().await);
    let id = uuid::Uuid::parse_str(&person.id).unwrap();
    let weaken = sqlx::query("UPDATE users SET password_hash = $1 WHERE id = $2").bind(CHEAP_HASH).bind(id);
    weaken.execute(&mut database).await.unwrap();
    api.sign_in(&person.email, "wrong password").await.expect_problem(401, "invalid_credentials");
    for _ in 0..2 {
        api.sign_in(&person.email, PASSWORD).await.expect_status(200);
        let hash = sqlx::query_scalar("SELECT password_hash FROM users WHERE id = $1").bind(id);
        let hash: String = hash.fetch_one(&mut database).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    }
    assert_eq!(api.me(&person.session_token).await, 200, "no other session ends with that");
}

through_both_doors! {
    async fn starts_a_session(api: Api) {
        let person = api.sign_up().await;
        let body = json!({"email": format!(" {} ", person.email.to_uppercase()), "password": PASSWORD});
        let reply = api.post("/api/auth/signin").json(&body).send().await.expect_status(200);
        assert_eq!(reply.body["user"]["id"], person.id);
        assert_eq!(reply.body["tokenType"], "Bearer");
        assert!(reply.body.get("sessionToken").is_none());
        let (cookie, attributes) = reply.session_cookie().unwrap();
        assert!(attributes.contains(&"httponly".to_owned()) && attributes.contains(&"samesite=lax".to_owned()), "{attributes:?}");
        assert_ne!(cookie, person.session_token);
        api.get("/api/auth/me").cookie(&cookie).send().await.expect_status(200);
        assert_eq!(api.me(&person.session_token).await, 200, "another device's session goes on");
    }

    async fn an_unknown_address_and_a_wrong_password_are_answered_alike(api: Api) {
        let person = api.sign_up().await;
        let wrong = api.sign_in(&person.email, "wrong password").await.expect_problem(401, "invalid_credentials");
        let unknown = api.sign_in(&new_email(), "wrong password").await.expect_problem(401, "invalid_credentials");
        let strip = |reply: &Reply| {
            let mut body = reply.body.clone();
            body.as_object_mut().unwrap().remove("requestId");
            let mut names: Vec<_> = reply.headers.keys().map(|name| name.as_str().to_owned()).collect();
            names.sort();
            (reply.status, body, names)
        };
        assert_eq!(strip(&wrong), strip(&unknown));
    }

    async fn any_text_may_be_a_password_that_is_checked(api: Api) {
        let person = api.sign_up().await;
        for password in ["", "short", "\u{0}\u{0}"] {
            api.sign_in(&person.email, password).await.expect_problem(401, "invalid_credentials");
        }
    }

    async fn names_every_bad_field_at_once(api: Api) {
        let post = |body| api.post("/api/auth/signin").json(&body).send();
        post(json!({})).await.expect_invalid(&["email", "password"]);
        post(json!({"email": "no address", "password": 1, "transport": "x"})).await.expect_invalid(&["email", "password", "transport"]);
    }

    async fn replaces_the_session_that_the_request_came_with(api: Api) {
        let person = api.sign_up().await;
        let body = json!({"email": person.email, "password": PASSWORD});
        let reply = api.post("/api/auth/signin").cookie(&person.session_token).json(&body).send().await.expect_status(200);
        assert_eq!(api.me(&person.session_token).await, 401);
        assert_eq!(api.me(&person.jwt).await, 401, "its access token ends with it");
        assert_eq!(api.me(&reply.text_at("/token")).await, 200);
    }

    async fn leaves_another_users_session_alone(api: Api) {
        let (ada, bob) = (api.sign_up().await, api.sign_up().await);
        let body = json!({"email": ada.email, "password": PASSWORD});
        api.post("/api/auth/signin").cookie(&bob.session_token).json(&body).send().await.expect_status(200);
        assert_eq!(api.me(&bob.session_token).await, 200);
    }

    async fn a_stale_credential_beside_the_password_does_no_harm(api: Api) {
        let person = api.sign_up().await;
        let body = json!({"email": person.email, "password": PASSWORD});
        for stale in ["st_nonsense", "a.b.c"] {
            api.post("/api/auth/signin").bearer(stale).json(&body).send().await.expect_status(200);
        }
        api.post("/api/auth/signin").cookie("nonsense").json(&body).send().await.expect_status(200);
    }
}
