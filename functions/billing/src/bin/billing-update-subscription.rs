//! `PUT /api/billing/subscriptions/{id}`: moves a subscription to a plan, or undoes its cancellation.

use std::process::ExitCode;

use lib::auth::limits::Limits;
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

struct Context {
    billing: Billing,
    limits: Limits,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, init, |context, request| Box::pin(handle(context, request)))
}

async fn init() -> Result<Context> {
    Ok(Context { billing: Billing::init().await?, limits: Limits::from_env()? })
}

async fn handle(context: &Context, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let id = request.id_parameter("subscription")?;
    let UpdateSubscriptionRequest { plan } = request.json()?;
    let Context { billing, limits } = context;
    let subscription = billing.change_plan(user_id, id, plan.0, limits, &request.trace).await?;
    Response::ok(&UpdateSubscriptionResponse { subscription })
}
