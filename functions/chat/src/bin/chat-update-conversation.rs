//! `PATCH /api/chat/conversations/{id}`: renames, pins or archives a conversation.

use std::process::ExitCode;

use lib::chat::conversation::{Change, Conversation, Conversations};
use lib::chat::fields::Title;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct UpdateConversationRequest { title: Option<Title>, pinned: Option<bool>, archived: Option<bool> }
}

#[derive(Serialize)]
struct UpdateConversationResponse {
    conversation: Conversation,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Conversations::init, |conversations, request| {
        Box::pin(handle(conversations, request))
    })
}

async fn handle(conversations: &Conversations, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let id = request.id_parameter("conversation")?;
    let UpdateConversationRequest { title, pinned, archived } = request.json()?;
    let change = Change { title: title.map(|title| title.0), pinned, archived };
    let conversation = conversations.change(user_id, id, change).await?;
    Response::ok(&UpdateConversationResponse { conversation })
}
