//! Every minute: releases the tokens that were set aside by functions that died. Every night, told by
//! `{"audit":true}`: compares the quotas with the ledger.

use std::process::ExitCode;

use lib::chat::quota;
use lib::error::Result;
use lib::store::postgres::Database;
use lib::worker::serve_task;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Task {
    #[serde(default)]
    audit: bool,
}

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), Database::init, |database, event, _| Box::pin(handle(database, event)))
}

async fn handle(database: &Database, event: Value) -> Result<Value> {
    let task: Task = serde_json::from_value(event)?;
    if task.audit {
        return Ok(serde_json::to_value(quota::audit(database.pool()).await?)?);
    }
    Ok(serde_json::to_value(quota::sweep(database.pool()).await?)?)
}
