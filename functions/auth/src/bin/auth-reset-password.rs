//! `POST /api/auth/reset-password`: sets a new password by the token of the mail and ends every session.

use std::process::ExitCode;

use lib::auth::account::Accounts;
use lib::auth::one_time::OneTimeToken;
use lib::auth::password::NewPassword;
use lib::error::Result;
use lib::http::validate::{Fields, FromFields, Invalid};
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

struct ResetPasswordRequest {
    token: OneTimeToken,
    /// The name under which the password came.
    field: &'static str,
    password: NewPassword,
}

impl FromFields for ResetPasswordRequest {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let token = fields.read("token");
        let password: Option<Option<NewPassword>> = fields.read("password");
        let new_password: Option<Option<NewPassword>> = fields.read("new_password");
        let (field, password) = match (password?, new_password?) {
            (Some(password), _) => ("password", password),
            (None, Some(password)) => ("newPassword", password),
            (None, None) => {
                fields.refuse("password", Invalid::required());
                return None;
            }
        };
        Some(Self { token: token?, field, password })
    }
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
    let ResetPasswordRequest { token, field, password } = request.json()?;
    accounts.reset_password(&token, field, password, &request.visit()).await?;
    Response::ok(&ResetPasswordResponse { status: "password_reset" })
}
