//! `GET /api/analytics/users/top`: the users with most messages.

use std::process::ExitCode;

use lib::analytics::report::{Query, Reports};
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Reports::init, |reports, request| Box::pin(handle(reports, request)))
}

async fn handle(reports: &Reports, request: Request) -> Result<Response> {
    request.admin()?;
    let query = Query::of(&request)?;
    let reply = reports.reply(&request, &query, reports.users_top(&query)).await?;
    // The other figures name nobody.
    Ok(reply.with("cache-control", "no-store"))
}
