//! `GET /api/billing/subscriptions`: a user's subscriptions, newest first.

use std::process::ExitCode;

use lib::billing::subscription::{self, Subscription};
use lib::error::Result;
use lib::http::page::{Cursor, Limit};
use lib::http::{Policy, Request, Response, serve};
use lib::store::postgres::Database;
use serde::Serialize;

lib::request! {
    struct ListSubscriptionsQuery { limit: Limit, cursor: Option<Cursor> }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListSubscriptionsResponse {
    subscriptions: Vec<Subscription>,
    next_cursor: Option<String>,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Database::init, |database, request| Box::pin(handle(database, request)))
}

async fn handle(database: &Database, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let ListSubscriptionsQuery { limit, cursor } = request.query()?;
    let (subscriptions, next_cursor) = subscription::list(database, user_id, limit, cursor).await?;
    Response::ok(&ListSubscriptionsResponse { subscriptions, next_cursor })
}
