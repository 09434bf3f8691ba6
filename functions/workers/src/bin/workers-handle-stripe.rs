//! Stripe queue: reads each object that a webhook told of and brings the mirror up to it.

use std::process::ExitCode;

use lib::billing::service::Billing;
use lib::error::Result;
use lib::worker::{Message, serve_queue};

fn main() -> ExitCode {
    serve_queue(env!("CARGO_BIN_NAME"), Billing::init, |billing, message| Box::pin(handle(billing, message)))
}

async fn handle(billing: &Billing, message: Message) -> Result<()> {
    billing.handle(&message.json()?).await
}
