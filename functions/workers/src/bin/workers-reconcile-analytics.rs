//! Every night: compares the views with the raw events and rebuilds what differs; `{"days":36500}` compares all. Where the
//! time is too short, the reply has the payload that goes on. Forgets the dead letters that no queue has any more.

use std::process::ExitCode;
use std::time::Duration;

use lib::analytics::reconcile::{Reconciler, Task};
use lib::error::Result;
use lib::worker::serve_task;
use serde_json::Value;

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), Reconciler::init, |reconciler, event, time_left| {
        Box::pin(handle(reconciler, event, time_left))
    })
}

async fn handle(reconciler: &Reconciler, event: Value, time_left: Duration) -> Result<Value> {
    let task: Task = serde_json::from_value(event)?;
    Ok(serde_json::to_value(reconciler.run(&task, time_left).await?)?)
}
