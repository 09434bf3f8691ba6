//! An event as its message tells it: parsed without copying, refused with a reason, or fit to be counted.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use uuid::Uuid;

/// How far, in milliseconds, an event's time may lie after the moment its message was sent.
const SKEW_MILLIS: i64 = 5 * 60 * 1000;
/// The ids of the plans.
pub const PLANS: [&str; 3] = ["free", "pro", "enterprise"];
/// The longest subject, in characters.
const SUBJECT_CHARACTERS: usize = 128;
/// The largest number in either direction. Sums are of 64 bits, which millions of events at the limit do not exceed;
/// no payment is larger, since Stripe takes amounts of at most twelve digits.
const LIMIT: i64 = 1_000_000_000_000;

/// Why a message is no event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection(Cow<'static, str>);

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Rejection {
    fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(reason.into())
    }
}

/// A JSON value, as far as a field of an event can hold it.
#[derive(Debug, Clone, Default, PartialEq)]
enum Scalar<'a> {
    /// Absent, or null, which means the same.
    #[default]
    Null,
    Bool(bool),
    Integer(i64),
    Text(Cow<'a, str>),
    /// A fraction, a number beyond 64 bits, an array or an object: nothing that any field takes.
    Other,
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Scalar::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(i64::try_from(value).map_or(Scalar::Other, Scalar::Integer))
    }

    fn visit_f64<E>(self, _value: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

macro_rules! fields {
    ($($name:ident = $text:literal,)*) => {
        /// A field of an event's `data`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the contract of events describes them")]
        pub enum Field { $($name,)* }

        impl Field {
            const ALL: &'static [Self] = &[$(Self::$name,)*];

            const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            fn named(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

fields! {
    SchemaVersion = "schemaVersion",
    Plan = "plan",
    Country = "country",
    Method = "method",
    FromPlan = "fromPlan",
    ToPlan = "toPlan",
    ConversationId = "conversationId",
    MessageId = "messageId",
    Provider = "provider",
    Model = "model",
    RequestedModel = "requestedModel",
    InputTokens = "inputTokens",
    CachedInputTokens = "cachedInputTokens",
    OutputTokens = "outputTokens",
    ReasoningTokens = "reasoningTokens",
    CostMicroUsd = "costMicroUsd",
    PriceVersion = "priceVersion",
    TtftMs = "ttftMs",
    LatencyMs = "latencyMs",
    FinishReason = "finishReason",
    Attempts = "attempts",
    FallbackFrom = "fallbackFrom",
    Streamed = "streamed",
    Regenerated = "regenerated",
    ErrorClass = "errorClass",
    PaymentId = "paymentId",
    InvoiceId = "invoiceId",
    AmountMinor = "amountMinor",
    Currency = "currency",
    DeclineCode = "declineCode",
    SubscriptionId = "subscriptionId",
    Status = "status",
    Movement = "movement",
    MrrDeltaMinor = "mrrDeltaMinor",
    Function = "function",
    Route = "route",
    DurationMs = "durationMs",
    ColdStart = "coldStart",
}

const FIELDS: usize = Field::ALL.len();
const _: () = assert!(FIELDS <= u64::BITS as usize, "a set of fields is one number");

/// The fields that an event of every type may have.
const COMMON: u64 = Field::SchemaVersion.bit() | Field::Plan.bit() | Field::Country.bit();

impl Field {
    /// The field in a set of fields.
    const fn bit(self) -> u64 {
        1 << self as u32
    }
}

/// A key of `data`, without a copy where it has no escapes.
struct Key(Option<Field>);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, value: &str) -> Result<Key, E> {
                Ok(Key(Field::named(value)))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

/// The known fields of `data`; of repeated ones the last counts.
struct Data<'a> {
    values: Box<[Scalar<'a>; FIELDS]>,
    /// The fields that were told.
    told: u64,
}

impl Default for Data<'_> {
    fn default() -> Self {
        Self { values: Box::new(std::array::from_fn(|_| Scalar::Null)), told: 0 }
    }
}

impl Data<'_> {
    /// Forgets what an event with these rules does not have: there it is a field like any other that is unknown.
    fn retain(&mut self, rules: &[(Field, Rule)]) {
        let known = rules.iter().fold(COMMON, |known, (field, _)| known | field.bit());
        let mut others = self.told & !known;
        while others != 0 {
            self.values[others.trailing_zeros() as usize] = Scalar::Null;
            others &= others - 1;
        }
    }
}

impl<'de> Deserialize<'de> for Data<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DataVisitor;
        impl<'de> Visitor<'de> for DataVisitor {
            type Value = Data<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object as data")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut data = Data::default();
                while let Some(Key(key)) = map.next_key()? {
                    match key {
                        Some(field) => {
                            data.values[field as usize] = map.next_value()?;
                            data.told |= field.bit();
                        }
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(data)
            }
        }
        deserializer.deserialize_map(DataVisitor)
    }
}

/// The envelope before it is checked; of repeated members the last counts.
#[derive(Default)]
struct Envelope<'a> {
    specversion: Scalar<'a>,
    id: Scalar<'a>,
    source: Scalar<'a>,
    kind: Scalar<'a>,
    subject: Scalar<'a>,
    time: Scalar<'a>,
    traceparent: Scalar<'a>,
    data: Data<'a>,
}

impl<'de> Deserialize<'de> for Envelope<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EnvelopeVisitor;
        impl<'de> Visitor<'de> for EnvelopeVisitor {
            type Value = Envelope<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut envelope = Envelope::default();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    match key.as_ref() {
                        "specversion" => envelope.specversion = map.next_value()?,
                        "id" => envelope.id = map.next_value()?,
                        "source" => envelope.source = map.next_value()?,
                        "type" => envelope.kind = map.next_value()?,
                        "subject" => envelope.subject = map.next_value()?,
                        "time" => envelope.time = map.next_value()?,
                        "traceparent" => envelope.traceparent = map.next_value()?,
                        "data" => envelope.data = map.next_value()?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(envelope)
            }
        }
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

/// What a field must hold.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// Text.
    Text,
    /// Text, null or nothing.
    OptionalText,
    /// An integer from 0 to the limit.
    Count,
    /// An integer from 0 to the limit, null or nothing.
    OptionalCount,
    /// An integer within the limit in either direction.
    Integer,
    /// True or false.
    Bool,
    /// A plan.
    Plan,
    /// Three letters.
    Currency,
    /// One of these words.
    OneOf(&'static [&'static str]),
}

const ERROR_CLASSES: &[&str] =
    &["rate_limit", "timeout", "server_error", "context_length", "content_filter", "rejected", "stream_broken"];

/// What an event of each type must carry beside what all carry.
fn rules(kind: &str) -> Option<&'static [(Field, Rule)]> {
    use Field as F;
    use Rule as R;
    Some(match kind {
        "user.signup" | "user.signin" => &[(F::Method, R::Text)],
        "user.signout" | "user.email_verified" | "user.password_reset" => &[],
        "user.plan_upgraded" | "user.plan_downgraded" => &[(F::FromPlan, R::Plan), (F::ToPlan, R::Plan)],
        "chat.conversation_created" | "chat.conversation_deleted" => &[(F::ConversationId, R::Text)],
        "chat.message_sent" => &[
            (F::ConversationId, R::Text),
            (F::MessageId, R::Text),
            (F::Provider, R::Text),
            (F::Model, R::Text),
            (F::RequestedModel, R::Text),
            (F::InputTokens, R::Count),
            (F::CachedInputTokens, R::Count),
            (F::OutputTokens, R::Count),
            (F::ReasoningTokens, R::Count),
            (F::CostMicroUsd, R::OptionalCount),
            (F::PriceVersion, R::OptionalText),
            (F::TtftMs, R::OptionalCount),
            (F::LatencyMs, R::Count),
            (F::FinishReason, R::Text),
            (F::Attempts, R::Count),
            (F::FallbackFrom, R::OptionalText),
            (F::Streamed, R::Bool),
            (F::Regenerated, R::Bool),
        ],
        "chat.message_failed" => &[
            (F::ConversationId, R::OptionalText),
            (F::Provider, R::Text),
            (F::Model, R::Text),
            (F::RequestedModel, R::Text),
            (F::ErrorClass, R::OneOf(ERROR_CLASSES)),
            (F::LatencyMs, R::Count),
            (F::Attempts, R::Count),
            (F::FallbackFrom, R::OptionalText),
            (F::InputTokens, R::Count),
            (F::CachedInputTokens, R::Count),
            (F::OutputTokens, R::Count),
            (F::ReasoningTokens, R::Count),
            (F::CostMicroUsd, R::OptionalCount),
        ],
        "billing.payment_succeeded" => &[
            (F::PaymentId, R::Text),
            (F::InvoiceId, R::OptionalText),
            (F::AmountMinor, R::Count),
            (F::Currency, R::Currency),
        ],
        "billing.payment_failed" => &[
            (F::PaymentId, R::Text),
            (F::InvoiceId, R::OptionalText),
            (F::AmountMinor, R::Count),
            (F::Currency, R::Currency),
            (F::DeclineCode, R::OptionalText),
        ],
        "billing.payment_refunded" => {
            &[(F::PaymentId, R::Text), (F::AmountMinor, R::Count), (F::Currency, R::Currency)]
        }
        "billing.subscription_created" => &[
            (F::SubscriptionId, R::Text),
            (F::Status, R::Text),
            (F::Movement, R::OneOf(&["new", "reactivation"])),
            (F::MrrDeltaMinor, R::Integer),
            (F::Currency, R::Currency),
        ],
        "billing.subscription_updated" => &[
            (F::SubscriptionId, R::Text),
            (F::Status, R::Text),
            (F::FromPlan, R::Plan),
            (F::Movement, R::OneOf(&["expansion", "contraction", "none"])),
            (F::MrrDeltaMinor, R::Integer),
            (F::Currency, R::Currency),
        ],
        "billing.subscription_canceled" => &[
            (F::SubscriptionId, R::Text),
            (F::Movement, R::OneOf(&["churn"])),
            (F::MrrDeltaMinor, R::Integer),
            (F::Currency, R::Currency),
        ],
        REQUEST_COMPLETED => &[
            (F::Function, R::Text),
            (F::Route, R::Text),
            (F::Method, R::Text),
            (F::Status, R::Count),
            (F::DurationMs, R::Count),
            (F::ColdStart, R::Bool),
        ],
        _ => return None,
    })
}

/// The type of telemetry, which alone may lack a subject and a plan.
const REQUEST_COMPLETED: &str = "http.request_completed";

impl Rule {
    /// What is wrong with the value, if anything.
    fn broken_by(self, value: &Scalar<'_>) -> Option<&'static str> {
        match (self, value) {
            (Self::OptionalText | Self::OptionalCount, Scalar::Null)
            | (Self::Text | Self::OptionalText, Scalar::Text(_))
            | (Self::Count | Self::OptionalCount, Scalar::Integer(0..=LIMIT))
            | (Self::Bool, Scalar::Bool(_)) => None,
            (Self::Integer, Scalar::Integer(value)) if (-LIMIT..=LIMIT).contains(value) => None,
            (_, Scalar::Null) => Some("is missing"),
            (Self::Count | Self::OptionalCount, Scalar::Integer(0..)) | (Self::Integer, Scalar::Integer(_)) => {
                Some("is beyond 1000000000000")
            }
            (Self::Text | Self::OptionalText, _) => Some("is not text"),
            (Self::Count | Self::OptionalCount, _) => Some("is not an integer from 0"),
            (Self::Integer, _) => Some("is not an integer"),
            (Self::Bool, _) => Some("is neither true nor false"),
            (Self::Plan, Scalar::Text(text)) if PLANS.contains(&text.as_ref()) => None,
            (Self::Plan, _) => Some("is not a plan"),
            (Self::Currency, Scalar::Text(text))
                if text.len() == 3 && text.bytes().all(|b| b.is_ascii_alphabetic()) =>
            {
                None
            }
            (Self::Currency, _) => Some("is not a currency of three letters"),
            (Self::OneOf(words), Scalar::Text(text)) if words.contains(&text.as_ref()) => None,
            (Self::OneOf(_), _) => Some("is none of the known words"),
        }
    }
}

/// A valid event, borrowing from its message.
pub struct Event<'a> {
    /// The id as a number: UUIDv7 ids are then in the order of their making.
    pub id: u128,
    /// The type.
    pub kind: Cow<'a, str>,
    /// The user's id in lower case; empty where nobody is meant.
    pub subject: Cow<'a, str>,
    /// When it happened, in milliseconds since the epoch, clamped.
    pub time: i64,
    /// The event claimed a time in the future.
    pub clamped: bool,
    /// Where it was made.
    pub source: Cow<'a, str>,
    /// The trace that it belongs to; empty without one.
    pub traceparent: Cow<'a, str>,
    data: Data<'a>,
}

impl<'a> Event<'a> {
    /// Reads a message's body. `sent` is when SQS took the message, in milliseconds since the epoch.
    ///
    /// # Errors
    /// Says why the message can never be counted.
    pub fn parse(body: &'a str, sent: Option<i64>) -> Result<Self, Rejection> {
        let mut envelope: Envelope<'a> = serde_json::from_str(body).map_err(|error| malformed(&error))?;
        if text(&envelope.specversion) != Some("1.0") {
            return Err(Rejection::new("specversion is not 1.0"));
        }
        let source = match envelope.source {
            Scalar::Text(source) if !source.is_empty() => source,
            _ => return Err(Rejection::new("source is missing")),
        };
        let id = text(&envelope.id)
            .filter(|id| id.len() == 36)
            .and_then(|id| Uuid::try_parse(id).ok())
            .ok_or_else(|| Rejection::new("id is not a UUID"))?;
        let Scalar::Text(kind) = envelope.kind else { return Err(Rejection::new("type is missing")) };
        let rules = rules(&kind).ok_or_else(|| Rejection::new("type is unknown"))?;
        let is_telemetry = kind == REQUEST_COMPLETED;
        let subject = match envelope.subject {
            Scalar::Null if is_telemetry => Cow::Borrowed(""),
            Scalar::Text(subject) if (1..=SUBJECT_CHARACTERS).contains(&subject.chars().count()) => lower(subject),
            _ => return Err(Rejection::new("subject is not text of 1 to 128 characters")),
        };
        let said = text(&envelope.time).and_then(instant).ok_or_else(|| Rejection::new("time is not RFC 3339"))?;
        let clamp = sent.filter(|sent| said > sent.saturating_add(SKEW_MILLIS));
        check(&envelope.data, rules, is_telemetry)?;
        envelope.data.retain(rules);
        Ok(Self {
            id: id.as_u128(),
            kind,
            subject,
            time: clamp.unwrap_or(said),
            clamped: clamp.is_some(),
            source,
            traceparent: match envelope.traceparent {
                Scalar::Text(traceparent) => traceparent,
                _ => Cow::Borrowed(""),
            },
            data: envelope.data,
        })
    }

    /// A field's text; empty where it has none.
    #[must_use]
    pub fn text(&self, field: Field) -> &str {
        text(&self.data.values[field as usize]).unwrap_or_default()
    }

    /// A field's number, where it has one.
    #[must_use]
    pub fn integer(&self, field: Field) -> Option<i64> {
        match self.data.values[field as usize] {
            Scalar::Integer(value) => Some(value),
            _ => None,
        }
    }

    /// Whether a field is true.
    #[must_use]
    pub fn is(&self, field: Field) -> bool {
        self.data.values[field as usize] == Scalar::Bool(true)
    }
}

/// An error about a value quotes it, which may be all of a user's text.
fn malformed(error: &serde_json::Error) -> Rejection {
    let what = match error.classify() {
        Category::Data => format!("an unexpected value at line {} column {}", error.line(), error.column()),
        _ => error.to_string(),
    };
    Rejection::new(format!("not one JSON object: {what}"))
}

fn check(data: &Data<'_>, rules: &[(Field, Rule)], is_telemetry: bool) -> Result<(), Rejection> {
    let value = |field: Field| &data.values[field as usize];
    let refuse = |field: Field, why: &str| Err(Rejection::new(format!("data.{} {why}", field.as_str())));
    if *value(Field::SchemaVersion) != Scalar::Integer(1) {
        return refuse(Field::SchemaVersion, "is not 1");
    }
    let plan_may_be_absent = is_telemetry && *value(Field::Plan) == Scalar::Null;
    let common: &[(Field, Rule)] = if plan_may_be_absent {
        &[(Field::Country, Rule::OptionalText)]
    } else {
        &[(Field::Plan, Rule::Plan), (Field::Country, Rule::OptionalText)]
    };
    for (field, rule) in common.iter().chain(rules) {
        if let Some(why) = rule.broken_by(value(*field)) {
            return refuse(*field, why);
        }
    }
    // A price version may be lacking only where there is no price.
    let lacks_version = rules.iter().any(|(field, _)| *field == Field::PriceVersion)
        && *value(Field::CostMicroUsd) != Scalar::Null
        && *value(Field::PriceVersion) == Scalar::Null;
    if lacks_version { refuse(Field::PriceVersion, "is missing") } else { Ok(()) }
}

fn text<'s>(value: &'s Scalar<'_>) -> Option<&'s str> {
    match value {
        Scalar::Text(text) => Some(text),
        _ => None,
    }
}

/// In lower case, which most ids are in already.
fn lower(text: Cow<'_, str>) -> Cow<'_, str> {
    let is_lower = text.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase());
    if is_lower { text } else { Cow::Owned(text.to_lowercase()) }
}

/// Milliseconds since the epoch, of a year that an event may lie in.
fn instant(text: &str) -> Option<i64> {
    // The parser takes anything between date and time.
    if !matches!(text.as_bytes().get(10), Some(b'T' | b't' | b' ')) {
        return None;
    }
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?.checked_to_offset(UtcOffset::UTC)?;
    (2000..=2100).contains(&at.year()).then(|| (at.unix_timestamp_nanos() / 1_000_000) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const SENT: i64 = 1_767_225_600_000; // 2026-01-01T00:00:00Z

    fn signup() -> Value {
        json!({
            "specversion": "1.0",
            "id": "019AD8F0-0000-7000-8000-000000000001",
            "source": "/test",
            "type": "user.signup",
            "subject": "User-1",
            "time": "2025-12-31T23:59:59.1239Z",
            "datacontenttype": "application/json",
            "data": {"schemaVersion": 1, "plan": "free", "country": null, "method": "password"},
        })
    }

    fn message() -> Value {
        let mut event = signup();
        event["type"] = "chat.message_sent".into();
        event["data"] = json!({
            "schemaVersion": 1, "plan": "pro", "country": "DE", "conversationId": "c", "messageId": "m",
            "provider": "openai", "model": "gpt-4", "requestedModel": "gpt-4", "inputTokens": 1,
            "cachedInputTokens": 0, "outputTokens": 2, "reasoningTokens": 0, "costMicroUsd": 3,
            "priceVersion": "v", "ttftMs": 4, "latencyMs": 5, "finishReason": "stop", "attempts": 1,
            "fallbackFrom": null, "streamed": true, "regenerated": false,
        });
        event
    }

    fn of(kind: &str, data: Value) -> Value {
        let mut event = signup();
        event["type"] = kind.into();
        event["data"] = data;
        event["data"]["schemaVersion"] = 1.into();
        event["data"]["plan"] = "pro".into();
        event
    }

    fn reason(event: &Value) -> String {
        match Event::parse(&event.to_string(), Some(SENT)) {
            Ok(_) => "valid".to_owned(),
            Err(rejection) => rejection.to_string(),
        }
    }

    /// The event with one member replaced, or removed where the value is `Value::String("<absent>")`.
    fn with(mut event: Value, path: &str, value: Value) -> Value {
        let (parent, member) = path.rsplit_once('/').unwrap();
        let object = event.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        if value == "<absent>" {
            object.remove(member)
        } else {
            object.insert(member.to_owned(), value)
        };
        event
    }

    #[test]
    fn reads_what_it_needs() {
        let body = message().to_string();
        let event = Event::parse(&body, Some(SENT)).unwrap();
        assert_eq!(event.id, 0x019a_d8f0_0000_7000_8000_0000_0000_0001);
        assert_eq!((event.subject.as_ref(), event.time, event.clamped), ("user-1", SENT - 877, false));
        assert_eq!((event.text(Field::Model), event.integer(Field::CostMicroUsd)), ("gpt-4", Some(3)));
        assert!(event.is(Field::Streamed) && !event.is(Field::Regenerated));
    }

    #[test]
    fn refuses_what_the_contract_refuses() {
        let absent = || json!("<absent>");
        for (path, value, expected) in [
            ("/specversion", json!("0.3"), "specversion is not 1.0"),
            ("/specversion", json!(1.0), "specversion is not 1.0"),
            ("/source", absent(), "source is missing"),
            ("/source", json!(""), "source is missing"),
            ("/id", json!("42"), "id is not a UUID"),
            ("/id", json!("019ad8f0000070008000000000000001"), "id is not a UUID"),
            ("/id", json!("{019ad8f0-0000-7000-8000-000000000001}"), "id is not a UUID"),
            ("/type", json!("user.renamed"), "type is unknown"),
            ("/type", absent(), "type is missing"),
            ("/subject", absent(), "subject is not text of 1 to 128 characters"),
            ("/subject", json!(""), "subject is not text of 1 to 128 characters"),
            ("/subject", json!(7), "subject is not text of 1 to 128 characters"),
            ("/subject", json!("ä".repeat(129)), "subject is not text of 1 to 128 characters"),
            ("/time", json!("2025-12-31 noon"), "time is not RFC 3339"),
            ("/time", json!("2025-12-31T12:00:00"), "time is not RFC 3339"),
            ("/time", json!("2025-02-30T12:00:00Z"), "time is not RFC 3339"),
            ("/time", json!("1999-12-31T23:59:59Z"), "time is not RFC 3339"),
            ("/time", json!("2101-01-01T00:00:00Z"), "time is not RFC 3339"),
            ("/time", json!(1_767_225_600), "time is not RFC 3339"),
            ("/time", json!("9999-12-31T23:59:59-01:00"), "time is not RFC 3339"),
            ("/time", json!("0000-01-01T00:00:00+01:00"), "time is not RFC 3339"),
            ("/time", json!("2025-12-31x12:00:00Z"), "time is not RFC 3339"),
            ("/time", json!("2025-12-31"), "time is not RFC 3339"),
            ("/data/schemaVersion", json!(2), "data.schemaVersion is not 1"),
            ("/data/schemaVersion", json!("1"), "data.schemaVersion is not 1"),
            ("/data/schemaVersion", json!(1.0), "data.schemaVersion is not 1"),
            ("/data/plan", json!("gold"), "data.plan is not a plan"),
            ("/data/plan", absent(), "data.plan is missing"),
            ("/data/country", json!(49), "data.country is not text"),
            ("/data/conversationId", json!(null), "data.conversationId is missing"),
            ("/data/inputTokens", json!("1"), "data.inputTokens is not an integer from 0"),
            ("/data/inputTokens", json!(12.0), "data.inputTokens is not an integer from 0"),
            ("/data/inputTokens", json!(-1), "data.inputTokens is not an integer from 0"),
            ("/data/inputTokens", json!(u64::MAX), "data.inputTokens is not an integer from 0"),
            ("/data/inputTokens", json!([1]), "data.inputTokens is not an integer from 0"),
            ("/data/costMicroUsd", json!(0.5), "data.costMicroUsd is not an integer from 0"),
            ("/data/priceVersion", json!(null), "data.priceVersion is missing"),
            ("/data/ttftMs", json!(false), "data.ttftMs is not an integer from 0"),
            ("/data/fallbackFrom", json!({}), "data.fallbackFrom is not text"),
            ("/data/streamed", json!("true"), "data.streamed is neither true nor false"),
        ] {
            assert_eq!(reason(&with(message(), path, value.clone())), expected, "{path} = {value}");
        }
        for body in ["", "null", "[]", "\"x\"", "{}{}", "{", "{\"data\":[]}"] {
            let rejection = Event::parse(body, None).err().unwrap().to_string();
            assert!(rejection.starts_with("not one JSON object"), "{body}: {rejection}");
        }
    }

    #[test]
    fn a_reason_does_not_quote_the_message() {
        let long = "secret ".repeat(10_000);
        let of_data = with(signup(), "/data", json!(long));
        for body in [json!(long).to_string(), of_data.to_string(), format!("{{}}{long}"), long] {
            let rejection = Event::parse(&body, None).err().unwrap().to_string();
            assert!(rejection.starts_with("not one JSON object: "), "{rejection}");
            assert!(rejection.len() < 100 && !rejection.contains("secret"), "{rejection}");
        }
    }

    #[test]
    fn a_field_of_another_type_is_unknown() {
        let strays = json!({
            "inputTokens": 1_000, "costMicroUsd": 7, "ttftMs": 5, "regenerated": true, "streamed": "perhaps",
            "errorClass": "timeout", "conversationId": 17, "amountMinor": -1, "plan": "pro", "country": "DE",
        });
        let mut signin = of("user.signin", strays);
        signin["data"]["method"] = "password".into();
        let body = signin.to_string();
        let event = Event::parse(&body, None).unwrap();
        assert_eq!((event.text(Field::Plan), event.text(Field::Country)), ("pro", "DE"));
        assert_eq!(event.text(Field::Method), "password");
        for field in Field::ALL.iter().filter(|field| COMMON & field.bit() == 0 && **field != Field::Method) {
            let value = (event.text(*field), event.integer(*field), event.is(*field));
            assert_eq!(value, ("", None, false), "{field:?}");
        }

        let body = with(message(), "/data/errorClass", json!("timeout")).to_string();
        let event = Event::parse(&body, None).unwrap();
        assert_eq!((event.text(Field::ErrorClass), event.integer(Field::TtftMs)), ("", Some(4)));
        assert!(event.is(Field::Streamed));
    }

    #[test]
    fn accepts_what_the_contract_leaves_open() {
        let absent = || json!("<absent>");
        for (path, value) in [
            ("/subject", json!("ä".repeat(128))),
            ("/time", json!("2026-01-01T01:00:00+02:00")),
            ("/time", json!("2000-01-01T00:00:00.123456789Z")),
            ("/time", json!("2025-12-31t12:00:00z")),
            ("/time", json!("2025-12-31 12:00:00Z")),
            ("/data/country", absent()),
            ("/data/costMicroUsd", json!(null)),
            ("/data/ttftMs", absent()),
            ("/data/fallbackFrom", json!("google")),
            ("/data/unknown", json!({"deep": [[[[{"x": "y".repeat(10_000)}]]]]})),
            ("/extension", json!([1, 2.5, "three"])),
            ("/traceparent", json!(17)),
        ] {
            assert_eq!(reason(&with(message(), path, value.clone())), "valid", "{path} = {value}");
        }
        let unpriced = with(with(message(), "/data/costMicroUsd", json!(null)), "/data/priceVersion", json!(null));
        assert_eq!(reason(&unpriced), "valid");
    }

    #[test]
    fn each_type_has_its_fields() {
        let failed = json!({
            "provider": "openai", "model": "m", "requestedModel": "m", "errorClass": "timeout", "latencyMs": 1,
            "attempts": 1, "fallbackFrom": null, "inputTokens": 0, "cachedInputTokens": 0, "outputTokens": 0,
            "reasoningTokens": 0, "costMicroUsd": null,
        });
        let payment = json!({"paymentId": "p", "amountMinor": 1, "currency": "usd"});
        let subscription = json!({
            "subscriptionId": "s", "status": "active", "fromPlan": "free", "movement": "none",
            "mrrDeltaMinor": -1, "currency": "EUR",
        });
        let created = with(subscription.clone(), "/movement", json!("new"));
        let canceled = json!({"subscriptionId": "s", "movement": "churn", "mrrDeltaMinor": -1, "currency": "EUR"});
        let request = json!({
            "function": "f", "route": "/", "method": "GET", "status": 200, "durationMs": 1, "coldStart": true,
        });
        let changed = json!({"fromPlan": "free", "toPlan": "pro"});
        let conversation = json!({"conversationId": "c"});
        for (kind, data, required) in [
            ("user.signup", json!({"method": "password"}), "method"),
            ("user.plan_upgraded", changed.clone(), "toPlan"),
            ("user.plan_downgraded", changed, "fromPlan"),
            ("chat.conversation_created", conversation.clone(), "conversationId"),
            ("chat.conversation_deleted", conversation, "conversationId"),
            ("chat.message_failed", failed, "errorClass"),
            ("billing.payment_succeeded", payment.clone(), "amountMinor"),
            ("billing.payment_failed", payment.clone(), "paymentId"),
            ("billing.payment_refunded", payment, "currency"),
            ("billing.subscription_created", created, "status"),
            ("billing.subscription_updated", subscription, "fromPlan"),
            ("billing.subscription_canceled", canceled, "mrrDeltaMinor"),
            (REQUEST_COMPLETED, request, "coldStart"),
        ] {
            let event = of(kind, data);
            assert_eq!(reason(&event), "valid", "{kind}");
            let lacking = with(event, &format!("/data/{required}"), json!("<absent>"));
            assert_eq!(reason(&lacking), format!("data.{required} is missing"), "{kind}");
        }
    }

    #[test]
    fn words_and_currencies_are_checked() {
        let payment = of("billing.payment_succeeded", json!({"paymentId": "p", "amountMinor": 1, "currency": "usd"}));
        for bad in ["", "us", "usdt", "u5d", "€€€"] {
            let event = with(payment.clone(), "/data/currency", json!(bad));
            assert_eq!(reason(&event), "data.currency is not a currency of three letters", "{bad}");
        }
        let canceled = of(
            "billing.subscription_canceled",
            json!({"subscriptionId": "s", "movement": "new", "mrrDeltaMinor": 0, "currency": "EUR"}),
        );
        assert_eq!(reason(&canceled), "data.movement is none of the known words");
    }

    #[test]
    fn numbers_are_bounded() {
        let refused = |field: &str| format!("data.{field} is beyond 1000000000000");
        for field in ["inputTokens", "outputTokens", "latencyMs", "costMicroUsd", "ttftMs"] {
            let told = |value: i64| reason(&with(message(), &format!("/data/{field}"), json!(value)));
            assert_eq!(told(LIMIT), "valid", "{field}");
            assert_eq!([told(LIMIT + 1), told(i64::MAX)], [refused(field), refused(field)]);
        }
        let amount = |value: i64| {
            reason(&of("billing.payment_succeeded", json!({"paymentId": "p", "amountMinor": value, "currency": "COP"})))
        };
        assert_eq!([amount(LIMIT), amount(LIMIT + 1)], ["valid".to_owned(), refused("amountMinor")]);
        let delta = |value: i64| {
            let data = json!({"subscriptionId": "s", "movement": "churn", "mrrDeltaMinor": value, "currency": "EUR"});
            reason(&of("billing.subscription_canceled", data))
        };
        assert_eq!([delta(-LIMIT), delta(LIMIT)], ["valid", "valid"]);
        for beyond in [i64::MIN, -LIMIT - 1, LIMIT + 1, i64::MAX] {
            assert_eq!(delta(beyond), refused("mrrDeltaMinor"), "{beyond}");
        }
    }

    #[test]
    fn telemetry_alone_may_lack_subject_and_plan() {
        let request = of(
            REQUEST_COMPLETED,
            json!({"function": "f", "route": "/", "method": "GET", "status": 200, "durationMs": 1, "coldStart": true}),
        );
        let bare = with(with(request, "/data/plan", json!(null)), "/subject", json!(null));
        assert_eq!(reason(&bare), "valid");
        assert_eq!(reason(&with(bare.clone(), "/data/plan", json!("gold"))), "data.plan is not a plan");
        assert_eq!(reason(&with(bare, "/subject", json!(""))), "subject is not text of 1 to 128 characters");
    }

    #[test]
    fn a_time_in_the_future_becomes_the_moment_of_sending() {
        let parse = |time: &str, sent| {
            let body = with(signup(), "/time", json!(time)).to_string();
            Event::parse(&body, sent).map(|event| (event.time, event.clamped)).unwrap()
        };
        assert_eq!(parse("2026-01-01T00:05:00Z", Some(SENT)), (SENT + SKEW_MILLIS, false));
        assert_eq!(parse("2026-01-01T00:05:00.001Z", Some(SENT)), (SENT, true));
        assert_eq!(parse("2026-01-01T01:06:00+01:00", Some(SENT)), (SENT, true));
        assert_eq!(parse("2026-01-02T00:00:00Z", None), (SENT + 86_400_000, false));
    }

    #[test]
    fn of_repeated_members_the_last_counts() {
        let body = signup().to_string().replacen('{', r#"{"type":"nonsense","data":[1],"#, 1);
        // The first data is refused where it stands: it is no object, whatever follows.
        assert!(Event::parse(&body, None).is_err());
        let body = signup().to_string().replacen('{', r#"{"type":"nonsense","#, 1);
        assert!(Event::parse(&body, None).is_ok());
    }
}
