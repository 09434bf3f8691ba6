//! `POST /api/chat/conversations/{id}/regenerate`: makes the last answer of a conversation anew.

use std::process::ExitCode;

use lib::chat::request::{AnswerQuery, Answers, RegenerateRequest};
use lib::error::Result;
use lib::http::idempotency::Key;
use lib::http::validate::both;
use lib::http::{Policy, Request, Response, serve_streaming};

fn main() -> ExitCode {
    serve_streaming(env!("CARGO_BIN_NAME"), Policy::API, Answers::init, |answers, request| {
        Box::pin(handle(answers, request))
    })
}

async fn handle(answers: &'static Answers, request: Request) -> Result<Response> {
    let user_id = request.user()?.user_id();
    let conversation = request.id_parameter("conversation")?;
    let read = both(both(request.query(), Key::of(&request)), request.json());
    let ((query, key), asked): ((AnswerQuery, _), RegenerateRequest) = read?;
    let (ask, protocol) = asked.into_ask(user_id, conversation, &query, request.header("accept"));
    answers.answer(&request, key, ask, protocol).await
}
