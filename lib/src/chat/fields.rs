//! The fields of chat requests.

use crate::http::validate::{Field, Invalid, Raw, bounded_text};

/// Characters of the longest message.
const LONGEST_MESSAGE: usize = 100_000;

/// What a person says: kept as it is, but neither blank nor endless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageText(pub String);

impl Field for MessageText {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let text = raw.text()?;
        // Checks the length without the white space around, and NUL.
        bounded_text(raw, 1, LONGEST_MESSAGE)?;
        if text.chars().count() > LONGEST_MESSAGE {
            return Err(Invalid::new("too_long", format!("Must have at most {LONGEST_MESSAGE} characters.")));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Instructions to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemPrompt(pub String);

impl Field for SystemPrompt {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        bounded_text(raw, 0, 10_000).map(Self)
    }
}

/// A model's id, known or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId(pub String);

impl Field for ModelId {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        bounded_text(raw, 1, 100).map(Self)
    }
}

/// A conversation's title.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Title(pub String);

impl Field for Title {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        bounded_text(raw, 1, 200).map(Self)
    }
}

/// Words to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchText(pub String);

impl Field for SearchText {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        bounded_text(raw, 0, 200).map(Self)
    }
}

/// How freely to choose words, from 0 to 2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature(pub f64);

impl Field for Temperature {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let value = match raw {
            Raw::Json(value) => value.as_f64(),
            Raw::Text(text) => text.parse().ok(),
        };
        let value = value.ok_or_else(|| Invalid::wrong_type("a number"))?;
        if (0.0..=2.0).contains(&value) {
            Ok(Self(value))
        } else {
            Err(Invalid::new("out_of_range", "Must be between 0 and 2."))
        }
    }
}

/// The longest answer that the client wants, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxTokens(pub i64);

impl Field for MaxTokens {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let value = raw.integer()?;
        if (1..=1_000_000).contains(&value) {
            Ok(Self(value))
        } else {
            Err(Invalid::new("out_of_range", "Must be between 1 and 1000000."))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_keeps_its_white_space_but_is_not_blank() {
        let parse = |text: &str| MessageText::parse(Raw::Json(&json!(text))).map(|message| message.0);
        assert_eq!(parse("  if x:\n").as_deref(), Ok("  if x:\n"));
        assert_eq!(parse(" \n\t").unwrap_err().code, "too_short");
        assert_eq!(parse("a\0b").unwrap_err().code, "malformed");
        assert_eq!(parse(&"é".repeat(100_001)).unwrap_err().code, "too_long");
        assert!(parse(&"é".repeat(100_000)).is_ok());
    }

    #[test]
    fn numbers_have_bounds() {
        assert!(Temperature::parse(Raw::Json(&json!(2))).is_ok());
        assert_eq!(Temperature::parse(Raw::Json(&json!(2.1))).unwrap_err().code, "out_of_range");
        assert_eq!(Temperature::parse(Raw::Json(&json!("1"))).unwrap_err().code, "wrong_type");
        assert_eq!(MaxTokens::parse(Raw::Json(&json!(0))).unwrap_err().code, "out_of_range");
        assert_eq!(MaxTokens::parse(Raw::Json(&json!(1.5))).unwrap_err().code, "wrong_type");
    }
}
