//! Search by words, in an index that all users share and that keeps them apart: each word is stored behind its
//! owner's mark, so that a search reads its owner's words alone, however common they are.

use std::collections::HashSet;

use unicode_normalization::UnicodeNormalization;
use uuid::Uuid;

/// Words of one text that can be found.
const MAX_WORDS: usize = 1_000;
/// Characters of a word that count.
const MAX_LENGTH: usize = 40;

/// The words of a text as they are stored.
#[must_use]
pub fn terms(owner: Uuid, text: &str) -> Vec<String> {
    let mark = mark(owner);
    let mut seen = HashSet::new();
    words(&folded(text))
        .filter(|word| seen.insert(word.clone()))
        .take(MAX_WORDS)
        .map(|word| format!("{mark}{word}"))
        .collect()
}

/// A `tsquery` for texts that have all words of the input, each perhaps only begun; `None` without words.
#[must_use]
pub fn query(owner: Uuid, input: &str) -> Option<String> {
    let mark = mark(owner);
    // Words hold letters and digits only, so that nothing needs to be escaped.
    let parts: Vec<String> = words(&folded(input)).take(20).map(|word| format!("'{mark}{word}':*")).collect();
    (!parts.is_empty()).then(|| parts.join(" & "))
}

/// The text in the form that words are compared in: one of those that Unicode has for the same text, in lower case. A
/// text that was stored before this form changed is found by the words that it was stored with, until it is written anew.
fn folded(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let lower = text.nfkc().flat_map(char::to_lowercase);
    // The capital i of Turkish leaves its dot behind, and a sigma's form depends on whether the word ends there.
    lower.filter(|c| *c != '\u{307}').map(|c| if c == 'ς' { 'σ' } else { c }).collect()
}

/// The words of a folded text.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric()).flat_map(|run| {
        let characters: Vec<char> = run.chars().collect();
        let parts = characters.chunk_by(|a, b| is_unspaced(*a) == is_unspaced(*b));
        parts
            .flat_map(
                |part| if is_unspaced(part[0]) { pairs(part) } else { vec![part.iter().take(MAX_LENGTH).collect()] },
            )
            .collect::<Vec<_>>()
    })
}

/// Each character with the next one, which finds any sequence of them; the last one begins no pair.
fn pairs(characters: &[char]) -> Vec<String> {
    (0..characters.len()).map(|at| characters[at..].iter().take(2).collect()).collect()
}

/// Whether the character is of a script without spaces between words: Thai, Lao, Burmese, Khmer, kana, Han.
fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3040}'..='\u{30ff}'
        | '\u{31f0}'..='\u{31ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}

/// The random half of the id: two users with the same one would only search a little longer.
fn mark(owner: Uuid) -> String {
    owner.simple().to_string()[20..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_lower_case_distinct_and_marked() {
        let owner = Uuid::from_u128(0xabc);
        let terms = terms(owner, "Über-Übung: hello, HELLO <b>42</b>");
        assert_eq!(terms, ["über", "übung", "hello", "b", "42"].map(|word| format!("000000000abc{word}")));
    }

    #[test]
    fn a_word_is_the_same_in_any_form() {
        let terms = |text: &str| terms(Uuid::nil(), text);
        for (text, others) in [
            ("việt", &["VIỆT", "vie\u{323}\u{302}t", "vie\u{302}\u{323}t", "ｖｉệｔ"][..]),
            ("istanbul", &["İstanbul", "I\u{307}STANBUL", "i\u{307}stanbul", "ISTANBUL"]),
            ("οδυσσεύς", &["ΟΔΥΣΣΕΎΣ", "οδυσσεύσ", "ΟΔΥΣΣΕΥ\u{301}Σ"]),
            ("한국어", &["\u{1112}\u{1161}\u{11ab}\u{1100}\u{116e}\u{11a8}\u{110b}\u{1165}"]),
            ("ガス", &["ｶﾞｽ", "カ\u{3099}ス"]),
            ("finance x2 123", &["ﬁnance x² ①②③", "ＦＩＮＡＮＣＥ Ｘ２ １２３"]),
        ] {
            for other in others {
                assert_eq!(terms(other), terms(text), "{text}");
                assert_eq!(query(Uuid::nil(), other), query(Uuid::nil(), text), "{text}");
            }
        }
        assert_eq!(terms("İİ ΟΔΥΣ").concat(), format!("{0}ii{0}οδυσ", mark(Uuid::nil())));
    }

    #[test]
    fn where_words_are_not_spaced_each_pair_of_characters_is_one() {
        let owner = Uuid::from_u128(0xabc);
        let marked = |words: &[&str]| words.iter().map(|word| format!("000000000abc{word}")).collect::<Vec<_>>();
        assert_eq!(terms(owner, "我想去GPT北京。"), marked(&["我想", "想去", "去", "gpt", "北京", "京"]));
        assert_eq!(query(owner, "北京").as_deref(), Some("'000000000abc北京':* & '000000000abc京':*"));
    }

    #[test]
    fn words_are_counted_once() {
        let text = (0..MAX_WORDS).map(|n| format!("again w{n}")).collect::<Vec<_>>().join(" ");
        let terms = terms(Uuid::nil(), &text);
        assert_eq!((terms.len(), terms.last().map(|term| term.ends_with("w998"))), (MAX_WORDS, Some(true)));
    }

    #[test]
    fn a_query_is_made_of_letters_and_digits_alone() {
        let owner = Uuid::from_u128(0xabc);
        assert_eq!(query(owner, "x' | 'y\\").as_deref(), Some("'000000000abcx':* & '000000000abcy':*"));
        assert_eq!(query(owner, " '&|! "), None);
    }
}
