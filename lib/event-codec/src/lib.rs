//! Events on their way from a message to ClickHouse. A crate of its own because it is compiled for speed where all
//! else is compiled for size: an ingest worker does this ten thousand times a batch.

pub mod block;
pub mod delivery;
pub mod event;
