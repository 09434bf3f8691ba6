use serde_json::json;

use crate::support::*;

through_both_doors! {
    async fn sends_a_link_and_a_new_one_voids_the_older(api: Api) {
        let person = api.sign_up().await;
        let forgot = || api.post("/api/auth/forgot-password").json(&json!({"email": person.email})).send();
        forgot().await.expect_status(200);
        let first = mail_to(&person.email, RESET, 1).await.token("reset-password");
        forgot().await.expect_status(200);
        let second = mail_to(&person.email, RESET, 2).await.token("reset-password");
        let reset = |token: String| {
            api.post("/api/auth/reset-password").json(&json!({"token": token, "password": "another good one"})).send()
        };
        reset(first).await.expect_problem(400, "invalid_token");
        reset(second).await.expect_status(200);
    }

    async fn tells_nothing_about_an_address(api: Api) {
        let person = api.sign_up().await;
        let unknown = new_email();
        let forgot = |email: &str| api.post("/api/auth/forgot-password").json(&json!({"email": email})).send();
        let (known_reply, unknown_reply) = (forgot(&person.email).await, forgot(&unknown).await);
        assert_eq!((known_reply.status, &known_reply.text), (200, &unknown_reply.text));
        assert_eq!(unknown_reply.status, 200);
        mail_to(&person.email, RESET, 1).await;
        forgot(&person.email).await.expect_status(200);
        mail_to(&person.email, RESET, 2).await;
        assert_eq!(mails_to(&unknown).await.len(), 0);
    }

    async fn beyond_three_an_hour_the_reply_is_the_same_and_no_mail_goes_out(api: Api) {
        let forgot = |email: &str| api.post("/api/auth/forgot-password").json(&json!({"email": email})).send();
        let (email, mut replies) = within_a_window(3600, async || {
            let (email, mut replies) = (api.sign_up().await.email, Vec::new());
            for count in 1..=3 {
                replies.push(forgot(&email).await.expect_status(200).text);
                // A link that a newer one voids before its mail goes out is not sent.
                mail_to(&email, RESET, count).await;
            }
            replies.push(forgot(&email).await.expect_status(200).text);
            (email, replies)
        })
        .await;
        replies.dedup();
        assert_eq!(replies.len(), 1);
        let other = api.sign_up().await;
        forgot(&other.email).await.expect_status(200);
        mail_to(&other.email, RESET, 1).await;
        let sent = mails_to(&email).await.into_iter().filter(|mail| mail.subject == RESET).count();
        assert_eq!(sent, 3);
    }

    async fn the_mail_goes_to_the_stored_address(api: Api) {
        let person = api.sign_up().await;
        let typed = format!("  {}  ", person.email.to_uppercase());
        api.post("/api/auth/forgot-password").json(&json!({"email": typed})).send().await.expect_status(200);
        mail_to(&person.email, RESET, 1).await;
        assert_eq!(mails_to(&person.email.to_uppercase()).await.len(), 0);
    }

    async fn the_address_must_be_one(api: Api) {
        let post = |body| api.post("/api/auth/forgot-password").json(&body).send();
        post(json!({})).await.expect_invalid(&["email"]);
        post(json!({"email": ["a@b.de"]})).await.expect_invalid(&["email"]);
    }
}
