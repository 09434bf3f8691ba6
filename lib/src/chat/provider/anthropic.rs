//! Anthropic's Messages.

use serde_json::{Value, json};

use crate::chat::provider::sse::SseEvent;
use crate::chat::provider::transport::{
    Decoder, Endpoint, Refusal, count, json, messages, open, push_text, stream_failure,
};
use crate::chat::provider::{Call, Cause, Failure, FinishReason, Piece, Pieces, Provider, Usage};
use futures_util::future::BoxFuture;

/// The version of the interface that is spoken here.
const VERSION: &str = "2023-06-01";

/// Anthropic.
pub struct Anthropic(pub Endpoint);

impl Provider for Anthropic {
    fn start<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Result<Pieces, Failure>> {
        let request = self
            .0
            .client
            .post(self.0.url("/v1", "/messages"))
            .header("x-api-key", self.0.key.expose())
            .header("anthropic-version", VERSION)
            .json(&body(call));
        Box::pin(open(request, refused, Box::new(Messages::default())))
    }
}

fn body(call: &Call) -> Value {
    let mut body = json!({
        "model": call.choice.sent_as(),
        "messages": messages(&call.turns).collect::<Vec<_>>(),
        "max_tokens": call.max_tokens,
        "stream": true,
    });
    if let Some(system) = &call.system {
        body["system"] = system.as_str().into();
    }
    if let Some(temperature) = call.temperature() {
        // The scale ends at 1 here and at 2 with the others.
        body["temperature"] = temperature.min(1.0).into();
    }
    body
}

fn refused(refusal: &Refusal) -> Failure {
    let error = &refusal.body["error"];
    refusal.failure(cause(error), error)
}

/// The cause that an error tells, in a reply or in the middle of a stream.
fn cause(error: &Value) -> Option<Cause> {
    // These have no type of their own.
    let message = error["message"].as_str().unwrap_or_default().to_ascii_lowercase();
    let says = |words: &str| message.contains(words);
    if says("prompt is too long") || says("exceed context limit") {
        return Some(Cause::ContextLength);
    }
    if says("credit balance is too low") || says("api usage limits") {
        return Some(Cause::Exhausted);
    }
    if says("organization has been disabled") {
        return Some(Cause::BadKey);
    }
    if says("blocked by content filtering") {
        return Some(Cause::ContentFiltered);
    }
    Some(match error["type"].as_str().unwrap_or_default() {
        "rate_limit_error" => Cause::RateLimited,
        "billing_error" => Cause::Exhausted,
        "overloaded_error" | "api_error" => Cause::Broken,
        "timeout_error" => Cause::TimedOut,
        "authentication_error" | "permission_error" => Cause::BadKey,
        "not_found_error" => Cause::UnknownModel,
        "request_too_large" => Cause::ContextLength,
        _ => return None,
    })
}

/// Reads the events of a message. Its counters are running values, spread over two events.
#[derive(Default)]
struct Messages {
    usage: Usage,
    counted: bool,
    spoken: bool,
    finished: bool,
    stopped: bool,
}

impl Messages {
    fn count(&mut self, usage: &Value) {
        let Some(counters) = usage.as_object() else { return };
        self.counted = true;
        if counters.get("input_tokens").is_some_and(Value::is_number) {
            let read = count(&usage["cache_read_input_tokens"]);
            let written = count(&usage["cache_creation_input_tokens"]);
            self.usage.input_tokens = count(&usage["input_tokens"]) + read + written;
            self.usage.cached_input_tokens = read;
            self.usage.cache_write_tokens = written;
        }
        if counters.get("output_tokens").is_some_and(Value::is_number) {
            self.usage.output_tokens = count(&usage["output_tokens"]);
        }
        self.usage.reasoning_tokens = count(&usage["output_tokens_details"]["thinking_tokens"]);
    }
}

impl Decoder for Messages {
    fn event(&mut self, event: &SseEvent, pieces: &mut Vec<Piece>) -> Result<(), Failure> {
        let data = json(event)?;
        match data["type"].as_str().unwrap_or(&event.name) {
            "message_start" => {
                self.count(&data["message"]["usage"]);
                if self.counted {
                    pieces.push(Piece::Usage(self.usage));
                }
            }
            "content_block_start" => match data["content_block"]["type"].as_str() {
                Some("thinking" | "redacted_thinking") => pieces.push(Piece::Thinking),
                _ => push_text(pieces, &data["content_block"]["text"]),
            },
            "content_block_delta" if data["delta"]["type"] == "text_delta" => {
                self.spoken = true;
                push_text(pieces, &data["delta"]["text"]);
            }
            "message_delta" => {
                self.count(&data["usage"]);
                if self.counted {
                    pieces.push(Piece::Usage(self.usage));
                }
                if let Some(reason) = data["delta"]["stop_reason"].as_str().filter(|_| !self.finished) {
                    self.finished = true;
                    pieces.push(Piece::Finish(finish_reason(reason)));
                }
            }
            "message_stop" => {
                self.stopped = true;
                if !self.finished {
                    self.finished = true;
                    pieces.push(Piece::Finish(FinishReason::Stop));
                }
            }
            "error" => {
                let cause = cause(&data["error"]);
                if cause != Some(Cause::ContentFiltered) || !self.spoken {
                    return Err(stream_failure(cause, &data["error"]));
                }
                self.finished = true;
                // The final count does not come any more.
                pieces.push(Piece::Usage(Usage { estimated: true, ..self.usage }));
                pieces.push(Piece::Finish(FinishReason::ContentFilter));
            }
            // Pings, thoughts, and whatever is added to the interface.
            _ => {}
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.finished || self.stopped
    }
}

fn finish_reason(reason: &str) -> FinishReason {
    match reason {
        "max_tokens" | "model_context_window_exceeded" => FinishReason::Length,
        "tool_use" => FinishReason::ToolCalls,
        "refusal" => FinishReason::ContentFilter,
        _ => FinishReason::Stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::catalogue::Catalogue;
    use crate::chat::provider::transport::testing::decode;
    use crate::chat::provider::{Role, Turn};

    const STREAM: &str = concat!(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":10,",
        "\"cache_creation_input_tokens\":20,\"cache_read_input_tokens\":30,\"output_tokens\":1}}}\n\n",
        "event: ping\ndata: {\"type\": \"ping\"}\n\n",
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"hm\"}}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"Héllo\"}}\n\n",
        "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
    );

    fn asked(temperature: Option<f64>) -> Value {
        body(&Call {
            choice: Catalogue::get().unwrap().find("claude-haiku-4-5").unwrap(),
            system: Some("Be brief.".to_owned()),
            turns: vec![Turn { role: Role::User, content: "Hi".to_owned() }],
            max_tokens: 100,
            temperature,
        })
    }

    #[test]
    fn says_what_the_client_has_set() {
        let asked_so = asked(Some(0.5));
        assert_eq!((&asked_so["system"], &asked_so["max_tokens"]), (&json!("Be brief."), &json!(100)));
        assert_eq!(asked_so["messages"], json!([{ "role": "user", "content": "Hi" }]));
        assert_eq!((&asked_so["temperature"], &asked(Some(1.5))["temperature"]), (&json!(0.5), &json!(1.0)));
        assert!(asked(None).get("temperature").is_none());
    }

    fn counted(output: i64) -> Result<Piece, Cause> {
        Ok(Piece::Usage(Usage {
            input_tokens: 60,
            cached_input_tokens: 30,
            cache_write_tokens: 20,
            output_tokens: output,
            ..Usage::default()
        }))
    }

    fn hello() -> Result<Piece, Cause> {
        Ok(Piece::Text("Héllo".to_owned()))
    }

    #[test]
    fn counts_cache_reads_and_writes_as_input_and_takes_the_last_output() {
        let stream = format!(
            "{STREAM}event: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"max_tokens\"}},\
             \"usage\":{{\"output_tokens\":15}}}}\n\nevent: message_stop\ndata: {{\"type\":\"message_stop\"}}\n\n"
        );
        let expected = [counted(1), hello(), counted(15), Ok(Piece::Finish(FinishReason::Length))];
        assert_eq!(decode(&stream, || Box::new(Messages::default())), expected);
    }

    #[test]
    fn errors_refusals_and_early_ends() {
        let error = format!(
            "{STREAM}event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"overloaded_error\"}}}}\n\n"
        );
        assert_eq!(decode(&error, || Box::new(Messages::default())), [counted(1), hello(), Err(Cause::Broken)]);
        assert_eq!(decode(STREAM, || Box::new(Messages::default())), [counted(1), hello(), Err(Cause::Broken)]);
        let refusal =
            "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"refusal\"}}\n\n";
        let expected = [Ok(Piece::Finish(FinishReason::ContentFilter))];
        assert_eq!(decode(refusal, || Box::new(Messages::default())), expected);
    }

    #[test]
    fn what_the_filter_blocks_is_no_outage() {
        let block = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"Output blocked by content filtering policy\"}}\n\n";
        assert_eq!(decode(block, || Box::new(Messages::default())), [Err(Cause::ContentFiltered)]);
        let said = decode(&format!("{STREAM}{block}"), || Box::new(Messages::default()));
        let Ok(Piece::Usage(so_far)) = counted(1) else { unreachable!() };
        let so_far = Ok(Piece::Usage(Usage { estimated: true, ..so_far }));
        assert_eq!(said, [counted(1), hello(), so_far, Ok(Piece::Finish(FinishReason::ContentFilter))]);
    }

    #[test]
    fn thoughts_are_told_of_and_counted() {
        let stream = concat!(
            "data: {\"type\":\"content_block_start\",\"content_block\":{\"type\":\"thinking\",\"thinking\":\"\"}}\n\n",
            "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":50,",
            "\"output_tokens_details\":{\"thinking_tokens\":40}}}\n\n",
        );
        let usage = Usage { output_tokens: 50, reasoning_tokens: 40, ..Usage::default() };
        let expected = [Ok(Piece::Thinking), Ok(Piece::Usage(usage)), Ok(Piece::Finish(FinishReason::Stop))];
        assert_eq!(decode(stream, || Box::new(Messages::default())), expected);
    }

    #[test]
    fn a_repeated_start_counts_once() {
        let start =
            "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":5,\"output_tokens\":1}}}\n\n";
        let stream = format!("{start}{start}data: {{\"type\":\"message_stop\"}}\n\n");
        let usage = Usage { input_tokens: 5, output_tokens: 1, ..Usage::default() };
        let expected = [Ok(Piece::Usage(usage)), Ok(Piece::Usage(usage)), Ok(Piece::Finish(FinishReason::Stop))];
        assert_eq!(decode(&stream, || Box::new(Messages::default())), expected);
    }

    #[test]
    fn errors_are_told_apart_by_type_then_status() {
        let cause = |status: u16, kind: &str, message: &str| {
            let status = http::StatusCode::from_u16(status).unwrap();
            let body = json!({ "type": "error", "error": { "type": kind, "message": message } });
            refused(&Refusal { status, headers: http::HeaderMap::new(), body }).cause
        };
        assert_eq!(cause(400, "invalid_request_error", "prompt is too long: 210000 tokens"), Cause::ContextLength);
        assert_eq!(cause(400, "invalid_request_error", "Your credit balance is too low"), Cause::Exhausted);
        let limit = "You have reached your specified API usage limits. You will regain access on 2026-12-01";
        assert_eq!(cause(400, "invalid_request_error", limit), Cause::Exhausted);
        assert_eq!(cause(400, "invalid_request_error", "This organization has been disabled."), Cause::BadKey);
        let blocked = "Output blocked by content filtering policy";
        assert_eq!(cause(400, "invalid_request_error", blocked), Cause::ContentFiltered);
        assert_eq!(cause(400, "invalid_request_error", "temperature: range"), Cause::Rejected);
        assert_eq!(cause(529, "overloaded_error", ""), Cause::Broken);
        assert_eq!(cause(429, "rate_limit_error", ""), Cause::RateLimited);
        assert_eq!(cause(404, "not_found_error", ""), Cause::UnknownModel);
    }
}
