//! Every minute: sends the messages whose function could not send them after its commit.

use std::process::ExitCode;

use lib::error::Result;
use lib::events::outbox::{self, Dispatcher};
use lib::store::postgres::Database;
use lib::worker::serve_task;
use serde_json::Value;

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), init, |dispatcher, event, _| Box::pin(handle(dispatcher, event)))
}

async fn init() -> Result<Dispatcher> {
    Dispatcher::from_env(Database::init().await?.pool().clone())
}

async fn handle(dispatcher: &Dispatcher, _event: Value) -> Result<Value> {
    Ok(serde_json::to_value(outbox::relay(dispatcher).await?)?)
}
