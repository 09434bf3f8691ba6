//! The async runtime of a function: one thread, since a sandbox serves one request at a time, and a pool for
//! what blocks.

use std::process::ExitCode;

use lambda_runtime::tower::layer::layer_fn;
use lambda_runtime::{LambdaInvocation, Runtime, Service, service_fn};

use crate::background;
use crate::error::{Error, Result};
use crate::telemetry;

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
                answered.await?;
                background::settle().await;
                Ok::<_, lambda_runtime::Error>(())
            }
        })
    });
    runtime.layer(settled).run().await.map_err(Error::internal)
}
