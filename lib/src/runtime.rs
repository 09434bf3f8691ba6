//! The async runtime of a function: one thread, since a sandbox serves one request at a time, and a pool for
//! what blocks.

use std::process::ExitCode;

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
