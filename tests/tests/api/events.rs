//! Events: every deployed function takes its sample and does its work, and what people do is told once.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::*;

/// Their samples carry a token or a signature that nobody can make in advance.
const REFUSED: [&str; 3] = ["auth-reset-password", "auth-verify-email", "billing-webhook"];

/// The sample of a function, with the token of somebody who may call it where it has one: a new person's, since some
/// functions end the session.
async fn sample(api: &Api, admin: &Person, path: &Path, function: &str) -> Value {
    let mut event: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    if event["headers"]["Authorization"].is_string() {
        let for_admins = function.starts_with("analytics-") || function == "gateway-metrics";
        let person = if for_admins { admin.clone() } else { api.sign_up().await };
        let bearer = format!("Bearer {}", person.session_token);
        event["headers"]["Authorization"] = bearer.clone().into();
        event["multiValueHeaders"]["Authorization"] = json!([bearer]);
    }
    event
}

/// Whether a reply is what the sample leads to where nothing but its people is there.
fn is_expected(function: &str, event: &Value, status: u64) -> bool {
    match status {
        200..300 => true,
        400 => REFUSED.contains(&function),
        404 => event["pathParameters"]["id"].is_string(),
        // The account of the sample may be there already.
        409 => function == "auth-signup",
        _ => false,
    }
}

#[tokio::test]
async fn every_function_takes_its_sample_event() {
    let api = Api::of_router();
    let admin = api.new_admin().await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../events");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // The account of the sample signs in once it has signed up.
    paths.sort_by_key(|path| !path.ends_with("auth-signup.json"));
    for path in &paths {
        let function = path.file_stem().unwrap().to_string_lossy().into_owned();
        let event = sample(&api, &admin, path, &function).await;
        let reply = invoke(&function, event.to_string()).await;
        match reply.get("statusCode").and_then(Value::as_u64) {
            Some(status) => assert!(is_expected(&function, &event, status), "{function}: {reply}"),
            None => assert!(reply.get("errorMessage").is_none(), "{function}: {reply}"),
        }
        if reply.get("batchItemFailures").is_some() {
            assert_eq!(reply["batchItemFailures"], json!([]), "{function} refused messages of its sample");
        }
    }
    assert!(paths.len() > 80, "{} events in {folder}", paths.len());
}

/// The type, country and number of all events about a person.
async fn told_of(person: &Person) -> String {
    let sql = format!(
        "SELECT type, country, count() FROM events FINAL WHERE subject = '{}' GROUP BY ALL ORDER BY type FORMAT CSV",
        person.id
    );
    clickhouse(&sql).await.replace('"', "")
}

#[tokio::test]
async fn what_a_person_does_is_told_once_with_their_country() {
    let api = Api::of_router();
    let post = |path: &str, body: Value| api.post(path).header("cloudfront-viewer-country", "DE").json(&body);
    let (email, new) = (new_email(), "quite another password");
    let account = json!({"email": email, "password": PASSWORD, "transport": "bearer"});
    let person = Person::of(&email, &post("/api/auth/signup", account).send().await.expect_status(201));
    let token = mail_to(&email, VERIFY, 1).await.token("verify-email");
    post("/api/auth/verify-email", json!({"token": token})).send().await.expect_status(200);
    let made = post("/api/chat/conversations", json!({"title": "A plan"})).bearer(&person.jwt).send().await;
    let path = format!("/api/chat/conversations/{}", made.expect_status(201).text_at("/conversation/id"));
    let deletion = api.delete(&path).bearer(&person.jwt).header("cloudfront-viewer-country", "DE");
    deletion.send().await.expect_status(204);
    post("/api/auth/forgot-password", json!({"email": email})).send().await.expect_status(200);
    let token = mail_to(&email, RESET, 1).await.token("reset-password");
    post("/api/auth/reset-password", json!({"token": token, "password": new})).send().await.expect_status(200);
    let signed_in = post("/api/auth/signin", json!({"email": email, "password": new})).send().await.expect_status(200);
    post("/api/auth/signout", json!({})).bearer(&signed_in.text_at("/token")).send().await.expect_status(204);
    let expected = [
        "chat.conversation_created",
        "chat.conversation_deleted",
        "user.email_verified",
        "user.password_reset",
        "user.signin",
        "user.signout",
        "user.signup",
    ];
    let expected: String = expected.iter().map(|kind| format!("{kind},DE,1\n")).collect();
    eventually("all events", || async { (told_of(&person).await.lines().count() == 7).then_some(()) }).await;
    assert_eq!(told_of(&person).await, expected);
}
