use std::pin::pin;
use std::sync::{Mutex, mpsc};

use futures_util::future::{Either, select};
use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};

use super::sessions::stored;
use crate::lost_answers::{ask_by, way_to_aws};
use crate::support::*;

const NEW: &str = "quite another password";

async fn link(api: &Api, person: &Person, count: usize) -> String {
    api.post("/api/auth/forgot-password").json(&json!({"email": person.email})).send().await.expect_status(200);
    mail_to(&person.email, RESET, count).await.token("reset-password")
}

/// The reset has found the sessions that it ends, and has not ended the first of them, when one more begins.
#[tokio::test]
async fn a_racing_sign_in_leaves_no_session_made_with_the_old_password() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let body = json!({"token": link(&api, &person, 1).await, "password": NEW});
    let event = Deployed::event("auth-reset-password", &random_address(), Some(&body), None).unwrap();
    let (reached, is_reached) = mpsc::channel();
    let (let_go, is_let_go) = mpsc::channel::<()>();
    let is_let_go = Mutex::new(is_let_go);
    let held = way_to_aws(move |call, pass_on| {
        if call.contains("DeleteItem") {
            reached.send(()).unwrap();
            // Until the other end is gone.
            let _ = is_let_go.lock().unwrap().recv();
        }
        pass_on()
    });
    let reset = std::thread::spawn(move || ask_by(&held, "auth-reset-password", &event));
    is_reached.recv().unwrap();
    let sign_in = pin!(api.sign_in(&person.email, PASSWORD));
    let begun = pin!(eventually("one more session", || async { (stored(&person).await.len() == 2).then_some(()) }));
    let signed_in = match select(sign_in, begun).await {
        Either::Left((early, _)) => panic!("it has not waited for the reset: {}", early.text),
        Either::Right(((), sign_in)) => {
            drop(let_go);
            sign_in.await
        }
    };
    let reset = reset.join().unwrap();
    assert_eq!(reset["statusCode"], 200, "{reset}");
    signed_in.expect_problem(401, "invalid_credentials");
    assert_eq!(stored(&person).await, Vec::<Value>::new());
}

through_both_doors! {
    async fn sets_the_password_ends_every_session_and_tells_the_owner(api: Api) {
        let person = api.sign_up().await;
        let second = Person::of(&person.email, &api.sign_in(&person.email, PASSWORD).await);
        let token = link(&api, &person, 1).await;
        let reply = api.post("/api/auth/reset-password").json(&json!({"token": token, "password": NEW})).send().await;
        reply.expect_status(200);
        for credential in [&person.session_token, &person.jwt, &second.session_token, &second.jwt] {
            assert_eq!(api.me(credential).await, 401);
        }
        api.sign_in(&person.email, PASSWORD).await.expect_problem(401, "invalid_credentials");
        api.sign_in(&person.email, NEW).await.expect_status(200);
        mail_to(&person.email, CHANGED, 1).await;
        let again = api.post("/api/auth/reset-password").json(&json!({"token": token, "password": PASSWORD})).send().await;
        again.expect_problem(400, "invalid_token");
    }

    async fn proves_the_address_that_the_link_was_mailed_to(api: Api) {
        let person = api.sign_up().await;
        let token = link(&api, &person, 1).await;
        let body = json!({"token": token, "password": NEW});
        api.post("/api/auth/reset-password").json(&body).send().await.expect_status(200);
        let reply = api.sign_in(&person.email, NEW).await.expect_status(200);
        assert_eq!(reply.body["user"]["emailVerified"], true);
        let proofs = format!("SELECT count() FROM events WHERE type = 'user.email_verified' AND subject = '{}'", person.id);
        eventually("the event", || async { (clickhouse(&proofs).await.trim() == "1").then_some(()) }).await;
    }

    async fn takes_the_password_by_its_other_name(api: Api) {
        let person = api.sign_up().await;
        let token = link(&api, &person, 1).await;
        let body = json!({"token": token, "newPassword": NEW});
        api.post("/api/auth/reset-password").json(&body).send().await.expect_status(200);
        api.sign_in(&person.email, NEW).await.expect_status(200);
    }

    async fn a_refused_password_does_not_use_up_the_token(api: Api) {
        let person = api.sign_up().await;
        let token = link(&api, &person, 1).await;
        let reset = |body| api.post("/api/auth/reset-password").json(&body).send();
        reset(json!({"token": token, "password": "short"})).await.expect_invalid(&["password"]);
        reset(json!({"token": token, "newPassword": "short"})).await.expect_invalid(&["newPassword"]);
        reset(json!({"token": token})).await.expect_invalid(&["password"]);
        assert_eq!(api.me(&person.jwt).await, 200, "nothing has changed yet");
        reset(json!({"token": token, "password": NEW})).await.expect_status(200);
    }

    async fn lifts_the_lockout(api: Api) {
        let statuses = within_a_window(60, async || {
            let person = api.sign_up().await;
            let token = link(&api, &person, 1).await;
            let mut statuses = Vec::new();
            for _ in 0..6 {
                statuses.push(api.sign_in(&person.email, "wrong password").await.status);
            }
            let body = json!({"token": token, "password": NEW});
            api.post("/api/auth/reset-password").json(&body).send().await.expect_status(200);
            statuses.push(api.sign_in(&person.email, NEW).await.status);
            statuses
        })
        .await;
        assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 200]);
    }

    async fn a_link_that_verifies_sets_no_password(api: Api) {
        let person = api.sign_up().await;
        let token = mail_to(&person.email, VERIFY, 1).await.token("verify-email");
        let body = json!({"token": token, "password": NEW});
        api.post("/api/auth/reset-password").json(&body).send().await.expect_problem(400, "invalid_token");
        assert_eq!(api.me(&person.jwt).await, 200);
    }

    async fn names_every_bad_field_at_once(api: Api) {
        let post = |body| api.post("/api/auth/reset-password").json(&body).send();
        post(json!({})).await.expect_invalid(&["password", "token"]);
        post(json!({"password": "short"})).await.expect_invalid(&["password", "token"]);
        post(json!({"newPassword": "short"})).await.expect_invalid(&["newPassword", "token"]);
        post(json!({"token": 1, "password": 1})).await.expect_invalid(&["password", "token"]);
    }
}
