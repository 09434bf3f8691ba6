//! `PUT /api/billing/subscriptions/{id}`: moves a subscription to a plan, or undoes its cancellation.

use std::process::ExitCode;

use lib::billing::service::Billing;
use lib::billing::subscription::{PaidPlan, Subscription};
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct UpdateSubscriptionRequest { plan: PaidPlan }
}

#[derive(Serialize)]
struct UpdateSubscriptionResponse {
    subscription: Subscription,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Billing::init, |billing, request| Box::pin(handle(billing, request)))
}

async fn handle(billing: &Billing, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let id = request.id_parameter("id", "subscription")?;
    let UpdateSubscriptionRequest { plan } = request.json()?;
    let subscription = billing.change_plan(user_id, id, plan.0, &request.trace).await?;
    Response::ok(&UpdateSubscriptionResponse { subscription })
}
