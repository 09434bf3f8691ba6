//! What webhooks did not tell: Stripe's own list of events against the received ones, and graces that ended.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use crate::billing::service::Billing;
use crate::billing::stripe_object;
use crate::billing::sync::Kind;
use crate::billing::webhook::{Notice, TYPES, kind_of};
use crate::clock;
use crate::error::{Error, Result};
use crate::runtime;
use crate::telemetry::trace::TraceContext;

/// Stripe keeps events for 30 days.
const KEPT: Duration = Duration::from_hours(30 * 24);
/// Events younger than this may still be on their way.
const ON_THEIR_WAY: Duration = Duration::from_mins(5);
/// A clock may be off by so much, and an event so late in Stripe's list.
const OVERLAP: Duration = Duration::from_hours(1);
/// Stripe's list is gone through in windows of this length.
const WINDOW: Duration = Duration::from_hours(2);
/// Unhandled events that are read out of Postgres at a time.
const BATCH: i64 = 10_000;
/// The end of a run in which nothing of Stripe is handled: a lock that is waited for in vain keeps the connection for
/// 35 seconds.
const TO_END: Duration = Duration::from_secs(60);

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reconciled {
    /// Events that Stripe lists.
    pub listed: usize,
    /// Seconds at the end of Stripe's list for which the time was too short.
    pub unlisted_seconds: i64,
    /// Events that were not received or not handled, and are now.
    pub made_good: usize,
    /// Events that are still not handled; null where the end came too suddenly to count them.
    pub left: Option<i64>,
    /// Users who lost their plan, because their grace has ended.
    pub graces_ended: usize,
}

/// An object that events are about.
type Object = (Kind, String);

impl Billing {
    /// Takes the plans whose grace has ended, unless Stripe has been paid, then handles every event not yet handled,
    /// received or not; with `at_once` also the youngest, which may still be on their way. Each of the three, graces, list
    /// and events, has its share of the time; the next run goes on.
    ///
    /// # Errors
    /// When the database or Stripe does not answer, or an event cannot be handled; the next run tries it again.
    pub async fn reconcile(&self, at_once: bool, time_left: Duration) -> Result<Reconciled> {
        let started = Instant::now();
        let usable = time_left.saturating_sub(TO_END);
        let graces_ended = self.end_graces(started + usable / 4).await?;
        let mut done = Reconciled { graces_ended, ..Reconciled::default() };
        let now = clock::now();
        let until = if at_once { now } else { now - ON_THEIR_WAY };
        self.note_missed(until, started + usable / 2, &mut done).await?;
        let failed = self.make_good(until, started + usable, &mut done).await?;
        // Alarms read the numbers whose names have no dot for that.
        tracing::info!(
            stripe.listed = done.listed,
            stripe_unlisted_s = done.unlisted_seconds,
            stripe_made_good = done.made_good,
            stripe.left = done.left,
            "Stripe's events were compared"
        );
        let forgotten = self.forget(until - KEPT - OVERLAP).await;
        // A connection that still waits for a lock leaves it to the next run.
        if done.left.is_some() {
            forgotten?;
        }
        if failed > 0 {
            return Err(Error::internal(format!("{failed} of Stripe's events could not be handled")));
        }
        Ok(done)
    }

    /// Notes the events that Stripe lists since the last run and that were not received, from the oldest window on. Stripe
    /// lists the newest first, so only a window that was listed to its end is done with.
    async fn note_missed(&self, until: OffsetDateTime, end: Instant, done: &mut Reconciled) -> Result<()> {
        let since = sqlx::query_scalar!("SELECT until FROM stripe_watermark")
            .fetch_optional(self.database.pool())
            .await?
            .map_or(until - KEPT, |since| since.max(until - KEPT));
        let mut from = since - OVERLAP;
        while from < until {
            let to = until.min(from + WINDOW);
            for (pattern, _) in TYPES {
                if !self.note_window(pattern, from, to, end, done).await? {
                    done.unlisted_seconds = (until - from).whole_seconds();
                    return Ok(());
                }
            }
            self.advance(to).await?;
            from = to;
        }
        Ok(())
    }

    /// The same for the types of a pattern in one window; whether there was time for all of it.
    async fn note_window(
        &self,
        pattern: &str,
        from: OffsetDateTime,
        to: OffsetDateTime,
        end: Instant,
        done: &mut Reconciled,
    ) -> Result<bool> {
        let mut after: Option<String> = None;
        while Instant::now() < end {
            let mut query = vec![
                // Of exact names, which `types` takes, there may be twenty, and the patterns stand for more.
                ("type", pattern.to_owned()),
                ("created[gte]", from.unix_timestamp().to_string()),
                // Stripe's seconds are whole: the one in which the window ends is in both.
                ("created[lte]", to.unix_timestamp().to_string()),
                ("limit", "100".to_owned()),
            ];
            query.extend(after.take().map(|id| ("starting_after", id)));
            let page = self.stripe.get("/events", &query).await?;
            let events = page["data"].as_array().ok_or_else(|| Error::internal("Stripe's list of events is none"))?;
            done.listed += events.len();
            self.note(events, to).await?;
            after = events.last().and_then(|event| event["id"].as_str()).map(str::to_owned);
            if page["has_more"] != true || after.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Notes those of a page that are handled and were not received; without a time of theirs, at this one.
    async fn note(&self, events: &[Value], until: OffsetDateTime) -> Result<()> {
        let (mut ids, mut kinds, mut objects, mut times) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for event in events {
            let Some((notice, kind)) = Notice::of(event).zip(event["type"].as_str()) else { continue };
            ids.push(notice.event_id);
            kinds.push(kind.to_owned());
            objects.push(notice.object_id);
            times.push(stripe_object::moment(&event["created"]).unwrap_or(until));
        }
        sqlx::query!(
            "INSERT INTO stripe_events (id, kind, object_id, received_at)
             SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) ON CONFLICT DO NOTHING",
            &ids,
            &kinds,
            &objects,
            &times,
        )
        .execute(self.database.pool())
        .await?;
        Ok(())
    }

    /// Handles what was noted and not handled, the oldest first, for as long as there is time, and gives how many events
    /// could not be. An object is read once, however many events tell of it: none of them says more than what it is now.
    async fn make_good(&self, until: OffsetDateTime, end: Instant, done: &mut Reconciled) -> Result<usize> {
        let mut tried: HashMap<Object, bool> = HashMap::new();
        let (mut failed, mut longest) = (0, Duration::ZERO);
        let mut last = (OffsetDateTime::UNIX_EPOCH, String::new());
        'batches: loop {
            let rows = sqlx::query!(
                "SELECT id, kind, object_id, received_at FROM stripe_events
                 WHERE processed_at IS NULL AND received_at <= $1 AND (received_at, id) > ($2, $3)
                 ORDER BY received_at, id LIMIT $4",
                until,
                last.0,
                last.1,
                BATCH,
            )
            .fetch_all(self.database.pool())
            .await?;
            let Some(row) = rows.last() else { break };
            last = (row.received_at, row.id.clone());
            let events = rows.into_iter().filter_map(|row| Some(((kind_of(&row.kind)?, row.object_id), row.id)));
            for (object, events) in by_object(events) {
                let handled = match tried.get(&object) {
                    Some(handled) => *handled,
                    None => {
                        let started = Instant::now();
                        // What would hardly end is not begun.
                        if started + longest >= end {
                            break 'batches;
                        }
                        let trace = TraceContext::begin();
                        let Ok(synced) = timeout_at(end, self.sync(object.0, &object.1, &trace)).await else {
                            // Its connection, the only one, may still wait for a lock.
                            runtime::end_after_answer();
                            return Ok(failed);
                        };
                        longest = longest.max(started.elapsed());
                        if let Err(error) = &synced {
                            tracing::error!(
                                error.cause = %error,
                                stripe.event = events.first(),
                                stripe.events = events.len(),
                                "an event could not be handled"
                            );
                        }
                        synced.is_ok()
                    }
                };
                tried.insert(object, handled);
                // One that cannot be handled keeps neither the others nor the next run from their work.
                if handled {
                    self.handled(&events).await?;
                    done.made_good += events.len();
                } else {
                    failed += events.len();
                }
            }
        }
        let left = sqlx::query_scalar!(
            r#"SELECT count(*) AS "left!" FROM stripe_events WHERE processed_at IS NULL AND received_at <= $1"#,
            until,
        );
        done.left = Some(left.fetch_one(self.database.pool()).await?);
        Ok(failed)
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
    /// how many users have lost their plan. Whoever is busy, of whom Stripe tells nothing now, or for whom there is no time,
    /// is found again by the next run.
    async fn end_graces(&self, end: Instant) -> Result<usize> {
        let due = sqlx::query!(
            "SELECT s.user_id, s.stripe_id FROM subscriptions s JOIN users u ON u.id = s.user_id
             WHERE s.status = 'past_due' AND s.grace_end <= $1 AND u.plan <> 'free'",
            clock::now(),
        )
        .fetch_all(self.database.pool())
        .await?;
        for due in &due {
            if Instant::now() >= end {
                break;
            }
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

/// The events of each object, in the order of the first ones.
fn by_object(events: impl Iterator<Item = (Object, String)>) -> Vec<(Object, Vec<String>)> {
    let (mut grouped, mut places) = (Vec::new(), HashMap::new());
    for (object, event) in events {
        let place = *places.entry(object).or_insert_with_key(|object| {
            grouped.push((object.clone(), Vec::new()));
            grouped.len() - 1
        });
        grouped[place].1.push(event);
    }
    grouped
}
