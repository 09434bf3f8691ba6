//! `GET /api/auth/sessions`: where the user is signed in.

use std::process::ExitCode;

use lib::auth::session::{Session, Sessions};
use lib::error::Result;
use lib::http::page::{self, Cursor, Limit};
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

lib::request! {
    struct ListSessionsQuery { limit: Limit, cursor: Option<Cursor> }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListSessionsResponse {
    sessions: Vec<SessionItem>,
    next_cursor: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionItem {
    id: Uuid,
    device: String,
    ip: String,
    #[serde(serialize_with = "lib::clock::text::serialize")]
    created_at: OffsetDateTime,
    #[serde(serialize_with = "lib::clock::text::serialize")]
    last_seen_at: OffsetDateTime,
    current: bool,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, Sessions::init, |sessions, request| Box::pin(handle(sessions, request)))
}

async fn handle(sessions: &Sessions, request: Request) -> Result<Response> {
    let current = &request.user()?.session;
    let ListSessionsQuery { limit, cursor } = request.query()?;
    // Ids are UUIDv7, so the order of ids is the order of time.
    let all = sessions.list(current.user_id).await?;
    let rest = all.into_iter().filter(|session| cursor.is_none_or(|cursor| session.id < cursor.id)).collect();
    let (page, next_cursor) =
        page::split(rest, limit, |session: &Session| Cursor { at: session.created_at, id: session.id });
    let items = page.into_iter().map(|session| SessionItem {
        current: session.id == current.id,
        id: session.id,
        device: session.device,
        ip: session.ip,
        created_at: session.created_at,
        last_seen_at: session.last_seen_at,
    });
    Response::ok(&ListSessionsResponse { sessions: items.collect(), next_cursor })
}
