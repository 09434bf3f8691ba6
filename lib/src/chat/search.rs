//! Search by words, in an index that all users share and that keeps them apart: each word is stored behind its
//! owner's mark, so that a search reads its owner's words alone, however common they are.

use std::collections::BTreeSet;

use uuid::Uuid;

/// Words of one text that can be found.
const MAX_WORDS: usize = 1_000;
/// Characters of a word that count.
const MAX_LENGTH: usize = 40;

/// The words of a text as they are stored.
#[must_use]
pub fn terms(owner: Uuid, text: &str) -> Vec<String> {
    let mark = mark(owner);
    let distinct: BTreeSet<String> = words(text).take(MAX_WORDS).collect();
    distinct.into_iter().map(|word| format!("{mark}{word}")).collect()
}

/// A `tsquery` for texts that have all words of the input, each perhaps only begun; `None` without words.
#[must_use]
pub fn query(owner: Uuid, input: &str) -> Option<String> {
    let mark = mark(owner);
    // Words hold letters and digits only, so that nothing needs to be escaped.
    let parts: Vec<String> = words(input).take(20).map(|word| format!("'{mark}{word}':*")).collect();
    (!parts.is_empty()).then(|| parts.join(" & "))
}

fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| word.chars().take(MAX_LENGTH).flat_map(char::to_lowercase).collect())
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
        assert_eq!(terms, ["42", "b", "hello", "über", "übung"].map(|word| format!("000000000abc{word}")));
    }

    #[test]
    fn a_query_is_made_of_letters_and_digits_alone() {
        let owner = Uuid::from_u128(0xabc);
        assert_eq!(query(owner, "x' | 'y\\").as_deref(), Some("'000000000abcx':* & '000000000abcy':*"));
        assert_eq!(query(owner, " '&|! "), None);
    }
}
