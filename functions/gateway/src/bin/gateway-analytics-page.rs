//! `GET /admin/analytics`: a page that draws the figures for an admin who signs in on it.

use std::process::ExitCode;

use lib::error::Result;
use lib::http::{Policy, Request, Response, no_context, serve};

const PAGE: &str = include_str!(concat!(env!("OUT_DIR"), "/analytics.html"));
/// Allows the page's own scripts and style, by their hashes.
const POLICY: &str = include_str!(concat!(env!("OUT_DIR"), "/analytics.policy"));

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::OPEN, no_context, |(), request| Box::pin(handle(request)))
}

async fn handle(_request: Request) -> Result<Response> {
    Ok(Response::text(http::StatusCode::OK, "text/html; charset=utf-8", PAGE)
        .with("content-security-policy", POLICY)
        .with("cache-control", "public, max-age=300"))
}
