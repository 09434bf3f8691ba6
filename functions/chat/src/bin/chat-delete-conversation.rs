//! `DELETE /api/chat/conversations/{id}`: deletes a conversation with its messages.

use std::process::ExitCode;

use lib::chat::conversation::Conversations;
use lib::chat::live::Streams;
use lib::error::{Code, Result};
use lib::http::{Policy, Request, Response, serve};

struct Context {
    conversations: Conversations,
    streams: Streams,
}

async fn init() -> Result<Context> {
    Ok(Context { conversations: Conversations::init().await?, streams: Streams::from_env()? })
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, init, |context, request| Box::pin(handle(context, request)))
}

async fn handle(context: &Context, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let id = request.id_parameter("conversation")?;
    let visit = request.visit();
    let delete = || context.conversations.delete(user_id, id, &visit);
    match delete().await {
        // It is stored with its first answer, which may be under way.
        Err(error)
            if error.code() == Code::NotFound
                && context.streams.end_unwanted(user_id, &id.to_string(), true).await? =>
        {
            delete().await?;
        }
        deleted => deleted?,
    }
    Ok(Response::no_content())
}
