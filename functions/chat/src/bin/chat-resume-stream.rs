//! `GET /api/chat/streams/{id}`: the events of a stream after the last one that the client has.

use std::process::ExitCode;

use lib::chat::live::Streams;
use lib::chat::request::{AnswerQuery, respond};
use lib::chat::stream;
use lib::error::Result;
use lib::http::validate::both;
use lib::http::{Policy, Request, Response, serve_streaming};

fn main() -> ExitCode {
    serve_streaming(env!("CARGO_BIN_NAME"), Policy::API, Streams::init, |streams, request| {
        Box::pin(handle(streams, request))
    })
}

async fn handle(streams: &Streams, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let stream_id = request.id_parameter("stream")?;
    let after = stream::last_event_id(request.headers.get("last-event-id"));
    let (query, after): (AnswerQuery, _) = both(request.query(), after)?;
    let protocol = query.protocol();
    let rest = streams.resume(user_id, stream_id, after, protocol, request.time_left).await?;
    Ok(rest.map_or_else(Response::no_content, |chunks| respond(protocol, chunks)))
}
