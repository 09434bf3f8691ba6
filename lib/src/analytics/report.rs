//! What all figures have in common: the range that is asked for, and the reply around the data.

use futures_util::future::try_join;
use serde::Serialize;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime};
use tracing::Instrument;

use crate::clock;
use crate::crypto;
use crate::error::{Error, Result};
use crate::http::page::{self, Limit};
use crate::http::validate::{Field, Fields, FromFields, Invalid, Raw, both};
use crate::http::{Request, Response};
use crate::store::clickhouse::{ClickHouse, in_time, span};

const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]");
/// Days of a range by default.
const DEFAULT_DAYS: i64 = 30;
/// Days of the longest range.
const MAX_DAYS: i64 = 366;
/// Seconds for which a browser may show a figure again.
const MAX_AGE: u32 = 60;

/// A day, `YYYY-MM-DD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Day(Date);

impl Field for Day {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let malformed = || Invalid::new("malformed", "Must be a date, YYYY-MM-DD.");
        let text = raw.text()?;
        let date = Date::parse(text, &DATE).map_err(|_| malformed())?;
        // The years that events may lie in.
        if text.len() != 10 || !(2000..=2100).contains(&date.year()) {
            return Err(malformed());
        }
        Ok(Self(date))
    }
}

/// The width of a series' buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Interval {
    /// An hour.
    Hour,
    /// A day.
    #[default]
    Day,
    /// A week from Monday.
    Week,
    /// A calendar month.
    Month,
}

impl Field for Interval {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        match raw.text()? {
            "hour" => Ok(Self::Hour),
            "day" => Ok(Self::Day),
            "week" => Ok(Self::Week),
            "month" => Ok(Self::Month),
            _ => Err(Invalid::new("unknown_value", "Must be hour, day, week or month.")),
        }
    }

    fn missing() -> Result<Self, Invalid> {
        Ok(Self::default())
    }
}

/// Days from the first to the last, both included, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first day.
    pub from: Date,
    /// The last day.
    pub to: Date,
}

impl Range {
    fn between(start: Option<Day>, end: Option<Day>, today: Date) -> Result<Self, Invalid> {
        let month_to = |end: Date| end.saturating_sub(Duration::days(DEFAULT_DAYS - 1));
        let to = end.map_or(today, |Day(to)| to);
        let from = start.map_or_else(|| month_to(to), |Day(from)| from);
        match (to - from).whole_days() + 1 {
            ..1 => Err(Invalid::new("out_of_range", "Must not be after endDate.")),
            1..=MAX_DAYS => Ok(Self { from, to }),
            _ => Err(Invalid::new("out_of_range", "The range must be of at most 366 days.")),
        }
    }
}

/// What is asked of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query {
    /// The days that count.
    pub range: Range,
    /// The width of buckets.
    pub interval: Interval,
    /// The rows of a table at most.
    pub limit: u64,
    /// The present day.
    pub today: Date,
}

impl FromFields for Query {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        Self::read(fields, clock::now().date())
    }
}

impl Query {
    /// Reads the parameters that all figures take.
    ///
    /// # Errors
    /// A 400 that names every bad parameter.
    #[track_caller]
    pub fn of(request: &Request) -> Result<Self> {
        request.query()
    }

    /// The same with parameters of the figure's own.
    ///
    /// # Errors
    /// A 400 that names every bad parameter.
    #[track_caller]
    pub fn with<T: FromFields>(request: &Request) -> Result<(Self, T)> {
        both(request.query(), request.query())
    }

    /// The same with a path parameter.
    ///
    /// # Errors
    /// A 400 that names every bad parameter.
    #[track_caller]
    pub fn within<T: Field>(request: &Request, parameter: &str) -> Result<(Self, T)> {
        let (parameter, query) = request.query_within(parameter)?;
        Ok((query, parameter))
    }

    fn read(fields: &mut Fields<'_>, today: Date) -> Option<Self> {
        let (start, end) = (fields.read::<Option<Day>>("start_date"), fields.read::<Option<Day>>("end_date"));
        let (interval, limit) = (fields.read("interval"), fields.read::<Limit>("limit"));
        let range = Range::between(start?, end?, today);
        let range = range.map_err(|invalid| fields.refuse("start_date", invalid)).ok();
        Some(Self { range: range?, interval: interval?, limit: limit?.0.unsigned_abs(), today })
    }

    /// The buckets of the range, each as its name and the days in it; hours have one day.
    #[must_use]
    pub fn buckets(&self) -> Vec<Bucket> {
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut day = self.range.from;
        while day <= self.range.to {
            match self.interval {
                Interval::Hour => {
                    buckets.extend((0..24).map(|hour| Bucket { first: day, hour: Some(hour), last: day }))
                }
                interval => {
                    let first = interval.first_day(day);
                    match buckets.last_mut() {
                        Some(bucket) if bucket.first == first => bucket.last = day,
                        _ => buckets.push(Bucket { first, hour: None, last: day }),
                    }
                }
            }
            let Some(next) = day.next_day() else { break };
            day = next;
        }
        buckets
    }
}

impl Interval {
    /// The word in requests and replies.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }

    /// The calendar's first day of the bucket that holds the day.
    #[must_use]
    pub fn first_day(self, day: Date) -> Date {
        match self {
            Self::Hour | Self::Day => day,
            Self::Week => day.saturating_sub(Duration::days(i64::from(day.weekday().number_days_from_monday()))),
            Self::Month => day.replace_day(1).unwrap_or(day),
        }
    }
}

/// A bucket of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// The first day by the calendar, which may lie before the range.
    pub first: Date,
    /// The hour, in buckets of an hour.
    pub hour: Option<u8>,
    /// The last day that is in the range.
    pub last: Date,
}

impl Bucket {
    /// The first second, since the epoch: what SQL calls the bucket.
    #[must_use]
    pub fn key(&self) -> i64 {
        self.first.midnight().assume_utc().unix_timestamp() + i64::from(self.hour.unwrap_or_default()) * 3600
    }

    /// The name: a day, or an hour in RFC 3339.
    #[must_use]
    pub fn name(&self) -> String {
        match self.hour {
            Some(hour) => format!("{}T{hour:02}:00:00Z", day(self.first)),
            None => day(self.first),
        }
    }
}

/// `YYYY-MM-DD`.
#[must_use]
pub fn day(date: Date) -> String {
    date.format(&DATE).unwrap_or_default()
}

#[derive(Serialize)]
struct Reply<T> {
    success: bool,
    data: T,
    meta: Meta,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    from: String,
    to: String,
    interval: Interval,
    timezone: &'static str,
    #[serde(serialize_with = "crate::clock::text::serialize")]
    generated_at: OffsetDateTime,
    freshness_seconds: Option<u64>,
}

/// The figures of an admin's request.
pub struct Reports {
    pub(crate) clickhouse: ClickHouse,
}

impl Reports {
    /// Reads the secret; connects on first use.
    ///
    /// # Errors
    /// When the secret cannot be read.
    pub async fn init() -> Result<Self> {
        Ok(Self { clickhouse: ClickHouse::reader().await? })
    }

    /// Reports of this store.
    #[must_use]
    pub fn new(clickhouse: ClickHouse) -> Self {
        Self { clickhouse }
    }

    /// A query with the parameters of the range bound: `from`, `to`, `today` (dates), `interval` and `limit`.
    pub(crate) fn query(&self, sql: &str, query: &Query) -> clickhouse::query::Query {
        self.clickhouse
            .client()
            .query_raw(sql)
            .param("from", day(query.range.from))
            .param("to", day(query.range.to))
            .param("today", day(query.today))
            .param("interval", query.interval.as_str())
            .param("limit", query.limit)
    }

    /// The rows of a query over the range.
    pub(crate) async fn rows<T>(&self, sql: &str, query: &Query) -> Result<Vec<T>>
    where
        T: clickhouse::RowOwned + clickhouse::RowRead,
    {
        Ok(self.query(sql, query).fetch_all().instrument(span("SELECT")).await?)
    }

    /// The only row of such a query.
    pub(crate) async fn row<T>(&self, sql: &str, query: &Query) -> Result<T>
    where
        T: clickhouse::RowOwned + clickhouse::RowRead,
    {
        Ok(self.query(sql, query).fetch_one().instrument(span("SELECT")).await?)
    }

    /// The reply with the figure, or 304 when the browser has the same already. Its freshness is asked meanwhile.
    ///
    /// # Errors
    /// The figure's; also when it cannot be written as JSON, or the store does not answer.
    pub async fn reply<T: Serialize>(
        &self,
        request: &Request,
        query: &Query,
        figure: impl Future<Output = Result<T>>,
    ) -> Result<Response> {
        let (data, freshness_seconds) = in_time(try_join(figure, self.freshness())).await?;
        let meta = Meta {
            from: day(query.range.from),
            to: day(query.range.to),
            interval: query.interval,
            timezone: "UTC",
            generated_at: clock::now(),
            freshness_seconds,
        };
        let data = serde_json::value::to_raw_value(&data)?;
        if !page::fits(data.get().as_bytes()) {
            return Err(Error::invalid_field("interval", "out_of_range", "Makes too many rows of this range."));
        }
        let tag = tag(&data, &meta)?;
        let response = if request.header("if-none-match").is_some_and(|tags| matches(tags, &tag)) {
            Response::new(http::StatusCode::NOT_MODIFIED)
        } else {
            Response::ok(&Reply { success: true, data, meta })?
        };
        Ok(response.with("cache-control", &format!("private, max-age={MAX_AGE}")).with("etag", &tag))
    }

    /// Seconds since an event was last counted, however old the event was; null before the first one.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn freshness(&self) -> Result<Option<u64>> {
        let sql = "SELECT count() > 0, dateDiff('second', max(last_ingest), now64(3)) FROM request_totals";
        let (any, seconds): (bool, i64) = self.clickhouse.client().query(sql).fetch_one().await?;
        Ok(any.then(|| seconds.max(0).unsigned_abs()))
    }
}

/// The entity tag of a figure. It is a weak one: when the figure was read changes with every request, and how long
/// before that an event was counted counts coarsely alone, so that a stored reply is replaced when ingestion stalls.
fn tag<T: Serialize>(data: &T, meta: &Meta) -> Result<String> {
    let staleness = meta.freshness_seconds.map(staleness);
    let told = serde_json::to_vec(&(data, &meta.from, &meta.to, meta.interval, staleness))?;
    Ok(format!("W/\"{}\"", crypto::base64url(&crypto::sha256(&told)[..16])))
}

/// 0 within the first minute, and one more at one minute and each time that doubles.
const fn staleness(seconds: u64) -> u32 {
    u64::BITS - (seconds / 60).leading_zeros()
}

/// The weak comparison of `If-None-Match`.
fn matches(tags: &str, tag: &str) -> bool {
    fn opaque(tag: &str) -> &str {
        tag.strip_prefix("W/").unwrap_or(tag)
    }
    tags.split(',').map(str::trim).any(|candidate| candidate == "*" || opaque(candidate) == opaque(tag))
}

/// A fraction of 1, or an average; null where there is nothing to divide by.
#[must_use]
pub fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole != 0.0).then(|| part / whole)
}

/// Null for the quantiles of nothing.
#[must_use]
pub fn finite(value: f32) -> Option<f64> {
    value.is_finite().then(|| f64::from(value))
}

/// The SQL of a bucket's first second, since the epoch.
macro_rules! bucket {
    ($time:literal) => {
        concat!(
            "toInt64(toUnixTimestamp(multiIf({interval:String} = 'hour', toStartOfHour(",
            $time,
            "), ",
            "{interval:String} = 'week', toDateTime(toStartOfWeek(",
            $time,
            ", 1), 'UTC'), ",
            "{interval:String} = 'month', toDateTime(toStartOfMonth(",
            $time,
            "), 'UTC'), ",
            "toDateTime(toDate(",
            $time,
            "), 'UTC'))))",
        )
    };
}
pub(crate) use bucket;

/// The SQL of the condition for rows just fine enough for the buckets: those of hours, or those of days.
macro_rules! grain {
    () => {
        "grain = if({interval:String} = 'hour', 'hour', 'day')"
    };
}
pub(crate) use grain;

/// The SQL of the condition for such rows of the range.
macro_rules! in_range {
    () => {
        concat!($crate::analytics::report::grain!(), " AND toDate(hour) BETWEEN {from:Date} AND {to:Date}")
    };
}
pub(crate) use in_range;

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::date;

    fn parse(pairs: &[(&str, &str)]) -> Result<Query> {
        let pairs: Vec<(String, String)> = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let mut fields = Fields::query(&pairs);
        let parsed = Query::read(&mut fields, date!(2026 - 03 - 31));
        fields.finish(parsed)
    }

    fn range(pairs: &[(&str, &str)]) -> (String, String) {
        let range = parse(pairs).unwrap().range;
        (day(range.from), day(range.to))
    }

    #[test]
    fn fills_in_what_is_not_told() {
        let both = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        assert_eq!(range(&[]), both("2026-03-02", "2026-03-31"));
        assert_eq!(range(&[("endDate", "2026-01-30")]), both("2026-01-01", "2026-01-30"));
        assert_eq!(range(&[("startDate", "2026-01-01")]), both("2026-01-01", "2026-03-31"));
        assert_eq!(range(&[("startDate", "2026-06-01"), ("endDate", "2026-06-01")]), both("2026-06-01", "2026-06-01"));
        assert_eq!(range(&[("startDate", "2024-01-01"), ("endDate", "2024-12-31")]), both("2024-01-01", "2024-12-31"));
    }

    #[test]
    fn names_what_is_wrong() {
        let named = |pairs: &[(&str, &str)]| {
            parse(pairs).unwrap_err().fields().iter().map(|f| f.field.clone()).collect::<Vec<_>>()
        };
        for bad in [
            "",
            "2026-1-1",
            "2026-02-30",
            "01-01-2026",
            "2026-01-01'",
            "9999-01-01",
            "+2026-01-01",
            "2026-01-01T00:00:00Z",
        ] {
            assert_eq!(named(&[("startDate", bad)]), ["startDate"], "{bad}");
        }
        assert_eq!(named(&[("startDate", "x"), ("endDate", "y"), ("interval", "z"), ("limit", "0")]).len(), 4);
        assert_eq!(named(&[("startDate", "2026-01-02"), ("endDate", "2026-01-01")]), ["startDate"]);
        assert_eq!(named(&[("startDate", "2026-04-01")]), ["startDate"]);
        assert_eq!(named(&[("startDate", "2024-01-01"), ("endDate", "2025-01-01")]), ["startDate"]);
        let reversed = [("startDate", "2026-01-02"), ("endDate", "2026-01-01"), ("limit", "0"), ("interval", "year")];
        assert_eq!(named(&reversed), ["interval", "limit", "startDate"]);
        assert_eq!(named(&[("limit", "101")]), ["limit"]);
        assert_eq!(named(&[("interval", "day; DROP TABLE events")]), ["interval"]);
    }

    #[test]
    fn buckets_have_calendar_names_and_stay_in_the_range() {
        let buckets = |interval: &str| {
            let query =
                parse(&[("startDate", "2026-01-30"), ("endDate", "2026-02-02"), ("interval", interval)]).unwrap();
            query.buckets().iter().map(|b| (b.name(), day(b.last))).collect::<Vec<_>>()
        };
        let pair = |name: &str, last: &str| (name.to_owned(), last.to_owned());
        assert_eq!(buckets("month"), [pair("2026-01-01", "2026-01-31"), pair("2026-02-01", "2026-02-02")]);
        assert_eq!(buckets("week"), [pair("2026-01-26", "2026-02-01"), pair("2026-02-02", "2026-02-02")]);
        assert_eq!(buckets("day").len(), 4);
        assert_eq!(buckets("hour")[25], pair("2026-01-31T01:00:00Z", "2026-01-31"));
    }

    #[test]
    fn a_tag_is_of_the_figure_and_its_staleness() {
        let tag = |data: u64, freshness_seconds: Option<u64>| {
            let (from, to) = ("2026-01-01".to_owned(), "2026-01-31".to_owned());
            let (interval, generated_at) = (Interval::Day, clock::now());
            tag(&data, &Meta { from, to, interval, timezone: "UTC", generated_at, freshness_seconds }).unwrap()
        };
        assert_eq!(tag(1, Some(0)), tag(1, Some(59)));
        assert_eq!(tag(1, Some(120)), tag(1, Some(239)));
        assert_ne!(tag(1, Some(0)), tag(2, Some(0)));
        let stages = [None, Some(59), Some(60), Some(120), Some(240), Some(86_400), Some(u64::MAX)];
        let tags: std::collections::BTreeSet<_> = stages.iter().map(|seconds| tag(1, *seconds)).collect();
        assert_eq!(tags.len(), stages.len());
    }

    #[test]
    fn tags_match_as_http_says() {
        for tags in ["W/\"a\"", "\"a\"", "W/\"b\", \"a\"", "\"b\",W/\"a\"", "*"] {
            assert!(matches(tags, "W/\"a\"") && matches(tags, "\"a\""), "{tags}");
        }
        for tags in ["", "a", "\"b\"", "W/\"b\", \"c\"", "w/\"a\""] {
            assert!(!matches(tags, "W/\"a\""), "{tags}");
        }
    }
}
