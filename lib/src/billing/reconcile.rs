//! What webhooks did not tell: Stripe's own list of events against the received ones, and graces that ended.

use serde::Serialize;
use time::{Duration, OffsetDateTime};

use crate::billing::service::Billing;
use crate::billing::stripe_object;
use crate::billing::sync::Kind;
use crate::billing::webhook::{Notice, kind_of};
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
    /// Events that were not received or not handled, and are now.
    pub made_good: usize,
    /// Users who lost their plan, because their grace has ended.
    pub graces_ended: usize,
}

impl Billing {
    /// Takes the plans whose grace has ended, unless Stripe has been paid, then handles every event not yet handled,
    /// received or not; with `at_once` also the youngest, which may still be on their way.
    ///
    /// # Errors
    /// When the database or Stripe does not answer, or an event cannot be handled; the next run tries it again.
    pub async fn reconcile(&self, at_once: bool) -> Result<Reconciled> {
        let mut done = Reconciled { graces_ended: self.end_graces().await?, ..Reconciled::default() };
        let now = clock::now();
        let until = if at_once { now } else { now - ON_THEIR_WAY };
        done.listed = self.note_missed(now, until).await?;
        self.advance(until).await?;
        let mut failed = 0;
        for notice in self.unhandled(until).await? {
            // One that cannot be handled keeps neither the others nor the next run from their work.
            match self.handle(&notice).await {
                Ok(()) => done.made_good += 1,
                Err(error) => {
                    failed += 1;
                    tracing::error!(error.cause = %error, stripe.event = notice.event_id, "an event could not be handled");
                }
            }
        }
        self.forget(until - KEPT - OVERLAP).await?;
        // An alarm reads the number, whose name has no dot for that.
        tracing::info!(stripe.listed = done.listed, stripe_made_good = done.made_good, "Stripe's events were compared");
        if failed > 0 {
            return Err(Error::internal(format!("{failed} of Stripe's events could not be handled")));
        }
        Ok(done)
    }

    /// Notes the events that Stripe lists since the last run and that were not received, and counts what it lists.
    async fn note_missed(&self, now: OffsetDateTime, until: OffsetDateTime) -> Result<usize> {
        let since = sqlx::query_scalar!("SELECT until FROM stripe_watermark")
            .fetch_optional(self.database.pool())
            .await?
            .unwrap_or(now - KEPT);
        let mut listed = 0;
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
            listed += events.len();
            for event in events {
                let Some(notice) = Notice::of(event) else { continue };
                sqlx::query!(
                    "INSERT INTO stripe_events (id, kind, object_id, received_at) VALUES ($1, $2, $3, $4)
                     ON CONFLICT DO NOTHING",
                    notice.event_id,
                    event["type"].as_str(),
                    notice.object_id,
                    stripe_object::moment(&event["created"]).unwrap_or(until),
                )
                .execute(self.database.pool())
                .await?;
            }
            after = events.last().and_then(|event| event["id"].as_str()).map(str::to_owned);
            if page["has_more"] != true || after.is_none() {
                return Ok(listed);
            }
        }
    }

    /// What was noted and not handled, the oldest first.
    async fn unhandled(&self, until: OffsetDateTime) -> Result<Vec<Notice>> {
        let rows = sqlx::query!(
            "SELECT id, kind, object_id FROM stripe_events
             WHERE processed_at IS NULL AND received_at <= $1 ORDER BY received_at, id",
            until,
        );
        let rows = rows.fetch_all(self.database.pool()).await?.into_iter();
        let notices = rows
            .filter_map(|row| Some(Notice { kind: kind_of(&row.kind)?, event_id: row.id, object_id: row.object_id }));
        Ok(notices.collect())
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

    /// Reads the subscriptions anew whose grace has ended by the mirror: of a payment, no webhook may have told. Gives
    /// how many users have lost their plan. Whoever is busy, or of whom Stripe tells nothing now, is found again by the
    /// next run.
    async fn end_graces(&self) -> Result<usize> {
        let due = sqlx::query!(
            "SELECT s.user_id, s.stripe_id FROM subscriptions s JOIN users u ON u.id = s.user_id
             WHERE s.status = 'past_due' AND s.grace_end <= $1 AND u.plan <> 'free'",
            clock::now(),
        )
        .fetch_all(self.database.pool())
        .await?;
        for due in &due {
            if let Err(error) = self.sync(Kind::Subscription, &due.stripe_id, &TraceContext::begin()).await {
                tracing::error!(error.cause = %error, user.id = %due.user_id, "a grace could not be ended");
            }
        }
        let users: Vec<_> = due.iter().map(|due| due.user_id).collect();
        let ended = sqlx::query_scalar!(
            r#"SELECT count(*) AS "ended!" FROM users WHERE id = ANY($1) AND plan = 'free'"#,
            &users,
        );
        let ended = ended.fetch_one(self.database.pool()).await?;
        Ok(usize::try_from(ended).unwrap_or(usize::MAX))
    }
}
