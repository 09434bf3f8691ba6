//! `POST /api/auth/reset-password`: sets a new password by the token of the mail and ends every session.

use std::process::ExitCode;

use lib::auth::account::Accounts;
use lib::auth::one_time::OneTimeToken;
use lib::auth::password::NewPassword;
use lib::error::{Error, Result};
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct ResetPasswordRequest { token: OneTimeToken, password: Option<NewPassword>, new_password: Option<NewPassword> }
}

#[derive(Serialize)]
struct ResetPasswordResponse {
    status: &'static str,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::CREDENTIALS, Accounts::init, |accounts, request| {
        Box::pin(handle(accounts, request))
    })
}

async fn handle(accounts: &Accounts, request: Request) -> Result<Response> {
    let ResetPasswordRequest { token, password, new_password } = request.json()?;
    let (field, new) = match (password, new_password) {
        (Some(password), _) => ("password", password),
        (None, Some(password)) => ("newPassword", password),
        (None, None) => return Err(Error::invalid_field("password", "required", "Is required.")),
    };
    accounts.reset_password(&token, field, new, &request.visit()).await?;
    Response::ok(&ResetPasswordResponse { status: "password_reset" })
}
