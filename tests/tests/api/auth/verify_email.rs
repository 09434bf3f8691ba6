use serde_json::json;

use crate::support::*;

through_both_doors! {
    async fn proves_the_address_once(api: Api) {
        let person = api.sign_up().await;
        let token = mail_to(&person.email, VERIFY, 1).await.token("verify-email");
        let verify = || api.post("/api/auth/verify-email").json(&json!({"token": token})).send();
        let reply = verify().await.expect_status(200);
        assert_eq!(reply.body["user"]["id"], person.id);
        assert_eq!(reply.body["user"]["emailVerified"], true);
        assert!(reply.session_cookie().is_none(), "a link in a mail signs nobody in");
        let me = api.get("/api/auth/me").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(me.body["user"]["emailVerified"], true);
        verify().await.expect_problem(400, "invalid_token");
    }

    async fn of_several_at_once_one_succeeds(api: Api) {
        let person = api.sign_up().await;
        let token = mail_to(&person.email, VERIFY, 1).await.token("verify-email");
        let verify = || async { api.post("/api/auth/verify-email").json(&json!({"token": token})).send().await.status };
        let (a, b, c) = tokio::join!(verify(), verify(), verify());
        let mut statuses = [a, b, c];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 400, 400]);
    }

    async fn unknown_malformed_and_foreign_tokens_are_answered_alike(api: Api) {
        let person = api.sign_up().await;
        let token = mail_to(&person.email, VERIFY, 1).await.token("verify-email");
        api.post("/api/auth/forgot-password").json(&json!({"email": person.email})).send().await.expect_status(200);
        let reset = mail_to(&person.email, RESET, 1).await.token("reset-password");
        let mut replies = Vec::new();
        for bad in ["", "x", "ä\u{0}", &"A".repeat(64), &"A".repeat(10_000), &token[1..], &reset] {
            let reply = api.post("/api/auth/verify-email").json(&json!({"token": bad})).send().await;
            replies.push(reply.expect_problem(400, "invalid_token").text_at("/detail"));
        }
        replies.dedup();
        assert_eq!(replies.len(), 1, "{replies:?}");
    }

    async fn the_token_is_a_text(api: Api) {
        let post = |body| api.post("/api/auth/verify-email").json(&body).send();
        post(json!({})).await.expect_invalid(&["token"]);
        post(json!({"token": 1})).await.expect_invalid(&["token"]);
        post(json!({"token": null})).await.expect_invalid(&["token"]);
    }
}
