//! What a user has spent in the current month: the ledger, whatever became of the messages since.

use serde::Serialize;
use time::{OffsetDateTime, Time};
use uuid::Uuid;

use crate::billing::plan::Plan;
use crate::chat::quota::{Quota, month_after, month_of};
use crate::clock;
use crate::error::{Error, Result};
use crate::store::postgres::Database;

/// Tokens and cost of a month.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageReport {
    /// The plan's id.
    pub plan: &'static str,
    /// The month.
    pub period: Period,
    /// The plan's tokens.
    pub tokens: Quota,
    /// The cost of what has a price.
    pub cost_micro_usd: i64,
    /// The same by model, most tokens first.
    pub by_model: Vec<ModelUsage>,
}

/// A calendar month in UTC.
#[derive(Debug, Serialize)]
pub struct Period {
    /// Its first moment.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub start: OffsetDateTime,
    /// The first moment after it.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub end: OffsetDateTime,
}

/// What one model was used for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelUsage {
    /// The provider.
    pub provider: String,
    /// The model.
    pub model: String,
    /// Answers.
    pub messages: i64,
    /// Their tokens.
    pub total_tokens: i64,
    /// Their cost, null where the model has no price.
    pub cost_micro_usd: Option<i64>,
}

/// The report of the current month.
///
/// # Errors
/// 401 when the user is gone.
pub async fn report(database: &Database, user_id: Uuid) -> Result<UsageReport> {
    let start = month_of(clock::now().date());
    let mut connection = database.pool().acquire().await?;
    let state = sqlx::query!(
        r#"SELECT u.plan, coalesce(q.used, 0) AS "used!", coalesce(q.reserved, 0) AS "reserved!"
           FROM users u LEFT JOIN quota_periods q ON q.user_id = u.id AND q.period = $2
           WHERE u.id = $1"#,
        user_id,
        start,
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or_else(Error::unauthenticated)?;
    let by_model = sqlx::query_as!(
        ModelUsage,
        r#"SELECT provider, model, count(*) AS "messages!",
               sum(input_tokens + output_tokens)::bigint AS "total_tokens!",
               sum(cost_micro_usd)::bigint AS cost_micro_usd
           FROM usage_ledger WHERE user_id = $1 AND period = $2
           GROUP BY provider, model ORDER BY 4 DESC, provider, model"#,
        user_id,
        start,
    )
    .fetch_all(&mut *connection)
    .await?;
    let plan = Plan::stored(&state.plan)?;
    let midnight = |day: time::Date| day.with_time(Time::MIDNIGHT).assume_utc();
    Ok(UsageReport {
        plan: plan.as_str(),
        period: Period { start: midnight(start), end: midnight(month_after(start)) },
        tokens: Quota::new(plan, start, state.used, state.reserved),
        cost_micro_usd: by_model.iter().filter_map(|model| model.cost_micro_usd).sum(),
        by_model,
    })
}
