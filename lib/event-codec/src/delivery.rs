//! A batch of a queue's messages as Lambda hands it over, read in place.

use std::borrow::Cow;
use std::num::NonZero;
use std::thread::{self, ScopedJoinHandle};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::block::Rows;
use crate::event::{Event, Rejection};

/// As many messages at least are worth a thread.
const SHARE: usize = 500;
/// So are so many bytes.
const SHARE_BYTES: usize = 1 << 19;
/// What stands between two messages.
const BETWEEN: &[u8] = br#"},{""#;

/// A message: of what SQS tells with it, that which is used.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record<'a> {
    #[serde(borrow, default)]
    message_id: Cow<'a, str>,
    #[serde(borrow, default)]
    body: Option<&'a RawValue>,
    #[serde(borrow, default)]
    attributes: Attributes<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attributes<'a> {
    #[serde(borrow, default)]
    sent_timestamp: Cow<'a, str>,
    #[serde(borrow, default)]
    approximate_receive_count: Cow<'a, str>,
}

/// The messages of an event of SQS.
///
/// # Errors
/// When it is none.
pub fn records(event: &[u8]) -> Result<Vec<Record<'_>>, serde_json::Error> {
    let shares = threads().min(event.len() / SHARE_BYTES);
    records_by_shares(event, shares).map_or_else(|| all_records(event), Ok)
}

fn all_records(event: &[u8]) -> Result<Vec<Record<'_>>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Delivery<'a> {
        #[serde(borrow, rename = "Records")]
        records: Vec<Record<'a>>,
    }
    Ok(serde_json::from_slice::<Delivery<'_>>(event)?.records)
}

/// The same on a thread a share, if the event is written without a space, as SQS writes it. Where a message's text looks
/// like the place between two messages, its share does not end where the next one begins: then nothing comes of it.
fn records_by_shares(event: &[u8], shares: usize) -> Option<Vec<Record<'_>>> {
    let mut rest = event.strip_prefix(br#"{"Records":["#)?.strip_suffix(b"]}")?;
    let size = rest.len().checked_div(shares)?;
    thread::scope(|scope| {
        let mut others = Vec::new();
        for _ in 1..shares {
            let between = rest.get(size..)?.windows(BETWEEN.len()).position(|bytes| bytes == BETWEEN)?;
            let (share, comma_and_rest) = rest.split_at(size + between + 1);
            others.push(scope.spawn(move || records_of_share(share)));
            rest = &comma_and_rest[1..];
        }
        let last = records_of_share(rest)?;
        let mut records = Vec::new();
        for other in others {
            records.extend(joined(other)?);
        }
        records.extend(last);
        Some(records)
    })
}

/// Messages with a comma between every two, and nothing else.
fn records_of_share(mut share: &[u8]) -> Option<Vec<Record<'_>>> {
    let mut records = Vec::new();
    loop {
        let mut values = serde_json::Deserializer::from_slice(share).into_iter();
        records.push(values.next()?.ok()?);
        share = &share[values.byte_offset()..];
        let Some((comma, others)) = share.split_first() else { return Some(records) };
        share = (*comma == b',').then_some(others)?;
    }
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Record<'_> {
    /// SQS's id of the message.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.message_id
    }

    /// When SQS took the message, in milliseconds since the epoch.
    #[must_use]
    fn sent_millis(&self) -> Option<i64> {
        self.attributes.sent_timestamp.parse().ok()
    }

    /// How often SQS has delivered it, this time included.
    #[must_use]
    pub fn deliveries(&self) -> Option<u32> {
        self.attributes.approximate_receive_count.parse().ok()
    }

    /// The text, in a buffer that may serve one message after the other. A body that is no text is given as it stands.
    pub fn body<'b>(&self, buffer: &'b mut String) -> &'b str {
        let raw = self.body.map_or("", RawValue::get);
        let mut bytes = std::mem::take(buffer).into_bytes();
        let quoted = raw.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        *buffer = quoted
            .and_then(|text| unescape(text.as_bytes(), &mut bytes))
            .and_then(|()| String::from_utf8(bytes).ok())
            .or_else(|| serde_json::from_str(raw).ok())
            .unwrap_or_else(|| raw.to_owned());
        buffer
    }
}

/// The events among messages.
pub struct Events<'r, 'a> {
    /// Their rows.
    pub rows: Rows,
    /// Their messages.
    pub carriers: Vec<&'r Record<'a>>,
    /// The other messages, which can never be counted.
    pub rejected: Vec<(&'r Record<'a>, Rejection)>,
}

impl<'r, 'a> Events<'r, 'a> {
    /// Takes the messages of a batch apart, on as many threads as there are processors. `ingested_at` is in
    /// milliseconds since the epoch.
    #[must_use]
    pub fn read(records: &'r [Record<'a>], ingested_at: i64) -> Self {
        let mut shares = records.chunks(records.len().div_ceil(threads()).max(SHARE));
        let first = shares.next().unwrap_or_default();
        thread::scope(|scope| {
            let others: Vec<_> = shares.map(|share| scope.spawn(move || Self::read_all(share, ingested_at))).collect();
            let mut all = Self::read_all(first, ingested_at);
            for other in others {
                let Self { rows, carriers, rejected } = joined(other);
                all.rows.append(&rows);
                all.carriers.extend(carriers);
                all.rejected.extend(rejected);
            }
            all
        })
    }

    fn read_all(records: &'r [Record<'a>], ingested_at: i64) -> Self {
        let mut events =
            Self { rows: Rows::new(ingested_at), carriers: Vec::with_capacity(records.len()), rejected: Vec::new() };
        let mut buffer = String::new();
        for record in records {
            match Event::parse(record.body(&mut buffer), record.sent_millis()) {
                Ok(event) => {
                    events.rows.push(&event);
                    events.carriers.push(record);
                }
                Err(rejection) => events.rejected.push((record, rejection)),
            }
        }
        events
    }
}

/// Bytes that are looked at together.
const WORD: usize = size_of::<u64>();
/// A one in each of them.
const ONES: u64 = u64::MAX / 0xff;

/// The text of a JSON string, or nothing where an escape names a character by its number. In JSON within JSON every
/// tenth byte is an escape: eight bytes at a time take a third of what `serde_json` does, which copies from escape to
/// escape.
fn unescape(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    // A word is copied whole, whatever of it is of use.
    out.resize(text.len() + WORD, 0);
    let (mut from, mut to) = (0, 0);
    while from < text.len() {
        let mut word = [0; WORD];
        match text.get(from..from + WORD) {
            Some(bytes) => word.copy_from_slice(bytes),
            None => word[..text.len() - from].copy_from_slice(&text[from..]),
        }
        out[to..to + WORD].copy_from_slice(&word);
        // The high bit of each byte that is a backslash; above the lowest of them, perhaps of others.
        let differs = u64::from_le_bytes(word) ^ (ONES * u64::from(b'\\'));
        let escapes = differs.wrapping_sub(ONES) & !differs & (ONES << 7);
        let before = (escapes.trailing_zeros() / u8::BITS) as usize;
        if before == WORD {
            (from, to) = (from + WORD, to + WORD);
            continue;
        }
        out[to + before] = match text.get(from + before + 1)? {
            escaped @ (b'"' | b'\\' | b'/') => *escaped,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            _ => return None,
        };
        (from, to) = (from + before + 2, to + before + 1);
    }
    out.truncate(to - (from - text.len()));
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(bodies: &[String]) -> Vec<u8> {
        let records: Vec<_> = bodies
            .iter()
            .enumerate()
            .map(|(n, body)| {
                serde_json::json!({
                    "messageId": n.to_string(),
                    "body": body,
                    "attributes": { "SentTimestamp": "1767225600000", "ApproximateReceiveCount": "2" },
                    "eventSource": "aws:sqs",
                })
            })
            .collect();
        serde_json::to_vec(&serde_json::json!({ "Records": records })).unwrap()
    }

    #[test]
    fn texts_are_what_the_json_parser_makes_of_them() {
        let pieces =
            ["\"", "\\", "/", "\n", "\r", "\t", "\u{8}", "\u{c}", "\u{1}", "a", "ä", "€", "🙂", "[]\u{dc}\\\\"];
        let mut seed = 1_u64;
        let mut buffer = String::new();
        for length in 0..600 {
            let mut body = String::new();
            for _ in 0..length % 40 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                body.push_str(pieces[(seed >> 33) as usize % pieces.len()]);
            }
            let event = event(std::slice::from_ref(&body));
            assert_eq!(records(&event).unwrap()[0].body(&mut buffer), body);
        }
        for (raw, body) in [
            (r#""a\/b""#, "a/b"),
            (r#""\u00e4\uD83D\ude42\"""#, "ä🙂\""),
            ("null", ""),
            ("17", "17"),
            (r#"{"a": "b"}"#, r#"{"a": "b"}"#),
            (r#""""#, ""),
        ] {
            let event = format!(r#"{{"Records":[{{"body":{raw}}}]}}"#);
            assert_eq!(records(event.as_bytes()).unwrap()[0].body(&mut buffer), body, "{raw}");
        }
    }

    #[test]
    fn shares_hold_what_the_whole_holds_whatever_the_texts_look_like() {
        let bodies = |odd: &str| -> Vec<String> { (0..40).map(|n| format!("{odd}{n}{odd}")).collect() };
        let mut buffers = (String::new(), String::new());
        for odd in ["", "},{", r#"},{""#, "]}", "[", r"\", r#"{"Records":[{"body":"x"},{"body":"y"}]}"#] {
            let event = event(&bodies(odd));
            let whole = all_records(&event).unwrap();
            for shares in 1..9 {
                let Some(records) = records_by_shares(&event, shares) else {
                    assert_eq!(odd, "},{", "{shares} shares");
                    continue;
                };
                assert_eq!(records.len(), whole.len());
                for (record, same) in records.iter().zip(&whole) {
                    assert_eq!(record.id(), same.id());
                    assert_eq!(record.body(&mut buffers.0), same.body(&mut buffers.1));
                }
            }
        }
        for other in ["", "{}", r#"{"Records":[]}"#, r#"{"Records": [{"body":"x"}]}"#, r#"{"Records":[{"body":"x"},]}"#]
        {
            assert!((0..4).all(|shares| records_by_shares(other.as_bytes(), shares).is_none()), "{other}");
        }
        let large = event(&vec!["x".repeat(1000); 3 * SHARE_BYTES / 1000]);
        assert_eq!(records(&large).unwrap().len(), all_records(&large).unwrap().len());
    }

    #[test]
    fn threads_read_what_one_reads() {
        let body = |n: usize| match n % 7 {
            0 => format!("no event {n}"),
            _ => format!(
                r#"{{"specversion":"1.0","id":"019ad8f0-0000-7000-8000-{n:012}","source":"/test","type":"user.signin",
                    "subject":"user-{n}","time":"2026-01-0{}T00:00:00Z","data":{{"schemaVersion":1,"plan":"free",
                    "method":"password"}}}}"#,
                1 + n % 3
            ),
        };
        for length in [0, 1, SHARE, 2 * SHARE + 1, 5000] {
            let bodies: Vec<String> = (0..length).map(body).collect();
            let event = event(&bodies);
            let records = records(&event).unwrap();
            let (one, all) = (Events::read_all(&records, 7), Events::read(&records, 7));
            let ids = |records: &[&Record<'_>]| records.iter().map(|record| record.id().to_owned()).collect::<Vec<_>>();
            assert_eq!(ids(&all.carriers), ids(&one.carriers));
            assert_eq!(all.carriers.len() + all.rejected.len(), length);
            let rejected = |events: &Events<'_, '_>| {
                events.rejected.iter().map(|(record, why)| (record.id().to_owned(), why.clone())).collect::<Vec<_>>()
            };
            assert_eq!(rejected(&all), rejected(&one));
            assert_eq!((all.rows.ids(), all.rows.clamped()), (one.rows.ids(), one.rows.clamped()));
            let kept = vec![true; one.carriers.len()];
            assert_eq!(all.rows.encode(&kept), one.rows.encode(&kept));
        }
    }

    #[test]
    fn what_is_told_of_a_message_is_read() {
        let event = event(&["x".to_owned()]);
        let records = records(&event).unwrap();
        assert_eq!(
            (records[0].id(), records[0].sent_millis(), records[0].deliveries()),
            ("0", Some(1_767_225_600_000), Some(2))
        );
        let records = super::records(br#"{"Records":[{}]}"#).unwrap();
        assert_eq!((records[0].id(), records[0].sent_millis(), records[0].deliveries()), ("", None, None));
        for bad in [&b"{}"[..], b"", br#"{"Records":[]}]"#, b"{\"Records\":[{\"body\":\"\xff\"}]}"] {
            assert!(super::records(bad).is_err(), "{bad:?}");
        }
    }
}
