//! Figures about users.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::analytics::report::{Query, Reports, bucket};
use crate::error::Result;

/// Sign-ups of a bucket.
#[derive(Debug, Serialize)]
pub struct Signups {
    date: String,
    signups: u64,
    verified: u64,
}

impl Reports {
    /// Sign-ups and verifications per bucket.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn signups(&self, query: &Query) -> Result<Vec<Signups>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            bucket: i64,
            signups: u64,
            verified: u64,
        }
        let sql = concat!(
            "SELECT ",
            bucket!("time"),
            " AS bucket, countIf(type = 'user.signup') AS signups, countIf(type = 'user.email_verified') AS verified
             FROM events FINAL
             WHERE toDate(time) BETWEEN {from:Date} AND {to:Date} AND type IN ('user.signup', 'user.email_verified')
             GROUP BY bucket",
        );
        let rows: Vec<Row> = self.query(sql, query).fetch_all().await?;
        let rows: HashMap<i64, Row> = rows.into_iter().map(|row| (row.bucket, row)).collect();
        Ok(query
            .buckets()
            .iter()
            .map(|bucket| {
                let row = rows.get(&bucket.key());
                Signups {
                    date: bucket.name(),
                    signups: row.map_or(0, |row| row.signups),
                    verified: row.map_or(0, |row| row.verified),
                }
            })
            .collect())
    }
}
