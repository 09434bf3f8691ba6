//! `POST /api/auth/change-password`: sets a new password and ends the user's other sessions.

use std::process::ExitCode;

use lib::auth::account::Accounts;
use lib::auth::password::{NewPassword, Password};
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct ChangePasswordRequest { current_password: Password, new_password: NewPassword }
}

#[derive(Serialize)]
struct ChangePasswordResponse {
    status: &'static str,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::CREDENTIALS, Accounts::init, |accounts, request| {
        Box::pin(handle(accounts, request))
    })
}

async fn handle(accounts: &Accounts, request: Request) -> Result<Response> {
    let session = &request.user()?.session;
    let ChangePasswordRequest { current_password, new_password } = request.json()?;
    accounts.change_password(session.user_id, session.id, current_password, new_password, &request.visit()).await?;
    Response::ok(&ChangePasswordResponse { status: "password_changed" })
}
