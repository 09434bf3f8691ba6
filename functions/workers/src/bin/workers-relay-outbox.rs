//! Every minute: sends the messages whose function could not send them after its commit, for as long as there is time.

use std::process::ExitCode;
use std::time::Duration;

use lib::error::Result;
use lib::events::outbox::{self, Dispatcher};
use lib::store::postgres::Database;
use lib::worker::serve_task;
use serde_json::Value;

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), init, |dispatcher, event, time_left| {
        Box::pin(handle(dispatcher, event, time_left))
    })
}

async fn init() -> Result<Dispatcher> {
    Dispatcher::from_env(Database::init().await?.pool().clone())
}

async fn handle(dispatcher: &Dispatcher, _event: Value, time_left: Duration) -> Result<Value> {
    Ok(serde_json::to_value(outbox::relay(dispatcher, time_left).await?)?)
}
