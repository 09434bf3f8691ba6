//! Ingestion and figures against the real Postgres and ClickHouse, by way of the library.

mod figures;
mod history;
mod ingest;
mod metrics;
mod oracle;
mod proxy;
mod reconcile;
mod stores;
