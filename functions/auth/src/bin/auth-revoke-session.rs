//! `DELETE /api/auth/sessions/{id}`: ends one of the user's sessions.

use std::process::ExitCode;

use lib::auth::session::Sessions;
use lib::error::{Code, Error, Result};
use lib::http::{Policy, Request, Response, credentials, serve};

fn main() -> ExitCode {
    serve(
        env!("CARGO_BIN_NAME"),
        Policy::CREDENTIALS,
        || async { Sessions::from_env() },
        |sessions, request| Box::pin(handle(sessions, request)),
    )
}

async fn handle(sessions: &Sessions, request: Request) -> Result<Response> {
    let current = &request.user()?.session;
    let id = request.id_parameter("session")?;
    // Not told by what is deleted: a deletion whose answer got lost is repeated, and finds nothing.
    sessions.find(current.user_id, id).await.map_err(|error| match error.code() {
        Code::SessionExpired => Error::not_found("session"),
        _ => error,
    })?;
    sessions.end(current.user_id, id).await?;
    let response = Response::no_content();
    Ok(if id == current.id { response.with_cookie(&credentials::clear_cookie()?) } else { response })
}
