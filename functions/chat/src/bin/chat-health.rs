//! `GET /api/chat/health`: whether what the chat routes depend on is up.

use std::process::ExitCode;

use lib::error::Result;
use lib::health::Health;
use lib::http::{Policy, Request, Response, serve};

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::HEALTH, Health::init, |health, request| Box::pin(handle(health, request)))
}

async fn handle(health: &Health, _request: Request) -> Result<Response> {
    health.report().await
}
