//! `GET /api/analytics/users/retention`: who of each cohort came back.

use std::process::ExitCode;

use lib::analytics::report::{Query, Reports};
use lib::analytics::users::CohortBy;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};

lib::request! {
    struct RetentionQuery { cohort: CohortBy }
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Reports::init, |reports, request| Box::pin(handle(reports, request)))
}

async fn handle(reports: &Reports, request: Request) -> Result<Response> {
    request.admin()?;
    let (query, RetentionQuery { cohort }) = Query::with(&request)?;
    reports.reply(&request, &query, reports.users_retention(&query, cohort)).await
}
