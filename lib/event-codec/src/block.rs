//! Events as one block in ClickHouse's Native format: columns with their names and types, so that a block
//! written before a migration can still be inserted after it.

use crate::event::{Event, Field};

/// Bytes of an event, about, over all columns.
const ROW_BYTES: usize = 320;

/// Where a column's values come from.
#[derive(Clone, Copy)]
enum Source {
    Id,
    Kind,
    Subject,
    Time,
    Origin,
    Traceparent,
    IngestedAt,
    Clamped,
    Text(Field),
    /// Text that is compared without regard to case.
    Lower(Field),
    Upper(Field),
    Integer(Field),
    Nullable(Field),
    Bool(Field),
}

impl Source {
    const fn kind(self) -> &'static str {
        match self {
            Self::Id => "UInt128",
            Self::Time | Self::IngestedAt => "DateTime64(3, 'UTC')",
            Self::Clamped | Self::Bool(_) => "Bool",
            Self::Integer(_) => "Int64",
            Self::Nullable(_) => "Nullable(Int64)",
            Self::Kind
            | Self::Subject
            | Self::Origin
            | Self::Traceparent
            | Self::Text(_)
            | Self::Lower(_)
            | Self::Upper(_) => "String",
        }
    }

    /// Bytes of a value; text has a length of its own.
    const fn width(self) -> Option<usize> {
        match self {
            Self::Id => Some(16),
            Self::Time | Self::IngestedAt | Self::Integer(_) | Self::Nullable(_) => Some(8),
            Self::Clamped | Self::Bool(_) => Some(1),
            _ => None,
        }
    }
}

const COLUMNS: &[(&str, Source)] = &[
    ("id", Source::Id),
    ("type", Source::Kind),
    ("subject", Source::Subject),
    ("time", Source::Time),
    ("source", Source::Origin),
    ("traceparent", Source::Traceparent),
    ("ingested_at", Source::IngestedAt),
    ("clamped", Source::Clamped),
    ("plan", Source::Text(Field::Plan)),
    ("country", Source::Upper(Field::Country)),
    ("method", Source::Text(Field::Method)),
    ("from_plan", Source::Text(Field::FromPlan)),
    ("to_plan", Source::Text(Field::ToPlan)),
    ("conversation_id", Source::Lower(Field::ConversationId)),
    ("message_id", Source::Lower(Field::MessageId)),
    ("provider", Source::Text(Field::Provider)),
    ("model", Source::Text(Field::Model)),
    ("requested_model", Source::Text(Field::RequestedModel)),
    ("input_tokens", Source::Integer(Field::InputTokens)),
    ("cached_input_tokens", Source::Integer(Field::CachedInputTokens)),
    ("output_tokens", Source::Integer(Field::OutputTokens)),
    ("reasoning_tokens", Source::Integer(Field::ReasoningTokens)),
    ("cost_micro_usd", Source::Nullable(Field::CostMicroUsd)),
    ("price_version", Source::Text(Field::PriceVersion)),
    ("ttft_ms", Source::Nullable(Field::TtftMs)),
    ("latency_ms", Source::Integer(Field::LatencyMs)),
    ("finish_reason", Source::Text(Field::FinishReason)),
    ("attempts", Source::Integer(Field::Attempts)),
    ("fallback_from", Source::Text(Field::FallbackFrom)),
    ("streamed", Source::Bool(Field::Streamed)),
    ("regenerated", Source::Bool(Field::Regenerated)),
    ("error_class", Source::Text(Field::ErrorClass)),
    ("payment_id", Source::Lower(Field::PaymentId)),
    ("invoice_id", Source::Lower(Field::InvoiceId)),
    ("amount_minor", Source::Integer(Field::AmountMinor)),
    ("currency", Source::Upper(Field::Currency)),
    ("decline_code", Source::Text(Field::DeclineCode)),
    ("subscription_id", Source::Lower(Field::SubscriptionId)),
    ("subscription_status", Source::Text(Field::Status)),
    ("movement", Source::Text(Field::Movement)),
    ("mrr_delta_minor", Source::Integer(Field::MrrDeltaMinor)),
    ("function", Source::Text(Field::Function)),
    ("route", Source::Text(Field::Route)),
    ("http_status", Source::Integer(Field::Status)),
    ("duration_ms", Source::Integer(Field::DurationMs)),
    ("cold_start", Source::Bool(Field::ColdStart)),
];

#[derive(Clone, Default)]
struct Column {
    /// One byte a row, in a nullable column.
    nulls: Vec<u8>,
    values: Vec<u8>,
}

/// Events on their way into the table. Each is taken apart when it comes, while the processor's caches hold it.
pub struct Rows {
    ingested_at: i64,
    ids: Vec<u128>,
    clamped: usize,
    columns: Vec<Column>,
}

impl Rows {
    /// No rows yet, which are ingested at this moment, in milliseconds since the epoch.
    #[must_use]
    pub fn new(ingested_at: i64) -> Self {
        Self { ingested_at, ids: Vec::new(), clamped: 0, columns: vec![Column::default(); COLUMNS.len()] }
    }

    /// Adds an event.
    pub fn push(&mut self, event: &Event<'_>) {
        self.ids.push(event.id);
        self.clamped += usize::from(event.clamped);
        for ((_, source), Column { nulls, values }) in COLUMNS.iter().zip(&mut self.columns) {
            match *source {
                Source::Id => values.extend_from_slice(&event.id.to_le_bytes()),
                Source::Kind => put_text(values, &event.kind),
                Source::Subject => put_text(values, &event.subject),
                Source::Time => values.extend_from_slice(&event.time.to_le_bytes()),
                Source::Origin => put_text(values, &event.source),
                Source::Traceparent => put_text(values, &event.traceparent),
                Source::IngestedAt => values.extend_from_slice(&self.ingested_at.to_le_bytes()),
                Source::Clamped => values.push(event.clamped.into()),
                Source::Text(field) => put_text(values, event.text(field)),
                Source::Lower(field) => put_lower(values, event.text(field)),
                Source::Upper(field) => put_upper(values, event.text(field)),
                Source::Integer(field) => put_integer(values, event.integer(field)),
                Source::Nullable(field) => {
                    let value = event.integer(field);
                    nulls.push(value.is_none().into());
                    put_integer(values, value);
                }
                Source::Bool(field) => values.push(event.is(field).into()),
            }
        }
    }

    /// Adds those of another, behind its own.
    pub fn append(&mut self, other: &Self) {
        self.ids.extend_from_slice(&other.ids);
        self.clamped += other.clamped;
        for (Column { nulls, values }, more) in self.columns.iter_mut().zip(&other.columns) {
            nulls.extend_from_slice(&more.nulls);
            values.extend_from_slice(&more.values);
        }
    }

    /// The events' ids, in the order of their coming.
    #[must_use]
    pub fn ids(&self) -> &[u128] {
        &self.ids
    }

    /// How many events claimed a time in the future.
    #[must_use]
    pub const fn clamped(&self) -> usize {
        self.clamped
    }

    /// The block of those rows that are to be kept: one flag a row.
    #[must_use]
    pub fn encode(&self, kept: &[bool]) -> Vec<u8> {
        let rows = kept.iter().filter(|kept| **kept).count();
        let mut out = Vec::with_capacity(1024 + rows * ROW_BYTES);
        put_length(&mut out, COLUMNS.len() as u64);
        put_length(&mut out, rows as u64);
        for ((name, source), column) in COLUMNS.iter().zip(&self.columns) {
            put_text(&mut out, name);
            put_text(&mut out, source.kind());
            if rows == self.ids.len() {
                out.extend_from_slice(&column.nulls);
                out.extend_from_slice(&column.values);
            } else {
                put_kept(&mut out, &column.nulls, Some(1), kept);
                put_kept(&mut out, &column.values, source.width(), kept);
            }
        }
        out
    }
}

impl<'e, 'm: 'e> Extend<&'e Event<'m>> for Rows {
    fn extend<I: IntoIterator<Item = &'e Event<'m>>>(&mut self, events: I) {
        events.into_iter().for_each(|event| self.push(event));
    }
}

/// The values of those rows that are kept; a width of none is that of text.
fn put_kept(out: &mut Vec<u8>, mut values: &[u8], width: Option<usize>, kept: &[bool]) {
    for kept in kept {
        let width = width.unwrap_or_else(|| text_width(values));
        let Some((value, rest)) = values.split_at_checked(width) else { return };
        if *kept {
            out.extend_from_slice(value);
        }
        values = rest;
    }
}

/// Bytes of the text that comes first, its length included.
fn text_width(values: &[u8]) -> usize {
    let (mut length, mut bytes) = (0, 0);
    for byte in values {
        length |= usize::from(byte & 0x7f) << (7 * bytes);
        bytes += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    bytes + length
}

fn put_integer(out: &mut Vec<u8>, value: Option<i64>) {
    out.extend_from_slice(&value.unwrap_or_default().to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn put_lower(out: &mut Vec<u8>, text: &str) {
    if text.is_ascii() {
        let from = put_ascii(out, text);
        out[from..].make_ascii_lowercase();
    } else {
        put_text(out, &text.to_lowercase());
    }
}

fn put_upper(out: &mut Vec<u8>, text: &str) {
    if text.is_ascii() {
        let from = put_ascii(out, text);
        out[from..].make_ascii_uppercase();
    } else {
        put_text(out, &text.to_uppercase());
    }
}

/// Where the text begins.
fn put_ascii(out: &mut Vec<u8>, text: &str) -> usize {
    put_text(out, text);
    out.len() - text.len()
}

/// LEB128, as ClickHouse writes lengths.
fn put_length(out: &mut Vec<u8>, mut length: u64) {
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_leb128() {
        let mut out = Vec::new();
        put_length(&mut out, 127);
        put_length(&mut out, 300);
        assert_eq!(out, [0x7f, 0xac, 0x02]);
    }

    #[test]
    fn what_is_left_out_leaves_the_others_as_they_are() {
        let body = |n: usize, country: &str| {
            format!(
                r#"{{"specversion":"1.0","id":"019ad8f0-0000-7000-8000-{n:012}","source":"/test","type":"user.signin",
                    "subject":"{}","time":"2026-01-01T00:00:00Z","data":{{"schemaVersion":1,"plan":"free",
                    "country":"{country}","method":"{}"}}}}"#,
                "ü".repeat(n + 1),
                "x".repeat(n * 100),
            )
        };
        let bodies: Vec<String> = ["de", "ß", "US", ""].iter().enumerate().map(|(n, c)| body(n, c)).collect();
        let events: Vec<Event<'_>> = bodies.iter().map(|body| Event::parse(body, None).unwrap()).collect();
        let rows = |events: &mut dyn Iterator<Item = &Event<'_>>| {
            let mut rows = Rows::new(7);
            events.for_each(|event| rows.push(event));
            rows
        };
        let all = rows(&mut events.iter());
        for kept in 0..16_u32 {
            let kept: Vec<bool> = (0..4).map(|n| kept & (1 << n) != 0).collect();
            let mut those = events.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(event, _)| event);
            let alone = rows(&mut those);
            assert_eq!(all.encode(&kept), alone.encode(&vec![true; alone.ids().len()]));
        }
    }

    #[test]
    fn case_is_changed_beyond_ascii_too() {
        let mut out = Vec::new();
        put_lower(&mut out, "AÄ");
        put_upper(&mut out, "usd");
        put_upper(&mut out, "ß");
        assert_eq!(out, "\u{3}aä\u{3}USD\u{2}SS".as_bytes());
    }
}
