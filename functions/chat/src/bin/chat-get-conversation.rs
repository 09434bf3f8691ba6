//! `GET /api/chat/conversations/{id}`: a conversation with a page of its messages.

use std::process::ExitCode;

use lib::chat::conversation::{Conversation, Conversations, Message, Order, Place};
use lib::error::Result;
use lib::http::page::Limit;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct GetConversationQuery { order: Order, limit: Limit, cursor: Option<Place> }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GetConversationResponse {
    conversation: Conversation,
    messages: Vec<Message>,
    next_cursor: Option<String>,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Conversations::init, |conversations, request| {
        Box::pin(handle(conversations, request))
    })
}

async fn handle(conversations: &Conversations, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let id = request.id_parameter("conversation")?;
    let GetConversationQuery { order, limit, cursor } = request.query()?;
    let conversation = conversations.get(user_id, id).await?;
    let (messages, next_cursor) = conversations.messages(id, order, limit, cursor).await?;
    Response::ok(&GetConversationResponse { conversation, messages, next_cursor })
}
