//! `GET /docs`: a page that renders the description of this API and loads nothing from other hosts.

use std::process::ExitCode;

use lib::error::Result;
use lib::http::{Policy, Request, Response, no_context, serve};

const PAGE: &str = include_str!(concat!(env!("OUT_DIR"), "/docs.html"));
const PAGE_GZIP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/docs.html.gz"));
/// Allows the page's own scripts and style, by their hashes.
const POLICY: &str = include_str!(concat!(env!("OUT_DIR"), "/docs.policy"));

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::OPEN, no_context, |(), request| Box::pin(handle(request)))
}

async fn handle(request: Request) -> Result<Response> {
    let response =
        if accepts_gzip(&request) { page(PAGE_GZIP).with("content-encoding", "gzip") } else { page(PAGE.as_bytes()) };
    Ok(response
        .with("content-security-policy", POLICY)
        .with("cache-control", "public, max-age=300")
        .with("vary", "Accept-Encoding"))
}

fn page(body: &'static [u8]) -> Response {
    Response::text(http::StatusCode::OK, "text/html; charset=utf-8", body)
}

fn accepts_gzip(request: &Request) -> bool {
    let accepted = request.header("accept-encoding").unwrap_or_default();
    accepted.split(',').any(|encoding| {
        let (name, quality) = encoding.split_once(';').unwrap_or((encoding, ""));
        name.trim().eq_ignore_ascii_case("gzip") && quality.trim().trim_start_matches("q=").parse() != Ok(0.0)
    })
}
