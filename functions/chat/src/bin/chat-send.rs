//! `POST /api/chat`: sends a message to a model and answers whole or piece by piece.

use std::process::ExitCode;

use lib::chat::catalogue::ProviderId;
use lib::chat::exchange::{Ask, Chat};
use lib::chat::fields::{MaxTokens, MessageText, ModelId, SystemPrompt, Temperature};
use lib::chat::record::Named;
use lib::chat::stream::{self, Protocol};
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve_streaming};
use uuid::Uuid;

lib::request! {
    struct SendRequest {
        message: MessageText,
        conversation_id: Option<Uuid>,
        provider: Option<ProviderId>,
        model: Option<ModelId>,
        stream: Option<bool>,
        system_prompt: Option<SystemPrompt>,
        temperature: Option<Temperature>,
        max_tokens: Option<MaxTokens>,
    }
}

fn main() -> ExitCode {
    serve_streaming(env!("CARGO_BIN_NAME"), Policy::API, Chat::init, |chat, request| Box::pin(handle(chat, request)))
}

async fn handle(chat: &'static Chat, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let asked: SendRequest = request.json()?;
    let streamed = stream::is_wanted(asked.stream, request.header("accept"));
    let ask = Ask {
        user_id,
        message: Some(asked.message.0),
        conversation: asked.conversation_id.map_or(Named::New, Named::Id),
        provider: asked.provider,
        model: asked.model.map(|model| model.0),
        system_prompt: asked.system_prompt.map(|prompt| prompt.0),
        temperature: asked.temperature.map(|temperature| temperature.0),
        max_tokens: asked.max_tokens.map(|tokens| tokens.0),
        streamed,
    };
    let answer = chat.ask(ask, &request.visit(), request.time_left).await?;
    if streamed {
        return Ok(Response::streamed("text/event-stream", answer.stream(Protocol::Native)));
    }
    Response::ok(&answer.complete().await?)
}
