//! `POST /api/billing/subscriptions`: subscribes to a plan, once for all tries of a request.

use std::process::ExitCode;

use lib::auth::limits::Limits;
use lib::billing::payment::PaymentMethod;
use lib::billing::service::Billing;
use lib::billing::subscription::{PaidPlan, Subscription};
use lib::clock;
use lib::error::Result;
use lib::http::idempotency::{Idempotency, Key};
use lib::http::validate::both;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct CreateSubscriptionRequest { plan: PaidPlan, payment_method_id: Option<PaymentMethod> }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreateSubscriptionResponse {
    subscription: Subscription,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret: Option<String>,
}

struct Context {
    billing: Billing,
    limits: Limits,
    idempotency: Idempotency,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, init, |context, request| Box::pin(handle(context, request)))
}

async fn init() -> Result<Context> {
    Ok(Context { billing: Billing::init().await?, limits: Limits::from_env()?, idempotency: Idempotency::from_env()? })
}

async fn handle(context: &Context, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let (CreateSubscriptionRequest { plan, payment_method_id }, key) = both(request.json(), Key::of(&request))?;
    let (method, trace) = (payment_method_id.as_ref(), &request.trace);
    context
        .idempotency
        .once(&request, key, async |operation| {
            let subscribing = context.billing.subscribe(user_id, plan.0, method, operation, trace);
            let (subscription, client_secret) = match method {
                Some(_) => context.limits.card(user_id, clock::now(), subscribing).await?,
                None => subscribing.await?,
            };
            Response::created(&CreateSubscriptionResponse { subscription, client_secret })
        })
        .await
}
