//! What a function's log says of its requests.

use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};

use crate::support::*;

/// The line about a request, once it is written.
async fn line_of(sandbox: &Sandbox, request_id: &str) -> Value {
    eventually("the request's line", || async {
        let lines = sandbox.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        lines.into_iter().find(|line| line["request.id"] == request_id && line["http.status"].is_u64())
    })
    .await
}

#[tokio::test]
async fn each_request_has_its_line() {
    let person = Api::of_router().sign_up().await;
    let mut environment = deployed().environment("auth-me");
    environment.insert("LOG_LEVEL".to_owned(), "info".to_owned());
    let mut sandbox = Sandbox::start(&deployed().binary("auth-me"), &environment).unwrap();
    let other = "a".repeat(43);
    for (id, bearer, status) in [("good-request-1", person.jwt.as_str(), 200), ("bad-request-1", other.as_str(), 401)] {
        let mut event = Deployed::event("auth-me", &random_address(), None, Some(bearer)).unwrap();
        event["headers"]["X-Request-Id"] = id.into();
        event["multiValueHeaders"]["X-Request-Id"] = json!([id]);
        assert_eq!(sandbox.invoke(&event).unwrap().payload["statusCode"], status);
        let line = line_of(&sandbox, id).await;
        let fields = ["level", "message", "function", "http.route", "http.method", "http.status"];
        let expected =
            [json!("INFO"), json!("the request was answered"), json!("auth-me"), json!("/api/auth/me"), json!("GET")];
        for (field, expected) in fields.iter().zip(expected.into_iter().chain([json!(status)])) {
            assert_eq!(line[field], expected, "{field}: {line}");
        }
        assert_eq!(line["trace.id"], "4bf92f3577b34da6a3ce929d0e0e4736", "the caller's: {line}");
        assert!(line["timestamp"].is_string() && line["span.id"].is_string(), "{line}");
        assert!(line["duration_ms"].is_number(), "{line}");
        assert_eq!(line["cold_start"], status == 200, "the first request: {line}");
        let (user, code) =
            if status == 200 { (json!(person.id), Value::Null) } else { (Value::Null, json!("unauthenticated")) };
        assert_eq!((&line["user.id"], &line["error.code"]), (&user, &code), "{line}");
    }
    for line in sandbox.log() {
        for secret in [&person.jwt, &person.session_token, &person.email, &other] {
            assert!(!line.contains(secret.as_str()), "{line}");
        }
    }
}
