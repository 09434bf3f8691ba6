//! `GET /.well-known/jwks.json`: the public keys that access tokens are signed with.

use std::process::ExitCode;

use lib::auth::jwt::Keys;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::OPEN, Keys::init, |keys, request| Box::pin(handle(keys, request)))
}

async fn handle(keys: &Keys, _request: Request) -> Result<Response> {
    Ok(Response::ok(&keys.jwks()?)?.with("cache-control", "public, max-age=300"))
}
