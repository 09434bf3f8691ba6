//! The events of a streamed answer and the two ways to write them: this API's own, and the AI SDK's UI message
//! stream, version 1 (https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol).

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::chat::provider::FinishReason;
use crate::error::{Error, Result};

/// The last event that a client has, by its `Last-Event-ID`.
///
/// # Errors
/// 400 when it is no id of an event.
pub fn last_event_id(header: Option<&http::HeaderValue>) -> Result<Option<u64>> {
    let Some(value) = header else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|text| text.parse().ok()) {
        Some(id) => Ok(Some(id)),
        None => Err(Error::invalid_field("Last-Event-ID", "malformed", "Must be the id of an event of the stream.")),
    }
}

/// What keeps a silent connection open.
pub const PING: Bytes = Bytes::from_static(b": ping\n\n");
/// A stream that is silent for so long pings.
pub const PING_AFTER: Duration = Duration::from_secs(15);

/// An event of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StreamEvent {
    /// The model has begun.
    Start(Start),
    /// More text.
    Delta(String),
    /// The answer is complete and stored.
    Done(Done),
    /// The answer broke off.
    Error(StreamError),
}

/// Which answer it is, and whose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    /// Names the stream, for stopping and resuming it.
    pub stream_id: Uuid,
    /// The conversation.
    pub conversation_id: Uuid,
    /// The message that is being written.
    pub message_id: Uuid,
    /// Who answers.
    pub provider: String,
    /// What answers.
    pub model: String,
    /// Who should have answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback_from: Option<String>,
}

/// What the answer came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    /// The message that was written.
    pub message_id: Uuid,
    /// Its tokens and cost.
    pub usage: Value,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What is left of the month.
    pub quota: Value,
}

/// Why the answer broke off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamError {
    /// The stable code.
    pub code: String,
    /// One sentence that can be shown.
    pub message: String,
}

impl StreamEvent {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Error(_))
    }
}

/// A whole stream in few events: the text in one.
#[must_use]
pub fn condensed(start: StreamEvent, text: String, last: StreamEvent) -> Vec<StreamEvent> {
    let delta = (!text.is_empty()).then_some(StreamEvent::Delta(text));
    std::iter::once(start).chain(delta).chain([last]).collect()
}

/// The ids of so many events of [`condensed`]. They keep the places that they had in the stream that was sent, so that
/// whoever goes on from one of them misses nothing and gets nothing twice.
pub fn condensed_ids(events: usize, last_id: u64) -> impl Iterator<Item = u64> {
    let rest = (events as u64).saturating_sub(1);
    std::iter::once(1).chain(last_id.saturating_sub(rest) + 1..=last_id)
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// This API's own events.
    #[default]
    Native,
    /// The AI SDK's UI message stream.
    AiSdk,
}

impl Protocol {
    /// The bytes of an event, to be written at once.
    #[must_use]
    pub fn encode(self, id: u64, event: &StreamEvent) -> Bytes {
        let text = match self {
            Self::Native => native(id, event),
            Self::AiSdk => ai_sdk(id, event),
        };
        text.into()
    }
}

fn native(id: u64, event: &StreamEvent) -> String {
    let (name, data) = match event {
        StreamEvent::Start(start) => ("start", json(start)),
        StreamEvent::Delta(text) => ("delta", format!("{{\"text\":{}}}", json(text))),
        StreamEvent::Done(done) => ("done", json(done)),
        StreamEvent::Error(error) => ("error", json(error)),
    };
    format!("id: {id}\nevent: {name}\ndata: {data}\n\n")
}

/// The one text part of a message.
const PART: &str = "text";

fn ai_sdk(id: u64, event: &StreamEvent) -> String {
    let parts = match event {
        StreamEvent::Start(start) => {
            let metadata = json!({
                "conversationId": start.conversation_id,
                "streamId": start.stream_id,
                "provider": start.provider,
                "model": start.model,
            });
            vec![
                json!({ "type": "start", "messageId": start.message_id, "messageMetadata": metadata }),
                json!({ "type": "start-step" }),
                json!({ "type": "text-start", "id": PART }),
            ]
        }
        StreamEvent::Delta(text) => vec![json!({ "type": "text-delta", "id": PART, "delta": text })],
        StreamEvent::Done(done) => {
            let metadata =
                json!({ "usage": done.usage, "quota": done.quota, "finishReason": done.finish_reason.as_str() });
            vec![
                json!({ "type": "text-end", "id": PART }),
                json!({ "type": "finish-step" }),
                json!({ "type": "finish", "finishReason": ai_sdk_reason(done.finish_reason), "messageMetadata": metadata }),
            ]
        }
        StreamEvent::Error(error) => vec![json!({ "type": "error", "errorText": error.message })],
    };
    let mut text = format!("id: {id}\n");
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        text.push_str(&format!("data: {part}\n"));
    }
    text.push('\n');
    if event.is_last() {
        text.push_str("data: [DONE]\n\n");
    }
    text
}

/// The SDK's own set of reasons.
fn ai_sdk_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ContentFilter => "content-filter",
        FinishReason::ToolCalls => "tool-calls",
        FinishReason::Error => "error",
        FinishReason::Stopped => "other",
    }
}

/// JSON of a value that has no way to fail.
fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condensed_stream_keeps_places() {
        let ids = |events, last_id| condensed_ids(events, last_id).collect::<Vec<_>>();
        assert_eq!((ids(3, 34), ids(3, 3), ids(2, 2)), (vec![1, 33, 34], vec![1, 2, 3], vec![1, 2]));
        let broken = StreamEvent::Error(StreamError { code: "c".to_owned(), message: "m".to_owned() });
        let kept = |text: &str| condensed(broken.clone(), text.to_owned(), broken.clone()).len();
        assert_eq!((kept("all"), kept("")), (3, 2));
    }

    #[test]
    fn text_stays_data() {
        let event = StreamEvent::Delta("<b>\n\ndata: x\r\u{7}".to_owned());
        let bytes = Protocol::Native.encode(7, &event);
        let expected = "id: 7\nevent: delta\ndata: {\"text\":\"<b>\\n\\ndata: x\\r\\u0007\"}\n\n";
        assert_eq!(bytes, expected.as_bytes());
    }

    #[test]
    fn the_sdk_is_told_why_an_answer_ended_in_its_own_words() {
        for (reason, of_sdk, own) in [
            (FinishReason::Stop, "stop", "stop"),
            (FinishReason::Length, "length", "length"),
            (FinishReason::ContentFilter, "content-filter", "content_filter"),
            (FinishReason::ToolCalls, "tool-calls", "tool_calls"),
            (FinishReason::Stopped, "other", "stopped"),
            (FinishReason::Error, "error", "error"),
        ] {
            let (message_id, usage, quota) = (Uuid::nil(), Value::Null, Value::Null);
            let done = StreamEvent::Done(Done { message_id, usage, finish_reason: reason, quota });
            let text = String::from_utf8(Protocol::AiSdk.encode(1, &done).to_vec()).unwrap();
            let mut parts = text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
            let finish: Value = parts.find(|part: &Value| part["type"] == "finish").unwrap();
            assert_eq!(finish["finishReason"], of_sdk);
            assert_eq!(finish["messageMetadata"]["finishReason"], own);
        }
    }

    #[test]
    fn the_sdk_gets_one_part_an_event_and_an_end() {
        let error = StreamEvent::Error(StreamError { code: "provider_unavailable".into(), message: "Sorry.".into() });
        let bytes = Protocol::AiSdk.encode(3, &error);
        assert_eq!(bytes, &b"id: 3\ndata: {\"errorText\":\"Sorry.\",\"type\":\"error\"}\n\ndata: [DONE]\n\n"[..]);
        let start = StreamEvent::Start(Start {
            stream_id: Uuid::nil(),
            conversation_id: Uuid::nil(),
            message_id: Uuid::nil(),
            provider: "openai".into(),
            model: "gpt-4".into(),
            fallback_from: None,
        });
        let text = String::from_utf8(Protocol::AiSdk.encode(1, &start).to_vec()).unwrap();
        assert_eq!(text.matches("\n\ndata: ").count(), 2, "{text}");
        assert!(text.ends_with("\n\n"), "{text}");
    }
}
