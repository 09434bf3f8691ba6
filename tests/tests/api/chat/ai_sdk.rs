use std::path::Path;
use std::process::Command;

use crate::support::*;

/// The real npm package against the router, whose streams are live.
#[tokio::test]
async fn the_real_ai_sdk_sends_makes_anew_and_resumes() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("node")
        .arg(tests.join("tests/api/chat/ai_sdk.mjs"))
        .env("API_URL", api.base())
        .env("TOKEN", &person.jwt)
        .env("NODE_TOOLS", tests.parent().unwrap().join(".local/tools"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
