//! Spans for a collector: OTLP over HTTP in its JSON encoding
//! (https://opentelemetry.io/docs/specs/otlp/#otlphttp), where `OTEL_EXPORTER_OTLP_ENDPOINT` names one.
//!
//! A span begins with a [`TraceContext`] (a request, an invocation, a message) or as the child of such a one:
//! the AWS SDK's operations and this crate's own `debug_span!`s. A statement of Postgres is a span too, made from
//! the event that sqlx emits when it has ended. Spans go out behind the reply, in batches, and nobody waits for
//! them; what a dying sandbox has not sent yet is lost.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Span, Subscriber, debug_span, field};
use tracing_subscriber::layer::{Context, Filter, Layer};
use tracing_subscriber::registry::{LookupSpan, SpanRef};

use crate::background;
use crate::clock;
use crate::config;
use crate::error::{Error, Result};
use crate::outbound::Reporter;
use crate::telemetry::otlp::{
    AnyValue, ArrayValue, Attribute, Export, Link, OtlpSpan, Resource, ResourceSpans, Scope, ScopeSpans, Status,
};
use crate::telemetry::trace::TraceContext;

/// How long an unfrozen process gathers spans before it sends them.
const LINGER: Duration = Duration::from_secs(1);
/// Spans that wait at most; beyond that new ones are dropped.
const CAPACITY: usize = 8192;
/// sqlx tells of an ended statement under this target.
const STATEMENT: &str = "sqlx::query";

/// The way out of a process.
struct Exporter {
    resource: Resource,
    reporter: Reporter,
    /// Each is written when it ends, which takes less room and time than what it is written from.
    ended: Mutex<Vec<Box<RawValue>>>,
    something: Notify,
}

static EXPORTER: OnceLock<Exporter> = OnceLock::new();
/// Of the traces that begin here, the part that is recorded.
static SHARE: OnceLock<f64> = OnceLock::new();

/// Prepares the way to the collector; `None` where the environment names none.
///
/// # Errors
/// When the client cannot be built, or `OTEL_TRACES_SAMPLER_ARG` is not a number from 0 to 1.
pub(super) fn layer<S>(function: &str) -> Result<Option<impl Layer<S> + use<S>>>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
{
    let Some(endpoint) = config::optional("OTEL_EXPORTER_OTLP_ENDPOINT") else { return Ok(None) };
    let share = config::parsed("OTEL_TRACES_SAMPLER_ARG", 1.0)?;
    if !(0.0..=1.0).contains(&share) {
        return Err(Error::internal("environment variable OTEL_TRACES_SAMPLER_ARG is not a number from 0 to 1"));
    }
    SHARE.get_or_init(|| share);
    let reporter = reporter_to(&endpoint)?;
    let exporter = EXPORTER.get_or_init(|| Exporter {
        resource: Resource {
            attributes: [
                ("service.name", Some(function.to_owned())),
                ("service.version", Some(env!("CARGO_PKG_VERSION").to_owned())),
                ("deployment.environment.name", config::optional("STAGE")),
            ]
            .into_iter()
            .filter_map(|(key, value)| Some(Attribute { key, value: AnyValue::Text(value?) }))
            .collect(),
        },
        reporter,
        ended: Mutex::new(Vec::new()),
        something: Notify::new(),
    });
    Ok(Some(Spans { exporter }.with_filter(Wanted)))
}

fn reporter_to(endpoint: &str) -> Result<Reporter> {
    Reporter::to(endpoint, "/v1/traces".to_owned(), vec![("content-type", "application/json".to_owned())])
}

/// Whether a trace that begins here is recorded: a matter of its id alone, as `TraceIdRatioBased` of
/// OpenTelemetry wants it, so that every process decides alike.
pub(super) fn samples(trace_id: &[u8; 16]) -> bool {
    SHARE.get().is_none_or(|share| falls_under(*share, trace_id))
}

fn falls_under(share: f64, trace_id: &[u8; 16]) -> bool {
    const SCALE: u32 = 1 << 24;
    let [.., a, b, c] = *trace_id;
    f64::from(u32::from_be_bytes([0, a, b, c])) < share * f64::from(SCALE)
}

/// Starts sending, where the process is not frozen between invocations.
pub(crate) fn start() {
    if let (Some(exporter), false) = (EXPORTER.get(), background::sandbox_freezes()) {
        background::spawn_untracked(async {
            loop {
                exporter.something.notified().await;
                tokio::time::sleep(LINGER).await;
                exporter.send().await;
            }
        });
    }
}

/// Sends what has ended, before a sandbox freezes.
pub(crate) async fn flush() {
    if let Some(exporter) = EXPORTER.get() {
        exporter.send().await;
    }
}

impl Exporter {
    fn take(&self, span: serde_json::Result<Box<RawValue>>) {
        let Ok(span) = span else { return };
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() < CAPACITY {
            ended.push(span);
            self.something.notify_one();
        }
    }

    async fn send(&self) {
        let spans = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        if spans.is_empty() {
            return;
        }
        // A collector that failed a moment ago costs nobody anything.
        if self.reporter.is_resting() {
            return;
        }
        let number = spans.len();
        if let Err(error) = self.reporter.send(self.body(&spans)).await {
            tracing::warn!(error.cause = %error, spans = number, "spans were not sent to the collector");
        }
    }

    fn body(&self, spans: &[Box<RawValue>]) -> String {
        let scope_spans = [ScopeSpans { scope: Scope { name: env!("CARGO_PKG_NAME") }, spans }];
        let resource_spans = [ResourceSpans { resource: &self.resource, scope_spans }];
        serde_json::to_string(&Export { resource_spans }).unwrap_or_default()
    }
}

/// The span of a request, to be ended by [`end_request`].
pub(crate) fn request(trace: &TraceContext, method: &str, route: &str, id: &str) -> Span {
    debug_span!(
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        otel.context = %trace,
        otel.parent = trace.parent_id(),
        http.request.method = method,
        http.route = route,
        http.response.status_code = field::Empty,
        error.type = field::Empty,
        request.id = id,
    )
}

/// Notes that what a span tells of has failed: its kind, since a cause may quote what a person wrote.
pub(crate) fn fail(span: &Span, kind: &str) {
    span.record("error.type", kind);
}

/// Records the status and the end of a request's span. The last call counts: headers first, the end of a stream later.
pub(crate) fn end_request(span: &Span, status: u16) {
    span.record("http.response.status_code", status);
}

/// The span of an invocation that no client waits for: the root of a trace.
pub(crate) fn invocation(function: &str) -> Span {
    debug_span!(
        "invocation",
        otel.name = function,
        otel.kind = "consumer",
        otel.context = %TraceContext::begin(),
        error.type = field::Empty,
    )
}

/// Whether anybody collects spans.
pub(crate) fn are_collected() -> bool {
    EXPORTER.get().is_some()
}

/// The span of a message in the trace that its body names, linked to the invocation that handles it.
pub(crate) fn message(function: &str, body: &str) -> Span {
    #[derive(serde::Deserialize)]
    struct Traced {
        traceparent: Option<String>,
    }
    // Reading a body takes its time, of which a batch of thousands has none to waste.
    if !are_collected() || !body.contains("\"traceparent\"") {
        return Span::none();
    }
    let Ok(Traced { traceparent: Some(traceparent) }) = serde_json::from_str(body) else { return Span::none() };
    let trace = TraceContext::continue_or_begin(Some(&traceparent));
    debug_span!(
        "message",
        otel.name = function,
        otel.kind = "consumer",
        otel.context = %trace,
        otel.parent = trace.parent_id(),
        messaging.system = "aws_sqs",
        messaging.operation.name = "process",
        error.type = field::Empty,
    )
}

/// Only what becomes a span: the log has a filter of its own.
struct Wanted;

impl Wanted {
    fn wants(metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        if metadata.is_span() {
            target.starts_with(env!("CARGO_CRATE_NAME")) || target.starts_with("aws_sdk_")
        } else {
            target == STATEMENT
        }
    }
}

impl<S> Filter<S> for Wanted {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        Self::wants(metadata)
    }

    /// Decided once a place in the code: asked each time, the thousands of other places of the libraries would
    /// be a third of what a request costs.
    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if Self::wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::DEBUG)
    }
}

/// The span of what is done for all messages of an invocation: it is part of each one's trace.
const FOR_ALL: &str = "clickhouse";
const INVOCATION: &str = "invocation";
const MESSAGE: &str = "message";

/// A span that has begun.
struct Open {
    context: TraceContext,
    /// The messages that this invocation handles.
    messages: Vec<TraceContext>,
    parent: Option<String>,
    link: Option<TraceContext>,
    began: i128,
    ended: Option<i128>,
    fields: Fields,
}

/// What a span or an event says.
#[derive(Default, Clone)]
struct Fields {
    name: Option<String>,
    kind: Option<String>,
    context: Option<String>,
    parent: Option<String>,
    failed: bool,
    attributes: Vec<Attribute>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: AnyValue) {
        match (field.name(), value) {
            ("otel.name", AnyValue::Text(name)) => self.name = Some(name),
            ("otel.kind", AnyValue::Text(kind)) => self.kind = Some(kind),
            ("otel.context", AnyValue::Text(context)) => self.context = Some(context),
            ("otel.parent", AnyValue::Text(parent)) => self.parent = Some(parent),
            ("sdk_invocation_id", _) => {}
            (key, value) => {
                self.failed |= key == "error.type"
                    || (key.ends_with("status_code") && matches!(value, AnyValue::Integer(status) if status >= 500));
                // A list by the conventions, and `tracing` knows none.
                let value = if key == "gen_ai.response.finish_reasons" {
                    AnyValue::List(ArrayValue { values: vec![value] })
                } else {
                    value
                };
                // A key comes once: what is said last holds.
                self.attributes.retain(|known| known.key != key);
                self.attributes.push(Attribute { key, value });
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, AnyValue::Text(value.to_owned()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, AnyValue::Integer(value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, AnyValue::Integer(value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, AnyValue::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, AnyValue::Flag(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, AnyValue::Text(format!("{value:?}")));
    }
}

impl Open {
    /// The same span in another message's trace.
    fn copy_for(&self, message: &TraceContext) -> Self {
        Self {
            context: message.child(),
            messages: Vec::new(),
            parent: Some(message.span_id()),
            link: None,
            began: self.began,
            ended: self.ended,
            fields: self.fields.clone(),
        }
    }

    fn into_otlp(self, name: &str) -> serde_json::Result<Box<RawValue>> {
        let kind = match self.fields.kind.as_deref() {
            Some("server") => 2,
            Some("client") => 3,
            Some("producer") => 4,
            Some("consumer") => 5,
            _ => 1,
        };
        to_raw_value(&OtlpSpan {
            trace_id: self.context.trace_id(),
            span_id: self.context.span_id(),
            parent_span_id: self.parent.as_deref().unwrap_or_default(),
            name: self.fields.name.as_deref().unwrap_or(name),
            kind,
            start_time_unix_nano: self.began,
            end_time_unix_nano: self.ended.unwrap_or_else(nanos),
            attributes: &self.fields.attributes,
            links: self.link.iter().map(|to| Link { trace_id: to.trace_id(), span_id: to.span_id() }).collect(),
            status: Status { code: if self.fields.failed { 2 } else { 0 } },
        })
    }
}

fn nanos() -> i128 {
    clock::now().unix_timestamp_nanos()
}

/// Makes spans of what `tracing` tells.
struct Spans {
    exporter: &'static Exporter,
}

impl Spans {
    /// The context of the nearest span around this one that is recorded.
    fn around<S>(id: Option<&Id>, scope: &Context<'_, S>) -> Option<TraceContext>
    where
        S: Subscriber + for<'s> LookupSpan<'s>,
    {
        let nearest = match id {
            Some(id) => scope.span(id)?,
            None => scope.lookup_current()?,
        };
        nearest.scope().find_map(|span| span.extensions().get::<Open>().map(|open| open.context))
    }

    /// Tells the invocation around a message of it.
    fn note_message<S>(message: &SpanRef<'_, S>, context: TraceContext)
    where
        S: Subscriber + for<'s> LookupSpan<'s>,
    {
        for span in message.scope().skip(1) {
            if let Some(invocation) = span.extensions_mut().get_mut::<Open>() {
                invocation.messages.push(context);
                return;
            }
        }
    }
}

impl<S> Layer<S> for Spans
where
    S: Subscriber + for<'s> LookupSpan<'s>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, scope: Context<'_, S>) {
        let Some(span) = scope.span(id) else { return };
        let (name, around) = (span.name(), Self::around(attributes.parent(), &scope));
        let has_own_context = attributes.metadata().fields().field("otel.context").is_some();
        // Most spans of a trace that is not recorded end here, before what they say is read.
        if !has_own_context && name != FOR_ALL && !around.is_some_and(|around| around.is_sampled()) {
            return;
        }
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let (context, parent, link) = match (&fields.context, around) {
            (Some(own), around) => {
                let Some(own) = TraceContext::parse(own) else { return };
                (own, fields.parent.take(), around.filter(TraceContext::is_sampled))
            }
            (None, Some(around)) => (around.child(), Some(around.span_id()), None),
            (None, None) => return,
        };
        // What messages have in common is recorded for them, be their invocation recorded or not.
        if !context.is_sampled() && name != INVOCATION && name != FOR_ALL {
            return;
        }
        if name == MESSAGE {
            Self::note_message(&span, context);
        }
        if fields.kind.is_none() && span.metadata().target().starts_with("aws_sdk_") {
            fields.kind = Some("client".to_owned());
        }
        span.extensions_mut().insert(Open {
            context,
            parent,
            link,
            began: nanos(),
            ended: None,
            fields,
            messages: Vec::new(),
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, scope: Context<'_, S>) {
        let Some(span) = scope.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            values.record(&mut open.fields);
            open.ended = Some(nanos());
        }
    }

    fn on_event(&self, event: &Event<'_>, scope: Context<'_, S>) {
        let Some(around) = Self::around(None, &scope).filter(TraceContext::is_sampled) else { return };
        let mut statement = Statement::default();
        event.record(&mut statement);
        self.exporter.take(statement.into_otlp(&around));
    }

    fn on_close(&self, id: Id, scope: Context<'_, S>) {
        let Some(span) = scope.span(&id) else { return };
        let Some(open) = span.extensions_mut().remove::<Open>() else { return };
        if span.name() == FOR_ALL {
            let around = span.scope().skip(1).find_map(|span| Some(span.extensions().get::<Open>()?.messages.clone()));
            for message in around.unwrap_or_default() {
                self.exporter.take(open.copy_for(&message).into_otlp(span.name()));
            }
        }
        if open.context.is_sampled() {
            self.exporter.take(open.into_otlp(span.name()));
        }
    }
}

/// An ended statement. Its text has placeholders where the values go.
#[derive(Default)]
struct Statement {
    summary: String,
    text: String,
    seconds: f64,
}

impl Visit for Statement {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(&mut self.summary),
            "db.statement" => value.trim().clone_into(&mut self.text),
            _ => {}
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "elapsed_secs" {
            self.seconds = value;
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl Statement {
    fn into_otlp(self, around: &TraceContext) -> serde_json::Result<Box<RawValue>> {
        let ended = nanos();
        let lasted = i128::try_from(Duration::from_secs_f64(self.seconds.max(0.0)).as_nanos()).unwrap_or_default();
        let text = if self.text.is_empty() { self.summary } else { self.text };
        let mut fields = Fields { kind: Some("client".to_owned()), ..Fields::default() };
        fields.name = text.split_whitespace().next().map(|verb| format!("postgresql {verb}"));
        fields.attributes = vec![
            Attribute { key: "db.system.name", value: AnyValue::Text("postgresql".to_owned()) },
            Attribute { key: "db.query.text", value: AnyValue::Text(text) },
        ];
        let open = Open {
            context: around.child(),
            parent: Some(around.span_id()),
            messages: Vec::new(),
            link: None,
            began: ended - lasted,
            ended: Some(ended),
            fields,
        };
        open.into_otlp("postgresql")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tracing::Instrument;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn recorded(work: impl FnOnce()) -> Vec<Value> {
        let exporter: &'static Exporter = Box::leak(Box::new(Exporter {
            resource: Resource { attributes: Vec::new() },
            reporter: reporter_to("http://127.0.0.1:1").unwrap(),
            ended: Mutex::new(Vec::new()),
            something: Notify::new(),
        }));
        let registry = tracing_subscriber::registry().with(Spans { exporter }.with_filter(Wanted));
        tracing::subscriber::with_default(registry, work);
        let body: Value = serde_json::from_str(&exporter.body(&exporter.ended.lock().unwrap())).unwrap();
        body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()
    }

    fn find<'s>(spans: &'s [Value], name: &str) -> &'s Value {
        spans.iter().find(|span| span["name"] == name).unwrap_or_else(|| panic!("no span {name} in {spans:?}"))
    }

    #[test]
    fn a_request_its_calls_and_its_statements_are_one_tree() {
        let trace = TraceContext::continue_or_begin(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        let spans = recorded(|| {
            let request = request(&trace, "GET", "/api/auth/me", "id");
            request.in_scope(|| {
                debug_span!("call", otel.kind = "client").in_scope(|| {});
                tracing::debug!(target: STATEMENT, summary = "SELECT 1", db.statement = "", elapsed_secs = 0.5);
                tracing::info!("a line of the log is no span");
            });
            end_request(&request, 200);
            end_request(&request, 503);
        });
        assert_eq!(spans.len(), 3, "{spans:?}");
        let (root, call, statement) =
            (find(&spans, "GET /api/auth/me"), find(&spans, "call"), find(&spans, "postgresql SELECT"));
        assert_eq!(root["spanId"], trace.span_id());
        assert_eq!(root["parentSpanId"], "00f067aa0ba902b7");
        assert_eq!((&root["kind"], &root["status"]["code"]), (&json!(2), &json!(2)));
        let attributes = root["attributes"].as_array().unwrap();
        let statuses: Vec<_> = attributes.iter().filter(|a| a["key"] == "http.response.status_code").collect();
        assert_eq!(statuses.len(), 1, "{root}");
        assert_eq!(statuses[0]["value"]["intValue"], "503");
        for child in [call, statement] {
            assert_eq!(child["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
            assert_eq!(child["parentSpanId"], trace.span_id());
            assert_eq!(child["kind"], 3);
        }
        let time = |name: &str| statement[name].as_str().unwrap().parse::<u64>().unwrap();
        assert_eq!(time("endTimeUnixNano") - time("startTimeUnixNano"), 500_000_000);
    }

    #[test]
    fn a_message_is_part_of_its_senders_trace_and_linked_to_its_invocation() {
        let spans = recorded(|| {
            let _invocation = invocation("workers-ingest").entered();
            debug_span!(
                "message",
                otel.context = "00-4bf92f3577b34da6a3ce929d0e0e4736-1111111111111111-01",
                otel.parent = "00f067aa0ba902b7"
            )
            .in_scope(|| {});
        });
        let (message, invocation) = (find(&spans, "message"), find(&spans, "workers-ingest"));
        assert_eq!(message["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(message["parentSpanId"], "00f067aa0ba902b7");
        assert_eq!(message["links"], json!([{ "traceId": invocation["traceId"], "spanId": invocation["spanId"] }]));
    }

    #[test]
    fn what_a_batch_has_in_common_is_in_the_trace_of_each_message() {
        let batch = |sampled: bool| {
            let flags = if sampled { "01" } else { "00" };
            let own = format!("00-5bf92f3577b34da6a3ce929d0e0e4736-2222222222222222-{flags}");
            recorded(move || {
                let _invocation = debug_span!("invocation", otel.name = "workers-ingest", otel.context = own).entered();
                let _messages = ["1", "2"].map(|digit| {
                    let id = digit.repeat(16);
                    debug_span!("message", otel.context = format!("00-{}-{id}-01", digit.repeat(32)))
                });
                debug_span!("clickhouse", otel.name = "clickhouse INSERT").in_scope(|| {});
                debug_span!("call").in_scope(|| {});
            })
        };
        for (sampled, number) in [(true, 7), (false, 4)] {
            let spans = batch(sampled);
            assert_eq!(spans.len(), number, "{spans:?}");
            for digit in ["1", "2"] {
                let inserts = spans.iter().filter(|span| {
                    span["name"] == "clickhouse INSERT"
                        && span["traceId"] == digit.repeat(32)
                        && span["parentSpanId"] == digit.repeat(16)
                });
                assert_eq!(inserts.count(), 1, "{spans:?}");
            }
        }
    }

    #[test]
    fn the_share_of_recorded_traces_is_the_configured_one() {
        let ids: Vec<[u8; 16]> =
            (0..10_000).map(|_| crate::crypto::random().unwrap()[..16].try_into().unwrap()).collect();
        for (share, bounds) in [(0.0, 0..=0), (0.25, 2_200..=2_800), (1.0, 10_000..=10_000)] {
            let recorded = ids.iter().filter(|id| falls_under(share, id)).count();
            assert!(bounds.contains(&recorded), "{recorded} of 10000 for {share}");
        }
    }

    #[test]
    fn a_list_is_one_in_otlp() {
        let spans = recorded(|| {
            let trace =
                TraceContext::continue_or_begin(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
            request(&trace, "POST", "/api/chat", "id").in_scope(|| {
                debug_span!("chat", gen_ai.response.finish_reasons = "stop").in_scope(|| {});
            });
        });
        let attributes = &find(&spans, "chat")["attributes"];
        assert_eq!(attributes[0]["value"], json!({ "arrayValue": { "values": [{ "stringValue": "stop" }] } }));
    }

    #[test]
    fn what_is_not_sampled_or_belongs_to_nothing_is_not_recorded() {
        let trace = TraceContext::continue_or_begin(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"));
        let spans = recorded(|| {
            request(&trace, "GET", "/", "id").in_scope(|| {
                debug_span!("call").in_scope(|| {});
                tracing::debug!(target: STATEMENT, summary = "SELECT 1", db.statement = "", elapsed_secs = 0.5);
            });
            debug_span!("init").in_scope(|| {});
            let _work = std::pin::pin!(async {}.instrument(debug_span!("work")));
        });
        assert!(spans.is_empty(), "{spans:?}");
    }
}
