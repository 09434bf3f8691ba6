//! `DELETE /api/auth/sessions/{id}`: ends one of the user's sessions.

use std::process::ExitCode;

use lib::auth::session::Sessions;
use lib::error::Result;
use lib::http::{Policy, Request, Response, credentials, serve};

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::CREDENTIALS, Sessions::init, |sessions, request| {
        Box::pin(handle(sessions, request))
    })
}

async fn handle(sessions: &Sessions, request: Request) -> Result<Response> {
    let current = &request.user()?.session;
    let id = request.id_parameter("session")?;
    sessions.revoke(current.user_id, id).await?;
    let response = Response::no_content();
    Ok(if id == current.id { response.with_cookie(&credentials::clear_cookie()?) } else { response })
}
