//! JSON log lines on standard output, one object a line.
//!
//! The law: a message that can be read alone, dotted fields with the unit in the name, and never a secret,
//! an e-mail address, a token or a body. What is written in the course of a request, an invocation or a message
//! carries its ids.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use tokio::task::futures::TaskLocalFuture;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config;
use crate::error::Result;
use crate::telemetry::trace::TraceContext;
use crate::telemetry::{faults, spans};

/// It logs each failure of a handler, which the runners have logged with more by then.
const RUNTIMES_ECHO: &str = "lambda_runtime::layers::panic";

tokio::task_local! {
    static IDS: Option<Ids>;
}

/// What leads from a line of the log to the request, invocation or message in whose course it was written.
#[derive(Clone)]
pub(crate) struct Ids {
    request: Arc<str>,
    /// As a line of the log begins.
    fields: Arc<str>,
}

impl Ids {
    /// The id of a request, an invocation or a message, and its trace, if it has one.
    pub(crate) fn new(id: &str, trace: Option<&TraceContext>) -> Self {
        let trace = trace.map(|trace| format!(r#""trace.id":"{}","#, trace.trace_id())).unwrap_or_default();
        Self { request: id.into(), fields: format!(r#""request.id":{},{trace}"#, Value::from(id)).into() }
    }

    /// The id of the request, the invocation or the message.
    pub(crate) fn request(&self) -> &str {
        &self.request
    }

    /// Those that are in force here.
    pub(crate) fn current() -> Option<Self> {
        IDS.try_with(Clone::clone).ok().flatten()
    }
}

/// Does some work whose lines carry these ids.
pub(crate) fn within<F: Future>(ids: Option<Ids>, work: F) -> TaskLocalFuture<Option<Ids>, F> {
    IDS.scope(ids, work)
}

/// Starts logging at `LOG_LEVEL` (default `info`), the recording of spans where a collector is named, and the
/// reporting of faults where an error tracker is.
///
/// # Errors
/// When `LOG_LEVEL` or `SENTRY_DSN` is malformed, or the way to the collector cannot be prepared.
pub fn init(function: &str) -> Result<()> {
    let level: LevelFilter = config::parsed("LOG_LEVEL", LevelFilter::INFO)?;
    let wanted = Targets::new().with_default(level).with_target(RUNTIMES_ECHO, LevelFilter::OFF);
    // A second start in one process (tests) keeps the first.
    let registry = tracing_subscriber::registry().with(lines(std::io::stdout).with_filter(wanted));
    let _ = match spans::layer(function)? {
        Some(spans) => registry.with(spans).try_init(),
        None => registry.try_init(),
    };
    faults::init(function)
}

fn lines<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_ansi(false)
        .map_event_format(WithIds)
        .with_writer(writer)
}

/// A line of JSON that begins with the ids in force.
struct WithIds(Format<Json>);

impl<S, N> FormatEvent<S, N> for WithIds
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(ids) = Ids::current() else { return self.0.format_event(context, writer, event) };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        write!(writer, "{{{}{}", ids.fields, line.strip_prefix('{').unwrap_or(&line))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Mutex, PoisonError};

    use super::*;
    use crate::background;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_line_carries_the_ids_of_what_it_belongs_to() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::registry().with(lines(move || writer.clone()));
        let _guard = tracing::subscriber::set_default(subscriber);
        let trace = TraceContext::continue_or_begin(None);
        within(Some(Ids::new("a \"request\"", Some(&trace))), async {
            tracing::info!(attempt = 1, "here");
            background::spawn(async { tracing::info!("behind the reply") });
        })
        .await;
        tracing::info!("outside");
        background::drained().await;
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [here, outside, behind] = &lines[..] else { panic!("{text}") };
        for line in [here, behind] {
            assert_eq!(line["request.id"], "a \"request\"", "{line}");
            assert_eq!(line["trace.id"], trace.trace_id(), "{line}");
        }
        assert_eq!((&here["message"], &here["attempt"]), (&"here".into(), &1.into()));
        assert!(outside.get("request.id").is_none(), "{outside}");
    }
}
