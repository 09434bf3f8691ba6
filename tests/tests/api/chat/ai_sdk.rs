use std::path::Path;
use std::process::Command;

use crate::support::*;

#[tokio::test]
async fn the_real_ai_sdk_sends_makes_anew_and_resumes() {
    drive("ai").await;
}

#[tokio::test]
async fn an_earlier_ai_sdk_sends_makes_anew_and_resumes() {
    drive("ai-5").await;
}

/// An npm package of `tests/package.json` against the router, whose streams are live.
async fn drive(sdk: &str) {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(tests.join("node_modules").join(sdk).exists(), "`make client` installs what the tests for Node import");
    let output = Command::new("node")
        .arg(tests.join("tests/api/chat/ai_sdk.mjs"))
        .env("API_URL", api.base())
        .env("TOKEN", &person.jwt)
        .env("AI_SDK", sdk)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
