//! Mail queue: renders each mail and sends it by SES.

mod ses;

use std::process::ExitCode;

use lib::error::Result;
use lib::mail::Mailer;
use lib::worker::{Message, serve_queue};

use crate::ses::Ses;

fn main() -> ExitCode {
    serve_queue(env!("CARGO_BIN_NAME"), init, |mailer, message| Box::pin(handle(mailer, message)))
}

async fn init() -> Result<Mailer<Ses>> {
    Mailer::init(Ses::init()?).await
}

async fn handle(mailer: &Mailer<Ses>, message: Message) -> Result<()> {
    mailer.send(&message.json()?, message.time_left()).await
}
