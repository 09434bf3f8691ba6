//! Google's Gemini, by `streamGenerateContent`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::chat::provider::sse::SseEvent;
use crate::chat::provider::transport::{Decoder, Endpoint, Refusal, count, json, open, push_text, stream_failure};
use crate::chat::provider::{Call, Cause, Failure, FinishReason, Piece, Pieces, Provider, Role, Usage};
use futures_util::future::BoxFuture;

/// Google.
pub struct Google(pub Endpoint);

impl Provider for Google {
    fn start<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Result<Pieces, Failure>> {
        let path = format!("/models/{}:streamGenerateContent?alt=sse", call.choice.sent_as());
        let request = self
            .0
            .client
            .post(self.0.url("/v1beta", &path))
            .header("x-goog-api-key", self.0.key.expose())
            .json(&body(call));
        Box::pin(open(request, refused, Box::new(Contents::default())))
    }
}

fn body(call: &Call) -> Value {
    let turns = call.turns.iter().map(|turn| {
        let role = match turn.role {
            Role::User => "user",
            Role::Assistant => "model",
        };
        json!({ "role": role, "parts": [{ "text": turn.content }] })
    });
    let mut body = json!({
        "contents": turns.collect::<Vec<_>>(),
        "generationConfig": { "maxOutputTokens": call.max_tokens },
    });
    if let Some(system) = &call.system {
        body["systemInstruction"] = json!({ "parts": [{ "text": system }] });
    }
    if let Some(temperature) = call.temperature() {
        body["generationConfig"]["temperature"] = temperature.into();
    }
    body
}

fn refused(refusal: &Refusal) -> Failure {
    // Some routes wrap the document in an array.
    let document = if refusal.body.is_array() { &refusal.body[0] } else { &refusal.body };
    let error = &document["error"];
    let details = || error["details"].as_array().into_iter().flatten();
    let message = error["message"].as_str().unwrap_or_default().to_ascii_lowercase();
    let told = if details().any(|detail| detail["reason"] == "API_KEY_INVALID") {
        Some(Cause::BadKey)
    } else if message.contains("exceeds the maximum number of tokens") {
        Some(Cause::ContextLength)
    } else {
        cause(error)
    };
    let mut failure = refusal.failure(told, error);
    if failure.retry_after.is_none() {
        failure.retry_after = details().find_map(|detail| duration(detail["retryDelay"].as_str()?));
    }
    failure
}

/// A duration as Google writes it: `34.4s`.
fn duration(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    (0.0..=86_400.0).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// The cause that an error tells by its status, in a reply or in the middle of a stream.
fn cause(error: &Value) -> Option<Cause> {
    Some(match error["status"].as_str().unwrap_or_default() {
        "RESOURCE_EXHAUSTED" => Cause::RateLimited,
        "UNAVAILABLE" | "INTERNAL" | "UNKNOWN" => Cause::Broken,
        "DEADLINE_EXCEEDED" => Cause::TimedOut,
        // The last one is of an account that may not be used from here, or not without billing.
        "PERMISSION_DENIED" | "UNAUTHENTICATED" | "FAILED_PRECONDITION" => Cause::BadKey,
        "NOT_FOUND" => Cause::UnknownModel,
        _ => return None,
    })
}

/// Reads `GenerateContentResponse` events; the stream just ends after the last.
#[derive(Default)]
struct Contents {
    spoken: bool,
    finished: bool,
}

impl Decoder for Contents {
    fn event(&mut self, event: &SseEvent, pieces: &mut Vec<Piece>) -> Result<(), Failure> {
        let data = json(event)?;
        if data["error"].is_object() {
            return Err(stream_failure(cause(&data["error"]), &data["error"]));
        }
        if data["promptFeedback"]["blockReason"].is_string() {
            return Err(Failure::new(Cause::ContentFiltered, "the prompt was blocked"));
        }
        let candidate = &data["candidates"][0];
        for part in candidate["content"]["parts"].as_array().into_iter().flatten() {
            if part["thought"] != true {
                self.spoken |= part["text"].as_str().is_some_and(|text| !text.is_empty());
                push_text(pieces, &part["text"]);
            }
        }
        if data["usageMetadata"].is_object() {
            pieces.push(Piece::Usage(usage(&data["usageMetadata"])));
        }
        if let Some(reason) = candidate["finishReason"].as_str().filter(|_| !self.finished) {
            self.finished = true;
            let finish = finish_reason(reason).filter(|finish| self.spoken || *finish != FinishReason::Stop);
            pieces.push(Piece::Finish(finish.ok_or_else(|| Failure::new(Cause::Broken, reason))?));
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.finished
    }
}

/// Thoughts are counted beside the candidates.
fn usage(value: &Value) -> Usage {
    let thoughts = count(&value["thoughtsTokenCount"]);
    Usage {
        input_tokens: count(&value["promptTokenCount"]) + count(&value["toolUsePromptTokenCount"]),
        cached_input_tokens: count(&value["cachedContentTokenCount"]),
        output_tokens: count(&value["candidatesTokenCount"]) + thoughts,
        reasoning_tokens: thoughts,
        ..Usage::default()
    }
}

/// Why the answer is complete; none where it went wrong, such as by a call of a tool that nobody has offered.
fn finish_reason(reason: &str) -> Option<FinishReason> {
    Some(match reason {
        "MAX_TOKENS" => FinishReason::Length,
        "SAFETY" | "RECITATION" | "LANGUAGE" | "BLOCKLIST" | "PROHIBITED_CONTENT" | "SPII" | "IMAGE_SAFETY" => {
            FinishReason::ContentFilter
        }
        "MALFORMED_RESPONSE" | "MALFORMED_FUNCTION_CALL" | "UNEXPECTED_TOOL_CALL" | "OTHER" => return None,
        _ => FinishReason::Stop,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::catalogue::Catalogue;
    use crate::chat::provider::Turn;
    use crate::chat::provider::transport::testing::decode;

    #[test]
    fn says_what_the_client_has_set() {
        let turn = |role, content: &str| Turn { role, content: content.to_owned() };
        let asked = body(&Call {
            choice: Catalogue::get().unwrap().find("gemini-2.5-flash").unwrap(),
            system: Some("Be brief.".to_owned()),
            turns: vec![turn(Role::User, "Hi"), turn(Role::Assistant, "Hello")],
            max_tokens: 100,
            temperature: Some(1.5),
        });
        let part = |text: &str| json!([{ "text": text }]);
        let expected = json!({
            "contents": [{ "role": "user", "parts": part("Hi") }, { "role": "model", "parts": part("Hello") }],
            "systemInstruction": { "parts": part("Be brief.") },
            "generationConfig": { "maxOutputTokens": 100, "temperature": 1.5 },
        });
        assert_eq!(asked, expected);
    }

    fn counted(input: i64, output: i64, reasoning: i64) -> Result<Piece, Cause> {
        Ok(Piece::Usage(Usage {
            input_tokens: input,
            output_tokens: output,
            reasoning_tokens: reasoning,
            ..Usage::default()
        }))
    }

    #[test]
    fn takes_running_counters_and_leaves_thoughts_out_of_the_text() {
        let stream = concat!(
            "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"hm\",\"thought\":true},{\"text\":\"Öl\"}]}}],",
            "\"usageMetadata\":{\"promptTokenCount\":15,\"thoughtsTokenCount\":3}}\r\n\r\n",
            "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\",\"thoughtSignature\":\"x\"}]},\"finishReason\":\"STOP\"}],",
            "\"usageMetadata\":{\"promptTokenCount\":13,\"candidatesTokenCount\":2,\"thoughtsTokenCount\":3}}\r\n\r\n",
        );
        let expected = [
            Ok(Piece::Text("Öl".to_owned())),
            counted(15, 3, 3),
            counted(13, 5, 3),
            Ok(Piece::Finish(FinishReason::Stop)),
        ];
        assert_eq!(decode(stream, || Box::new(Contents::default())), expected);
    }

    #[test]
    fn a_blocked_prompt_a_filtered_answer_and_an_error_are_told_apart() {
        let run = |data: &str| decode(&format!("data: {data}\r\n\r\n"), || Box::new(Contents::default()));
        assert_eq!(run("{\"promptFeedback\":{\"blockReason\":\"SAFETY\"}}"), [Err(Cause::ContentFiltered)]);
        let filtered = [Ok(Piece::Finish(FinishReason::ContentFilter))];
        assert_eq!(run("{\"candidates\":[{\"finishReason\":\"SAFETY\"}]}"), filtered);
        let broken = [Err(Cause::Broken)];
        for reason in ["UNEXPECTED_TOOL_CALL", "MALFORMED_RESPONSE", "OTHER", "STOP"] {
            assert_eq!(run(&format!("{{\"candidates\":[{{\"finishReason\":\"{reason}\"}}]}}")), broken, "{reason}");
        }
        assert_eq!(run("{\"error\":{\"code\":503,\"status\":\"UNAVAILABLE\"}}"), [Err(Cause::Broken)]);
    }

    #[test]
    fn errors_are_told_apart_and_the_delay_is_read_from_the_body() {
        let failure = |status: u16, error: Value| {
            let status = http::StatusCode::from_u16(status).unwrap();
            refused(&Refusal { status, headers: http::HeaderMap::new(), body: json!({ "error": error }) })
        };
        let limited = failure(429, json!({ "status": "RESOURCE_EXHAUSTED", "details": [{ "retryDelay": "34.4s" }] }));
        assert_eq!((limited.cause, limited.retry_after), (Cause::RateLimited, Some(Duration::from_millis(34_400))));
        let key = json!({ "status": "INVALID_ARGUMENT", "details": [{ "reason": "API_KEY_INVALID" }] });
        assert_eq!(failure(400, key).cause, Cause::BadKey);
        let elsewhere = json!({ "status": "FAILED_PRECONDITION", "message": "User location is not supported" });
        assert_eq!(failure(400, elsewhere).cause, Cause::BadKey);
        let long = json!({ "status": "INVALID_ARGUMENT", "message": "The input exceeds the maximum number of tokens" });
        assert_eq!(failure(400, long).cause, Cause::ContextLength);
        assert_eq!(failure(400, json!({ "status": "INVALID_ARGUMENT" })).cause, Cause::Rejected);
    }
}
