use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::json;

use crate::support::*;

through_both_doors! {
    async fn ends_the_session_at_once_for_every_credential(api: Api) {
        let person = api.sign_up().await;
        let reply = api.post("/api/auth/signout").cookie(&person.session_token).header("origin", ORIGIN).send().await.expect_status(204);
        assert_eq!(reply.text, "");
        let (value, attributes) = reply.session_cookie().unwrap();
        assert_eq!(value, "");
        assert!(attributes.contains(&"max-age=0".to_owned()), "{attributes:?}");
        assert!(attributes.contains(&"path=/".to_owned()), "{attributes:?}");
        api.get("/api/auth/me").cookie(&person.session_token).send().await.expect_status(401);
        assert_eq!(api.me(&person.session_token).await, 401);
        assert_eq!(api.me(&person.jwt).await, 401, "the access token has minutes to go, but no session");
        api.post("/api/auth/refresh").bearer(&person.session_token).send().await.expect_status(401);
    }

    async fn works_with_an_access_token(api: Api) {
        let person = api.sign_up().await;
        api.post("/api/auth/signout").bearer(&person.jwt).send().await.expect_status(204);
        assert_eq!(api.me(&person.session_token).await, 401);
    }

    async fn beside_an_access_token_that_is_no_longer_good_the_cookie_decides(api: Api) {
        let person = api.sign_up().await;
        let request = api.post("/api/auth/signout").cookie(&person.session_token).bearer("a.b.c");
        let reply = request.send().await.expect_status(204);
        assert_eq!(reply.session_cookie().unwrap().0, "");
        assert_eq!(api.me(&person.session_token).await, 401);
    }

    async fn an_access_token_decides_beside_a_cookie_that_is_no_longer_good(api: Api) {
        let person = api.sign_up().await;
        api.post("/api/auth/signout").cookie("x").bearer(&person.jwt).send().await.expect_status(204);
        assert_eq!(api.me(&person.session_token).await, 401);
    }

    async fn clears_the_cookie_of_a_session_that_has_ended(api: Api) {
        let person = api.sign_up().await;
        for (cookie, status) in [(person.session_token.as_str(), 204), (&person.session_token, 401), ("x", 401)] {
            let reply = api.post("/api/auth/signout").cookie(cookie).send().await.expect_status(status);
            let (value, attributes) = reply.session_cookie().unwrap();
            assert_eq!(value, "");
            assert!(attributes.contains(&"max-age=0".to_owned()), "{attributes:?}");
        }
    }

    async fn leaves_other_sessions_unless_told(api: Api) {
        let person = api.sign_up().await;
        let second = Person::of(&person.email, &api.sign_in(&person.email, PASSWORD).await);
        let third = Person::of(&person.email, &api.sign_in(&person.email, PASSWORD).await);
        api.post("/api/auth/signout?all=false").bearer(&third.session_token).send().await.expect_status(204);
        assert_eq!((api.me(&person.jwt).await, api.me(&second.jwt).await), (200, 200));
        api.post("/api/auth/signout?all=true").bearer(&second.session_token).send().await.expect_status(204);
        assert_eq!((api.me(&person.jwt).await, api.me(&second.jwt).await), (401, 401));
    }

    async fn is_never_refused_for_too_many_requests(api: Api) {
        let person = api.sign_up().await;
        // Two minutes may begin while this runs, hardly three.
        let mut limited = false;
        for _ in 0..=200 {
            limited = api.me(&person.jwt).await == 429;
            if limited {
                break;
            }
        }
        assert!(limited, "a user was never limited");
        let request = api.post("/api/auth/signout").cookie(&person.session_token).header("origin", ORIGIN);
        let reply = request.send().await.expect_status(204);
        assert_eq!(reply.session_cookie().unwrap().0, "");
        assert!(reply.header("ratelimit").is_none(), "outside the rate limit");
        let foreign = api.post("/api/auth/signout").header("origin", "https://elsewhere.example");
        foreign.send().await.expect_problem(403, "origin_not_allowed");
    }

    async fn needs_a_session_and_a_sensible_parameter(api: Api) {
        api.post("/api/auth/signout").send().await.expect_problem(401, "unauthenticated");
        let person = api.sign_up().await;
        api.post("/api/auth/signout?all=maybe").bearer(&person.jwt).send().await.expect_invalid(&["all"]);
        assert_eq!(api.me(&person.jwt).await, 200);
    }
}

/// Sessions are in DynamoDB.
#[tokio::test(flavor = "multi_thread")]
async fn needs_no_database() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let secret = open_secret("nowhere", &json!({"url": "postgres://nobody:nothing@127.0.0.1:1/none"})).await;
    let mut environment = deployed().environment("auth-signout");
    environment.insert("DATABASE_SECRET_ARN".to_owned(), secret.clone());
    let event = Deployed::event("auth-signout", &random_address(), None, Some(&person.jwt)).unwrap();
    let reply = Sandbox::start(&binary("auth-signout"), &environment).unwrap().invoke(&event).unwrap().payload;
    delete_secret(&secret).await;
    assert_eq!(reply["statusCode"], 204, "{reply}");
    assert_eq!(api.me(&person.session_token).await, 401);
}
