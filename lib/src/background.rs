//! Work that goes on after the reply: outbox rows to SQS and telemetry. The only place that spawns tasks.
//!
//! Lambda freezes a sandbox once its reply is out, unless an extension still works. Where the platform
//! freezes, an internal extension holds the sandbox until the work of the invocation is done; elsewhere
//! (emulators, `cargo lambda watch`) nothing is frozen and nothing needs to hold.

use std::future::Future;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use lambda_extension::{Extension, LambdaEvent, NextEvent, service_fn};
use tokio::sync::Notify;
use tracing::Instrument;

use crate::config;
use crate::error::{Error, Result};
use crate::telemetry::spans;

/// Tasks under way and invocations seen, with the signal that something changed.
struct Tracker {
    running: AtomicU64,
    invocations: AtomicU64,
    changed: Notify,
}

fn tracker() -> &'static Tracker {
    static TRACKER: OnceLock<Tracker> = OnceLock::new();
    TRACKER.get_or_init(|| Tracker {
        running: AtomicU64::new(0),
        invocations: AtomicU64::new(0),
        changed: Notify::new(),
    })
}

/// Counts down when the task ends, however it ends.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        tracker().running.fetch_sub(1, Ordering::AcqRel);
        tracker().changed.notify_waiters();
    }
}

/// Starts work that the caller does not wait for, as a part of the caller's span.
#[expect(clippy::disallowed_methods, reason = "the one home of spawned tasks")]
pub fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    tracker().running.fetch_add(1, Ordering::AcqRel);
    let running = Running;
    let work = async move {
        let _running = running;
        work.await;
    };
    tokio::spawn(work.in_current_span());
}

/// Whether this platform stops the process between invocations.
#[must_use]
pub fn sandbox_freezes() -> bool {
    config::optional("AWS_LAMBDA_INITIALIZATION_TYPE").is_some()
}

/// Says that an invocation's reply is ready and its background work has been spawned.
pub fn invocation_done() {
    tracker().invocations.fetch_add(1, Ordering::AcqRel);
    tracker().changed.notify_waiters();
}

/// Waits until all background work is done.
pub async fn drained() {
    wait_until(|tracker| tracker.running.load(Ordering::Acquire) == 0).await;
}

async fn wait_until(done: impl Fn(&Tracker) -> bool) {
    loop {
        let changed = tracker().changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if done(tracker()) {
            return;
        }
        changed.await;
    }
}

/// Registers the internal extension where the platform freezes sandboxes.
///
/// # Errors
/// When the registration is refused.
pub async fn hold_sandbox() -> Result<()> {
    if !sandbox_freezes() {
        return Ok(());
    }
    let extension = Extension::new()
        .with_extension_name("background")
        .with_events(&["INVOKE"])
        .with_events_processor(service_fn(on_event))
        .register()
        .await
        .map_err(|error| Error::internal(error.to_string()))?;
    spawn_untracked(async move {
        if let Err(error) = extension.run().await {
            tracing::error!(error.cause = %error, "the background extension stopped");
        }
    });
    Ok(())
}

/// Starts a task that lives as long as the process and that nobody waits for.
#[expect(clippy::disallowed_methods, reason = "the one home of spawned tasks")]
pub(crate) fn spawn_untracked(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

/// Lets the requests that others have begun reach the network, before a computation that can be done while
/// they wait for replies.
pub(crate) async fn requests_sent() {
    // A turn of the event loop each: the connection stands, its task takes the request, the request is written.
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

/// Runs a computation that would block the async thread, such as a password hash.
///
/// # Errors
/// When the computation panics.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => Error::panicked(&*panic),
        Err(error) => Error::internal(error),
    })
}

/// Answering an INVOKE event is what lets the sandbox freeze, so the answer waits for the work.
async fn on_event(event: LambdaEvent) -> std::result::Result<(), lambda_extension::Error> {
    if let NextEvent::Invoke(_) = event.next {
        static SEEN: AtomicU64 = AtomicU64::new(0);
        let invocation = SEEN.fetch_add(1, Ordering::AcqRel) + 1;
        wait_until(move |tracker| {
            tracker.invocations.load(Ordering::Acquire) >= invocation && tracker.running.load(Ordering::Acquire) == 0
        })
        .await;
        spans::flush().await;
    }
    Ok(())
}
