//! `GET /api/billing/usage`: tokens and cost of the month against the plan.

use std::process::ExitCode;

use lib::billing::usage;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use lib::store::postgres::Database;

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Database::init, |database, request| Box::pin(handle(database, request)))
}

async fn handle(database: &Database, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    Response::ok(&usage::report(database, user_id).await?)
}
