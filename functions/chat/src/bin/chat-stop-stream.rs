//! `POST /api/chat/streams/{id}/stop`: ends an answer; what was produced is kept and billed.

use std::process::ExitCode;

use lib::chat::live::Streams;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;
use uuid::Uuid;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StopStreamResponse {
    stream_id: Uuid,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Streams::init, |streams, request| Box::pin(handle(streams, request)))
}

async fn handle(streams: &Streams, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let stream_id = streams.stop(user_id, request.parameter("id")?, request.arrived_at).await?;
    Response::accepted(&StopStreamResponse { stream_id })
}
