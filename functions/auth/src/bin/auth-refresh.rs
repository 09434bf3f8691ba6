//! `POST /api/auth/refresh`: a new access token for a session token, which is replaced by its successor.

use std::process::ExitCode;

use lib::auth::refresh::Refresh;
use lib::error::{Error, Result};
use lib::http::credentials::{self, Credential};
use lib::http::{Policy, Request, Response, serve};

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::CREDENTIALS, Refresh::init, |refresh, request| {
        Box::pin(handle(refresh, request))
    })
}

async fn handle(refresh: &Refresh, request: Request) -> Result<Response> {
    // The runner refuses replaced tokens; here they may still be within their grace.
    let credential = Credential::session(&request.headers).ok_or_else(Error::unauthenticated)?;
    let refreshed = refresh.refresh(&credential).await?;
    credentials::refreshed(&refreshed.session, &refreshed.session_token, &refreshed.access_token, &credential)
}
