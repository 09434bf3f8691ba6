//! `GET /api/chat/{id}/stream`: the stream under way in a conversation, the way the AI SDK asks for it.

use std::process::ExitCode;

use lib::chat::live::Streams;
use lib::chat::request::respond;
use lib::chat::stream::Protocol;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve_streaming};

fn main() -> ExitCode {
    serve_streaming(env!("CARGO_BIN_NAME"), Policy::API, Streams::init, |streams, request| {
        Box::pin(handle(streams, request))
    })
}

async fn handle(streams: &Streams, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let name = request.parameter("id")?;
    let rest = streams.resume_latest(user_id, name, request.time_left).await?;
    Ok(rest.map_or_else(Response::no_content, |chunks| respond(Protocol::AiSdk, chunks)))
}
