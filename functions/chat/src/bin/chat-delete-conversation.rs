//! `DELETE /api/chat/conversations/{id}`: deletes a conversation with its messages.

use std::process::ExitCode;

use lib::chat::conversation::Conversations;
use lib::chat::live::Streams;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};

struct Context {
    conversations: Conversations,
    streams: Streams,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, init, |context, request| Box::pin(handle(context, request)))
}

async fn init() -> Result<Context> {
    Ok(Context { conversations: Conversations::init().await?, streams: Streams::from_env()? })
}

async fn handle(context: &Context, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let id = request.id_parameter("conversation")?;
    context.conversations.delete_with_stream(&context.streams, user_id, id, &request.visit()).await?;
    Ok(Response::no_content())
}
