//! Runs functions that no client waits for: queue consumers and schedules.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse};
use bytes::Bytes;
use event_codec::delivery::{self, Record};
use futures_util::FutureExt;
use lambda_runtime::LambdaEvent;
use lambda_runtime::tower::layer::layer_fn;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
pub use tokio::time::Instant;
use tokio::time::timeout_at;
use tracing::Instrument;

use crate::clock;
use crate::error::{Error, Result};
use crate::runtime::{self, RawEvent};
use crate::telemetry::faults::{self, Fault};
use crate::telemetry::log::{self, Ids};
use crate::telemetry::spans;
use futures_util::future::BoxFuture;

/// The end of an invocation that is left for its answer.
const TO_ANSWER: Duration = Duration::from_secs(2);

/// A handler of one message.
pub type HandleMessage<C> = fn(&'static C, Message) -> BoxFuture<'static, Result<()>>;
/// A handler of a whole batch, which gives the ids of the messages that SQS should redeliver, before some moment.
pub type HandleBatch<C> = for<'a> fn(&'static C, &'a [Record<'a>], Instant) -> BoxFuture<'a, Result<Vec<String>>>;

/// Runs a queue consumer that handles messages one by one; SQS delivers again those that fail.
pub fn serve_queue<C, F>(function: &'static str, init: fn() -> F, handle: HandleMessage<C>) -> ExitCode
where
    C: Send + Sync + 'static,
    F: Future<Output = Result<C>> + Send + 'static,
{
    let init: BatchInit = Box::new(move || {
        Box::pin(async move {
            let context: &'static C = Box::leak(Box::new(init().await?));
            Ok(batch_handler(move |records, end| {
                Box::pin(async move { Ok(one_by_one(function, context, handle, records, end).await) })
            }))
        })
    });
    run_queue(function, init)
}

/// Gives the ids of the messages that were not handled. One that panics or hangs takes nothing from those before it,
/// which would be handled again, and those after one that hangs are left to the next delivery.
async fn one_by_one<C>(
    function: &'static str,
    context: &'static C,
    handle: HandleMessage<C>,
    records: &[Record<'_>],
    end: Instant,
) -> Vec<String> {
    let mut failed = Vec::new();
    for record in records {
        let (id, message) = (record.id(), Message::of(record, end));
        if Instant::now() >= end {
            failed.push(id.to_owned());
            continue;
        }
        let span = spans::message(function, &message.body);
        let work = async {
            let work = AssertUnwindSafe(handle(context, message)).catch_unwind().instrument(span.clone());
            let handled = match timeout_at(end, work).await {
                Ok(handled) => handled.unwrap_or_else(|panic| Err(Error::panicked(&*panic))),
                Err(_) => {
                    runtime::end_after_answer();
                    Err(Error::internal("a message took too long"))
                }
            };
            if let Err(error) = handled {
                spans::fail(&span, error.code().as_str());
                report(function, id, &error);
                tracing::error!(function, error.cause = %error, "a message could not be handled");
                failed.push(id.to_owned());
            }
        };
        log::within(Some(Ids::new(id, None)), work).await;
    }
    failed
}

/// Runs a queue consumer that handles a batch at a time; an error of the handler fails the whole batch.
pub fn serve_batches<C, F>(function: &'static str, init: fn() -> F, handle: HandleBatch<C>) -> ExitCode
where
    C: Send + Sync + 'static,
    F: Future<Output = Result<C>> + Send + 'static,
{
    let init: BatchInit = Box::new(move || {
        Box::pin(async move {
            let context: &'static C = Box::leak(Box::new(init().await?));
            Ok(batch_handler(move |records, end| {
                Box::pin(async move {
                    // Each message is a part of its own trace for as long as the batch takes.
                    let mut body = String::new();
                    let traced = if spans::are_collected() { records } else { &[] };
                    let spans: Vec<_> =
                        traced.iter().map(|record| spans::message(function, record.body(&mut body))).collect();
                    let outcome = handle(context, records, end).await;
                    if let Err(error) = &outcome {
                        for span in &spans {
                            spans::fail(span, error.code().as_str());
                        }
                    }
                    outcome
                })
            }))
        })
    });
    run_queue(function, init)
}

fn report(function: &str, id: &str, error: &Error) {
    faults::report(&Fault {
        function,
        route: None,
        request_id: id,
        trace: None,
        code: error.code().as_str(),
        location: &error.location(),
        panicked: error.is_panic(),
    });
}

type BatchHandler = Box<dyn for<'a> Fn(&'a [Record<'a>], Instant) -> BoxFuture<'a, Result<Vec<String>>> + Send + Sync>;
type BatchInit = Box<dyn FnOnce() -> BoxFuture<'static, Result<BatchHandler>> + Send>;

/// The type is spelt out where a closure is made: none is inferred for borrowed records.
fn batch_handler<H>(handle: H) -> BatchHandler
where
    H: for<'a> Fn(&'a [Record<'a>], Instant) -> BoxFuture<'a, Result<Vec<String>>> + Send + Sync + 'static,
{
    Box::new(handle)
}

fn run_queue(function: &'static str, init: BatchInit) -> ExitCode {
    let init: Init = Box::new(move || {
        Box::pin(async move {
            let handle = Arc::new(init().await?);
            Ok(Arc::new(move |event: Bytes, deadline| -> BoxFuture<'static, Result<Value>> {
                let handle = handle.clone();
                Box::pin(async move {
                    let records = delivery::records(&event)?;
                    let received = records.len();
                    let failed = handle(&records, deadline - TO_ANSWER).await?;
                    tracing::info!(
                        function,
                        messages.received = received,
                        messages.failed = failed.len(),
                        "a batch was handled"
                    );
                    let mut response = SqsBatchResponse::default();
                    response.batch_item_failures = failed
                        .into_iter()
                        .map(|id| {
                            let mut failure = BatchItemFailure::default();
                            failure.item_identifier = id;
                            failure
                        })
                        .collect();
                    Ok(serde_json::to_value(response)?)
                })
            }) as Handler)
        })
    });
    run(function, init)
}

/// A handler of an invocation, which gives the reply, within some time.
pub type HandleTask<C> = fn(&'static C, Value, Duration) -> BoxFuture<'static, Result<Value>>;

/// Runs a function that is invoked directly or by a schedule, with JSON in and JSON out. One that goes on beyond its time
/// is given up.
pub fn serve_task<C, F>(function: &'static str, init: fn() -> F, handle: HandleTask<C>) -> ExitCode
where
    C: Send + Sync + 'static,
    F: Future<Output = Result<C>> + Send + 'static,
{
    let init: Init = Box::new(move || {
        Box::pin(async move {
            let context: &'static C = Box::leak(Box::new(init().await?));
            Ok(Arc::new(move |event: Bytes, deadline: Instant| -> BoxFuture<'static, Result<Value>> {
                let time_left = deadline.saturating_duration_since(Instant::now()).saturating_sub(TO_ANSWER);
                Box::pin(async move {
                    let work = handle(context, serde_json::from_slice(&event)?, time_left);
                    runtime::until(deadline - TO_ANSWER / 2, work).await
                })
            }) as Handler)
        })
    });
    run(function, init)
}

/// A message of a queue.
pub struct Message {
    body: String,
    end: Instant,
}

impl Message {
    fn of(record: &Record<'_>, end: Instant) -> Self {
        let mut body = String::new();
        record.body(&mut body);
        Self { body, end }
    }

    /// The time that is left for it; after that it is given up.
    #[must_use]
    pub fn time_left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// The text as JSON.
    ///
    /// # Errors
    /// When it is not what is expected; after a few deliveries the message goes to the dead letters.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_str(&self.body)?)
    }
}

/// What makes the reply to an event, which is JSON, before the deadline.
type Handler = Arc<dyn Fn(Bytes, Instant) -> BoxFuture<'static, Result<Value>> + Send + Sync>;
type Init = Box<dyn FnOnce() -> BoxFuture<'static, Result<Handler>> + Send>;

fn run(function: &'static str, init: Init) -> ExitCode {
    runtime::block_on(function, async move {
        let handler = init().await?;
        let raw_event = RawEvent::default();
        let past = raw_event.clone();
        let service = lambda_runtime::service_fn(move |event: LambdaEvent<IgnoredAny>| {
            let (handler, payload) = (handler.clone(), raw_event.take());
            let id = event.context.request_id.clone();
            log::within(Some(Ids::new(&id, None)), async move {
                let started = Instant::now();
                let deadline = started + runtime::time_left(Some(event.context.deadline()), SystemTime::now());
                let span = spans::invocation(function);
                let outcome =
                    AssertUnwindSafe(handler(payload, deadline)).catch_unwind().instrument(span.clone()).await;
                let outcome = outcome.unwrap_or_else(|panic| Err(Error::panicked(&*panic)));
                let duration_ms = clock::whole_millis(started.elapsed());
                match &outcome {
                    Ok(_) => tracing::info!(function, duration_ms, "the invocation was done"),
                    Err(error) => {
                        spans::fail(&span, error.code().as_str());
                        report(function, &id, error);
                        tracing::error!(function, duration_ms, error.cause = %error, "the invocation failed");
                    }
                }
                drop(span);
                outcome.map_err(|error| Box::new(error) as lambda_runtime::Error)
            })
        });
        let runtime = lambda_runtime::Runtime::new(service).layer(layer_fn(move |answers| past.keep(answers)));
        runtime::answer_invocations(runtime).await
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_that_hangs_takes_nothing_from_the_one_before_it() {
        let event = br#"{"Records": [
            {"messageId": "handled", "body": "1"}, {"messageId": "hangs", "body": "2"}, {"messageId": "left", "body": "3"}
        ]}"#;
        let records = delivery::records(event).unwrap();
        let handle: HandleMessage<()> = |(), message| {
            Box::pin(async move {
                match message.json::<u8>()? {
                    1 => Ok(()),
                    2 => std::future::pending().await,
                    _ => panic!("there is no time for this one"),
                }
            })
        };
        let end = Instant::now() + Duration::from_millis(50);
        assert_eq!(one_by_one("test", &(), handle, &records, end).await, ["hangs", "left"]);
    }

    #[tokio::test]
    async fn a_message_that_panics_fails_alone() {
        let event = br#"{"Records": [
            {"messageId": "first", "body": "1"}, {"messageId": "panics", "body": "2"}, {"messageId": "last", "body": "3"}
        ]}"#;
        let records = delivery::records(event).unwrap();
        let handle: HandleMessage<()> = |(), message| {
            Box::pin(async move { if message.json::<u8>()? == 2 { panic!("on purpose") } else { Ok(()) } })
        };
        let end = Instant::now() + Duration::from_secs(5);
        assert_eq!(one_by_one("test", &(), handle, &records, end).await, ["panics"]);
    }
}
