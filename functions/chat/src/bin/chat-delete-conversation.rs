//! `DELETE /api/chat/conversations/{id}`: deletes a conversation with its messages.

use std::process::ExitCode;

use lib::chat::conversation::Conversations;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Conversations::init, |conversations, request| {
        Box::pin(handle(conversations, request))
    })
}

async fn handle(conversations: &Conversations, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let id = request.id_parameter("id", "conversation")?;
    conversations.delete(user_id, id, &request.visit()).await?;
    Ok(Response::no_content())
}
