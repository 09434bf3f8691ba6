//! `GET /api/billing/invoices`: a user's invoices, newest first.

use std::process::ExitCode;

use lib::billing::invoice::{self, Invoice};
use lib::error::Result;
use lib::http::page::{Cursor, Limit};
use lib::http::{Policy, Request, Response, serve};
use lib::store::postgres::Database;
use serde::Serialize;

lib::request! {
    struct ListInvoicesQuery { limit: Limit, cursor: Option<Cursor> }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListInvoicesResponse {
    invoices: Vec<Invoice>,
    next_cursor: Option<String>,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Database::init, |database, request| Box::pin(handle(database, request)))
}

async fn handle(database: &Database, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let ListInvoicesQuery { limit, cursor } = request.query()?;
    let (invoices, next_cursor) = invoice::list(database, user_id, limit, cursor).await?;
    Response::ok(&ListInvoicesResponse { invoices, next_cursor })
}
