//! The general rate limit: so many requests a minute and client, counted atomically in DynamoDB.

use std::net::IpAddr;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::config;
use crate::error::{Code, Error, Result};
use crate::http::headers::set;
use crate::store::dynamo::{Table, get_number, number, text};

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
    resets_in: i64,
}

/// Counts requests.
#[derive(Clone)]
pub struct RateLimiter {
    table: Table,
    limit: i64,
}

impl RateLimiter {
    /// Reads `RATE_LIMITS_TABLE` and `RATE_LIMIT_PER_MINUTE` (100; 0 switches the limit off).
    ///
    /// # Errors
    /// When a variable is missing or malformed.
    pub fn from_env() -> Result<Self> {
        Ok(Self { table: Table::from_env("RATE_LIMITS_TABLE")?, limit: config::parsed("RATE_LIMIT_PER_MINUTE", 100)? })
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
        let reply = self
            .table
            .client()
            .update_item()
            .table_name(&self.table.name)
            .key("pk", text(format!("api#{client}#{window}")))
            .update_expression("ADD #count :one SET expires = :expires")
            .expression_attribute_names("#count", "count")
            .expression_attribute_values(":one", number(1))
            .expression_attribute_values(":expires", number(ends + WINDOW))
            .return_values(aws_sdk_dynamodb::types::ReturnValue::UpdatedNew)
            .send()
            .await?;
        let count = get_number(&reply.attributes.unwrap_or_default(), "count")?;
        Ok(Some(Allowance { limit: self.limit, remaining: self.limit - count, resets_in: ends - now.unix_timestamp() }))
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
        Err(Error::too_many(Code::RateLimited, u64::try_from(self.resets_in).unwrap_or(1).max(1)))
    }

    /// Adds the fields of the IETF draft (draft-ietf-httpapi-ratelimit-headers).
    pub fn decorate(&self, headers: &mut http::HeaderMap) {
        set(headers, "ratelimit-policy", &format!("\"default\";q={};w={WINDOW}", self.limit));
        let remaining = self.remaining.max(0);
        set(headers, "ratelimit", &format!("\"default\";r={remaining};t={}", self.resets_in));
    }
}

/// The part of an address that stands for one client: all of IPv4, the first 64 bits of IPv6, within which a
/// client chooses freely.
#[must_use]
pub fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let mut segments = v6.segments();
            segments[4..].fill(0);
            IpAddr::V6(segments.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_is_one_client() {
        let network = |ip: &str| network(ip.parse().unwrap()).to_string();
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }

    #[test]
    fn the_request_after_the_last_is_refused() {
        let allowance = |remaining| Allowance { limit: 100, remaining, resets_in: 30 };
        assert!(allowance(0).check().is_ok());
        let error = allowance(-1).check().unwrap_err();
        assert_eq!(error.extensions()["retryAfterSeconds"], 30);
    }
}
