//! The general rate limit: so many requests a minute and client, counted atomically in DynamoDB.

use std::net::IpAddr;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::config;
use crate::error::{Code, Error, Result};
use crate::http::headers::set;
use crate::store::counter::{Counters, network, seconds_until};

/// Seconds of a window.
const WINDOW: i64 = 60;

/// Who is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientKey {
    /// A signed-in user, on all devices together.
    User(Uuid),
    /// Anybody else, by network.
    Address(IpAddr),
}

/// What is left to a client in the current window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    limit: i64,
    remaining: i64,
    resets_in: u64,
}

/// Counts requests.
#[derive(Clone)]
pub struct RateLimiter {
    counters: Counters,
    limit: i64,
}

impl RateLimiter {
    /// Reads `RATE_LIMITS_TABLE` and `RATE_LIMIT_PER_MINUTE` (100; 0 switches the limit off).
    ///
    /// # Errors
    /// When a variable is missing or malformed.
    pub fn from_env() -> Result<Self> {
        Ok(Self { counters: Counters::from_env()?, limit: config::parsed("RATE_LIMIT_PER_MINUTE", 100)? })
    }

    /// Counts one request; `None` when the limit is off.
    ///
    /// # Errors
    /// When the table does not answer: then nobody is let in.
    pub async fn count(&self, client: ClientKey, now: OffsetDateTime) -> Result<Option<Allowance>> {
        if self.limit == 0 {
            return Ok(None);
        }
        let window = now.unix_timestamp() / WINDOW;
        let ends = (window + 1) * WINDOW;
        let client = match client {
            ClientKey::User(id) => format!("user#{id}"),
            ClientKey::Address(ip) => format!("ip#{}", network(ip)),
        };
        let count = self.counters.add(&format!("api#{client}#{window}"), 1, Some(ends + WINDOW)).await?;
        Ok(Some(Allowance { limit: self.limit, remaining: self.limit - count, resets_in: seconds_until(ends, now) }))
    }
}

impl Allowance {
    /// Refuses a request beyond the limit.
    ///
    /// # Errors
    /// 429 `rate_limited`.
    pub fn check(&self) -> Result<()> {
        if self.remaining >= 0 {
            return Ok(());
        }
        Err(Error::too_many(Code::RateLimited, self.resets_in))
    }

    /// Adds the fields of the IETF draft (draft-ietf-httpapi-ratelimit-headers).
    pub fn decorate(&self, headers: &mut http::HeaderMap) {
        set(headers, "ratelimit-policy", &format!("\"default\";q={};w={WINDOW}", self.limit));
        let remaining = self.remaining.max(0);
        set(headers, "ratelimit", &format!("\"default\";r={remaining};t={}", self.resets_in));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_after_the_last_is_refused() {
        let allowance = |remaining| Allowance { limit: 100, remaining, resets_in: 30 };
        assert!(allowance(0).check().is_ok());
        let error = allowance(-1).check().unwrap_err();
        assert_eq!(error.extensions()["retryAfterSeconds"], 30);
    }
}
