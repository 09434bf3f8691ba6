//! Runs functions that no client waits for: queue consumers and schedules.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse};
use futures_util::FutureExt;
use lambda_runtime::LambdaEvent;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::Instrument;

use crate::error::{Error, Result};
use crate::http::runner::BoxFuture;
use crate::runtime;
use crate::telemetry::faults::{self, Fault};
use crate::telemetry::spans;

/// A handler of one message.
pub type HandleMessage<C> = fn(&'static C, Message) -> BoxFuture<'static, Result<()>>;
/// A handler of a whole batch, which gives the ids of the messages that SQS shall deliver again.
pub type HandleBatch<C> = fn(&'static C, Vec<Message>) -> BoxFuture<'static, Result<Vec<String>>>;

/// Runs a queue consumer that handles messages one by one; SQS delivers again those that fail.
pub fn serve_queue<C, F>(function: &'static str, init: fn() -> F, handle: HandleMessage<C>) -> ExitCode
where
    C: Send + Sync + 'static,
    F: Future<Output = Result<C>> + Send + 'static,
{
    let init: BatchInit = Box::new(move || {
        Box::pin(async move {
            let context: &'static C = Box::leak(Box::new(init().await?));
            Ok(Box::new(move |messages: Vec<Message>| -> BoxFuture<'static, Result<Vec<String>>> {
                Box::pin(async move {
                    let mut failed = Vec::new();
                    for message in messages {
                        let id = message.id().to_owned();
                        let span = spans::message(function, message.body());
                        if let Err(error) = handle(context, message).instrument(span.clone()).await {
                            spans::fail(&span, error.code().as_str());
                            report(function, &id, &error);
                            tracing::error!(message.id = id, error.cause = %error, "a message could not be handled");
                            failed.push(id);
                        }
                    }
                    Ok(failed)
                })
            }) as BatchHandler)
        })
    });
    run_queue(function, init)
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
            Ok(Box::new(move |messages: Vec<Message>| -> BoxFuture<'static, Result<Vec<String>>> {
                Box::pin(async move {
                    // Each message is a part of its own trace for as long as the batch takes.
                    let spans: Vec<_> =
                        messages.iter().map(|message| spans::message(function, message.body())).collect();
                    let outcome = handle(context, messages).await;
                    if let Err(error) = &outcome {
                        for span in &spans {
                            spans::fail(span, error.code().as_str());
                        }
                    }
                    outcome
                })
            }) as BatchHandler)
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

type BatchHandler = Box<dyn Fn(Vec<Message>) -> BoxFuture<'static, Result<Vec<String>>> + Send + Sync>;
type BatchInit = Box<dyn FnOnce() -> BoxFuture<'static, Result<BatchHandler>> + Send>;

fn run_queue(function: &'static str, init: BatchInit) -> ExitCode {
    // The runtime notes where in an event it reads, field by field, which takes longer than the reading: it gets
    // the text of a batch past that.
    let init: Init<Box<RawValue>, Value> = Box::new(move || {
        Box::pin(async move {
            let handle = Arc::new(init().await?);
            Ok(Arc::new(move |event: Box<RawValue>| -> BoxFuture<'static, Result<Value>> {
                let handle = handle.clone();
                Box::pin(async move {
                    let messages = messages(&event)?;
                    drop(event);
                    let received = messages.len();
                    let failed = handle(messages).await?;
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
            }) as Handler<Box<RawValue>, Value>)
        })
    });
    run(function, init)
}

/// Runs a function that is invoked directly or by a schedule, with JSON in and JSON out.
pub fn serve_task<C, F>(
    function: &'static str,
    init: fn() -> F,
    handle: fn(&'static C, Value) -> BoxFuture<'static, Result<Value>>,
) -> ExitCode
where
    C: Send + Sync + 'static,
    F: Future<Output = Result<C>> + Send + 'static,
{
    let init: Init<Value, Value> = Box::new(move || {
        Box::pin(async move {
            let context: &'static C = Box::leak(Box::new(init().await?));
            Ok(Arc::new(move |event| handle(context, event)) as Handler<Value, Value>)
        })
    });
    run(function, init)
}

/// A message of a queue: of what SQS tells with it, that which is used here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    #[serde(default)]
    message_id: Option<String>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    attributes: Option<Attributes>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attributes {
    #[serde(default)]
    sent_timestamp: Option<String>,
    #[serde(default)]
    approximate_receive_count: Option<String>,
}

/// The messages of an event of SQS.
///
/// # Errors
/// When it is none.
pub fn messages(event: &RawValue) -> Result<Vec<Message>> {
    #[derive(Deserialize)]
    struct Delivery {
        #[serde(rename = "Records")]
        records: Vec<Message>,
    }
    Ok(serde_json::from_str::<Delivery>(event.get())?.records)
}

impl Message {
    /// SQS's id of the message.
    #[must_use]
    pub fn id(&self) -> &str {
        self.message_id.as_deref().unwrap_or_default()
    }

    /// The text.
    #[must_use]
    pub fn body(&self) -> &str {
        self.body.as_deref().unwrap_or_default()
    }

    /// When SQS took the message, in milliseconds since the epoch.
    #[must_use]
    pub fn sent_millis(&self) -> Option<i64> {
        self.attributes.as_ref()?.sent_timestamp.as_deref()?.parse().ok()
    }

    /// How often SQS has delivered it, this time included.
    #[must_use]
    pub fn deliveries(&self) -> Option<u32> {
        self.attributes.as_ref()?.approximate_receive_count.as_deref()?.parse().ok()
    }

    /// The text as JSON.
    ///
    /// # Errors
    /// When it is not what is expected; after a few deliveries the message goes to the dead letters.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_str(self.body())?)
    }
}

type Handler<E, R> = Arc<dyn Fn(E) -> BoxFuture<'static, Result<R>> + Send + Sync>;
type Init<E, R> = Box<dyn FnOnce() -> BoxFuture<'static, Result<Handler<E, R>>> + Send>;

fn run<E>(function: &'static str, init: Init<E, Value>) -> ExitCode
where
    E: serde::de::DeserializeOwned + Send + 'static,
{
    runtime::block_on(function, async move {
        let handler = init().await?;
        let service = lambda_runtime::service_fn(move |event: LambdaEvent<E>| {
            let handler = handler.clone();
            async move {
                let (started, id) = (Instant::now(), event.context.request_id);
                let span = spans::invocation(function);
                let outcome = AssertUnwindSafe(handler(event.payload)).catch_unwind().instrument(span.clone()).await;
                let outcome = outcome.unwrap_or_else(|panic| Err(Error::panicked(&*panic)));
                let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
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
            }
        });
        runtime::answer_invocations(lambda_runtime::Runtime::new(service)).await
    })
}
