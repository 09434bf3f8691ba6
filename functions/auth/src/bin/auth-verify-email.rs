//! `POST /api/auth/verify-email`: proves an e-mail address by the token of the mail.

use std::process::ExitCode;

use lib::auth::account::{Accounts, User};
use lib::auth::one_time::OneTimeToken;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct VerifyEmailRequest { token: OneTimeToken }
}

#[derive(Serialize)]
struct VerifyEmailResponse {
    user: User,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::CREDENTIALS, Accounts::init, |accounts, request| {
        Box::pin(handle(accounts, request))
    })
}

async fn handle(accounts: &Accounts, request: Request) -> Result<Response> {
    let VerifyEmailRequest { token } = request.json()?;
    let user = accounts.verify_email(&token, &request.visit()).await?;
    Response::ok(&VerifyEmailResponse { user })
}
