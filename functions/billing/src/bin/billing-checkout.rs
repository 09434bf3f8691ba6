//! `POST /api/billing/checkout`: a page of Stripe on which to subscribe.

use std::process::ExitCode;

use lib::billing::service::Billing;
use lib::billing::subscription::PaidPlan;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct CheckoutRequest { plan: PaidPlan }
}

#[derive(Serialize)]
struct CheckoutResponse {
    url: String,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Billing::init, |billing, request| Box::pin(handle(billing, request)))
}

async fn handle(billing: &Billing, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let CheckoutRequest { plan } = request.json()?;
    Response::created(&CheckoutResponse { url: billing.checkout(user_id, plan.0, &request.trace).await? })
}
