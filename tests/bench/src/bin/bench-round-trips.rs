//! The round trips of `GET /api/auth/me` and nothing else, with the clients that the functions use. It times
//! them itself, so that no Runtime API is in the figure.

use std::time::Instant;

use aws_sdk_dynamodb::types::ReturnValue;
use lambda_runtime::{Error, LambdaEvent, service_fn};
use lib::store::dynamo::{Table, number, text};
use lib::store::postgres::Database;
use serde_json::{Value, json};
use uuid::Uuid;

struct Clients {
    sessions: Table,
    limits: Table,
    database: Database,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let clients: &'static Clients = Box::leak(Box::new(Clients {
        sessions: Table::from_env("SESSIONS_TABLE")?,
        limits: Table::from_env("RATE_LIMITS_TABLE")?,
        database: Database::init().await?,
    }));
    lambda_runtime::run(service_fn(move |event: LambdaEvent<Value>| handle(clients, event.payload))).await
}

async fn handle(clients: &Clients, event: Value) -> Result<Value, Error> {
    let (user, session) =
        (event["userId"].as_str().unwrap_or_default(), event["sessionId"].as_str().unwrap_or_default());
    let user_id = Uuid::parse_str(user)?;
    let started = Instant::now();
    let session = clients
        .sessions
        .client()
        .get_item()
        .table_name(&clients.sessions.name)
        .key("user_id", text(user))
        .key("session_id", text(session))
        .consistent_read(true)
        .send();
    let count = clients
        .limits
        .client()
        .update_item()
        .table_name(&clients.limits.name)
        .key("pk", text(format!("bench#{user}")))
        .update_expression("ADD #count :one SET expires = :expires")
        .expression_attribute_names("#count", "count")
        .expression_attribute_values(":one", number(1))
        .expression_attribute_values(":expires", number(0))
        .return_values(ReturnValue::UpdatedNew)
        .send();
    let (session, count) = futures_util::future::join(session, count).await;
    let (session, _) = (session?, count?);
    sqlx::query(
        "SELECT id, email, name, role, plan, password_hash, password_version, email_verified_at, created_at
         FROM users WHERE id = $1",
    )
    .bind(user_id)
    .fetch_one(clients.database.pool())
    .await?;
    let micros = started.elapsed().as_micros();
    // Without the item it would not be the same work.
    if session.item.is_none() {
        return Err("the session does not exist".into());
    }
    Ok(json!({ "micros": u64::try_from(micros)? }))
}
