//! Events queue: writes the events of each batch into ClickHouse.

use std::process::ExitCode;

use lib::analytics::delivery::Record;
use lib::analytics::ingest::Ingest;
use lib::error::Result;
use lib::worker::{Instant, serve_batches};

fn main() -> ExitCode {
    serve_batches(env!("CARGO_BIN_NAME"), Ingest::init, |ingest, records, end| Box::pin(handle(ingest, records, end)))
}

async fn handle(ingest: &Ingest, records: &[Record<'_>], end: Instant) -> Result<Vec<String>> {
    Ok(ingest.batch(records, end).await)
}
