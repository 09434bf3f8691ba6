//! Conversations and messages as they are stored and shown.

use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::chat::provider::Usage;

/// Characters of a title that is made from a message.
const TITLE_LENGTH: usize = 60;

/// A message as the API shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// The message's id.
    pub id: Uuid,
    /// Who said it.
    pub role: String,
    /// What was said.
    pub content: String,
    /// Who answered.
    pub provider: Option<String>,
    /// What answered.
    pub model: Option<String>,
    /// The tokens of the exchange, on its answer.
    pub usage: Option<Value>,
    /// Why the answer ended.
    pub finish_reason: Option<String>,
    /// When it was said.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub created_at: OffsetDateTime,
}

/// Tokens and cost as the API shows them.
#[must_use]
pub fn usage_json(usage: &Usage, cost_micro_usd: Option<i64>) -> Value {
    let mut value = json!({
        "inputTokens": usage.input_tokens,
        "cachedInputTokens": usage.cached_input_tokens,
        "outputTokens": usage.output_tokens,
        "reasoningTokens": usage.reasoning_tokens,
        "totalTokens": usage.total(),
        "costMicroUsd": cost_micro_usd,
    });
    if usage.estimated {
        value["estimated"] = true.into();
    }
    value
}

/// The title of a conversation that begins with a message: its beginning, on one line.
#[must_use]
pub fn title_of(message: &str) -> String {
    let mut title = String::new();
    let mut length = 0;
    for word in message.split_whitespace() {
        let word_length = word.chars().count();
        if length > 0 && length + 1 + word_length > TITLE_LENGTH {
            title.push('…');
            break;
        }
        if length > 0 {
            title.push(' ');
            length += 1;
        }
        if word_length > TITLE_LENGTH {
            title.extend(word.chars().take(TITLE_LENGTH));
            title.push('…');
            break;
        }
        title.push_str(word);
        length += word_length;
    }
    title
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_one_short_line() {
        assert_eq!(title_of("  Hello,\n\tworld \r\n"), "Hello, world");
        assert_eq!(title_of(&"word ".repeat(20)), format!("{}word…", "word ".repeat(11)));
        assert_eq!(title_of(&"x".repeat(100)), format!("{}…", "x".repeat(60)));
    }
}
