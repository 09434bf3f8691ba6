//! `POST /api/chat/conversations`: makes an empty conversation.

use std::process::ExitCode;

use lib::chat::catalogue::ProviderId;
use lib::chat::conversation::{Conversation, Conversations, NewConversation};
use lib::chat::fields::{ModelId, SystemPrompt, Title};
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct CreateConversationRequest {
        title: Option<Title>,
        provider: Option<ProviderId>,
        model: Option<ModelId>,
        system_prompt: Option<SystemPrompt>,
    }
}

#[derive(Serialize)]
struct CreateConversationResponse {
    conversation: Conversation,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Conversations::init, |conversations, request| {
        Box::pin(handle(conversations, request))
    })
}

async fn handle(conversations: &Conversations, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let CreateConversationRequest { title, provider, model, system_prompt } = request.json()?;
    let new = NewConversation {
        title: title.map(|title| title.0),
        provider,
        model: model.map(|model| model.0),
        system_prompt: system_prompt.map(|prompt| prompt.0),
    };
    let conversation = conversations.create(user_id, new, &request.visit()).await?;
    Response::created(&CreateConversationResponse { conversation })
}
