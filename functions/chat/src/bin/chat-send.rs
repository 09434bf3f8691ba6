//! `POST /api/chat`: sends a message to a model and answers whole or piece by piece.

use std::process::ExitCode;

use lib::chat::request::{AnswerQuery, Answers, SendRequest};
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
    let read = both(both(request.query(), Key::of(&request)), request.json());
    let ((query, key), asked): ((AnswerQuery, _), SendRequest) = read?;
    let (ask, protocol) = asked.into_ask(user_id, &query, request.header("accept"));
    answers.answer(&request, key, ask, protocol).await
}
