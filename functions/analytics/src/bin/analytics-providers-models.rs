//! `GET /api/analytics/providers/{provider}/models`: the models of a provider.

use std::process::ExitCode;

use lib::analytics::providers::Provider;
use lib::analytics::report::{Query, Reports};
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Reports::init, |reports, request| Box::pin(handle(reports, request)))
}

async fn handle(reports: &Reports, request: Request) -> Result<Response> {
    request.admin()?;
    let (query, Provider(provider)) = Query::within(&request, "provider")?;
    reports.reply(&request, &query, reports.providers_models(&query, provider)).await
}
