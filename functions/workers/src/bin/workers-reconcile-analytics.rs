//! Every night: compares the views with the raw events and rebuilds what differs; `{"days":36500}` compares all.

use std::process::ExitCode;

use lib::analytics::reconcile::Reconciler;
use lib::error::Result;
use lib::worker::serve_task;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Task {
    /// Compare the months of events that came within so many days.
    #[serde(default = "default_days")]
    days: u32,
}

const fn default_days() -> u32 {
    2
}

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), Reconciler::init, |reconciler, event| Box::pin(handle(reconciler, event)))
}

async fn handle(reconciler: &Reconciler, event: Value) -> Result<Value> {
    let task: Task = serde_json::from_value(event)?;
    Ok(serde_json::to_value(reconciler.run(task.days).await?)?)
}
