//! `POST /api/billing/webhook`: takes an event of Stripe and queues it.

use std::process::ExitCode;

use lib::billing::webhook::Webhooks;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

#[derive(Serialize)]
struct WebhookResponse {
    received: bool,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::OPEN, Webhooks::init, |webhooks, request| Box::pin(handle(webhooks, request)))
}

async fn handle(webhooks: &Webhooks, request: Request) -> Result<Response> {
    webhooks.receive(&request).await?;
    Response::ok(&WebhookResponse { received: true })
}
