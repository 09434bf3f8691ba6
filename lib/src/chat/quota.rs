//! Tokens of a user's month: reserved before a call, settled after it, released when nobody settles.
//!
//! The arithmetic is in three database functions, each atomic under the lock of the user's month, so that no
//! number of requests at once can spend more than there is.

use std::convert::Infallible;
use std::time::Duration;

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::{Date, Month, OffsetDateTime, Time};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::billing::plan::Plan;
use crate::clock;
use crate::error::{Code, Error, Result};
use crate::store::postgres::LentConnection;

/// How often a reservation under way says so; it counts as abandoned after 60 s.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// A beat that takes longer is given up.
const LONGEST_BEAT: Duration = Duration::from_secs(10);

/// A month's tokens as the API shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// Tokens of the plan.
    pub limit: i64,
    /// Tokens spent.
    pub used: i64,
    /// Tokens set aside for answers under way.
    pub reserved: i64,
    /// Tokens that a new request may use.
    pub remaining: i64,
    /// When the count begins anew.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub resets_at: OffsetDateTime,
}

impl Quota {
    /// The state of a plan's month, which begins with this day. It may be over by now: an answer is counted in the month
    /// in which it was asked for.
    #[must_use]
    pub fn new(plan: Plan, month: Date, used: i64, reserved: i64) -> Self {
        let limit = plan.terms().tokens_per_month;
        let resets_at = month_after(month).with_time(Time::MIDNIGHT).assume_utc();
        Self { limit, used, reserved, remaining: (limit - used - reserved).max(0), resets_at }
    }

    /// Refuses a request that does not fit in what is left, even if nothing is spent of what is reserved.
    ///
    /// # Errors
    /// 429 `quota_exceeded`.
    pub fn has_room(&self, tokens: i64) -> Result<()> {
        if tokens > self.limit - self.used { Err(self.exceeded()) } else { Ok(()) }
    }

    /// The refusal of a request that does not fit in what is left.
    #[track_caller]
    #[must_use]
    fn exceeded(&self) -> Error {
        Error::new(Code::QuotaExceeded, "The plan's tokens of this month are used up or reserved.")
            .with("resetsAt", clock::rfc3339(self.resets_at).into())
            .with("limit", self.limit.into())
            .with("used", self.used.into())
    }
}

/// The first day of the month of a day.
#[must_use]
pub fn month_of(day: Date) -> Date {
    day.replace_day(1).unwrap_or(day)
}

/// The first day of the month after that of a day.
#[must_use]
pub fn month_after(day: Date) -> Date {
    let year = if day.month() == Month::December { day.year() + 1 } else { day.year() };
    Date::from_calendar_date(year, day.month().next(), 1).unwrap_or(day)
}

/// Tokens set aside for one request.
#[derive(Debug, Clone)]
pub struct Reservation {
    id: Uuid,
    user_id: Uuid,
    plan: Plan,
    month: Date,
    /// How many.
    pub tokens: i64,
}

/// Sets aside `wanted` tokens of the user's plan, or what is left if that is at least `minimum`. It is committed with
/// the caller's transaction, or at once without one, and does not wait for the disk.
///
/// # Errors
/// 429 `quota_exceeded`; 503 when the database does not answer: then nobody spends anything.
pub async fn reserve(connection: &mut PgConnection, user_id: Uuid, wanted: i64, minimum: i64) -> Result<Reservation> {
    let id = Uuid::now_v7();
    let (plans, limits): (Vec<_>, Vec<_>) =
        Plan::ALL.map(|plan| (plan.as_str().to_owned(), plan.terms().tokens_per_month)).into_iter().unzip();
    let row = sqlx::query!(
        r#"SELECT u.plan, q.period AS "period!", q.used AS "used!", q.reserved AS "reserved!", q.granted AS "granted!"
           FROM users u, quota_reserve($1, u.id, $3, $4, ($6::bigint[])[array_position($5::text[], u.plan)]) q
           WHERE u.id = $2"#,
        id,
        user_id,
        wanted,
        minimum,
        &plans,
        &limits,
    )
    .fetch_optional(connection)
    .await?
    .ok_or_else(Error::unauthenticated)?;
    let plan = Plan::stored(&row.plan)?;
    if row.granted == 0 {
        return Err(Quota::new(plan, row.period, row.used, row.reserved).exceeded());
    }
    Ok(Reservation { id, user_id, plan, month: row.period, tokens: row.granted })
}

impl Reservation {
    /// The plan that the tokens are of.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// The first day of the month that the tokens are of.
    #[must_use]
    pub fn month(&self) -> Date {
        self.month
    }

    /// Names the reservation in a statement that settles it.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Turns the reservation into what was spent, within the transaction that notes what it was spent on.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn settle(&self, connection: &mut PgConnection, spent: i64) -> Result<Quota> {
        let row = sqlx::query!(
            r#"SELECT used AS "used!", reserved AS "reserved!" FROM quota_settle($1, $2, $3, $4)"#,
            self.id,
            self.user_id,
            self.month,
            spent,
        )
        .fetch_one(connection)
        .await?;
        Ok(Quota::new(self.plan, self.month, row.used, row.reserved))
    }

    /// Does some work while the reservation is shown to be in use.
    pub async fn keep_alive<T>(&self, pool: &PgPool, work: impl Future<Output = T>) -> T {
        self.keep_beating(pool, HEARTBEAT, work).await
    }

    /// The same with a beat so often. The work does not wait for one.
    pub async fn keep_beating<T>(&self, pool: &PgPool, every: Duration, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            never = self.beat_on(pool, every) => match never {},
        }
    }

    async fn beat_on(&self, pool: &PgPool, every: Duration) -> Infallible {
        // An interval that begins now ticks at the timer's next millisecond: the work would wait for that.
        let mut beats = tokio::time::interval_at(Instant::now() + every, every);
        loop {
            beats.tick().await;
            // A missed beat at worst releases the reservation early; settling works without it.
            match timeout(LONGEST_BEAT, self.beat(pool)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error.cause = %error, "a reservation could not be kept alive"),
                Err(_) => tracing::warn!("a reservation could not be kept alive in time"),
            }
        }
    }

    async fn beat(&self, pool: &PgPool) -> Result<()> {
        let mut connection = LentConnection::of(pool).await?;
        let beaten =
            sqlx::query!("UPDATE quota_reservations SET progress_at = clock_timestamp() WHERE id = $1", self.id)
                .execute(&mut *connection)
                .await;
        connection.give_back();
        beaten?;
        Ok(())
    }
}

/// What one run of the sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Reservations released.
    pub released: i64,
}

/// Releases the reservations of functions that died.
///
/// # Errors
/// When the database does not answer; what is left is swept by the next run.
pub async fn sweep(pool: &PgPool) -> Result<Swept> {
    let users = sqlx::query_scalar!(
        "SELECT DISTINCT user_id FROM quota_reservations
         WHERE progress_at < clock_timestamp() - interval '60 seconds' LIMIT 1000"
    )
    .fetch_all(pool)
    .await?;
    let mut released = 0;
    // One transaction a user: the sweep never holds the locks of two.
    for user in users {
        let gone = sqlx::query_scalar!(r#"SELECT quota_release_abandoned($1) AS "released!""#, user);
        released += gone.fetch_one(pool).await?;
    }
    Ok(Swept { released })
}

/// What an audit found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Audited {
    /// Months of users whose counters differ from the ledger or the reservations.
    pub imbalances: i64,
}

/// Compares what is counted in this month and the one before with the ledger and the open reservations, in one
/// look at the database.
///
/// # Errors
/// When the database does not answer.
pub async fn audit(pool: &PgPool) -> Result<Audited> {
    let imbalances = sqlx::query_scalar!(
        r#"WITH since AS (SELECT (date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 month')::date AS month),
             spent AS (SELECT user_id, period, sum(input_tokens + output_tokens) AS tokens
                       FROM usage_ledger, since WHERE period >= month GROUP BY user_id, period),
             held AS (SELECT user_id, period, sum(tokens) AS tokens FROM quota_reservations GROUP BY user_id, period)
           SELECT count(*) AS "imbalances!"
           FROM (SELECT q.* FROM quota_periods q, since WHERE q.period >= month) p
           FULL JOIN spent s USING (user_id, period)
           LEFT JOIN held h USING (user_id, period)
           WHERE coalesce(p.used, 0) <> coalesce(s.tokens, 0) OR coalesce(p.reserved, 0) <> coalesce(h.tokens, 0)"#
    )
    .fetch_one(pool)
    .await?;
    tracing::info!(quota_imbalances = imbalances, "the quotas were compared with the ledger");
    Ok(Audited { imbalances })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use time::macros::date;

    use super::*;

    #[test]
    fn months_begin_on_their_first_day() {
        assert_eq!(month_of(date!(2026 - 11 - 22)), date!(2026 - 11 - 01));
        assert_eq!(month_after(date!(2026 - 12 - 31)), date!(2027 - 01 - 01));
        assert_eq!(month_after(date!(2026 - 01 - 31)), date!(2026 - 02 - 01));
    }

    fn reservation() -> Reservation {
        Reservation { id: Uuid::nil(), user_id: Uuid::nil(), plan: Plan::Free, month: date!(2026 - 11 - 01), tokens: 1 }
    }

    #[tokio::test]
    async fn work_that_is_kept_alive_begins_at_once() {
        let pool = PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").unwrap();
        assert_eq!(reservation().keep_alive(&pool, std::future::ready(1)).now_or_never(), Some(1));
    }

    #[tokio::test]
    async fn work_goes_on_while_the_database_hangs() {
        // Takes connections, and says nothing.
        let database = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("postgres://nobody@{}/none", database.local_addr().unwrap());
        let pool = PgPool::connect_lazy(&url).unwrap();
        let work = tokio::time::sleep(Duration::from_millis(100));
        let reservation = reservation();
        let kept = reservation.keep_beating(&pool, Duration::from_millis(10), work);
        assert!(timeout(Duration::from_secs(3), kept).await.is_ok());
    }

    #[test]
    fn a_beat_may_be_missed() {
        assert!(2 * HEARTBEAT + LONGEST_BEAT < Duration::from_secs(60));
    }

    #[test]
    fn what_was_overspent_leaves_nothing_not_less() {
        let month = Date::from_calendar_date(2026, Month::December, 1).unwrap();
        let quota = Quota::new(Plan::Free, month, 49_990, 20);
        assert_eq!((quota.limit, quota.remaining), (50_000, 0));
        assert_eq!(clock::rfc3339(quota.resets_at), "2027-01-01T00:00:00.000Z");
    }
}
