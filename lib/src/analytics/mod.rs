//! Figures over events, from ClickHouse: how events get there, and what is read from them.

pub use event_codec::{block, delivery, event};

pub mod chat;
pub mod ingest;
pub mod metrics;
pub mod providers;
pub mod reconcile;
pub mod report;
pub mod revenue;
pub mod users;
pub mod writer;
pub mod writer_lock;
