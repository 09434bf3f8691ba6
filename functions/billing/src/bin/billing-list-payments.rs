//! `GET /api/billing/payments`: a user's payments, newest first.

use std::process::ExitCode;

use lib::billing::payment::{self, Payment};
use lib::error::Result;
use lib::http::page::{Cursor, Limit};
use lib::http::{Policy, Request, Response, serve};
use lib::store::postgres::Database;
use serde::Serialize;

lib::request! {
    struct ListPaymentsQuery { limit: Limit, cursor: Option<Cursor> }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListPaymentsResponse {
    payments: Vec<Payment>,
    next_cursor: Option<String>,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Database::init, |database, request| Box::pin(handle(database, request)))
}

async fn handle(database: &Database, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let ListPaymentsQuery { limit, cursor } = request.query()?;
    let (payments, next_cursor) = payment::list(database, user_id, limit, cursor).await?;
    Response::ok(&ListPaymentsResponse { payments, next_cursor })
}
