//! What the plan's tokens were spent on, in sum.

use serde::Serialize;
use uuid::Uuid;

use crate::chat::quota::Quota;
use crate::chat::usage::{self, Period};
use crate::error::Result;
use crate::store::postgres::Database;

/// Tokens and cost of the month against the plan.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BillingUsage {
    plan: &'static str,
    period: Period,
    tokens: Quota,
    cost_micro_usd: i64,
}

/// The report of the current month.
///
/// # Errors
/// 401 when the user is gone.
pub async fn report(database: &Database, user_id: Uuid) -> Result<BillingUsage> {
    let usage::UsageReport { plan, period, tokens, cost_micro_usd, .. } = usage::report(database, user_id).await?;
    Ok(BillingUsage { plan, period, tokens, cost_micro_usd })
}
