//! `GET /api/auth/me`: the user whose session it is.

use std::process::ExitCode;

use lib::auth::account::{User, Users};
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

#[derive(Serialize)]
struct MeResponse {
    user: User,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Users::init, |users, request| Box::pin(handle(users, request)))
}

async fn handle(users: &Users, request: Request) -> Result<Response> {
    let user = users.get(request.user()?.user_id()).await?;
    Response::ok(&MeResponse { user })
}
