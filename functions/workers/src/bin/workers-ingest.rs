//! Events queue: writes the events of each batch into ClickHouse.

use std::process::ExitCode;

use lib::analytics::ingest::Ingest;
use lib::error::Result;
use lib::worker::{Message, serve_batches};

fn main() -> ExitCode {
    serve_batches(env!("CARGO_BIN_NAME"), Ingest::init, |ingest, messages| Box::pin(handle(ingest, messages)))
}

async fn handle(ingest: &Ingest, messages: Vec<Message>) -> Result<Vec<String>> {
    Ok(ingest.batch(&messages).await)
}
