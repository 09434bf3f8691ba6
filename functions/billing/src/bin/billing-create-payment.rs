//! `POST /api/billing/payments`: charges a card, once for all tries of a request.

use std::process::ExitCode;

use lib::auth::limits::Limits;
use lib::billing::payment::{Amount, Currency, Description, NewPayment, Payment, PaymentMethod};
use lib::billing::service::Billing;
use lib::clock;
use lib::error::Result;
use lib::http::idempotency::Idempotency;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct CreatePaymentRequest {
        amount: Amount,
        currency: Currency,
        payment_method_id: PaymentMethod,
        description: Option<Description>,
    }
}

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
    let CreatePaymentRequest { amount, currency, payment_method_id: method, description } = request.json()?;
    let (new, trace) = (&NewPayment::new(amount, currency, method, description)?, &request.trace);
    context
        .idempotency
        .once(&request, async |work| {
            let charge = context.billing.pay(user_id, new, work, trace);
            let (payment, client_secret) = context.limits.card(user_id, clock::now(), charge).await?;
            Response::created(&CreatePaymentResponse { payment, client_secret })
        })
        .await
}
