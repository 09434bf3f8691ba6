//! OpenAI: Chat Completions, which many other servers speak too, and Responses for the models that speak only that.

use serde_json::{Value, json};

use crate::chat::catalogue::Api;
use crate::chat::provider::sse::SseEvent;
use crate::chat::provider::transport::{
    Decoder, Endpoint, Refusal, count, json, messages, open, push_text, stream_failure,
};
use crate::chat::provider::{Call, Cause, Failure, FinishReason, Piece, Pieces, Provider, Usage};
use futures_util::future::BoxFuture;

/// OpenAI, or a server like it.
pub struct OpenAi(pub Endpoint);

impl Provider for OpenAi {
    fn start<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Result<Pieces, Failure>> {
        let (path, body, decoder): (_, _, Box<dyn Decoder>) = match call.api() {
            Api::ChatCompletions => {
                let unseen = call.choice.model.reasoning;
                ("/chat/completions", completions(call), Box::new(Completions { unseen, ..Completions::default() }))
            }
            Api::Responses => ("/responses", responses(call), Box::new(Responses::default())),
        };
        let request = self.0.client.post(self.0.url("/v1", path)).bearer_auth(self.0.key.expose()).json(&body);
        Box::pin(open(request, refused, decoder))
    }
}

fn completions(call: &Call) -> Value {
    let system = call.system.iter().map(|text| json!({ "role": "system", "content": text }));
    let mut body = json!({
        "model": call.choice.sent_as(),
        "messages": system.chain(messages(&call.turns)).collect::<Vec<_>>(),
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    // Reasoning models refuse the older name, other servers do not know the newer one.
    body[if call.choice.model.reasoning { "max_completion_tokens" } else { "max_tokens" }] = call.max_tokens.into();
    if let Some(temperature) = call.temperature() {
        body["temperature"] = temperature.into();
    }
    body
}

fn responses(call: &Call) -> Value {
    let mut body = json!({
        "model": call.choice.sent_as(),
        "input": messages(&call.turns).collect::<Vec<_>>(),
        "max_output_tokens": call.max_tokens,
        "stream": true,
        "store": false,
    });
    if let Some(system) = &call.system {
        body["instructions"] = system.as_str().into();
    }
    if let Some(temperature) = call.temperature() {
        body["temperature"] = temperature.into();
    }
    body
}

fn refused(refusal: &Refusal) -> Failure {
    let error = &refusal.body["error"];
    refusal.failure(cause(error), error)
}

/// The cause that an error tells, in a reply or in the middle of a stream.
fn cause(error: &Value) -> Option<Cause> {
    let name = |name: &str| error[name].as_str().unwrap_or_default();
    Some(match (name("code"), name("type")) {
        ("insufficient_quota" | "billing_hard_limit_reached", _) | (_, "insufficient_quota") => Cause::Exhausted,
        ("rate_limit_exceeded", _) => Cause::RateLimited,
        ("context_length_exceeded" | "string_above_max_length", _) => Cause::ContextLength,
        ("content_policy_violation" | "content_filter" | "invalid_prompt", _) => Cause::ContentFiltered,
        ("model_not_found", _) => Cause::UnknownModel,
        ("invalid_api_key", _) => Cause::BadKey,
        // An organization that has not proved who it is may not stream some models.
        ("unsupported_value", _) if name("param") == "stream" => Cause::BadKey,
        ("server_error" | "server_overloaded", _) | (_, "server_error") => Cause::Broken,
        _ => return None,
    })
}

/// Reads `chat.completion.chunk` events up to `[DONE]`.
#[derive(Default)]
struct Completions {
    /// Whether the model has thought and it was not told yet: of thoughts there are no events.
    unseen: bool,
    finished: bool,
    refused: bool,
}

impl Decoder for Completions {
    fn event(&mut self, event: &SseEvent, pieces: &mut Vec<Piece>) -> Result<(), Failure> {
        if event.data.trim() == "[DONE]" {
            return Ok(());
        }
        let chunk = json(event)?;
        if chunk["error"].is_object() {
            return Err(stream_failure(cause(&chunk["error"]), &chunk["error"]));
        }
        if std::mem::take(&mut self.unseen) {
            pieces.push(Piece::Thinking);
        }
        // The last chunk carries the usage and no choice.
        let choice = &chunk["choices"][0];
        push_text(pieces, &choice["delta"]["content"]);
        if choice["delta"]["refusal"].as_str().is_some_and(|text| !text.is_empty()) {
            self.refused = true;
            push_text(pieces, &choice["delta"]["refusal"]);
        }
        if chunk["usage"].is_object() {
            pieces.push(Piece::Usage(usage(&chunk["usage"], "prompt", "completion")));
        }
        if let Some(reason) = choice["finish_reason"].as_str().filter(|_| !self.finished) {
            self.finished = true;
            pieces.push(Piece::Finish(match reason {
                "length" => FinishReason::Length,
                "content_filter" => FinishReason::ContentFilter,
                "tool_calls" | "function_call" => FinishReason::ToolCalls,
                _ if self.refused => FinishReason::ContentFilter,
                _ => FinishReason::Stop,
            }));
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.finished
    }
}

/// Reads the events of a response.
#[derive(Default)]
struct Responses {
    finished: bool,
    refused: bool,
}

impl Decoder for Responses {
    fn event(&mut self, event: &SseEvent, pieces: &mut Vec<Piece>) -> Result<(), Failure> {
        if event.data.trim() == "[DONE]" {
            return Ok(());
        }
        let data = json(event)?;
        let response = &data["response"];
        let mut finish = |reason| {
            if response["usage"].is_object() {
                pieces.push(Piece::Usage(usage(&response["usage"], "input", "output")));
            }
            pieces.push(Piece::Finish(reason));
            self.finished = true;
        };
        match data["type"].as_str().unwrap_or(&event.name) {
            // What speaks only this interface thinks.
            "response.created" => pieces.push(Piece::Thinking),
            "response.output_text.delta" => push_text(pieces, &data["delta"]),
            "response.refusal.delta" => {
                self.refused = true;
                push_text(pieces, &data["delta"]);
            }
            "response.completed" if self.refused => finish(FinishReason::ContentFilter),
            "response.completed" => finish(FinishReason::Stop),
            "response.incomplete" => finish(match response["incomplete_details"]["reason"].as_str() {
                Some("content_filter") => FinishReason::ContentFilter,
                _ => FinishReason::Length,
            }),
            "response.failed" => return Err(stream_failure(cause(&response["error"]), &response["error"])),
            "error" => {
                let error = if data["error"].is_object() { &data["error"] } else { &data };
                return Err(stream_failure(cause(error), error));
            }
            _ => {}
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.finished
    }
}

/// Both interfaces count cached tokens inside the input and reasoning inside the output.
fn usage(value: &Value, input: &str, output: &str) -> Usage {
    let details = |name: &str| &value[format!("{name}_tokens_details")];
    Usage {
        input_tokens: count(&value[format!("{input}_tokens")]),
        cached_input_tokens: count(&details(input)["cached_tokens"]),
        cache_write_tokens: count(&details(input)["cache_write_tokens"]),
        output_tokens: count(&value[format!("{output}_tokens")]),
        reasoning_tokens: count(&details(output)["reasoning_tokens"]),
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::catalogue::Catalogue;
    use crate::chat::provider::transport::testing::decode;
    use crate::chat::provider::{Role, Turn};

    fn text(text: &str) -> Result<Piece, Cause> {
        Ok(Piece::Text(text.to_owned()))
    }

    fn call(model: &str) -> Call {
        Call {
            choice: Catalogue::get().unwrap().find(model).unwrap(),
            system: Some("Be brief.".to_owned()),
            turns: vec![Turn { role: Role::User, content: "Hi".to_owned() }],
            max_tokens: 100,
            temperature: Some(0.5),
        }
    }

    #[test]
    fn reads_a_stream_with_its_usage_at_every_split() {
        let stream = concat!(
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n",
            ": keep-alive\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"Grüß \"}}]}\r\n\r\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"dich 😀\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":12,\"total_tokens\":23,",
            "\"prompt_tokens_details\":{\"cached_tokens\":4,\"cache_write_tokens\":2},\"completion_tokens_details\":{\"reasoning_tokens\":5}}}\n\n",
            "data: [DONE]\n\n",
        );
        let usage = Usage {
            input_tokens: 11,
            cached_input_tokens: 4,
            cache_write_tokens: 2,
            output_tokens: 12,
            reasoning_tokens: 5,
            ..Usage::default()
        };
        let expected = [text("Grüß "), text("dich 😀"), Ok(Piece::Finish(FinishReason::Stop)), Ok(Piece::Usage(usage))];
        assert_eq!(decode(stream, || Box::new(Completions::default())), expected);
    }

    #[test]
    fn a_stream_that_ends_early_or_breaks_is_a_failure() {
        let cut = "data: {\"choices\":[{\"delta\":{\"content\":\"Half\"}}]}\n\n";
        assert_eq!(decode(cut, || Box::new(Completions::default())), [text("Half"), Err(Cause::Broken)]);
        let error =
            format!("{cut}data: {{\"error\":{{\"type\":\"rate_limit\",\"code\":\"rate_limit_exceeded\"}}}}\n\n");
        assert_eq!(decode(&error, || Box::new(Completions::default())), [text("Half"), Err(Cause::RateLimited)]);
        let garbage = format!("{cut}data: {{\"choices\":[\n\n");
        assert_eq!(decode(&garbage, || Box::new(Completions::default())), [text("Half"), Err(Cause::Broken)]);
    }

    #[test]
    fn a_refusal_is_text_and_a_content_filter() {
        let stream = concat!(
            "data: {\"choices\":[{\"delta\":{\"refusal\":\"I cannot.\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
        );
        let expected = [text("I cannot."), Ok(Piece::Finish(FinishReason::ContentFilter))];
        assert_eq!(decode(stream, || Box::new(Completions::default())), expected);
    }

    #[test]
    fn a_model_that_thinks_has_thought_before_it_speaks() {
        let stream = concat!(
            "data: {\"choices\":[{\"delta\":{\"content\":\"42\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        );
        let expected = [Ok(Piece::Thinking), text("42"), Ok(Piece::Finish(FinishReason::Stop))];
        assert_eq!(decode(stream, || Box::new(Completions { unseen: true, ..Completions::default() })), expected);
    }

    #[test]
    fn reads_the_responses_interface() {
        let stream = concat!(
            "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{}}\n\n",
            "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hello\"}\n\n",
            "event: response.incomplete\ndata: {\"type\":\"response.incomplete\",\"response\":{\"incomplete_details\":",
            "{\"reason\":\"max_output_tokens\"},\"usage\":{\"input_tokens\":7,\"input_tokens_details\":{\"cached_tokens\":1},",
            "\"output_tokens\":9,\"output_tokens_details\":{\"reasoning_tokens\":8}}}}\n\n",
        );
        let usage = Usage {
            input_tokens: 7,
            cached_input_tokens: 1,
            output_tokens: 9,
            reasoning_tokens: 8,
            ..Usage::default()
        };
        let expected =
            [Ok(Piece::Thinking), text("Hello"), Ok(Piece::Usage(usage)), Ok(Piece::Finish(FinishReason::Length))];
        assert_eq!(decode(stream, || Box::new(Responses::default())), expected);
    }

    #[test]
    fn reasoning_models_get_no_parameter_that_they_refuse() {
        let plain = completions(&call("gpt-4"));
        assert_eq!((&plain["max_tokens"], &plain["temperature"]), (&json!(100), &json!(0.5)));
        assert_eq!(plain["stream_options"]["include_usage"], true);
        let reasoning = completions(&call("gpt-5"));
        assert_eq!(reasoning["max_completion_tokens"], 100);
        assert!(reasoning.get("max_tokens").is_none() && reasoning.get("temperature").is_none());
        let pro = responses(&call("o1-pro"));
        assert_eq!((&pro["instructions"], &pro["max_output_tokens"]), (&json!("Be brief."), &json!(100)));
    }

    #[test]
    fn the_system_prompt_comes_first() {
        let expected = json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "Hi" }]);
        assert_eq!(completions(&call("gpt-4"))["messages"], expected);
        let without = Call { system: None, temperature: None, ..call("gpt-4") };
        let (completions, responses) = (completions(&without), responses(&without));
        assert_eq!(completions["messages"], json!([{ "role": "user", "content": "Hi" }]));
        assert_eq!(responses["input"], completions["messages"]);
        assert!(responses.get("instructions").is_none() && completions.get("temperature").is_none());
    }

    #[test]
    fn errors_are_told_apart_by_code_then_status() {
        let cause = |status: u16, body: Value| {
            let status = http::StatusCode::from_u16(status).unwrap();
            refused(&Refusal { status, headers: http::HeaderMap::new(), body }).cause
        };
        let error = |code: &str| json!({ "error": { "code": code, "type": "invalid_request_error", "message": "m" } });
        assert_eq!(cause(400, error("context_length_exceeded")), Cause::ContextLength);
        assert_eq!(cause(400, error("content_filter")), Cause::ContentFiltered);
        assert_eq!(cause(400, error("unsupported_value")), Cause::Rejected);
        let unproved = json!({ "error": { "code": "unsupported_value", "param": "stream", "message": "m" } });
        assert_eq!(cause(400, unproved), Cause::BadKey);
        assert_eq!(cause(404, error("model_not_found")), Cause::UnknownModel);
        assert_eq!(cause(429, error("insufficient_quota")), Cause::Exhausted);
        assert_eq!(cause(429, error("rate_limit_exceeded")), Cause::RateLimited);
        assert_eq!(cause(401, error("invalid_api_key")), Cause::BadKey);
        assert_eq!(cause(500, Value::Null), Cause::Broken);
    }
}
