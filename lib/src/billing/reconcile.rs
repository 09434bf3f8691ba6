//! What webhooks did not tell: Stripe's own list of events against the received ones, and graces that ended.

use serde::Serialize;
use time::{Duration, OffsetDateTime};

use crate::billing::service::Billing;
use crate::billing::sync;
use crate::billing::webhook::Notice;
use crate::clock;
use crate::error::{Error, Result};
use crate::telemetry::trace::TraceContext;

/// Stripe keeps events for 30 days.
const KEPT: Duration = Duration::days(30);
/// Events younger than this may still be on their way.
const ON_THEIR_WAY: Duration = Duration::minutes(5);
/// A clock may be off by so much.
const OVERLAP: Duration = Duration::hours(1);

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reconciled {
    /// Events that Stripe lists.
    pub listed: usize,
    /// Of these, the ones that were not received or not handled, and are now.
    pub made_good: usize,
    /// Users whose grace has ended.
    pub graces_ended: usize,
}

impl Billing {
    /// Takes the plans whose grace has ended, then handles every event since the last run that was not; with
    /// `at_once` also the youngest, which may still be on their way.
    ///
    /// # Errors
    /// When the database or Stripe does not answer; the next run begins where this one did.
    pub async fn reconcile(&self, at_once: bool) -> Result<Reconciled> {
        let mut done = Reconciled { graces_ended: self.end_graces().await?, ..Reconciled::default() };
        let now = clock::now();
        let since = sqlx::query_scalar!("SELECT until FROM stripe_watermark")
            .fetch_optional(self.database.pool())
            .await?
            .unwrap_or(now - KEPT);
        let until = if at_once { now } else { now - ON_THEIR_WAY };
        let mut missed = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut query = vec![
                ("created[gte]", (since - OVERLAP).unix_timestamp().to_string()),
                ("created[lte]", until.unix_timestamp().to_string()),
                ("limit", "100".to_owned()),
            ];
            query.extend(after.take().map(|id| ("starting_after", id)));
            let page = self.stripe.get("/events", &query).await?;
            let events = page["data"].as_array().ok_or_else(|| Error::internal("Stripe's list of events is none"))?;
            done.listed += events.len();
            for event in events {
                let Some(notice) = Notice::of(event) else { continue };
                let known = sqlx::query_scalar!(
                    r#"SELECT processed_at IS NOT NULL AS "done!" FROM stripe_events WHERE id = $1"#,
                    notice.event_id,
                );
                if known.fetch_optional(self.database.pool()).await? != Some(true) {
                    missed.push((event["type"].as_str().unwrap_or_default().to_owned(), notice));
                }
            }
            after = events.last().and_then(|event| event["id"].as_str()).map(str::to_owned);
            if page["has_more"] != true || after.is_none() {
                break;
            }
        }
        let mut failed = 0;
        // Stripe lists the newest first.
        for (kind, notice) in missed.iter().rev() {
            sqlx::query!(
                "INSERT INTO stripe_events (id, kind, object_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                notice.event_id,
                kind,
                notice.object_id,
            )
            .execute(self.database.pool())
            .await?;
            // One that cannot be handled keeps neither the others nor the next run from their work.
            match self.handle(notice).await {
                Ok(()) => done.made_good += 1,
                Err(error) => {
                    failed += 1;
                    tracing::error!(error.cause = %error, stripe.event = notice.event_id, "an event could not be handled");
                }
            }
        }
        if failed > 0 {
            return Err(Error::internal(format!("{failed} of Stripe's events could not be handled")));
        }
        self.advance(until).await?;
        self.forget(until - KEPT - OVERLAP).await?;
        tracing::info!(stripe.listed = done.listed, stripe.made_good = done.made_good, "Stripe's events were compared");
        Ok(done)
    }

    async fn advance(&self, until: OffsetDateTime) -> Result<()> {
        sqlx::query!(
            "INSERT INTO stripe_watermark (until) VALUES ($1)
             ON CONFLICT (one) DO UPDATE SET until = greatest(stripe_watermark.until, excluded.until)",
            until,
        )
        .execute(self.database.pool())
        .await?;
        Ok(())
    }

    /// Events that Stripe itself no longer lists or delivers.
    async fn forget(&self, before: OffsetDateTime) -> Result<()> {
        sqlx::query!("DELETE FROM stripe_events WHERE received_at < $1 AND processed_at IS NOT NULL", before)
            .execute(self.database.pool())
            .await?;
        Ok(())
    }

    async fn end_graces(&self) -> Result<usize> {
        let users = sqlx::query_scalar!(
            "SELECT DISTINCT s.user_id FROM subscriptions s JOIN users u ON u.id = s.user_id
             WHERE s.status = 'past_due' AND s.grace_end <= $1 AND u.plan <> 'free'",
            clock::now(),
        )
        .fetch_all(self.database.pool())
        .await?;
        for user_id in &users {
            let mut transaction = self.begin_for(*user_id, &TraceContext::continue_or_begin(None)).await?;
            sync::entitle(&mut transaction, *user_id, clock::now()).await?;
            transaction.commit().await?;
        }
        Ok(users.len())
    }
}
