//! Instants as the API writes them: RFC 3339 in UTC with milliseconds.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use uuid::{NoContext, Timestamp, Uuid};

use crate::crypto;

const RFC3339_MILLIS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// The present moment, cut to the millisecond so that what is stored, sent and shown is the same.
#[must_use]
pub fn now() -> OffsetDateTime {
    from_millis(millis(OffsetDateTime::now_utc()))
}

/// Milliseconds since the epoch.
#[must_use]
pub fn millis(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// The moment so many milliseconds after the epoch; the epoch itself for a number outside the calendar.
#[must_use]
pub fn from_millis(millis: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Whole milliseconds of a time that has passed.
#[must_use]
pub fn whole_millis(passed: Duration) -> u64 {
    u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
}

/// An id of version 7 that stands in order among those of its time.
#[must_use]
pub fn uuid_at(at: OffsetDateTime) -> Uuid {
    let seconds = u64::try_from(at.unix_timestamp()).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, at.nanosecond()))
}

/// The second within an id of version 7; `None` for one that does not tell.
#[must_use]
pub fn of_uuid(id: Uuid) -> Option<OffsetDateTime> {
    let (seconds, _) = id.get_timestamp()?.to_unix();
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()
}

/// Between half of a wait and all of it, so that those who failed together do not return together.
#[must_use]
pub fn jitter(wait: Duration) -> Duration {
    let random = crypto::random().map_or(0.0, |bytes| f64::from(bytes[0]) / 255.0);
    wait.mul_f64(0.5 + random / 2.0)
}

/// `2026-01-31T23:59:59.123Z`.
#[must_use]
pub fn rfc3339(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC).format(&RFC3339_MILLIS).unwrap_or_default()
}

/// Serialises an instant as RFC 3339 text: `#[serde(serialize_with = "lib::clock::text::serialize")]`.
pub mod text {
    use serde::Serializer;
    use time::OffsetDateTime;

    /// Writes the instant.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::rfc3339(*at))
    }

    /// The same for an instant that may be absent.
    pub mod option {
        use serde::Serializer;
        use time::OffsetDateTime;

        /// Writes the instant or null.
        ///
        /// # Errors
        /// Those of the serializer.
        pub fn serialize<S: Serializer>(at: &Option<OffsetDateTime>, serializer: S) -> Result<S::Ok, S::Error> {
            match at {
                Some(at) => super::serialize(at, serializer),
                None => serializer.serialize_none(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_milliseconds_and_utc() {
        assert_eq!(rfc3339(from_millis(1_767_225_599_007)), "2025-12-31T23:59:59.007Z");
    }
}
