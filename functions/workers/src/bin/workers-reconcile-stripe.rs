//! Every hour: handles the events of Stripe that no webhook told of, and takes the plans whose grace has ended. Told
//! by `{"atOnce":true}`, it does not wait for webhooks that may still be on their way. What it has no time for is the next
//! run's.

use std::process::ExitCode;
use std::time::Duration;

use lib::billing::service::Billing;
use lib::error::Result;
use lib::worker::serve_task;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Task {
    #[serde(default)]
    at_once: bool,
}

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), Billing::init, |billing, event, time_left| {
        Box::pin(handle(billing, event, time_left))
    })
}

async fn handle(billing: &Billing, event: Value, time_left: Duration) -> Result<Value> {
    let task: Task = serde_json::from_value(event)?;
    Ok(serde_json::to_value(billing.reconcile(task.at_once, time_left).await?)?)
}
