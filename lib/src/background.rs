//! Work that goes on after the reply: answers under way, outbox messages, telemetry. The only place that spawns tasks.
//!
//! Lambda passes a reply on when the runtime posts it, and freezes the sandbox when the runtime asks for the next
//! event. Where the platform freezes, the runtime asks once the work of the invocation is done ([`settle`]);
//! elsewhere (emulators, `cargo lambda watch`) nothing is frozen and nothing needs to wait.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use tokio::sync::Notify;
use tracing::Instrument;

use crate::config;
use crate::error::{Error, Result};
use crate::telemetry::log::{self, Ids};
use crate::telemetry::{faults, spans};

/// Tasks under way, with the signal that one has ended.
struct Tracker {
    running: AtomicU64,
    ended: Notify,
}

fn tracker() -> &'static Tracker {
    static TRACKER: OnceLock<Tracker> = OnceLock::new();
    TRACKER.get_or_init(|| Tracker { running: AtomicU64::new(0), ended: Notify::new() })
}

/// Counts down when the task ends, however it ends.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        tracker().running.fetch_sub(1, Ordering::AcqRel);
        tracker().ended.notify_waiters();
    }
}

/// Starts work that the caller does not wait for, as a part of the caller's span, with the caller's ids in the log.
#[expect(clippy::disallowed_methods, reason = "the one home of spawned tasks")]
pub fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    tracker().running.fetch_add(1, Ordering::AcqRel);
    let running = Running;
    let work = async move {
        let _running = running;
        if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
            faults::report_unanswered(&Error::panicked(&*panic));
        }
    };
    tokio::spawn(log::within(Ids::current(), work.in_current_span()));
}

/// As [`spawn`], for what the client does not wait for: it begins once what the caller does next, such as writing its
/// reply or the last event of a stream, has gone out.
pub(crate) fn spawn_behind_reply(work: impl Future<Output = ()> + Send + 'static) {
    spawn(async move {
        requests_sent().await;
        work.await;
    });
}

/// Whether this platform stops the process between invocations.
#[must_use]
pub fn sandbox_freezes() -> bool {
    config::optional("AWS_LAMBDA_INITIALIZATION_TYPE").is_some()
}

/// Waits until all background work is done.
pub async fn drained() {
    loop {
        let ended = tracker().ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if tracker().running.load(Ordering::Acquire) == 0 {
            return;
        }
        ended.await;
    }
}

/// Ends an invocation whose reply is out: where the sandbox freezes now, waits for what goes on behind the reply.
pub(crate) async fn settle() {
    if sandbox_freezes() {
        drained().await;
        spans::flush().await;
    }
}

/// Starts a task that lives as long as the process and that nobody waits for.
#[expect(clippy::disallowed_methods, reason = "the one home of spawned tasks")]
pub(crate) fn spawn_untracked(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

/// Lets the requests that others have begun reach the network, before a computation that can be done while
/// they wait for replies.
pub(crate) async fn requests_sent() {
    // By experience enough turns of the event loop for a request to reach its socket; nothing depends on it but speed.
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
