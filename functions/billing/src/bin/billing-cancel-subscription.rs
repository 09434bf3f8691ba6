//! `DELETE /api/billing/subscriptions/{id}`: ends a subscription with its period, or at once.

use std::process::ExitCode;

use lib::billing::service::Billing;
use lib::billing::subscription::Subscription;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct CancelSubscriptionQuery { immediately: Option<bool> }
}

#[derive(Serialize)]
struct CancelSubscriptionResponse {
    subscription: Subscription,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Billing::init, |billing, request| Box::pin(handle(billing, request)))
}

async fn handle(billing: &Billing, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let id = request.id_parameter("subscription")?;
    let CancelSubscriptionQuery { immediately } = request.query()?;
    let subscription = billing.cancel(user_id, id, immediately.unwrap_or(false), &request.trace).await?;
    Response::ok(&CancelSubscriptionResponse { subscription })
}
