//! What a model is sent: how long it may be, how much it may cost, and what is left out to make it fit.

use std::time::Duration;

use crate::chat::catalogue::{Api, Model};
use crate::chat::provider::{Role, Turn, Usage};

/// Tokens that a provider adds around a message, and more.
pub const PER_MESSAGE: i64 = 16;
/// The longest answer where the client names no limit.
const DEFAULT_ANSWER: i64 = 4_096;
/// The same for a model that thinks first, in tokens that count.
const DEFAULT_REASONED_ANSWER: i64 = 16_384;
/// An answer with less room than that is not worth beginning.
pub const SHORTEST_ANSWER: i64 = 64;
/// OpenAI's Responses refuse fewer (`integer_below_min_value`).
const FEWEST_OF_RESPONSES: i64 = 16;
/// Tokens in which the slower of the models that think do so, each second.
const THOUGHT_IN_A_SECOND: i64 = 50;
/// Tokens of a prompt that the slowest models read in a second.
const READ_IN_A_SECOND: u64 = 5_000;
/// Tokens that a prompt may have beyond the likely number.
const MARGIN: i64 = 256;

/// An upper bound of a text's tokens: whatever the model, a token is at least a byte. Some are no more: of digits, and
/// of letters and digits by turns.
#[must_use]
pub fn max_tokens_of(text: &str) -> i64 {
    i64::try_from(text.len()).unwrap_or(i64::MAX / 2) + PER_MESSAGE
}

/// The same of a prompt without history.
#[must_use]
pub fn max_tokens_of_prompt(question: &str, system: Option<&str>) -> i64 {
    PER_MESSAGE + max_tokens_of(question) + system.map_or(0, max_tokens_of)
}

/// A likely number of tokens, for what no provider has counted: one for four bytes of prose or code, more of what is
/// denser. Tokenizers cut a text into such runs before they look for words in them (`o200k` of OpenAI's tiktoken), so
/// that it is within a fifth for most texts, numbers and codes among them.
#[must_use]
pub fn estimated_tokens(text: &str) -> i64 {
    let (mut tokens, mut wide) = (0, 0);
    let mut runs = text.as_bytes().chunk_by(|one, next| Kind::of(*one) == Kind::of(*next)).peekable();
    while let Some(run) = runs.next() {
        let length = run.len();
        match Kind::of(run[0]) {
            Kind::Capital if length == 1 && runs.peek().is_some_and(|word| Kind::of(word[0]) == Kind::Small) => {}
            Kind::Capital | Kind::Small => {
                let word = length.min(LONGEST_WORD);
                tokens += word.div_ceil(6) + (length - word).div_ceil(2);
            }
            Kind::Digit => tokens += length.div_ceil(3),
            Kind::Sign => tokens += length.div_ceil(2),
            // The space before a word is a part of it.
            Kind::Space => tokens += if run == b" " { 0 } else { length.div_ceil(64) },
            Kind::Wide => wide += length,
        }
    }
    i64::try_from(tokens + wide.div_ceil(4)).unwrap_or(i64::MAX)
}

/// What has more letters is no word.
const LONGEST_WORD: usize = 24;

/// What tokenizers keep apart.
#[derive(PartialEq, Eq)]
enum Kind {
    Capital,
    Small,
    Digit,
    Sign,
    Space,
    /// Bytes of characters beyond ASCII.
    Wide,
}

impl Kind {
    const fn of(byte: u8) -> Self {
        match byte {
            b'A'..=b'Z' => Self::Capital,
            b'a'..=b'z' => Self::Small,
            b'0'..=b'9' => Self::Digit,
            0x80.. => Self::Wide,
            b' ' | b'\t' | b'\n' | b'\r' => Self::Space,
            _ => Self::Sign,
        }
    }
}

/// The longest answer that a model can give to a prompt of so many tokens: prompt and answer share its window. What
/// leaves no room for an answer worth beginning is the provider's to refuse.
#[must_use]
pub fn answer_room(model: &Model, prompt: i64) -> i64 {
    (model.context_window - prompt - MARGIN).max(SHORTEST_ANSWER).min(model.max_output_tokens)
}

/// The longest answer: what the client asks for or a default, within the model's own limit.
#[must_use]
pub fn longest_answer(model: &Model, asked: Option<i64>) -> i64 {
    let default = if model.reasoning { DEFAULT_REASONED_ANSWER } else { DEFAULT_ANSWER };
    let fewest = if model.api == Api::Responses { FEWEST_OF_RESPONSES } else { 1 };
    asked.unwrap_or(default).max(fewest).min(model.max_output_tokens)
}

/// Bytes of history that fit beside a prompt and its answer, in the model's window and in the tokens left.
#[must_use]
pub fn history_room(model: &Model, prompt: i64, answer: i64, left: i64) -> i64 {
    // Half of the window is for the history, however long an answer is asked for. Two bytes a token is what dense texts
    // have, such as tables of numbers; most have four.
    let beside = answer.min(model.context_window / 2);
    let window = (model.context_window - prompt - beside).max(0).saturating_mul(2);
    window.min((left - prompt - answer).max(0))
}

/// The history as providers accept it: nothing empty, a person speaks first.
#[must_use]
pub fn turns(history: Vec<Turn>, message: &str) -> Vec<Turn> {
    let spoken = history.into_iter().filter(|turn| !turn.content.trim().is_empty());
    let mut turns: Vec<Turn> = spoken.skip_while(|turn| turn.role == Role::Assistant).collect();
    turns.push(Turn { role: Role::User, content: message.to_owned() });
    turns
}

/// What was used, for an answer that was stopped or broke, or whose provider told nothing. Thoughts that were not
/// counted are estimated by the time that they took: they are paid for, too.
#[must_use]
pub fn estimated_usage(reported: Option<Usage>, prompt: i64, answer: &str, thought: i64) -> Usage {
    let reported = reported.unwrap_or_default();
    let input_tokens = if reported.input_tokens > 0 { reported.input_tokens } else { prompt };
    let uncounted = if reported.reasoning_tokens > 0 { 0 } else { thought };
    let output_tokens = reported.output_tokens.max(estimated_tokens(answer) + uncounted);
    let reasoning_tokens = reported.reasoning_tokens + uncounted;
    Usage { input_tokens, output_tokens, reasoning_tokens, estimated: true, ..reported }
}

/// The longest time in which a model reads a prompt of so many tokens.
#[must_use]
pub const fn reading(prompt: i64) -> Duration {
    Duration::from_secs(prompt.unsigned_abs() / READ_IN_A_SECOND)
}

/// A likely number of tokens that a model has thought by the time at which it begins to answer a prompt. Whole seconds
/// count, since every answer takes a moment to begin.
#[must_use]
pub fn thought_in(waited: Duration, prompt: i64) -> i64 {
    let seconds = waited.saturating_sub(reading(prompt)).as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(THOUGHT_IN_A_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::catalogue::Catalogue;

    fn turn(role: Role, content: &str) -> Turn {
        Turn { role, content: content.to_owned() }
    }

    #[test]
    fn tokens_are_estimated_by_what_a_text_is_made_of() {
        // As `o200k_base` counts them.
        let counted = [
            (
                "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience \
              and should act towards one another in a spirit of brotherhood.",
                33,
            ),
            (
                "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung aller staatlichen \
              Gewalt.",
                25,
            ),
            ("人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。", 37),
            ("pub fn estimated_tokens(text: &str) -> i64 {\n    let (mut tokens, mut wide) = (0, 0);\n", 29),
            (r#"{"id":"8f14e45f","total":12850,"paid":true,"items":[{"sku":"A-1","n":3}]}"#, 33),
            ("8125,77,10394\n3310,4,99812\n71,52208,660\n", 23),
            ("a1b2c3d4e5f6g7h8i9j0", 20),
            ("A1B2C3D4E5F6G7H8 A1B2C3D4E5F6G7H8 ", 33),
            ("4dff4ea340f0a823f15d3f4f01ab62eae0e5da579ccb851f8db9dfe84c58b2b37b89903a740e1ee172da793a6e79d560", 57),
        ];
        for (text, tokens) in counted {
            let share = estimated_tokens(text) as f64 / f64::from(tokens);
            assert!((0.8..1.25).contains(&share), "{share} of {tokens}: {text}");
        }
        let random = "xqzjvkwpyhgfbdmntrlscuoaei".repeat(10);
        assert!(estimated_tokens(&random) > 100 && estimated_tokens(&random) <= max_tokens_of(&random));
        assert_eq!(estimated_tokens(""), 0);
    }

    #[test]
    fn history_begins_with_a_person_and_skips_what_is_empty() {
        let history = vec![turn(Role::Assistant, "a"), turn(Role::User, "b"), turn(Role::Assistant, " ")];
        let turns = turns(history, "c");
        assert_eq!(turns.iter().map(|turn| turn.content.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn prompt_and_answer_share_the_window() {
        let model = Catalogue::get().unwrap().find("gpt-4").unwrap().model;
        assert_eq!(answer_room(model, 1_000), 8_192 - 1_000 - MARGIN);
        assert_eq!(answer_room(model, 9_000), SHORTEST_ANSWER);
        assert_eq!((longest_answer(model, None), longest_answer(model, Some(50))), (DEFAULT_ANSWER, 50));
        let wide = Catalogue::get().unwrap().find("gpt-4o").unwrap().model;
        assert_eq!((longest_answer(wide, Some(1_000_000)), answer_room(wide, 100)), (16_384, 16_384));
    }

    #[test]
    fn history_fits_the_window_and_the_quota() {
        let model = Catalogue::get().unwrap().find("gpt-4").unwrap().model;
        assert_eq!(history_room(model, 100, 4_096, 1_000_000), (8_192 - 4_196) * 2);
        assert_eq!(history_room(model, 100, 4_096, 5_000), 804);
        assert_eq!(history_room(model, 100, 4_096, 1_000), 0);
        assert_eq!(history_room(model, 9_000, 4_096, 1_000_000), 0);
        assert_eq!(history_room(model, 100, 8_192, 1_000_000), (8_192 - 4_196) * 2);
    }

    #[test]
    fn the_bound_is_a_token_for_each_byte() {
        for (text, bytes) in [("Hello, world", 12), ("日本語", 9), ("a1a1a1", 6), ("31415926", 8), ("", 0)] {
            assert_eq!(max_tokens_of(text), bytes + PER_MESSAGE, "{text}");
        }
    }

    #[test]
    fn a_report_is_kept_as_far_as_it_goes() {
        let reported = Usage { input_tokens: 60, cached_input_tokens: 30, output_tokens: 1, ..Usage::default() };
        let usage = estimated_usage(Some(reported), 5, "three short words", 0);
        assert_eq!((usage.input_tokens, usage.cached_input_tokens, usage.output_tokens), (60, 30, 3));
        assert!(usage.estimated);
    }

    #[test]
    fn thoughts_that_nobody_counted_are_estimated() {
        let output = |reported, ms| {
            let thought = thought_in(Duration::from_millis(ms), 10_000);
            let usage = estimated_usage(Some(reported), 5, "three short words", thought);
            (usage.output_tokens, usage.reasoning_tokens)
        };
        assert_eq!(output(Usage::default(), 2_999), (3, 0));
        assert_eq!(output(Usage::default(), 62_400), (3_003, 3_000));
        let counted = Usage { output_tokens: 900, reasoning_tokens: 880, ..Usage::default() };
        assert_eq!(output(counted, 62_400), (900, 880));
    }
}
