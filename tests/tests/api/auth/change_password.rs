use serde_json::json;

use crate::support::*;

const NEW: &str = "quite another password";

through_both_doors! {
    async fn changes_it_and_ends_the_other_sessions(api: Api) {
        let person = api.sign_up().await;
        let other = Person::of(&person.email, &api.sign_in(&person.email, PASSWORD).await);
        let body = json!({"currentPassword": PASSWORD, "newPassword": NEW});
        api.post("/api/auth/change-password").bearer(&person.jwt).json(&body).send().await.expect_status(200);
        assert_eq!((api.me(&person.jwt).await, api.me(&person.session_token).await), (200, 200));
        assert_eq!((api.me(&other.jwt).await, api.me(&other.session_token).await), (401, 401));
        api.sign_in(&person.email, PASSWORD).await.expect_problem(401, "invalid_credentials");
        api.sign_in(&person.email, NEW).await.expect_status(200);
        mail_to(&person.email, CHANGED, 1).await;
    }

    async fn beyond_three_an_hour_it_is_changed_and_no_mail_goes_out(api: Api) {
        let person = within_a_window(3600, async || {
            let person = api.sign_up().await;
            let mut passwords = [PASSWORD, NEW];
            for _ in 0..5 {
                let body = json!({"currentPassword": passwords[0], "newPassword": passwords[1]});
                api.post("/api/auth/change-password").bearer(&person.jwt).json(&body).send().await.expect_status(200);
                passwords.reverse();
            }
            person
        })
        .await;
        api.sign_in(&person.email, NEW).await.expect_status(200);
        mail_to(&person.email, CHANGED, 3).await;
        // What is sent later arrives later.
        api.post("/api/auth/forgot-password").json(&json!({"email": person.email})).send().await.expect_status(200);
        mail_to(&person.email, RESET, 1).await;
        let sent = mails_to(&person.email).await.into_iter().filter(|mail| mail.subject == CHANGED).count();
        assert_eq!(sent, 3);
    }

    async fn voids_links_that_would_set_a_password(api: Api) {
        let person = api.sign_up().await;
        api.post("/api/auth/forgot-password").json(&json!({"email": person.email})).send().await.expect_status(200);
        let token = mail_to(&person.email, RESET, 1).await.token("reset-password");
        let body = json!({"currentPassword": PASSWORD, "newPassword": NEW});
        api.post("/api/auth/change-password").bearer(&person.jwt).json(&body).send().await.expect_status(200);
        let body = json!({"token": token, "password": PASSWORD});
        api.post("/api/auth/reset-password").json(&body).send().await.expect_problem(400, "invalid_token");
    }

    async fn a_wrong_current_password_changes_nothing_and_is_limited(api: Api) {
        let body = json!({"currentPassword": "wrong password", "newPassword": NEW});
        let (person, replies) = within_a_window(60, async || {
            let person = api.sign_up().await;
            let mut replies = Vec::new();
            for _ in 0..6 {
                replies.push(api.post("/api/auth/change-password").bearer(&person.jwt).json(&body).send().await);
            }
            (person, replies)
        })
        .await;
        let codes: Vec<_> = replies.iter().map(|reply| reply.text_at("/code")).collect();
        assert_eq!(codes, [&["invalid_credentials"; 5][..], &["too_many_attempts"]].concat());
        assert_eq!(api.me(&person.jwt).await, 200);
        api.elsewhere().sign_in(&person.email, PASSWORD).await.expect_status(200);
    }

    async fn of_changes_at_once_one_counts(api: Api) {
        let person = api.sign_up().await;
        let change = |new: &str| {
            let body = json!({"currentPassword": PASSWORD, "newPassword": new});
            api.post("/api/auth/change-password").bearer(&person.jwt).json(&body).send()
        };
        let new = ["the first new password", "the second new password", "the third new password"];
        let (a, b, c) = tokio::join!(change(new[0]), change(new[1]), change(new[2]));
        let statuses = [a.status, b.status, c.status];
        let mut sorted = statuses;
        sorted.sort_unstable();
        assert_eq!(sorted, [200, 401, 401]);
        let of_it = statuses.iter().position(|status| *status == 200).unwrap();
        api.sign_in(&person.email, new[of_it]).await.expect_status(200);
    }

    async fn needs_a_session_and_good_fields(api: Api) {
        let body = json!({"currentPassword": PASSWORD, "newPassword": NEW});
        api.post("/api/auth/change-password").json(&body).send().await.expect_problem(401, "unauthenticated");
        let person = api.sign_up().await;
        let post = |body| api.post("/api/auth/change-password").bearer(&person.jwt).json(&body).send();
        post(json!({})).await.expect_invalid(&["currentPassword", "newPassword"]);
        post(json!({"currentPassword": PASSWORD, "newPassword": "short"})).await.expect_invalid(&["newPassword"]);
        api.sign_in(&person.email, PASSWORD).await.expect_status(200);
    }
}
