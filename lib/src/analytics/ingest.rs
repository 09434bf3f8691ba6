//! Messages of the events queue: those that are events are written, those that never can be go to the dead letters.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use crate::analytics::block::Rows;
use crate::analytics::delivery::{Events, Record};
use crate::analytics::event::Rejection;
use crate::analytics::writer::Writer;
use crate::clock;
use crate::config;
use crate::error::{Code, Error, Result};
use crate::store::clickhouse::ClickHouse;
use crate::store::postgres::Database;
use crate::store::queue::{DeadLetter, Queue};
use crate::telemetry::faults;

/// Writing is tried again for so long before the messages go back to the queue.
const WRITE_RETRY_FOR: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(1);
/// Counting what is given up may take so long, of what is left for the answer.
const LONGEST_NOTE: Duration = Duration::from_secs(1);

/// What the worker needs.
pub struct Ingest {
    writer: Writer,
    database: Database,
    dead_letters: Queue,
    max_receive_count: u32,
}

impl Ingest {
    /// Reads secrets and settings; connects on first use. `EVENTS_MAX_RECEIVE_COUNT` is how often SQS delivers
    /// a message before it gives it up, as the template says it to both.
    ///
    /// # Errors
    /// When a variable is missing or malformed, or a secret is missing.
    pub async fn init() -> Result<Self> {
        let (clickhouse, database) = futures_util::try_join!(ClickHouse::init(), Database::init())?;
        Ok(Self {
            writer: Writer::new(clickhouse, &database),
            database,
            dead_letters: Queue::from_env("EVENTS_DLQ_URL")?,
            max_receive_count: config::required_parsed("EVENTS_MAX_RECEIVE_COUNT")?,
        })
    }

    /// Counts a batch before some moment; gives the ids of the messages that SQS should redeliver.
    pub async fn batch(&self, records: &[Record<'_>], end: Instant) -> Vec<String> {
        let Events { rows, carriers, rejected } = Events::read(records, clock::millis(clock::now()));
        // Where this takes too long, what was rejected is delivered again, and rejected again.
        let all = || rejected.iter().map(|(record, _)| record.id().to_owned()).collect();
        let mut failed = timeout_at(end, self.reject(&rejected)).await.unwrap_or_else(|_| all());
        if !failed.is_empty() {
            faults::report_unanswered(&Error::unavailable("the dead letters did not take what was rejected"));
        }
        let written = timeout_at(end, self.write(&rows)).await;
        match written.unwrap_or_else(|_| Err(Error::unavailable("a store does not answer in time"))) {
            Ok(written) => tracing::info!(
                events.received = carriers.len(),
                events.written = written,
                events.clamped = rows.clamped(),
                messages.rejected = rejected.len(),
                "events were ingested"
            ),
            Err(error) => {
                tracing::error!(events.received = carriers.len(), error.cause = %error, "events could not be written");
                faults::report_unanswered(&error);
                if timeout(LONGEST_NOTE, self.note_given_up(&carriers)).await.is_err() {
                    tracing::error!("messages that are given up were not counted in time");
                }
                failed.extend(carriers.iter().map(|record| record.id().to_owned()));
            }
        }
        failed
    }

    /// Tries until the stores answer, or for so long: a consumer that waits takes no further messages.
    async fn write(&self, rows: &Rows) -> Result<usize> {
        let started = Instant::now();
        loop {
            match self.writer.write_rows(rows).await {
                Err(error) if error.code() == Code::Unavailable && started.elapsed() < WRITE_RETRY_FOR => {
                    tracing::warn!(error.cause = %error, "events wait for a store that does not answer");
                    tokio::time::sleep(PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Sends what can never be counted to the dead letters, with the reason; gives the ids of those that are to come
    /// again, because they could not be noted, or the dead-letter queue did not take them.
    async fn reject(&self, rejected: &[(&Record<'_>, Rejection)]) -> Vec<String> {
        let mut bodies = vec![String::new(); rejected.len()];
        let letters: Vec<DeadLetter<'_>> = rejected
            .iter()
            .zip(&mut bodies)
            .map(|((record, rejection), body)| DeadLetter {
                message_id: record.id(),
                body: record.body(body),
                reason: rejection.to_string(),
            })
            .collect();
        let notes = letters.iter().map(|letter| (letter.message_id.to_owned(), letter.reason.clone()));
        if !self.note_dead(notes.unzip()).await {
            return letters.iter().map(|letter| letter.message_id.to_owned()).collect();
        }
        self.dead_letters.send_dead_letters(&letters).await.into_iter().map(str::to_owned).collect()
    }

    /// Counts the messages that SQS itself is about to move to the dead letters.
    async fn note_given_up(&self, records: &[&Record<'_>]) {
        let is_last = |record: &&&Record<'_>| record.deliveries().is_some_and(|count| count >= self.max_receive_count);
        let given_up = records.iter().filter(is_last);
        self.note_dead(given_up.map(|record| (record.id().to_owned(), "not written in time".to_owned())).unzip()).await;
    }

    /// The total of dead letters is kept by message id, since a message may be rejected more than once. Tells whether
    /// they were noted.
    async fn note_dead(&self, (ids, reasons): (Vec<String>, Vec<String>)) -> bool {
        if ids.is_empty() {
            return true;
        }
        let noted = sqlx::query!(
            "INSERT INTO dead_letters (message_id, reason) SELECT * FROM unnest($1::text[], $2::text[])
             ON CONFLICT (message_id) DO NOTHING",
            &ids,
            &reasons,
        )
        .execute(self.database.pool())
        .await;
        if let Err(error) = &noted {
            tracing::error!(error.cause = %error, messages = ids.len(), "dead letters were not counted");
        }
        noted.is_ok()
    }
}
