//! `POST /api/auth/signout`: ends the session, or with `?all=true` every session of the user.

use std::process::ExitCode;

use lib::auth::sign_out::SignOut;
use lib::error::Result;
use lib::http::credentials::{self, Credential};
use lib::http::{Policy, Request, Response, serve};

lib::request! {
    struct SignoutQuery { all: Option<bool> }
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::CREDENTIALS_UNLIMITED, SignOut::init, |sign_out, request| {
        Box::pin(handle(sign_out, request))
    })
}

async fn handle(sign_out: &SignOut, request: Request) -> Result<Response> {
    let SignoutQuery { all } = request.query()?;
    let cookie = Credential::cookie(&request.headers);
    let outcome = sign_out.sign_out(request.user(), cookie, all.unwrap_or(false), &request.visit()).await;
    credentials::signed_out(outcome, &request.id)
}
