//! Figures about users: who signs up, who comes back, who uses the product most.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use time::{Date, Duration};

use crate::analytics::report::{Interval, Query, Reports, bucket, day, grain, in_range, ratio};
use crate::error::Result;
use crate::http::validate::{Field, Invalid, Raw};

/// Periods of a cohort at most.
const PERIODS: usize = 12;

/// New and all users of a bucket.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Growth {
    date: String,
    new_users: u64,
    total_users: u64,
}

/// Active users at the end of the range and in its buckets.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Active {
    dau: u64,
    wau: u64,
    mau: u64,
    stickiness: Option<f64>,
    by_plan: BTreeMap<String, u64>,
    series: Vec<ActiveBucket>,
}

/// Active users of a bucket.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveBucket {
    date: String,
    active_users: u64,
}

/// Sign-ups of a bucket.
#[derive(Debug, Serialize)]
pub struct Signups {
    date: String,
    signups: u64,
    verified: u64,
}

/// A user with much use.
#[derive(Debug, clickhouse::Row, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub struct TopUser {
    user_id: String,
    plan: String,
    messages: u64,
    tokens: i64,
    cost_micro_usd: i64,
    last_active: String,
}

/// All users to date.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UserCount {
    total: u64,
    verified: u64,
    unverified: u64,
    by_plan: BTreeMap<String, u64>,
}

/// Cohorts and who of them came back.
#[derive(Debug, Serialize)]
pub struct Retention {
    cohorts: Vec<Cohort>,
}

/// Users who signed up in one week or month.
#[derive(Debug, Serialize)]
pub struct Cohort {
    cohort: String,
    size: u64,
    periods: Vec<Period>,
}

/// A week or month after the cohort's.
#[derive(Debug, Serialize)]
pub struct Period {
    index: usize,
    retained: u64,
    rate: Option<f64>,
}

/// What makes a cohort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CohortBy {
    /// The week of the sign-up.
    #[default]
    Week,
    /// The month of the sign-up.
    Month,
}

impl CohortBy {
    const fn interval(self) -> Interval {
        match self {
            Self::Week => Interval::Week,
            Self::Month => Interval::Month,
        }
    }

    /// The first day of the next cohort.
    fn after(self, first: Date) -> Date {
        match self {
            Self::Week => first.saturating_add(Duration::days(7)),
            Self::Month => self.interval().first_day(first.saturating_add(Duration::days(31))),
        }
    }
}

impl Field for CohortBy {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        match raw.text()? {
            "week" => Ok(Self::Week),
            "month" => Ok(Self::Month),
            _ => Err(Invalid::new("unknown_value", "Must be week or month.")),
        }
    }

    fn missing() -> Result<Self, Invalid> {
        Ok(Self::default())
    }
}

/// The plan by its number in a user's last event.
const fn plan_of(number: u8) -> &'static str {
    match number {
        1 => "free",
        2 => "pro",
        _ => "enterprise",
    }
}

/// The SQL of the day of a user's last event.
macro_rules! last_day {
    ($last:literal) => {
        concat!("toDate(fromUnixTimestamp64Milli(toInt64(bitShiftRight(", $last, ", 136)), 'UTC'))")
    };
}

impl Reports {
    /// `GET /api/analytics/users/growth`: new and all users per bucket.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn users_growth(&self, query: &Query) -> Result<Vec<Growth>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            bucket: i64,
            count: u64,
        }
        let sql = concat!(
            "SELECT if(toDate(hour) < {from:Date}, -1, ",
            bucket!("hour"),
            ") AS bucket, sum(signups) AS count
             FROM daily_active_users WHERE ",
            grain!(),
            " AND toDate(hour) <= {to:Date} GROUP BY bucket",
        );
        let rows: Vec<Row> = self.rows(sql, query).await?;
        let counts: HashMap<i64, u64> = rows.into_iter().map(|row| (row.bucket, row.count)).collect();
        let count = |key: i64| counts.get(&key).copied().unwrap_or_default();
        let mut total_users = count(-1);
        Ok(query
            .buckets()
            .iter()
            .map(|bucket| {
                let new_users = count(bucket.key());
                total_users += new_users;
                Growth { date: bucket.name(), new_users, total_users }
            })
            .collect())
    }

    /// `GET /api/analytics/users/active`: active users at the end of the range and per bucket.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn users_active(&self, query: &Query) -> Result<Active> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            name: String,
            bucket: i64,
            plan: String,
            users: u64,
        }
        // One reading for all: each row counts in every window that it lies in.
        let sql = concat!(
            "SELECT window.1 AS name, window.2 AS bucket, window.3 AS plan, uniqCombined64Merge(users) AS users
             FROM (
                SELECT users, arrayJoin(arrayConcat(
                    if(toDate(hour) = {to:Date}, [('day', 0, ''), ('plan', 0, toString(plan))], []),
                    if(toDate(hour) > {to:Date} - 7, [('week', 0, '')], []),
                    if(toDate(hour) > {to:Date} - 30, [('month', 0, '')], []),
                    if(toDate(hour) >= {from:Date}, [('bucket', ",
            bucket!("hour"),
            ", '')], [])
                )) AS window
                FROM daily_active_users
                WHERE ",
            grain!(),
            " AND toDate(hour) BETWEEN least({from:Date}, {to:Date} - 29) AND {to:Date}
             ) GROUP BY window",
        );
        let rows: Vec<Row> = self.rows(sql, query).await?;
        let of = |name: &'static str| rows.iter().filter(move |row| row.name == name);
        let all = |name| of(name).map(|row| row.users).sum::<u64>();
        let counts: HashMap<i64, u64> = of("bucket").map(|row| (row.bucket, row.users)).collect();
        let (dau, mau) = (all("day"), all("month"));
        Ok(Active {
            dau,
            wau: all("week"),
            mau,
            stickiness: ratio(dau as f64, mau as f64),
            by_plan: of("plan").filter(|row| row.users > 0).map(|row| (row.plan.clone(), row.users)).collect(),
            series: query
                .buckets()
                .iter()
                .map(|bucket| ActiveBucket {
                    date: bucket.name(),
                    active_users: counts.get(&bucket.key()).copied().unwrap_or_default(),
                })
                .collect(),
        })
    }

    /// `GET /api/analytics/users/signups`: sign-ups and verifications per bucket.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn users_signups(&self, query: &Query) -> Result<Vec<Signups>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            bucket: i64,
            signups: u64,
            verified: u64,
        }
        let sql = concat!(
            "SELECT ",
            bucket!("hour"),
            " AS bucket, sum(signups) AS signups, sum(verifications) AS verified
             FROM daily_active_users WHERE ",
            in_range!(),
            " GROUP BY bucket",
        );
        let rows: Vec<Row> = self.rows(sql, query).await?;
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

    /// `GET /api/analytics/users/top`: the users with most messages.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn users_top(&self, query: &Query) -> Result<Vec<TopUser>> {
        // First who they are, by two columns alone, then what else they did.
        let sql = "SELECT any(user_retention.subject) AS user_id,
                ['free', 'pro', 'enterprise'][toUInt8(any(best.latest) % 256)] AS plan, any(best.sent) AS messages,
                any(best.used) AS tokens, any(best.spent) AS cost_micro_usd,
                concat(formatDateTime(any(best.seen) AS seen, '%Y-%m-%dT%H:%i:%S.', 'UTC'),
                    leftPad(toString(toUnixTimestamp64Milli(seen) % 1000), 3, '0'), 'Z') AS last_active
             FROM user_retention INNER JOIN (
                SELECT user, sum(user_metrics.messages) AS sent, sum(user_metrics.tokens) AS used, sum(cost) AS spent,
                    max(user_metrics.last_active) AS seen, max(last) AS latest
                FROM user_metrics WHERE day BETWEEN {from:Date} AND {to:Date} AND user IN (
                    SELECT user FROM (
                        SELECT user, sum(messages) AS sent FROM user_metrics
                        WHERE day BETWEEN {from:Date} AND {to:Date}
                        GROUP BY user HAVING sent > 0 ORDER BY sent DESC LIMIT {limit:UInt64} WITH TIES
                    )
                ) GROUP BY user
             ) AS best ON best.user = user_retention.user
             GROUP BY user_retention.user ORDER BY messages DESC, user_id LIMIT {limit:UInt64}";
        self.rows(sql, query).await
    }

    /// `GET /api/analytics/users/count`: all users to date.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn users_count(&self, query: &Query) -> Result<UserCount> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Total {
            signups: u64,
        }
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            is_later: bool,
            plan: u8,
            users: u64,
            verified: u64,
        }
        #[derive(clickhouse::Row, Deserialize)]
        struct Later {
            plan: u8,
            users: u64,
        }
        let total =
            "SELECT sum(signups) AS signups FROM daily_active_users WHERE grain = 'day' AND toDate(hour) <= {to:Date}";
        let users = concat!(
            "SELECT ",
            last_day!("latest"),
            " > {to:Date} AS is_later, if(is_later, 0, toUInt8(latest % 256)) AS plan,
                countIf(toDate(signed_up) <= {to:Date}) AS users, countIf(toDate(proved) <= {to:Date}) AS verified
             FROM (
                SELECT min(signup) AS signed_up, min(user_retention.verified) AS proved, max(last) AS latest
                FROM user_retention GROUP BY user
             ) GROUP BY is_later, plan",
        );
        let (Total { signups }, rows) =
            futures_util::try_join!(self.row::<Total>(total, query), self.rows::<Row>(users, query))?;
        // Whoever was there after the range as well may have had another plan in it.
        let later = concat!(
            "SELECT toUInt8(latest % 256) AS plan, count() AS users FROM (
                SELECT user, max(last) AS latest FROM user_metrics WHERE day <= {to:Date} AND user IN (
                    SELECT user FROM user_retention GROUP BY user
                    HAVING toDate(min(signup)) <= {to:Date} AND ",
            last_day!("max(last)"),
            " > {to:Date}
                ) GROUP BY user
             ) GROUP BY plan",
        );
        let has_later = rows.iter().any(|row| row.is_later && row.users > 0);
        let later: Vec<Later> = if has_later { self.rows(later, query).await? } else { Vec::new() };
        let mut by_plan = BTreeMap::new();
        let of_range = rows.iter().filter(|row| !row.is_later).map(|row| (row.plan, row.users));
        for (plan, users) in of_range.chain(later.iter().map(|row| (row.plan, row.users))).filter(|row| row.1 > 0) {
            *by_plan.entry(plan_of(plan).to_owned()).or_default() += users;
        }
        let verified = rows.iter().map(|row| row.verified).sum::<u64>();
        Ok(UserCount { total: signups, verified, unverified: signups.saturating_sub(verified), by_plan })
    }

    /// `GET /api/analytics/users/retention`: cohorts and who of them came back.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn users_retention(&self, query: &Query, by: CohortBy) -> Result<Retention> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Size {
            cohort: i64,
            users: u64,
        }
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            cohort: i64,
            period: i64,
            users: u64,
        }
        let query = &Query { interval: by.interval(), ..*query };
        let sizes = concat!(
            "SELECT ",
            bucket!("first"),
            " AS cohort, count() AS users
             FROM (SELECT user, min(signup) AS first FROM user_retention GROUP BY user)
             WHERE toDate(first) BETWEEN {from:Date} AND {to:Date} GROUP BY cohort ORDER BY cohort",
        );
        let retained = concat!(
            "WITH users AS (
                SELECT user, min(signup) AS first FROM user_retention GROUP BY user
                HAVING toDate(first) BETWEEN {from:Date} AND {to:Date}
             )
             SELECT ",
            bucket!("first"),
            " AS cohort, ",
            bucket!("toDateTime(day, 'UTC')"),
            " AS period, uniqExact(user_metrics.user) AS users
             FROM user_metrics INNER JOIN users ON users.user = user_metrics.user
             WHERE last_active > 0 AND period >= cohort AND day <= {to:Date}
                AND day >= if({interval:String} = 'month', toStartOfMonth({from:Date}), toStartOfWeek({from:Date}, 1))
             GROUP BY cohort, period",
        );
        let (sizes, retained) =
            futures_util::try_join!(self.rows::<Size>(sizes, query), self.rows::<Row>(retained, query))?;
        let retained: HashMap<(i64, i64), u64> =
            retained.into_iter().map(|row| ((row.cohort, row.period), row.users)).collect();
        let cohorts = sizes.into_iter().map(|size| {
            let first = crate::clock::from_millis(size.cohort * 1000).date();
            let begins = std::iter::successors(Some(first), |begin| Some(by.after(*begin)));
            let periods = begins.take(PERIODS).take_while(|begin| *begin <= query.range.to).enumerate();
            Cohort {
                cohort: day(first),
                size: size.users,
                periods: periods
                    .map(|(index, begin)| {
                        let key = (size.cohort, begin.midnight().assume_utc().unix_timestamp());
                        let retained = retained.get(&key).copied().unwrap_or_default();
                        Period { index, retained, rate: ratio(retained as f64, size.users as f64) }
                    })
                    .collect(),
            }
        });
        Ok(Retention { cohorts: cohorts.collect() })
    }
}
