//! `GET /metrics`: totals over all functions in Prometheus's text format.

use std::process::ExitCode;

use lib::analytics::metrics::Metrics;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::UNLIMITED, Metrics::init, |metrics, request| {
        Box::pin(handle(metrics, request))
    })
}

async fn handle(metrics: &Metrics, request: Request) -> Result<Response> {
    metrics.authorise(&request)?;
    let text = metrics.render().await?;
    let response = Response::text(http::StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text);
    Ok(response.with("cache-control", "no-store"))
}
