//! Every night: compares the views with the raw events and rebuilds what differs; `{"days":36500}` compares all.

use std::process::ExitCode;

use lib::analytics::reconcile::{Reconciler, Task};
use lib::error::Result;
use lib::worker::serve_task;
use serde_json::Value;

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), Reconciler::init, |reconciler, event| Box::pin(handle(reconciler, event)))
}

async fn handle(reconciler: &Reconciler, event: Value) -> Result<Value> {
    let task: Task = serde_json::from_value(event)?;
    Ok(serde_json::to_value(reconciler.run(task.days).await?)?)
}
