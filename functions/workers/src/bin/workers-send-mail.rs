//! Mail queue: renders each mail and sends it by SES.

use std::process::ExitCode;

use lib::error::Result;
use lib::mail::Mailer;
use lib::worker::{Message, serve_queue};

fn main() -> ExitCode {
    serve_queue(env!("CARGO_BIN_NAME"), Mailer::init, |mailer, message| Box::pin(handle(mailer, message)))
}

async fn handle(mailer: &Mailer, message: Message) -> Result<()> {
    mailer.send(&message.json()?, message.time_left()).await
}
