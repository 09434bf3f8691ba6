//! The request body of the AI SDK's transport: the whole conversation as the client sees it, of which the last
//! thing that a person said counts.

use serde_json::Value;
use uuid::Uuid;

use crate::chat::fields::MessageText;
use crate::http::validate::{Field, Invalid, Raw, bounded_text};

/// The client's name for the conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatId(pub String);

impl ChatId {
    /// Its most characters.
    pub const LONGEST: usize = 200;
}

impl Field for ChatId {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        bounded_text(raw, 1, Self::LONGEST).map(Self)
    }
}

/// The id of a message: ours, as streams and lists tell it, or the client's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageName(pub String);

impl MessageName {
    /// Its most characters.
    pub const LONGEST: usize = 200;
}

impl Field for MessageName {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        bounded_text(raw, 1, Self::LONGEST).map(Self)
    }
}

/// What a person said last, and what came before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastQuestion {
    /// What was said.
    pub message: MessageText,
    /// What the client calls it.
    pub name: Option<MessageName>,
    /// The ids of the answers, which streams give out with their `start`.
    pub answers: Vec<Uuid>,
    /// What the client calls the questions.
    pub questions: Vec<String>,
}

impl Field for LastQuestion {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let Raw::Json(Value::Array(messages)) = raw else { return Err(Invalid::wrong_type("an array of messages")) };
        let last = messages.iter().rposition(|message| message["role"] == "user");
        let last = last.ok_or_else(|| Invalid::new("required", "Must hold a message of the user."))?;
        let message = MessageText::parse(Raw::Text(&text_of(&messages[last])))?;
        let answers = messages[..last].iter().filter(|message| message["role"] == "assistant");
        let answers = answers.filter_map(|answer| Uuid::try_parse(answer["id"].as_str()?).ok()).collect();
        let questions = messages[..last].iter().filter(|message| message["role"] == "user");
        let questions = questions.filter_map(|question| Some(name_of(question)?.0)).collect();
        Ok(Self { message, name: name_of(&messages[last]), answers, questions })
    }
}

fn name_of(message: &Value) -> Option<MessageName> {
    message["id"].as_str().and_then(|id| MessageName::parse(Raw::Text(id)).ok())
}

/// The text parts of a message; earlier versions of the SDK have a plain text instead.
fn text_of(message: &Value) -> String {
    let Some(parts) = message["parts"].as_array() else {
        return message["content"].as_str().unwrap_or_default().to_owned();
    };
    parts.iter().filter(|part| part["type"] == "text").filter_map(|part| part["text"].as_str()).collect()
}

/// Why the SDK sends its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// A person said something.
    Submit,
    /// The last answer shall be made anew.
    Regenerate,
}

impl Field for Trigger {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        Ok(if raw.text()? == "regenerate-message" { Self::Regenerate } else { Self::Submit })
    }

    fn missing() -> Result<Self, Invalid> {
        Ok(Self::Submit)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_thing_that_a_person_said_counts() {
        let messages = json!([
            { "id": "1", "role": "user", "parts": [{ "type": "text", "text": "First" }] },
            { "id": "x", "role": "assistant", "parts": [] },
            { "id": Uuid::nil(), "role": "assistant", "parts": [] },
            { "id": "2", "role": "user", "parts": [
                { "type": "text", "text": "Second" }, { "type": "file", "url": "x" }, { "type": "text", "text": " part" },
            ] },
            { "id": Uuid::max(), "role": "assistant", "parts": [{ "type": "text", "text": "Answer" }] },
        ]);
        let question = LastQuestion::parse(Raw::Json(&messages)).unwrap();
        assert_eq!((question.message.0.as_str(), question.answers), ("Second part", vec![Uuid::nil()]));
        assert_eq!((question.name, question.questions), (Some(MessageName("2".to_owned())), vec!["1".to_owned()]));
        assert_eq!(LastQuestion::parse(Raw::Json(&json!([{ "role": "assistant" }]))).unwrap_err().code, "required");
        assert_eq!(LastQuestion::parse(Raw::Json(&json!("x"))).unwrap_err().code, "wrong_type");
    }
}
