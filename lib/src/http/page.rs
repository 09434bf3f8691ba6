//! Lists page by an opaque cursor: the sort key of the last item, which stays right while items come and go.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::crypto;
use crate::error;
use crate::http::validate::{Field, Invalid, Raw};

/// How many items a page has: 1 to 100, 20 by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub i64);

impl Field for Limit {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        match raw.integer()? {
            limit @ 1..=100 => Ok(Self(limit)),
            _ => Err(Invalid::new("out_of_range", "Must be from 1 to 100.")),
        }
    }

    fn missing() -> Result<Self, Invalid> {
        Ok(Self(20))
    }
}

/// Octets of a function's reply that the items of a page may take. Lambda lets 6,291,556 pass; a conversation around its
/// messages takes 80,000 at most, and the headers a few thousand.
pub const ROOM: usize = 6_000_000;

impl Limit {
    /// The same, or as many of the items as fit in a reply, and one at least.
    ///
    /// # Errors
    /// When an item cannot be written as JSON.
    pub fn fitting<T: Serialize>(self, items: &[T]) -> error::Result<Self> {
        let (mut fitting, mut room) = (0, ROOM);
        for item in items {
            // A comma follows.
            let size = size_within_reply(&serde_json::to_vec(item)?) + 1;
            let Some(left) = room.checked_sub(size) else { break };
            (fitting, room) = (fitting + 1, left);
        }
        Ok(Self(self.0.min(fitting.max(1))))
    }
}

/// Whether this JSON fits in a function's reply.
#[must_use]
pub fn fits(json: &[u8]) -> bool {
    json.len() <= ROOM / 2 || size_within_reply(json) <= ROOM
}

/// The octets of JSON in a reply. The body is a text within it, in which these two are escaped once more.
fn size_within_reply(json: &[u8]) -> usize {
    json.len() + json.iter().filter(|byte| matches!(byte, b'"' | b'\\')).count()
}

/// Where a page begins: after the item of this moment and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The last item's moment, to the microsecond, as Postgres keeps it.
    pub at: OffsetDateTime,
    /// The last item's id.
    pub id: Uuid,
}

impl Cursor {
    /// The text that the client sends back.
    #[must_use]
    pub fn encode(&self) -> String {
        let micros = i64::try_from(self.at.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX);
        let mut bytes = micros.to_be_bytes().to_vec();
        bytes.extend_from_slice(self.id.as_bytes());
        crypto::base64url(&bytes)
    }
}

impl Field for Cursor {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let bytes: [u8; 24] =
            crypto::from_base64url(raw.text()?).and_then(|b| b.try_into().ok()).ok_or_else(malformed_cursor)?;
        let (micros, id) = bytes.split_at(8);
        let micros = i64::from_be_bytes(micros.try_into().map_err(|_| malformed_cursor())?);
        let at =
            OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000).map_err(|_| malformed_cursor())?;
        // Outside these years the database has no timestamps.
        if !(1970..=9999).contains(&at.year()) {
            return Err(malformed_cursor());
        }
        Ok(Self { at, id: Uuid::from_slice(id).map_err(|_| malformed_cursor())? })
    }
}

/// The refusal of a text that is no cursor.
pub(crate) fn malformed_cursor() -> Invalid {
    Invalid::new("malformed", "Must be the nextCursor of an earlier page.")
}

/// Where the first page begins.
const END_OF_TIME: OffsetDateTime = time::macros::datetime!(9999-12-31 0:00 UTC);

/// The moment and id that a page comes before, newest first.
#[must_use]
pub fn place(after: Option<Cursor>) -> (OffsetDateTime, Uuid) {
    after.map_or((END_OF_TIME, Uuid::max()), |cursor| (cursor.at, cursor.id))
}

/// Splits one item more than the limit into the page and the cursor of the next.
pub fn split<T>(mut items: Vec<T>, limit: Limit, cursor: impl Fn(&T) -> Cursor) -> (Vec<T>, Option<String>) {
    let size = usize::try_from(limit.0).unwrap_or(usize::MAX);
    let more = items.len() > size;
    items.truncate(size);
    let next = if more { items.last().map(|last| cursor(last).encode()) } else { None };
    (items, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_cursor_is_read_back_and_garbage_is_refused() {
        let cursor = Cursor { at: clock::now(), id: Uuid::now_v7() };
        assert_eq!(Cursor::parse(Raw::Text(&cursor.encode())).unwrap(), cursor);
        for text in ["", "x", "AAAA", &crypto::base64url(&[0xff; 24])] {
            assert_eq!(Cursor::parse(Raw::Text(text)).unwrap_err().code, "malformed");
        }
    }

    #[test]
    fn a_page_is_no_longer_than_a_reply() {
        for item in ["\u{1}\"\\\n😀".repeat(10_000), "a".repeat(250_000)] {
            let items = vec![item.as_str(); 50];
            let Limit(fitting) = Limit(100).fitting(&items).unwrap();
            let body = serde_json::to_string(&items[..usize::try_from(fitting).unwrap()]).unwrap();
            let size = serde_json::to_string(&body).unwrap().len();
            assert!((ROOM - 260_000..=ROOM).contains(&size), "{size}");
        }
        assert!(fits(&vec![b'a'; ROOM]) && !fits(&vec![b'a'; ROOM + 1]) && !fits(&vec![b'"'; ROOM / 2 + 1]));
        assert_eq!(Limit(2).fitting(&["a"; 3]).unwrap(), Limit(2));
        assert_eq!(Limit(2).fitting(&["a".repeat(ROOM), String::new()]).unwrap(), Limit(1));
    }

    #[test]
    fn a_page_has_twenty_items_unless_told() {
        assert_eq!(Limit::missing().unwrap(), Limit(20));
    }

    #[test]
    fn the_last_page_has_no_cursor() {
        let cursor = |_: &i32| Cursor { at: clock::now(), id: Uuid::nil() };
        assert!(split(vec![1, 2], Limit(2), cursor).1.is_none());
        let (items, next) = split(vec![1, 2, 3], Limit(2), cursor);
        assert_eq!((items, next.is_some()), (vec![1, 2], true));
    }
}
