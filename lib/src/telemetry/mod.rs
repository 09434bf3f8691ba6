//! What a function says about itself: JSON log lines, spans, faults, and one record a request.

pub(crate) mod faults;
pub mod log;
mod otlp;
pub mod record;
pub(crate) mod spans;
pub mod trace;
