//! The HTTP side of a function: everything from API Gateway's event to the handler and back.
//!
//! A function states its policy and its handler; request id, log line, trace, security headers, CORS,
//! origin check, body limit, problem documents, rate limit, session check, telemetry and panics are here.

pub mod cors;
pub mod credentials;
pub mod headers;
pub mod idempotency;
pub mod page;
pub mod problem;
pub mod rate_limit;
pub mod request;
pub mod response;
pub mod runner;
mod streaming;
pub mod validate;

pub use request::Request;
pub use response::Response;
pub use runner::{Policy, no_context, serve, serve_streaming};
