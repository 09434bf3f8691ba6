//! Figures over events, from ClickHouse: how events get there, and what is read from them.

pub mod block;
pub mod chat;
pub mod event;
pub mod ingest;
pub mod metrics;
pub mod providers;
pub mod reconcile;
pub mod report;
pub mod revenue;
pub mod turn;
pub mod users;
pub mod writer;
