//! `POST /api/billing/portal`: a page of Stripe on which to manage cards, invoices and the subscription.

use std::process::ExitCode;

use lib::billing::service::Billing;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

#[derive(Serialize)]
struct PortalResponse {
    url: String,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Billing::init, |billing, request| Box::pin(handle(billing, request)))
}

async fn handle(billing: &Billing, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    Response::created(&PortalResponse { url: billing.portal(user_id).await? })
}
