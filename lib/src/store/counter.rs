//! Counters in DynamoDB: of a client or an account, within a window of time.

use std::net::IpAddr;

use aws_sdk_dynamodb::types::ReturnValue;
use time::OffsetDateTime;

use crate::error::Result;
use crate::store::dynamo::{Table, get_number, number, text};

/// The table of counters.
#[derive(Clone)]
pub(crate) struct Counters {
    table: Table,
}

impl Counters {
    /// The table named by `RATE_LIMITS_TABLE`.
    ///
    /// # Errors
    /// When the variable is missing.
    pub(crate) fn from_env() -> Result<Self> {
        Ok(Self { table: Table::from_env("RATE_LIMITS_TABLE")? })
    }

    /// Adds to a counter atomically and gives the new value. Whoever begins to count says when the item may go, in
    /// seconds since the epoch.
    ///
    /// # Errors
    /// When the table does not answer.
    pub(crate) async fn add(&self, key: &str, delta: i64, expires: Option<i64>) -> Result<i64> {
        let mut request = self
            .table
            .client()
            .update_item()
            .table_name(&self.table.name)
            .key("pk", text(key))
            .expression_attribute_values(":delta", number(delta))
            .expression_attribute_names("#count", "count")
            .return_values(ReturnValue::UpdatedNew);
        request = match expires {
            Some(at) => request
                .update_expression("ADD #count :delta SET expires = :expires")
                .expression_attribute_values(":expires", number(at)),
            None => request.update_expression("ADD #count :delta"),
        };
        get_number(&request.send().await?.attributes.unwrap_or_default(), "count")
    }
}

/// Seconds until a window ends, at least one.
pub(crate) fn seconds_until(ends: i64, now: OffsetDateTime) -> u64 {
    u64::try_from(ends - now.unix_timestamp()).unwrap_or(1).max(1)
}

/// The part of an address that stands for one client: all of IPv4, the first 64 bits of IPv6, within which a
/// client chooses freely.
pub(crate) fn network(ip: IpAddr) -> IpAddr {
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
}
