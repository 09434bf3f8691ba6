//! The async runtime of a function: one thread, since a sandbox serves one request at a time, and a pool for
//! what blocks.

use std::mem;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use lambda_runtime::tower::layer::layer_fn;
use lambda_runtime::{LambdaInvocation, Runtime, Service, service_fn};
use tokio::time::{Instant, timeout_at};

use crate::background;
use crate::error::{Error, Result};
use crate::telemetry;

/// Lambda's longest time-out.
const LONGEST_INVOCATION: Duration = Duration::from_secs(15 * 60);

/// Runs a function until its sandbox ends; what goes wrong in init is logged and ends the process.
pub(crate) fn block_on(function: &'static str, main: impl Future<Output = Result<()>>) -> ExitCode {
    let result = telemetry::log::init(function).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::internal)?;
        telemetry::faults::watch_panics();
        runtime.block_on(async {
            telemetry::spans::start();
            main.await
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(function, error.cause = %error, "the function could not run");
            ExitCode::FAILURE
        }
    }
}

/// The time until an invocation's deadline. `cargo lambda watch` names a moment of 1970, which is none; then only the
/// longest time-out that Lambda has is left to go by.
pub(crate) fn time_left(deadline: Option<SystemTime>, now: SystemTime) -> Duration {
    deadline.and_then(|deadline| deadline.duration_since(now).ok()).unwrap_or(LONGEST_INVOCATION)
}

/// Whether something hangs that the next invocation would wait for, such as the connection of a pool that has no other.
static SPENT: AtomicBool = AtomicBool::new(false);

/// Has the sandbox end after the answer to this invocation, as a time-out would have ended it.
pub(crate) fn end_after_answer() {
    SPENT.store(true, Ordering::Relaxed);
}

/// Does what may hang, such as a statement whose database has fallen silent. What has not ended by then is dropped, as a
/// time-out would have done a little later: so there is an answer, and a line in the log.
///
/// # Errors
/// Those of the work; `unavailable` when it has not ended.
pub(crate) async fn until<T>(end: Instant, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout_at(end, work).await.unwrap_or_else(|_| {
        end_after_answer();
        Err(Error::unavailable("something hangs: the work did not end in time"))
    })
}

/// Answers invocations until the sandbox ends. The next event is asked for when the work behind a reply is done.
pub(crate) async fn answer_invocations<S>(runtime: Runtime<S>) -> Result<()>
where
    S: Service<LambdaInvocation, Response = (), Error = lambda_runtime::Error>,
    S::Future: Send,
{
    let settled = layer_fn(|mut answers: S| {
        service_fn(move |invocation| {
            let answered = answers.call(invocation);
            async move {
                let answered = answered.await;
                // Also when the platform did not take the reply: what was done is stored and told all the same.
                background::settle().await;
                answered?;
                if SPENT.load(Ordering::Relaxed) {
                    background::drained().await;
                    return Err(lambda_runtime::Error::from(
                        "something hangs in this sandbox: the next one begins anew",
                    ));
                }
                Ok(())
            }
        })
    });
    runtime.layer(settled).run().await.map_err(Error::internal)
}

/// Passes the raw event around lambda_runtime's path-tracking deserializer, which costs more than parsing it. Holds one
/// event: a sandbox handles one invocation at a time.
#[derive(Clone, Default)]
pub(crate) struct RawEvent(Arc<Mutex<Bytes>>);

impl RawEvent {
    /// Takes the event, once.
    pub(crate) fn take(&self) -> Bytes {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same answers, to events that are kept here.
    pub(crate) fn keep<S>(
        &self,
        mut answers: S,
    ) -> impl Service<LambdaInvocation, Response = (), Error = lambda_runtime::Error, Future: Send> + use<S>
    where
        S: Service<LambdaInvocation, Response = (), Error = lambda_runtime::Error>,
        S::Future: Send,
    {
        let raw_event = self.clone();
        service_fn(move |mut invocation: LambdaInvocation| {
            let event = mem::replace(&mut invocation.body, Bytes::from_static(b"null"));
            *raw_event.0.lock().unwrap_or_else(PoisonError::into_inner) = event;
            answers.call(invocation)
        })
    }
}

#[cfg(test)]
mod tests {
    use lambda_runtime::Context;

    use super::*;

    #[test]
    fn a_deadline_of_long_ago_is_none() {
        let now = SystemTime::now();
        assert_eq!(time_left(Some(now + Duration::from_secs(20)), now), Duration::from_secs(20));
        assert_eq!(time_left(Some(SystemTime::UNIX_EPOCH), now), LONGEST_INVOCATION);
        assert_eq!(time_left(None, now), LONGEST_INVOCATION);
    }

    #[tokio::test]
    async fn an_event_goes_past_the_runtime() {
        let raw_event = RawEvent::default();
        let taken = raw_event.clone();
        let mut answers = raw_event.keep(service_fn(move |invocation: LambdaInvocation| {
            let event = taken.take();
            async move {
                assert_eq!((&event[..], &invocation.body[..]), (&b"[1]"[..], &b"null"[..]));
                Ok(())
            }
        }));
        let (parts, ()) = http::Response::new(()).into_parts();
        let invocation = LambdaInvocation { parts, body: Bytes::from_static(b"[1]"), context: Context::default() };
        answers.call(invocation).await.unwrap();
        assert!(raw_event.take().is_empty());
    }
}
