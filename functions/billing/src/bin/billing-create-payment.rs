//! `POST /api/billing/payments`: charges a card, once for all tries of a request.

use std::process::ExitCode;

use lib::auth::limits::Limits;
use lib::billing::payment::{NewPayment, Payment};
use lib::billing::service::Billing;
use lib::clock;
use lib::error::Result;
use lib::http::idempotency::{Idempotency, Key};
use lib::http::validate::both;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatePaymentResponse {
    payment: Payment,
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
    let (new, key): (NewPayment, _) = both(request.json(), Key::of(&request))?;
    let (new, trace) = (&new, &request.trace);
    context
        .idempotency
        .once(&request, key, async |operation| {
            let charge = context.billing.pay(user_id, new, operation, trace);
            let (payment, client_secret) = context.limits.card(user_id, clock::now(), charge).await?;
            Response::created(&CreatePaymentResponse { payment, client_secret })
        })
        .await
}
