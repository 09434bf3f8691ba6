//! What a function says about itself: JSON log lines, the trace context, and one record a request.

pub mod log;
pub mod record;
pub(crate) mod spans;
pub mod trace;
