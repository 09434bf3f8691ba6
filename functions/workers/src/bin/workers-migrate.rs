//! Invoked by the deploy: brings the schemas of Postgres and ClickHouse up to date.

use std::process::ExitCode;
use std::time::Duration;

use lib::error::Result;
use lib::migrate::Migrations;
use lib::worker::serve_task;
use serde_json::Value;

fn main() -> ExitCode {
    serve_task(env!("CARGO_BIN_NAME"), Migrations::init, |migrations, event, time_left| {
        Box::pin(handle(migrations, event, time_left))
    })
}

async fn handle(migrations: &Migrations, event: Value, time_left: Duration) -> Result<Value> {
    Ok(serde_json::to_value(migrations.run(&event, time_left).await?)?)
}
