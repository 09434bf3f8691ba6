//! `GET /openapi.json`: the description of this API.

use std::process::ExitCode;

use lib::error::Result;
use lib::http::{Policy, Request, Response, no_context, serve};

const DESCRIPTION: &str = include_str!(concat!(env!("OUT_DIR"), "/openapi.json"));

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::OPEN, no_context, |(), request| Box::pin(handle(request)))
}

async fn handle(_request: Request) -> Result<Response> {
    let response = Response::text(http::StatusCode::OK, "application/json", DESCRIPTION);
    Ok(response.with("cache-control", "public, max-age=300"))
}
