//! Invoked by the deploy: brings the schemas of Postgres and ClickHouse up to date.

use std::process::ExitCode;

use lib::error::Result;
use lib::migrate::Migrations;
use lib::worker::serve_task;
use serde_json::Value;

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), Migrations::init, |migrations, event| Box::pin(handle(migrations, event)))
}

async fn handle(migrations: &Migrations, event: Value) -> Result<Value> {
    Ok(serde_json::to_value(migrations.run(&event).await?)?)
}
