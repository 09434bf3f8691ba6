//! Invoked by Secrets Manager: rotates the key that signs access tokens, a step at a time.

use std::process::ExitCode;

use lib::auth::rotation;
use lib::error::Result;
use lib::worker::serve_task;
use serde_json::Value;

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), init, |(), event, _| Box::pin(handle(event)))
}

async fn init() -> Result<()> {
    Ok(())
}

async fn handle(event: Value) -> Result<Value> {
    rotation::run(&serde_json::from_value(event)?).await?;
    Ok(Value::Null)
}
