//! `POST /api/auth/forgot-password`: sends a link to set a new password, if the address has an account.

use std::process::ExitCode;

use lib::auth::account::Accounts;
use lib::auth::email::Email;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct ForgotPasswordRequest { email: Email }
}

#[derive(Serialize)]
struct ForgotPasswordResponse {
    status: &'static str,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::CREDENTIALS, Accounts::init, |accounts, request| {
        Box::pin(handle(accounts, request))
    })
}

async fn handle(accounts: &Accounts, request: Request) -> Result<Response> {
    let ForgotPasswordRequest { email } = request.json()?;
    accounts.forgot_password(&email, &request.visit()).await?;
    Response::ok(&ForgotPasswordResponse { status: "accepted" })
}
