//! `GET /api/billing/plans`: what there is to subscribe to.

use std::process::ExitCode;

use lib::billing::plan::{Plan, Terms};
use lib::error::Result;
use lib::http::{Policy, Request, Response, no_context, serve};
use serde::Serialize;

#[derive(Serialize)]
struct ListPlansResponse {
    plans: [Terms; 3],
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, no_context, |(), request| Box::pin(handle(request)))
}

async fn handle(_request: Request) -> Result<Response> {
    Response::ok(&ListPlansResponse { plans: Plan::ALL.map(Plan::terms) })
}
