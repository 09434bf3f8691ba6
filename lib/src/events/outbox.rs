//! The transactional outbox: messages are rows of the transaction that they tell of, sent right after the
//! commit, and by the relay when that did not happen.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;
use uuid::Uuid;

use crate::background;
use crate::billing::webhook::Notice;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::mail::Mail;
use crate::store::queue::{Outgoing, Queue};
use crate::telemetry::trace::TraceContext;

/// How long a sandbox is held by a queue that does not answer; the relay has more time.
const PATIENCE: Duration = Duration::from_secs(3);
/// Rows younger than this are left to the function that wrote them.
const RELAY_AFTER: Duration = Duration::from_secs(15);
/// Rows that the relay takes at a time.
const RELAY_BATCH: i64 = 500;
/// The end of the relay's time in which it begins no batch: a call that SQS does not answer is given up after eight
/// seconds, and what is left has to be told.
const TO_END: Duration = Duration::from_secs(12);

/// The queue that a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Events for analytics.
    Events,
    /// Mails.
    Mail,
    /// Objects of Stripe to be read anew.
    Stripe,
}

impl Destination {
    /// Those first that somebody waits for: of events there may be very many.
    const ALL: [Self; 3] = [Self::Mail, Self::Stripe, Self::Events];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Mail => "mail",
            Self::Stripe => "stripe",
        }
    }

    const fn variable(self) -> &'static str {
        match self {
            Self::Events => "EVENTS_QUEUE_URL",
            Self::Mail => "MAIL_QUEUE_URL",
            Self::Stripe => "STRIPE_QUEUE_URL",
        }
    }
}

/// A message that waits for the commit of what it tells of.
#[derive(Debug, Clone)]
struct Pending {
    destination: Destination,
    message: Outgoing,
}

/// The messages of a transaction, or of a statement that is one by itself.
#[derive(Debug)]
pub struct Messages {
    pending: Vec<Pending>,
    traceparent: String,
}

/// Messages as the columns of the outbox, for `unnest`.
pub struct Rows {
    /// The messages' ids.
    pub ids: Vec<Uuid>,
    /// The queues that they are for.
    pub queues: Vec<String>,
    /// Their JSON text.
    pub bodies: Vec<String>,
}

impl Messages {
    /// None yet, of a trace.
    #[must_use]
    pub fn of(trace: &TraceContext) -> Self {
        Self { pending: Vec::new(), traceparent: trace.to_string() }
    }

    /// Adds an event.
    pub fn event(&mut self, mut event: Event) {
        event.traceparent = Some(self.traceparent.clone());
        self.pending.push(Pending { destination: Destination::Events, message: event.to_outgoing() });
    }

    /// Adds a mail.
    ///
    /// # Errors
    /// When the job cannot be written as JSON.
    pub fn mail(&mut self, mail: &Mail) -> Result<()> {
        self.job(Destination::Mail, mail)
    }

    /// Adds an object of Stripe that changed.
    ///
    /// # Errors
    /// When the notice cannot be written as JSON.
    pub fn notice(&mut self, notice: &Notice) -> Result<()> {
        self.job(Destination::Stripe, notice)
    }

    fn job(&mut self, destination: Destination, job: &impl Serialize) -> Result<()> {
        let message = Outgoing { id: Uuid::now_v7(), body: serde_json::to_string(job)? };
        self.pending.push(Pending { destination, message });
        Ok(())
    }

    /// The rows, for a statement that writes them beside what they tell of.
    #[must_use]
    pub fn rows(&self) -> Rows {
        Rows {
            ids: self.pending.iter().map(|p| p.message.id).collect(),
            queues: self.pending.iter().map(|p| p.destination.as_str().to_owned()).collect(),
            bodies: self.pending.iter().map(|p| p.message.body.clone()).collect(),
        }
    }

    /// Writes them as rows of the transaction.
    pub(crate) async fn insert(&self, connection: &mut PgConnection) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let rows = self.rows();
        sqlx::query!(
            "INSERT INTO outbox (id, queue, body) SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[])",
            &rows.ids,
            &rows.queues,
            &rows.bodies,
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// Sends committed messages to their queues and deletes the rows that SQS took.
#[derive(Clone)]
pub struct Dispatcher {
    pool: PgPool,
    queues: [Option<Queue>; 3],
}

impl Dispatcher {
    /// A dispatcher for the queues that the environment names; messages for others stay in the outbox.
    ///
    /// # Errors
    /// When the AWS configuration is incomplete.
    pub fn from_env(pool: PgPool) -> Result<Self> {
        let [mail, stripe, events] = Destination::ALL.map(|destination| Queue::optional(destination.variable()));
        Ok(Self { pool, queues: [mail?, stripe?, events?] })
    }

    /// Sends in the background; failures are logged and left to the relay.
    pub(crate) fn dispatch(self, messages: Messages) {
        let pending = messages.pending;
        if pending.is_empty() {
            return;
        }
        background::spawn_behind_reply(async move {
            if let Err(error) = self.send(&pending).await {
                tracing::warn!(error.cause = %error, messages = pending.len(), "messages were left to the outbox relay");
            }
        });
    }

    /// Each queue's rows are deleted as soon as it has them: the relay would send them again while another queue is slow.
    async fn send(&self, pending: &[Pending]) -> Result<()> {
        let sending = Destination::ALL.into_iter().zip(&self.queues).filter_map(|(destination, queue)| {
            let messages = pending.iter().filter(|p| p.destination == destination).map(|p| p.message.clone());
            let messages: Vec<_> = messages.collect();
            let queue = queue.as_ref().filter(|_| !messages.is_empty())?;
            Some(async move { queue.send_within(PATIENCE, &messages).await })
        });
        // A queue that takes nothing keeps no other waiting.
        let mut sending: FuturesUnordered<_> = sending.collect();
        let mut outcome = Ok(());
        while let Some(sent) = sending.next().await {
            let deleted = match sent {
                Ok(ids) => self.delete(&ids).await,
                Err(error) => Err(error),
            };
            outcome = outcome.and(deleted);
        }
        outcome
    }

    async fn delete(&self, sent: &[Uuid]) -> Result<()> {
        // A deletion that a crash of the database takes back has the relay send them again, under the same ids.
        let deleted = sqlx::query!(
            "DELETE FROM outbox WHERE id = ANY($1) AND set_config('synchronous_commit', 'off', true) = 'off'",
            sent
        );
        deleted.execute(&self.pool).await?;
        Ok(())
    }
}

/// What one run of the relay did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Relayed {
    /// Messages sent.
    pub sent: usize,
    /// Messages still in the outbox, of any age; a hundred thousand stand for more.
    pub left: i64,
    /// Age of the oldest of them, in seconds.
    pub oldest_seconds: i64,
}

/// Sends what is left in the outbox: rows whose function died, or whose queue did not answer. A queue that does not
/// answer, or has more than there is time for, keeps no other waiting; the next run goes on.
///
/// # Errors
/// When the database or a queue does not answer; rows not sent stay.
pub async fn relay(dispatcher: &Dispatcher, time_left: Duration) -> Result<Relayed> {
    let end = Instant::now() + time_left.saturating_sub(TO_END);
    let (mut sent, mut outcome) = (0, Ok(()));
    for ((destination, queue), waiting) in Destination::ALL.into_iter().zip(&dispatcher.queues).zip([3, 2, 1]) {
        // What one does not need of its share is the others'.
        let now = Instant::now();
        let share = now + end.saturating_duration_since(now) / waiting;
        let relayed = match queue {
            Some(queue) => relay_queue(&dispatcher.pool, destination, queue, share, &mut sent).await,
            None => Err(Error::internal(format!("there is no environment variable {}", destination.variable()))),
        };
        if let Err(error) = relayed {
            tracing::error!(queue = destination.as_str(), error.cause = %error, "a queue's messages were not relayed");
            outcome = Err(error);
        }
    }
    // An alarm hears of the oldest, however many there are.
    let rest = sqlx::query!(
        r#"SELECT (SELECT count(*) FROM (SELECT FROM outbox LIMIT 100000) AS first) AS "left!",
                  coalesce(extract(epoch FROM now() - min(created_at)), 0)::bigint AS "oldest!" FROM outbox"#
    )
    .fetch_one(&dispatcher.pool)
    .await?;
    tracing::info!(
        outbox.sent = sent,
        outbox.left = rest.left,
        outbox.oldest_s = rest.oldest,
        // The same for a metric filter, whose names have no dots.
        outbox_oldest_s = rest.oldest,
        "the outbox was relayed"
    );
    outcome.map(|()| Relayed { sent, left: rest.left, oldest_seconds: rest.oldest })
}

/// Begins no batch after the end. Rows are locked while they are sent, so that two relays do not send the same ones.
async fn relay_queue(
    pool: &PgPool,
    destination: Destination,
    queue: &Queue,
    end: Instant,
    sent: &mut usize,
) -> Result<()> {
    while Instant::now() < end {
        let mut transaction = pool.begin().await?;
        let messages = sqlx::query_as!(
            Outgoing,
            "SELECT id, body FROM outbox
             WHERE queue = $1 AND created_at < now() - make_interval(secs => $2)
             ORDER BY created_at LIMIT $3 FOR UPDATE SKIP LOCKED",
            destination.as_str(),
            RELAY_AFTER.as_secs_f64(),
            RELAY_BATCH,
        )
        .fetch_all(&mut *transaction)
        .await?;
        let gone = queue.send(&messages).await?;
        sqlx::query!("DELETE FROM outbox WHERE id = ANY($1)", &gone).execute(&mut *transaction).await?;
        transaction.commit().await?;
        *sent += gone.len();
        if gone.is_empty() || i64::try_from(messages.len()).unwrap_or(i64::MAX) < RELAY_BATCH {
            break;
        }
    }
    Ok(())
}
