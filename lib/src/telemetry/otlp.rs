//! OTLP's JSON encoding of spans (https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding).

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// What is posted to a collector, in the words of OTLP's JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Export<'a> {
    pub(super) resource_spans: [ResourceSpans<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ResourceSpans<'a> {
    pub(super) resource: &'a Resource,
    pub(super) scope_spans: [ScopeSpans<'a>; 1],
}

#[derive(Serialize)]
pub(super) struct Resource {
    pub(super) attributes: Vec<Attribute>,
}

#[derive(Serialize)]
pub(super) struct ScopeSpans<'a> {
    pub(super) scope: Scope,
    pub(super) spans: &'a [Box<RawValue>],
}

#[derive(Serialize)]
pub(super) struct Scope {
    pub(super) name: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OtlpSpan<'a> {
    pub(super) trace_id: String,
    pub(super) span_id: String,
    pub(super) parent_span_id: &'a str,
    pub(super) name: &'a str,
    pub(super) kind: u8,
    #[serde(serialize_with = "as_text")]
    pub(super) start_time_unix_nano: i128,
    #[serde(serialize_with = "as_text")]
    pub(super) end_time_unix_nano: i128,
    pub(super) attributes: &'a [Attribute],
    pub(super) links: Vec<Link>,
    pub(super) status: Status,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Link {
    pub(super) trace_id: String,
    pub(super) span_id: String,
}

#[derive(Serialize)]
pub(super) struct Status {
    pub(super) code: u8,
}

#[derive(Clone, Serialize)]
pub(super) struct Attribute {
    pub(super) key: &'static str,
    pub(super) value: AnyValue,
}

#[derive(Clone, Serialize)]
pub(super) enum AnyValue {
    #[serde(rename = "stringValue")]
    Text(String),
    #[serde(rename = "boolValue")]
    Flag(bool),
    #[serde(rename = "intValue", serialize_with = "as_text")]
    Integer(i128),
    #[serde(rename = "doubleValue")]
    Float(f64),
    #[serde(rename = "arrayValue")]
    List(ArrayValue),
}

#[derive(Clone, Serialize)]
pub(super) struct ArrayValue {
    pub(super) values: Vec<AnyValue>,
}

/// Integers of 64 bits are text in protobuf's JSON.
fn as_text<S: Serializer>(number: &i128, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}
