//! `GET /`: what this is and where its documentation is.

use std::process::ExitCode;

use lib::error::Result;
use lib::http::{Policy, Request, Response, no_context, serve};
use serde::Serialize;

#[derive(Serialize)]
struct RootResponse {
    name: &'static str,
    version: &'static str,
    links: Links,
}

#[derive(Serialize)]
struct Links {
    docs: String,
    openapi: String,
    health: String,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::OPEN, no_context, |(), request| Box::pin(handle(request)))
}

async fn handle(request: Request) -> Result<Response> {
    let link = |path: &str| format!("{}{path}", request.base_path);
    Response::ok(&RootResponse {
        name: "AI chat API",
        version: env!("CARGO_PKG_VERSION"),
        links: Links { docs: link("/docs"), openapi: link("/openapi.json"), health: link("/health") },
    })
}
