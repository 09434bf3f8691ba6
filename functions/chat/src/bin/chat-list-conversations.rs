//! `GET /api/chat/conversations`: a user's conversations, newest activity first.

use std::process::ExitCode;

use lib::chat::conversation::{Conversation, Conversations, Filter};
use lib::chat::fields::SearchText;
use lib::error::Result;
use lib::http::page::{Cursor, Limit};
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

lib::request! {
    struct ListConversationsQuery {
        limit: Limit,
        cursor: Option<Cursor>,
        q: Option<SearchText>,
        archived: Option<bool>,
        pinned: Option<bool>,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListConversationsResponse {
    conversations: Vec<Conversation>,
    next_cursor: Option<String>,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Conversations::init, |conversations, request| {
        Box::pin(handle(conversations, request))
    })
}

async fn handle(conversations: &Conversations, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let ListConversationsQuery { limit, cursor, q, archived, pinned } = request.query()?;
    let q = q.map(|q| q.0).filter(|q| !q.is_empty());
    let filter = Filter { q, archived: archived.unwrap_or(false), pinned };
    let (conversations, next_cursor) = conversations.list(user_id, &filter, limit, cursor).await?;
    Response::ok(&ListConversationsResponse { conversations, next_cursor })
}
