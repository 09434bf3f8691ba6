//! `GET /`: what this is and where its documentation is.

use std::process::ExitCode;

use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

#[derive(Serialize)]
struct RootResponse {
    name: &'static str,
    version: &'static str,
    links: Links,
}

#[derive(Serialize)]
struct Links {
    docs: &'static str,
    openapi: &'static str,
    health: &'static str,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::OPEN, || async { Ok(()) }, |(), request| Box::pin(handle(request)))
}

async fn handle(_request: Request) -> Result<Response> {
    Response::ok(&RootResponse {
        name: "AI chat API",
        version: env!("CARGO_PKG_VERSION"),
        links: Links { docs: "/docs", openapi: "/openapi.json", health: "/health" },
    })
}
