//! The stores: Postgres for business data, DynamoDB for short-lived state, SQS for what happens later,
//! ClickHouse for analytics.

pub mod clickhouse;
pub(crate) mod counter;
pub mod dynamo;
pub mod postgres;
pub mod queue;

use std::sync::OnceLock;

use futures_util::future::BoxFuture;

/// How the function begins to connect to its database, where it has one.
static CONNECT: OnceLock<fn() -> BoxFuture<'static, ()>> = OnceLock::new();

fn connect_by(connect: fn() -> BoxFuture<'static, ()>) {
    // A process has one database.
    let _ = CONNECT.set(connect);
}

/// Has a new sandbox begin to connect to its database, if its function has one.
pub(crate) async fn connect() {
    if let Some(connect) = CONNECT.get() {
        connect().await;
    }
}
