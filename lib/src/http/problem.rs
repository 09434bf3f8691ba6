//! Errors as `application/problem+json` (RFC 9457).

use http::HeaderValue;
use serde_json::{Value, json};

use crate::error::{Code, Error};
use crate::http::headers::set;
use crate::http::response::Response;

/// The media type of every error.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// The reply for an error. What went wrong inside stays inside.
#[must_use]
pub fn response(error: &Error, request_id: &str) -> Response {
    let code = error.code();
    let mut document = json!({
        "type": format!("urn:problem:{}", code.as_str()),
        "title": code.title(),
        "status": code.status().as_u16(),
        "detail": error.detail(),
        "code": code.as_str(),
        "requestId": request_id,
    });
    if code == Code::ValidationFailed {
        document["errors"] = json!(error.fields());
    }
    for (name, value) in error.extensions() {
        document[name.as_str()] = value.clone();
    }
    let mut response = Response::text(code.status(), MEDIA_TYPE, document.to_string()).no_store();
    if let Some(seconds) = error.extensions().get("retryAfterSeconds").and_then(Value::as_u64) {
        set(&mut response.headers, "retry-after", &seconds.to_string());
    }
    if error.is_unauthorized() {
        response.headers.insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
