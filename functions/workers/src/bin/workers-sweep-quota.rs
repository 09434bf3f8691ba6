//! Every minute: releases the tokens that were set aside by functions that died.

use std::process::ExitCode;

use lib::chat::quota;
use lib::error::Result;
use lib::store::postgres::Database;
use lib::worker::serve_task;
use serde_json::Value;

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), Database::init, |database, event| Box::pin(handle(database, event)))
}

async fn handle(database: &Database, _event: Value) -> Result<Value> {
    Ok(serde_json::to_value(quota::sweep(database.pool()).await?)?)
}
