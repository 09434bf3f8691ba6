//! The stores: Postgres for business data, DynamoDB for short-lived state, SQS for what happens later,
//! ClickHouse for analytics.

pub mod clickhouse;
pub mod dynamo;
pub mod postgres;
pub mod queue;
