//! `GET /api/analytics/providers/performance`: speed and errors by provider.

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
    reports.reply(&request, &query, reports.providers_performance(&query)).await
}
