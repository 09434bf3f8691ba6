//! `POST /api/auth/resend-verification`: sends another verification mail, if the address has an account that needs one.

use std::process::ExitCode;

use lib::auth::account::Accounts;
use lib::auth::email::Email;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct ResendVerificationRequest { email: Email }
}

#[derive(Serialize)]
struct ResendVerificationResponse {
    status: &'static str,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::CREDENTIALS, Accounts::init, |accounts, request| {
        Box::pin(handle(accounts, request))
    })
}

async fn handle(accounts: &Accounts, request: Request) -> Result<Response> {
    let ResendVerificationRequest { email } = request.json()?;
    accounts.resend_verification(&email, &request.visit()).await?;
    Response::ok(&ResendVerificationResponse { status: "accepted" })
}
