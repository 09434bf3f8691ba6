//! `POST /api/auth/signin`: checks an e-mail address and a password and starts a session.

use std::process::ExitCode;

use lib::auth::account::Accounts;
use lib::auth::email::Email;
use lib::auth::password::Password;
use lib::error::Result;
use lib::http::credentials::{self, Transport};
use lib::http::{Policy, Request, Response, serve};

lib::request! {
    struct SigninRequest { email: Email, password: Password, transport: Transport }
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::CREDENTIALS, Accounts::init, |accounts, request| {
        Box::pin(handle(accounts, request))
    })
}

async fn handle(accounts: &Accounts, request: Request) -> Result<Response> {
    let SigninRequest { email, password, transport } = request.json()?;
    let replaces = request.user_if_any().map(|caller| (caller.session.user_id, caller.session.id));
    let signed_in = accounts.sign_in(&email, password, replaces, &request.visit()).await?;
    credentials::signed_in(http::StatusCode::OK, &signed_in, transport)
}
