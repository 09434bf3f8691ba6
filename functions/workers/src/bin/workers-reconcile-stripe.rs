//! Every hour: handles the events of Stripe that no webhook told of, and takes the plans whose grace has ended.

use std::process::ExitCode;

use lib::billing::service::Billing;
use lib::error::Result;
use lib::worker::serve_task;
use serde_json::Value;

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), Billing::init, |billing, event| Box::pin(handle(billing, event)))
}

async fn handle(billing: &Billing, _event: Value) -> Result<Value> {
    Ok(serde_json::to_value(billing.reconcile().await?)?)
}
