//! `OPTIONS` on every route answers CORS preflights; anything else that no route takes is a 404.

use std::process::ExitCode;

use lib::error::{Code, Error, Result};
use lib::http::cors::Origins;
use lib::http::{Policy, Request, Response, serve};

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::OPEN, Origins::init, |origins, request| Box::pin(handle(origins, request)))
}

async fn handle(origins: &Origins, request: Request) -> Result<Response> {
    if request.method != http::Method::OPTIONS {
        return Err(Error::new(Code::RouteNotFound, "No route takes this method and path."));
    }
    let mut response = Response::no_content();
    origins.preflight(&request.headers, &mut response.headers);
    Ok(response)
}
