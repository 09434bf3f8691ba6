//! Invoices, from the mirror.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Result;
use crate::http::page::{self, Cursor, Limit};
use crate::store::postgres::Database;

/// An invoice as the API shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Invoice {
    /// The invoice's id.
    pub id: Uuid,
    /// The number on the document.
    pub number: Option<String>,
    /// Stripe's status.
    pub status: String,
    /// Minor units.
    pub amount_due: i64,
    /// Minor units.
    pub amount_paid: i64,
    /// ISO 4217.
    pub currency: String,
    /// When the billing period began.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub period_start: OffsetDateTime,
    /// When it ends.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub period_end: OffsetDateTime,
    /// What is billed.
    pub lines: Value,
    /// A page that shows it.
    pub hosted_url: Option<String>,
    /// The document.
    pub pdf_url: Option<String>,
    /// When it was made.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub created_at: OffsetDateTime,
}

/// A user's invoices, newest first, without drafts.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    database: &Database,
    user_id: Uuid,
    limit: Limit,
    after: Option<Cursor>,
) -> Result<(Vec<Invoice>, Option<String>)> {
    let (at, id) = page::place(after);
    let rows = sqlx::query_as!(
        Invoice,
        "SELECT id, number, status, amount_due, amount_paid, currency, period_start, period_end, lines, hosted_url,
             pdf_url, created_at
         FROM invoices WHERE user_id = $1 AND status <> 'draft' AND (created_at, id) < ($2, $3)
         ORDER BY created_at DESC, id DESC LIMIT $4",
        user_id,
        at,
        id,
        limit.0 + 1,
    )
    .fetch_all(database.pool())
    .await?;
    Ok(page::split(rows, limit, |last| Cursor { at: last.created_at, id: last.id }))
}
