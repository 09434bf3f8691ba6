//! JSON log lines on standard output, one object a line.
//!
//! The law: a message that can be read alone, dotted fields with the unit in the name, and never a secret,
//! an e-mail address, a token or a body.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config;
use crate::error::Result;
use crate::telemetry::{faults, spans};

/// Starts logging at `LOG_LEVEL` (default `info`), the recording of spans where a collector is named, and the
/// reporting of faults where an error tracker is.
///
/// # Errors
/// When `LOG_LEVEL` or `SENTRY_DSN` is malformed, or the way to the collector cannot be prepared.
pub fn init(function: &str) -> Result<()> {
    let level: LevelFilter = config::parsed("LOG_LEVEL", LevelFilter::INFO)?;
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_ansi(false);
    // A second start in one process (tests) keeps the first.
    let registry = tracing_subscriber::registry().with(lines.with_filter(level));
    let _ = match spans::layer(function)? {
        Some(spans) => registry.with(spans).try_init(),
        None => registry.try_init(),
    };
    faults::init()
}
