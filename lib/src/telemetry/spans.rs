//! Spans for a collector: OTLP over HTTP in its JSON encoding
//! (https://opentelemetry.io/docs/specs/otlp/#otlphttp), where `OTEL_EXPORTER_OTLP_ENDPOINT` names one.
//!
//! A span begins with a [`TraceContext`] (a request, an invocation, a message) or as the child of such a one:
//! the AWS SDK's operations and this crate's own `debug_span!`s. A statement of Postgres is a span too, made from
//! the event that sqlx emits when it has ended. Spans go out behind the reply, in batches, and nobody waits for
//! them; what a dying sandbox has not sent yet is lost.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use aws_smithy_runtime::client::orchestrator::operation::Operation;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, OrchestratorError};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::timeout::TimeoutConfig;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Span, Subscriber, debug_span, field};
use tracing_subscriber::layer::{Context, Filter, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::background;
use crate::clock;
use crate::config;
use crate::error::{Error, Result};
use crate::outbound;
use crate::telemetry::trace::TraceContext;

/// How long an unfrozen process gathers spans before it sends them.
const LINGER: Duration = Duration::from_secs(1);
/// Spans that wait at most; beyond that new ones are dropped.
const CAPACITY: usize = 8192;
/// A collector listens beside the function: one that takes longer is not waited for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// sqlx tells of an ended statement under this target.
const STATEMENT: &str = "sqlx::query";

type Export = Operation<String, (), std::io::Error>;

/// The way out of a process.
struct Exporter {
    resource: Value,
    export: Export,
    ended: Mutex<Vec<Value>>,
    something: Notify,
}

static EXPORTER: OnceLock<Exporter> = OnceLock::new();

/// Prepares the way to the collector; `None` where the environment names none.
///
/// # Errors
/// When the client cannot be built.
pub(super) fn layer<S>(function: &str) -> Result<Option<impl Layer<S> + use<S>>>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
{
    let Some(endpoint) = config::optional("OTEL_EXPORTER_OTLP_ENDPOINT") else { return Ok(None) };
    let export = export_to(&endpoint)?;
    let exporter = EXPORTER.get_or_init(|| Exporter {
        resource: json!({ "attributes": [
            attribute("service.name", function.into()),
            attribute("service.version", env!("CARGO_PKG_VERSION").into()),
            attribute("deployment.environment.name", config::optional("STAGE").into()),
        ] }),
        export,
        ended: Mutex::new(Vec::new()),
        something: Notify::new(),
    });
    Ok(Some(Spans { exporter }.with_filter(Wanted)))
}

fn export_to(endpoint: &str) -> Result<Export> {
    Ok(Operation::builder()
        .service_name("otlp")
        .operation_name("export")
        .http_client(outbound::smithy_client(endpoint, TIMEOUT)?)
        .endpoint_url(endpoint)
        .no_auth()
        .no_retry()
        .sleep_impl(aws_smithy_async::rt::sleep::TokioSleep::new())
        .time_source(aws_smithy_async::time::SystemTimeSource::new())
        .timeout_config(TimeoutConfig::builder().operation_timeout(TIMEOUT).build())
        .serializer(|body: String| {
            let mut request = HttpRequest::new(SdkBody::from(body));
            request.set_method("POST")?;
            request.set_uri("/v1/traces")?;
            request.headers_mut().insert("content-type", "application/json");
            Ok(request)
        })
        .deserializer(|response| match response.status().as_u16() {
            200..=299 => Ok(()),
            status => Err(OrchestratorError::other(format!("the collector answered {status}"))),
        })
        .build())
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
    fn take(&self, span: Value) {
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
        let number = spans.len();
        let scopes = json!([{ "scope": { "name": env!("CARGO_PKG_NAME") }, "spans": spans }]);
        let body = json!({ "resourceSpans": [{ "resource": self.resource, "scopeSpans": scopes }] }).to_string();
        if let Err(error) = self.export.invoke(body).await {
            let error = Error::internal(error);
            tracing::warn!(error.cause = %error, spans = number, "spans were not sent to the collector");
        }
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
        request.id = id,
    )
}

/// Notes how a request went; a span that is noted again ends then.
pub(crate) fn end_request(span: &Span, status: u16) {
    span.record("http.response.status_code", status);
}

/// The span of an invocation that no client waits for: the root of a trace.
pub(crate) fn invocation(function: &str) -> Span {
    debug_span!(
        "invocation",
        otel.name = function,
        otel.kind = "consumer",
        otel.context = %TraceContext::continue_or_begin(None),
        error.cause = field::Empty,
    )
}

/// The span of a message in the trace that its body names, linked to the invocation that handles it.
pub(crate) fn message(function: &str, body: &str) -> Span {
    #[derive(serde::Deserialize)]
    struct Traced {
        traceparent: Option<String>,
    }
    if EXPORTER.get().is_none() {
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
        error.cause = field::Empty,
    )
}

/// Only what becomes a span: the log has a filter of its own.
struct Wanted;

impl<S> Filter<S> for Wanted {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        let target = metadata.target();
        if metadata.is_span() {
            target.starts_with(env!("CARGO_CRATE_NAME")) || target.starts_with("aws_sdk_")
        } else {
            target == STATEMENT
        }
    }
}

/// A span that has begun.
struct Open {
    context: TraceContext,
    parent: Option<String>,
    link: Option<TraceContext>,
    began: i128,
    ended: Option<i128>,
    fields: Fields,
}

/// What a span or an event says.
#[derive(Default)]
struct Fields {
    name: Option<String>,
    kind: Option<String>,
    context: Option<String>,
    parent: Option<String>,
    failed: bool,
    attributes: Vec<Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("otel.name", Value::String(name)) => self.name = Some(name),
            ("otel.kind", Value::String(kind)) => self.kind = Some(kind),
            ("otel.context", Value::String(context)) => self.context = Some(context),
            ("otel.parent", Value::String(parent)) => self.parent = Some(parent),
            ("sdk_invocation_id", _) => {}
            (name, value) => {
                self.failed |= name == "error.cause" || (name.ends_with("status_code") && value.as_u64() >= Some(500));
                // A key comes once: what is said last holds.
                self.attributes.retain(|known| known["key"] != name);
                self.attributes.push(attribute(name, value));
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

/// An attribute in OTLP's JSON, where integers are text.
fn attribute(key: &str, value: Value) -> Value {
    let value = match value {
        Value::String(text) => json!({ "stringValue": text }),
        Value::Bool(bool) => json!({ "boolValue": bool }),
        Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        _ => json!({}),
    };
    json!({ "key": key, "value": value })
}

impl Open {
    fn into_otlp(self, name: &str) -> Value {
        let kind = match self.fields.kind.as_deref() {
            Some("server") => 2,
            Some("client") => 3,
            Some("producer") => 4,
            Some("consumer") => 5,
            _ => 1,
        };
        let links: Vec<_> =
            self.link.iter().map(|to| json!({ "traceId": to.trace_id(), "spanId": to.span_id() })).collect();
        json!({
            "traceId": self.context.trace_id(),
            "spanId": self.context.span_id(),
            "parentSpanId": self.parent.unwrap_or_default(),
            "name": self.fields.name.as_deref().unwrap_or(name),
            "kind": kind,
            "startTimeUnixNano": self.began.to_string(),
            "endTimeUnixNano": self.ended.unwrap_or_else(nanos).to_string(),
            "attributes": self.fields.attributes,
            "links": links,
            "status": { "code": if self.fields.failed { 2 } else { 0 } },
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
}

impl<S> Layer<S> for Spans
where
    S: Subscriber + for<'s> LookupSpan<'s>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, scope: Context<'_, S>) {
        let Some(span) = scope.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let around = Self::around(attributes.parent(), &scope);
        let (context, parent, link) = match (&fields.context, around) {
            (Some(own), around) => {
                let Some(own) = TraceContext::parse(own).filter(TraceContext::is_sampled) else { return };
                (own, fields.parent.take(), around)
            }
            (None, Some(around)) => (around.child(), Some(around.span_id()), None),
            (None, None) => return,
        };
        if fields.kind.is_none() && span.metadata().target().starts_with("aws_sdk_") {
            fields.kind = Some("client".to_owned());
        }
        span.extensions_mut().insert(Open { context, parent, link, began: nanos(), ended: None, fields });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, scope: Context<'_, S>) {
        let Some(span) = scope.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            values.record(&mut open.fields);
            open.ended = Some(nanos());
        }
    }

    fn on_event(&self, event: &Event<'_>, scope: Context<'_, S>) {
        let Some(around) = Self::around(None, &scope) else { return };
        let mut statement = Statement::default();
        event.record(&mut statement);
        self.exporter.take(statement.into_otlp(&around));
    }

    fn on_close(&self, id: Id, scope: Context<'_, S>) {
        let Some(span) = scope.span(&id) else { return };
        let open = span.extensions_mut().remove::<Open>();
        if let Some(open) = open {
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
    fn into_otlp(self, around: &TraceContext) -> Value {
        let ended = nanos();
        let lasted = i128::try_from(Duration::from_secs_f64(self.seconds.max(0.0)).as_nanos()).unwrap_or_default();
        let text = if self.text.is_empty() { self.summary } else { self.text };
        let mut fields = Fields { kind: Some("client".to_owned()), ..Fields::default() };
        fields.name = text.split_whitespace().next().map(|verb| format!("postgresql {verb}"));
        fields.attributes =
            vec![attribute("db.system.name", "postgresql".into()), attribute("db.query.text", text.into())];
        let open = Open {
            context: around.child(),
            parent: Some(around.span_id()),
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
    use tracing::Instrument;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn recorded(work: impl FnOnce()) -> Vec<Value> {
        let exporter: &'static Exporter = Box::leak(Box::new(Exporter {
            resource: Value::Null,
            export: export_to("http://127.0.0.1:1").unwrap(),
            ended: Mutex::new(Vec::new()),
            something: Notify::new(),
        }));
        let registry = tracing_subscriber::registry().with(Spans { exporter }.with_filter(Wanted));
        tracing::subscriber::with_default(registry, work);
        std::mem::take(&mut *exporter.ended.lock().unwrap())
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
    fn what_is_not_sampled_or_belongs_to_nothing_is_not_recorded() {
        let trace = TraceContext::continue_or_begin(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"));
        let spans = recorded(|| {
            request(&trace, "GET", "/", "id").in_scope(|| debug_span!("call").in_scope(|| {}));
            debug_span!("init").in_scope(|| {});
            let _work = std::pin::pin!(async {}.instrument(debug_span!("work")));
        });
        assert!(spans.is_empty(), "{spans:?}");
    }
}
