use serde_json::{Value, json};

use crate::support::*;

through_both_doors! {
    async fn makes_an_account_and_signs_in_by_cookie(api: Api) {
        let email = new_email();
        let body = json!({"email": email, "password": PASSWORD, "name": "  Ada Lovelace ", "unknown": {"is": "ignored"}});
        let reply = api.post("/api/auth/signup").json(&body).send().await.expect_status(201);
        let user = &reply.body["user"];
        assert_eq!(user["email"], email);
        assert_eq!(user["name"], "Ada Lovelace");
        assert_eq!(user["role"], "user");
        assert_eq!(user["emailVerified"], false);
        assert_eq!(user["plan"], "free");
        let keys: Vec<_> = user.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["createdAt", "email", "emailVerified", "id", "name", "plan", "role"]);
        assert_eq!(uuid::Uuid::parse_str(user["id"].as_str().unwrap()).unwrap().get_version_num(), 7);
        assert_eq!(reply.body["tokenType"], "Bearer");
        assert!(reply.text_at("/expiresAt").ends_with('Z'));
        assert!(reply.body.get("sessionToken").is_none(), "a cookie's token must not be readable by scripts");
        assert_eq!(reply.header("cache-control"), Some("no-store"));

        let (cookie, attributes) = reply.session_cookie().unwrap();
        assert!(cookie.starts_with("st_"), "{cookie}");
        assert!(attributes.contains(&"httponly".to_owned()), "{attributes:?}");
        assert!(attributes.contains(&"samesite=lax".to_owned()), "{attributes:?}");
        assert!(attributes.contains(&"path=/".to_owned()), "{attributes:?}");
        assert!(!attributes.contains(&"secure".to_owned()), "not at the local stage: {attributes:?}");
        assert!(!attributes.iter().any(|a| a.starts_with("domain")), "{attributes:?}");
        let me = api.get("/api/auth/me").cookie(&cookie).send().await.expect_status(200);
        assert_eq!(&me.body["user"], user);
    }

    async fn gives_tokens_instead_of_a_cookie_to_who_asks(api: Api) {
        let body = json!({"email": new_email(), "password": PASSWORD, "transport": "bearer"});
        let reply = api.post("/api/auth/signup").json(&body).send().await.expect_status(201);
        assert!(reply.session_cookie().is_none());
        assert!(reply.text_at("/sessionToken").starts_with("st_"));
        assert_eq!(reply.body["user"]["name"], Value::Null);
    }

    async fn a_known_address_is_taken_in_every_spelling(api: Api) {
        let person = api.sign_up().await;
        let (local, domain) = person.email.split_once('@').unwrap();
        for spelling in [person.email.clone(), person.email.to_uppercase(), format!("  {local}@{} ", domain.to_uppercase())] {
            let body = json!({"email": spelling, "password": PASSWORD});
            let reply = api.post("/api/auth/signup").json(&body).send().await.expect_problem(409, "email_taken");
            assert!(reply.session_cookie().is_none());
        }
    }

    async fn two_at_once_make_one_account(api: Api) {
        let body = json!({"email": new_email(), "password": PASSWORD});
        let attempt = || async { api.post("/api/auth/signup").json(&body).send().await.status };
        let (a, b, c) = tokio::join!(attempt(), attempt(), attempt());
        let mut statuses = [a, b, c];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409, 409]);
    }

    async fn names_every_bad_field_at_once(api: Api) {
        let post = |body: Value| api.post("/api/auth/signup").json(&body).send();
        post(json!({})).await.expect_invalid(&["email", "password"]);
        post(json!({"email": null, "password": null})).await.expect_invalid(&["email", "password"]);
        post(json!({"email": 1, "password": [], "name": {}, "transport": true})).await
            .expect_invalid(&["email", "name", "password", "transport"]);
        post(json!({"email": new_email(), "password": PASSWORD, "transport": "smoke"})).await.expect_invalid(&["transport"]);
        post(json!({"email": new_email(), "password": PASSWORD, "name": "x".repeat(101)})).await.expect_invalid(&["name"]);
        post(json!({"email": new_email(), "password": PASSWORD, "name": "a\u{0}b"})).await.expect_invalid(&["name"]);
    }

    async fn what_is_no_address_is_refused(api: Api) {
        for email in ["", "a", "@", "a@", "@b.co", "a@b", "a b@c.de", "a@@b.de", "ä@b.de", "a@b..de", "a@b.de\u{0}", "a\r\nBcc: x@y.de@z.de"] {
            let body = json!({"email": email, "password": PASSWORD});
            api.post("/api/auth/signup").json(&body).send().await.expect_invalid(&["email"]);
        }
        let long = format!("{}@{}.de", "a".repeat(64), "b.".repeat(100));
        let body = json!({"email": long, "password": PASSWORD});
        api.post("/api/auth/signup").json(&body).send().await.expect_invalid(&["email"]);
    }

    async fn an_international_domain_is_one_with_its_ascii_form(api: Api) {
        let local = new_email().split_once('@').unwrap().0.to_owned();
        let sign_up = |email: String| {
            let body = json!({"email": email, "password": PASSWORD});
            api.post("/api/auth/signup").json(&body).send()
        };
        let reply = sign_up(format!("{local}@bücher.example")).await.expect_status(201);
        assert_eq!(reply.body["user"]["email"], format!("{local}@xn--bcher-kva.example"));
        sign_up(format!("{local}@XN--BCHER-KVA.example")).await.expect_problem(409, "email_taken");
    }

    async fn a_password_has_8_to_128_characters_of_any_kind(api: Api) {
        let sign_up = |password: String| {
            let body = json!({"email": new_email(), "password": password});
            api.post("/api/auth/signup").json(&body).send()
        };
        sign_up("1234567".to_owned()).await.expect_invalid(&["password"]);
        sign_up("x".repeat(129)).await.expect_invalid(&["password"]);
        sign_up("🙂".repeat(128)).await.expect_status(201);
        sign_up("        ".to_owned()).await.expect_status(201);
        sign_up("nul\u{0}inside".to_owned()).await.expect_status(201);
    }

    async fn a_lone_surrogate_is_no_json(api: Api) {
        let body = format!(r#"{{"email":"{}","password":"\ud800 password"}}"#, new_email());
        api.post("/api/auth/signup").body("application/json", body).send().await.expect_problem(400, "invalid_json");
    }

    async fn a_password_is_not_truncated_or_normalised(api: Api) {
        let email = new_email();
        let password = format!("{}a\u{301}", "x".repeat(100));
        let body = json!({"email": email, "password": password});
        api.post("/api/auth/signup").json(&body).send().await.expect_status(201);
        api.sign_in(&email, &format!("{}\u{e1}", "x".repeat(100))).await.expect_problem(401, "invalid_credentials");
        api.sign_in(&email, &"x".repeat(100)).await.expect_problem(401, "invalid_credentials");
        api.sign_in(&email, &password).await.expect_status(200);
    }

    async fn sends_a_link_that_verifies_the_address(api: Api) {
        let person = api.sign_up().await;
        let token = mail_to(&person.email, VERIFY, 1).await.token("verify-email");
        assert!(token.len() >= 43, "fewer than 256 bits: {token}");
    }

    async fn markup_in_a_name_comes_back_as_data(api: Api) {
        let name = "<script>alert('x')</script> \u{202e}";
        let email = new_email();
        let body = json!({"email": email, "password": PASSWORD, "name": name});
        let reply = api.post("/api/auth/signup").json(&body).send().await.expect_status(201);
        assert_eq!(reply.body["user"]["name"], name.trim());
        assert_eq!(reply.header("content-type"), Some("application/json"));
        let token = mail_to(&email, VERIFY, 1).await.token("verify-email");
        api.post("/api/auth/verify-email").json(&json!({"token": token})).send().await.expect_status(200);
        api.post("/api/auth/forgot-password").json(&json!({"email": email})).send().await.expect_status(200);
        let mail = mail_to(&email, RESET, 1).await;
        assert!(!mail.html.contains("<script>") && mail.html.contains("&lt;script&gt;"), "{}", mail.html);
    }
}
