//! Figures over events, from ClickHouse: how events get there, and what is read from them.

pub mod block;
pub mod event;
pub mod ingest;
pub mod metrics;
pub mod report;
pub mod turn;
pub mod users;
pub mod writer;
