use serde_json::json;

use crate::support::*;

through_both_doors! {
    async fn sends_another_link_that_voids_the_older_one(api: Api) {
        let person = api.sign_up().await;
        let first = mail_to(&person.email, VERIFY, 1).await.token("verify-email");
        let resend = api.post("/api/auth/resend-verification").json(&json!({"email": person.email.to_uppercase()}));
        resend.send().await.expect_status(200);
        let second = mail_to(&person.email, VERIFY, 2).await.token("verify-email");
        assert_ne!(first, second);
        let verify = |token: String| api.post("/api/auth/verify-email").json(&json!({"token": token})).send();
        verify(first).await.expect_problem(400, "invalid_token");
        verify(second).await.expect_status(200);
    }

    async fn tells_nothing_about_an_address(api: Api) {
        let (unverified, verified) = (api.sign_up().await, api.sign_up().await);
        mail_to(&unverified.email, VERIFY, 1).await;
        let token = mail_to(&verified.email, VERIFY, 1).await.token("verify-email");
        api.post("/api/auth/verify-email").json(&json!({"token": token})).send().await.expect_status(200);
        let unknown = new_email();
        let resend = |email: &str| api.post("/api/auth/resend-verification").json(&json!({"email": email})).send();
        let mut replies = Vec::new();
        for email in [&unverified.email, &verified.email, &unknown] {
            let reply = resend(email).await.expect_status(200);
            assert!(reply.session_cookie().is_none());
            replies.push(reply.text);
        }
        assert_eq!(replies[0], replies[1]);
        assert_eq!(replies[0], replies[2]);

        // The three jobs went into one queue; once the one with an answer is done, one more round trip settles the rest.
        mail_to(&unverified.email, VERIFY, 2).await;
        resend(&unverified.email).await.expect_status(200);
        mail_to(&unverified.email, VERIFY, 3).await;
        assert_eq!(mails_to(&verified.email).await.len(), 1, "a verified address needs no mail");
        assert_eq!(mails_to(&unknown).await.len(), 0, "mail goes to nobody who has no account");
    }

    async fn five_mails_an_hour_go_to_an_address(api: Api) {
        let resend = |email: &str| api.post("/api/auth/resend-verification").json(&json!({"email": email})).send();
        let email = within_a_window(3600, async || {
            let email = api.sign_up().await.email;
            for count in 1..=5 {
                // A link that a newer one voids before its mail goes out is not sent.
                mail_to(&email, VERIFY, count).await;
                resend(&email).await.expect_status(200);
            }
            mail_to(&email, VERIFY, 6).await;
            resend(&email).await.expect_status(200);
            email
        })
        .await;
        let other = api.sign_up().await;
        mail_to(&other.email, VERIFY, 1).await;
        resend(&other.email).await.expect_status(200);
        mail_to(&other.email, VERIFY, 2).await;
        assert_eq!(mails_to(&email).await.len(), 6, "that of the sign-up, and five");
    }

    async fn the_address_must_be_one(api: Api) {
        let post = |body| api.post("/api/auth/resend-verification").json(&body).send();
        post(json!({})).await.expect_invalid(&["email"]);
        post(json!({"email": "x"})).await.expect_invalid(&["email"]);
    }
}
