//! What goes into a mail: no header of a client's making, and no link to anywhere but the frontend.

use serde_json::json;

use crate::support::*;

through_both_doors! {
    async fn no_line_break_reaches_a_header(api: Api) {
        let hidden = new_email();
        for separator in ["\r\n", "\n", "\r", "%0d%0a", "\u{2028}"] {
            let email = format!("{}{separator}Bcc: {hidden}", new_email());
            for path in ["signup", "forgot-password", "resend-verification"] {
                let body = json!({"email": email, "password": "correct horse battery"});
                let reply = api.post(&format!("/api/auth/{path}")).json(&body).send().await;
                reply.expect_invalid(&["email"]);
            }
        }
        let person = api.sign_up().await;
        api.post("/api/auth/forgot-password").json(&json!({"email": person.email})).send().await.expect_status(200);
        mail_to(&person.email, RESET, 1).await;
        assert_eq!(mails_to(&hidden).await.len(), 0);
    }

    async fn a_name_goes_to_nobody_who_has_not_proved_the_address(api: Api) {
        let (email, name) = (new_email(), "Visit evil.example");
        let body = json!({"email": email, "password": PASSWORD, "name": name});
        api.post("/api/auth/signup").json(&body).send().await.expect_status(201);
        let ask = || api.post("/api/auth/forgot-password").json(&json!({"email": email})).send();
        let verify = mail_to(&email, VERIFY, 1).await;
        ask().await.expect_status(200);
        for mail in [&verify, &mail_to(&email, RESET, 1).await] {
            assert!(!format!("{mail:?}").contains("evil.example"), "{mail:?}");
        }
        let token = json!({"token": verify.token("verify-email")});
        api.post("/api/auth/verify-email").json(&token).send().await.expect_status(200);
        ask().await.expect_status(200);
        let mail = mail_to(&email, RESET, 2).await;
        assert!(mail.text.contains(&format!("Hello {name},")), "{mail:?}");
    }

    async fn links_lead_to_the_frontend_whatever_the_request_claims(api: Api) {
        let person = api.sign_up().await;
        let reply = api
            .post("/api/auth/forgot-password?redirect=https://evil.example&next=//evil.example")
            .header("x-forwarded-host", "evil.example")
            .header("forwarded", "host=evil.example;proto=https")
            .header("referer", "https://evil.example/")
            .json(&json!({"email": person.email, "redirectUrl": "https://evil.example", "appUrl": "https://evil.example"}))
            .send()
            .await
            .expect_status(200);
        assert_eq!(reply.header("location"), None);
        let mail = mail_to(&person.email, RESET, 1).await;
        assert!(!format!("{mail:?}").contains("evil.example"), "{mail:?}");
        mail.token("reset-password");
    }
}
