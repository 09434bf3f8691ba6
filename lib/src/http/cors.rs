//! Cross-origin requests: an allow-list for browsers, and the check that stops forged requests.

use http::{HeaderMap, Method};

use crate::config;
use crate::error::{Code, Error, Result};
use crate::http::headers::{set, text};

/// Headers that a page of another origin may read.
const EXPOSED: &str = "x-request-id, Retry-After, RateLimit, RateLimit-Policy, ETag";
/// Headers that a page of another origin may send.
const ALLOWED: &str =
    "authorization, content-type, idempotency-key, if-none-match, last-event-id, traceparent, tracestate, x-request-id";
const METHODS: &str = "GET, POST, PUT, PATCH, DELETE, OPTIONS";
/// How long, in seconds, a browser may remember a preflight's answer.
const MAX_AGE: &str = "7200";

/// The origins whose pages may use the API with credentials.
#[derive(Debug, Clone)]
pub struct Origins(Vec<String>);

impl Origins {
    /// Reads `CORS_ALLOWED_ORIGINS`.
    #[must_use]
    pub fn from_env() -> Self {
        let normal = |origin: String| origin.trim_end_matches('/').to_ascii_lowercase();
        Self(config::list("CORS_ALLOWED_ORIGINS").into_iter().map(normal).collect())
    }

    /// The same, as the `init` of a function.
    ///
    /// # Errors
    /// None.
    pub async fn init() -> Result<Self> {
        Ok(Self::from_env())
    }

    /// Whether the request's `Origin` is allowed: on the list, or the API's own.
    #[must_use]
    fn allow(&self, origin: &str, headers: &HeaderMap) -> bool {
        let origin = origin.to_ascii_lowercase();
        if self.0.contains(&origin) {
            return true;
        }
        let host = text(headers, "host").map(str::to_ascii_lowercase);
        host.is_some_and(|host| origin.split_once("://").is_some_and(|(_, authority)| authority == host))
    }

    /// Adds the CORS headers of a reply.
    pub fn decorate(&self, request: &HeaderMap, reply: &mut HeaderMap) {
        // One field: some proxies keep only the last of several.
        let vary = match text(reply, "vary") {
            Some(others) => format!("{others}, Origin"),
            None => "Origin".to_owned(),
        };
        set(reply, "vary", &vary);
        if let Some(origin) = text(request, "origin").filter(|origin| self.allow(origin, request)) {
            set(reply, "access-control-allow-origin", origin);
            set(reply, "access-control-allow-credentials", "true");
            set(reply, "access-control-expose-headers", EXPOSED);
            // Helmet's default would keep allowed pages from embedding what they may fetch.
            set(reply, "cross-origin-resource-policy", "cross-origin");
        }
    }

    /// Adds what a preflight asks for; without an allowed origin it adds nothing, which the browser takes as no.
    pub fn preflight(&self, request: &HeaderMap, reply: &mut HeaderMap) {
        if text(request, "origin").is_some_and(|origin| self.allow(origin, request)) {
            set(reply, "access-control-allow-methods", METHODS);
            set(reply, "access-control-allow-headers", ALLOWED);
            set(reply, "access-control-max-age", MAX_AGE);
        }
    }

    /// Refuses an unsafe request that a foreign page sent: `Origin` decides where it is present,
    /// `Sec-Fetch-Site` where it is not.
    ///
    /// # Errors
    /// 403 `origin_not_allowed`.
    pub fn check(&self, method: &Method, headers: &HeaderMap) -> Result<()> {
        if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
            return Ok(());
        }
        let allowed = match headers.get("origin") {
            Some(origin) => origin.to_str().is_ok_and(|origin| self.allow(origin, headers)),
            None => text(headers, "sec-fetch-site") != Some("cross-site"),
        };
        if allowed {
            Ok(())
        } else {
            Err(Error::new(Code::OriginNotAllowed, "Requests with credentials are taken from allowed origins only."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (http::HeaderName::from_static(n), v.parse().unwrap())).collect()
    }

    #[test]
    fn decides_by_origin_first_and_fetch_metadata_second() {
        let origins = Origins(vec!["http://localhost:3000".to_owned()]);
        let check = |pairs: &[(&'static str, &str)]| origins.check(&Method::POST, &headers(pairs)).is_ok();
        assert!(check(&[]));
        assert!(check(&[("origin", "http://localhost:3000"), ("sec-fetch-site", "cross-site")]));
        assert!(check(&[("origin", "https://api.example.com"), ("host", "api.example.com")]));
        assert!(check(&[("sec-fetch-site", "same-origin")]));
        assert!(!check(&[("origin", "null")]));
        assert!(!check(&[("origin", "https://evil.example"), ("host", "api.example.com")]));
        assert!(!check(&[("origin", "http://localhost:30000")]));
        assert!(!check(&[("sec-fetch-site", "cross-site")]));
        assert!(origins.check(&Method::GET, &headers(&[("origin", "https://evil.example")])).is_ok());
    }
}
