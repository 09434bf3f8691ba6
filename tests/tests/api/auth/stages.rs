//! The rules of accounts that are off at the local stage, by the deployed functions with those rules switched on.

use sandbox::Sandbox;
use sandbox::deployed::{Deployed, Environment, random_address};
use serde_json::{Value, json};

use crate::support::*;

const TAKEN: &str = "You already have an account";

/// A deployed function with other rules, asked by one client.
pub struct Function {
    name: &'static str,
    sandbox: Sandbox,
    pub address: String,
    bearer: Option<String>,
}

impl Function {
    pub fn with(name: &'static str, rules: &[(&str, &str)]) -> Self {
        let mut environment = deployed().environment(name);
        environment.extend(rules.iter().map(|(rule, value)| ((*rule).to_owned(), (*value).to_owned())));
        Self::start(name, &environment)
    }

    /// One of production that nobody has told its rules.
    fn of_production(name: &'static str) -> Self {
        let mut environment = deployed().environment(name);
        for rule in ["AUTH_LIMITS", "PASSWORD_BLOCKLIST", "REQUIRE_EMAIL_VERIFICATION"] {
            environment.remove(rule);
        }
        environment.insert("STAGE".to_owned(), "prod".to_owned());
        Self::start(name, &environment)
    }

    fn start(name: &'static str, environment: &Environment) -> Self {
        let sandbox = Sandbox::start(&deployed().binary(name), environment).unwrap();
        Self { name, sandbox, address: random_address(), bearer: None }
    }

    /// Status, body and the session's cookie, if one was given.
    fn send(&mut self, body: &Value) -> (u64, Value, Option<String>) {
        let event = Deployed::event(self.name, &self.address, Some(body), self.bearer.as_deref()).unwrap();
        let reply = self.sandbox.invoke(&event).unwrap().payload;
        let body = serde_json::from_str(reply["body"].as_str().unwrap()).unwrap();
        let headers = reply["multiValueHeaders"].as_object().into_iter().chain(reply["headers"].as_object());
        let mut cookies = headers.flatten().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
        let cookie = cookies.next().map(|(_, value)| value.as_str().or(value[0].as_str()).unwrap().to_owned());
        (reply["statusCode"].as_u64().unwrap(), body, cookie)
    }

    /// Status, body and whether a session was given.
    pub fn post(&mut self, body: &Value) -> (u64, Value, bool) {
        let (status, body, cookie) = self.send(body);
        (status, body, cookie.is_some())
    }
}

#[tokio::test]
async fn where_addresses_must_be_proved_nobody_is_signed_in_before() {
    let rules = [("REQUIRE_EMAIL_VERIFICATION", "true")];
    let (mut sign_up, mut sign_in) = (Function::with("auth-signup", &rules), Function::with("auth-signin", &rules));
    let email = new_email();
    let account = json!({"email": email, "password": PASSWORD, "transport": "bearer"});

    let first = sign_up.post(&account);
    assert_eq!(first, (202, json!({"status": "verification_required"}), false));
    let mail = mail_to(&email, VERIFY, 1).await;
    // Whoever signs up a known address learns nothing; its owner is told.
    assert_eq!(sign_up.post(&json!({"email": email, "password": "another password"})), first);
    mail_to(&email, TAKEN, 1).await;

    let (status, problem, cookie) = sign_in.post(&account);
    assert_eq!((status, &problem["code"], cookie), (403, &json!("email_not_verified"), false));
    let (status, problem, _) = sign_in.post(&json!({"email": email, "password": "another password"}));
    assert_eq!((status, &problem["code"]), (401, &json!("invalid_credentials")));

    let token = mail.token("verify-email");
    let api = Api::of_router();
    api.post("/api/auth/verify-email").json(&json!({"token": token})).send().await.expect_status(200);
    let (status, reply, _) = sign_in.post(&account);
    assert_eq!((status, &reply["user"]["emailVerified"]), (200, &json!(true)));
}

#[tokio::test]
async fn production_is_strict_unless_it_is_told_otherwise() {
    let (mut sign_up, mut sign_in) = (Function::of_production("auth-signup"), Function::of_production("auth-signin"));
    let email = new_email();
    let (status, problem, _) = sign_up.post(&json!({"email": email, "password": "Password1"}));
    assert_eq!((status, &problem["errors"][0]["code"]), (400, &json!("too_common")), "{problem}");
    let account = json!({"email": email, "password": PASSWORD});
    assert_eq!(sign_up.post(&account), (202, json!({"status": "verification_required"}), false));
    let (status, problem, _) = sign_in.post(&account);
    assert_eq!((status, &problem["code"]), (403, &json!("email_not_verified")));
    let statuses = within_a_window(3600, async || {
        sign_up.address = random_address();
        (0..6).map(|_| sign_up.post(&json!({"email": new_email(), "password": PASSWORD})).0).collect::<Vec<_>>()
    });
    assert_eq!(statuses.await, [202, 202, 202, 202, 202, 429]);
}

#[tokio::test]
async fn beyond_the_local_stage_a_cookie_goes_over_https_alone() {
    let person = Api::of_router().sign_up().await;
    let account = json!({"email": person.email, "password": PASSWORD});
    for (stage, is_secure) in [("local", false), ("dev", true), ("prod", true)] {
        let mut sign_in = Function::with("auth-signin", &[("STAGE", stage), ("REQUIRE_EMAIL_VERIFICATION", "false")]);
        let (status, reply, cookie) = sign_in.send(&account);
        assert_eq!(status, 200, "{stage}: {reply}");
        let cookie = cookie.unwrap();
        assert!(cookie.starts_with("session="), "{stage}");
        assert_eq!(cookie.split("; ").any(|attribute| attribute == "Secure"), is_secure, "{stage}");
    }
}

#[tokio::test]
async fn where_the_blocklist_is_enforced_passwords_that_are_guessed_first_are_refused() {
    let mut sign_up = Function::with("auth-signup", &[("PASSWORD_BLOCKLIST", "enforce")]);
    let email = new_email();
    for password in ["Password1", "12345678", email.split('@').next().unwrap()] {
        let (status, problem, cookie) = sign_up.post(&json!({"email": email, "password": password}));
        assert_eq!((status, cookie), (400, false), "{password}: {problem}");
        assert_eq!(problem["errors"][0]["field"], "password", "{problem}");
        assert_eq!(problem["errors"][0]["code"], "too_common", "{problem}");
    }
    assert_eq!(sign_up.post(&json!({"email": email, "password": PASSWORD})).0, 201);
}

#[tokio::test]
async fn a_password_that_is_guessed_first_is_not_set_and_costs_no_link() {
    let (api, rules) = (Api::of_router(), [("PASSWORD_BLOCKLIST", "enforce")]);
    let person = api.sign_up().await;
    let mut change = Function::with("auth-change-password", &rules);
    change.bearer = Some(person.jwt);
    let (status, problem, _) = change.post(&json!({"currentPassword": PASSWORD, "newPassword": "Password1"}));
    let error = &problem["errors"][0];
    assert_eq!((status, &error["field"], &error["code"]), (400, &json!("newPassword"), &json!("too_common")));

    api.post("/api/auth/forgot-password").json(&json!({"email": person.email})).send().await.expect_status(200);
    let token = mail_to(&person.email, RESET, 1).await.token("reset-password");
    let mut reset = Function::with("auth-reset-password", &rules);
    let (status, problem, _) = reset.post(&json!({"token": token, "password": "Password1"}));
    let error = &problem["errors"][0];
    assert_eq!((status, &error["field"], &error["code"]), (400, &json!("password"), &json!("too_common")));
    assert_eq!(reset.post(&json!({"token": token, "password": "quite another password"})).0, 200);
}

#[tokio::test]
async fn a_listed_address_is_an_administrators_once_it_is_proved() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let mut verify = Function::with("auth-verify-email", &[("ADMIN_EMAILS", &person.email.to_uppercase())]);
    let token = mail_to(&person.email, VERIFY, 1).await.token("verify-email");
    let metrics = |jwt: String| async move { Api::of_router().get("/metrics").bearer(&jwt).send().await.status };
    assert_eq!(metrics(person.jwt.clone()).await, 403);
    let (status, reply, _) = verify.post(&json!({"token": token}));
    assert_eq!((status, &reply["user"]["role"]), (200, &json!("admin")));
    let reply = api.sign_in(&person.email, PASSWORD).await.expect_status(200);
    assert_eq!(metrics(Person::of(&person.email, &reply).jwt).await, 200);
}

#[tokio::test]
async fn a_proved_address_that_is_listed_later_is_an_administrators_from_the_next_sign_in() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let mut sign_in = Function::with("auth-signin", &[("ADMIN_EMAILS", &person.email.to_uppercase())]);
    let account = json!({"email": person.email, "password": PASSWORD});
    let metrics = || async { Api::of_router().get("/metrics").bearer(&person.jwt).send().await.status };
    let (status, reply, _) = sign_in.post(&account);
    assert_eq!((status, &reply["user"]["role"]), (200, &json!("user")), "the address is not proved yet");
    let token = mail_to(&person.email, VERIFY, 1).await.token("verify-email");
    let verified = api.post("/api/auth/verify-email").json(&json!({"token": token})).send().await.expect_status(200);
    assert_eq!(verified.body["user"]["role"], "user");
    assert_eq!(metrics().await, 403);
    let (status, reply, _) = sign_in.post(&account);
    assert_eq!((status, &reply["user"]["role"]), (200, &json!("admin")));
    assert_eq!(metrics().await, 200, "a session from before has the role too");
    let jwt = reply["token"].as_str().unwrap();
    assert_eq!(Api::of_router().get("/metrics").bearer(jwt).send().await.status, 200);
}
