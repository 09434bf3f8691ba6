//! Ingestion and figures against the real Postgres and ClickHouse, by way of the library.

mod ingest;
mod proxy;
mod stores;
