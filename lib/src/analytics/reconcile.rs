//! Views against the raw table: every day is counted anew, and a month with a day that differs is replaced.
//!
//! Ingestion counts each event once, so this finds nothing unless a server lost a part of a view, or somebody
//! wrote into a table by hand. Before it, the dead letters are forgotten that no queue has any more.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use crate::analytics::writer;
use crate::analytics::writer_lock::WriterLock;
use crate::error::{Error, Result};
use crate::migrate;
use crate::store::clickhouse::ClickHouse;
use crate::store::postgres::Database;

/// Seconds that a comparison waits for the writers before it.
const LOCK_WAIT_SECONDS: u32 = 60;

/// A dead letter is known for so long: SQS keeps a message for 14 days at most, and one that is redriven has another id.
const DEAD_LETTERS_KEPT: Duration = Duration::from_secs(15 * 24 * 3600);
/// Dead letters that one run forgets at most.
const FORGOTTEN_AT_ONCE: i64 = 100_000;

/// A view's table, the day of a row, and what of a row is compared: not the estimates of quantiles, which depend
/// on the order in which parts were merged. `request_totals` is not here, since raw telemetry does not stay. The one that
/// is counted anew from all events ever comes last: it may take longer than the function has.
const VIEWS: [(&str, &str, &str); 10] = [
    ("user_metrics", "day", "*"),
    ("daily_active_users", "toDate(hour)", "* REPLACE (finalizeAggregation(users) AS users)"),
    ("chat_statistics", "day", "* EXCEPT (latency, ttft) REPLACE (finalizeAggregation(users) AS users)"),
    ("chat_metrics_hourly", "toDate(hour)", "* REPLACE (finalizeAggregation(users) AS users)"),
    ("provider_usage", "day", "*"),
    ("revenue_analytics", "toDate(hour)", "*"),
    ("mrr_metrics", "toDate(hour)", "*"),
    ("revenue_by_country", "day", "*"),
    ("churn_metrics", "day", "*"),
    ("user_retention", "toDate(signup)", "*"),
];

/// The rows of a month, in the raw table as in those of views; all for month 0. By the name of their partition: under
/// `FINAL` a condition on the time of events reads all that there are.
const MONTH_ONLY: &str = "toString({month:UInt32}) IN ('0', _partition_id)";

/// What to compare; the payload of an invocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The months into which events came within so many days.
    #[serde(default = "default_days")]
    pub days: u32,
    /// Where to begin, if not at the first view.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Place>,
}

const fn default_days() -> u32 {
    2
}

/// A month of a view, such as 202601. Month 0 is all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The view's table.
    pub view: String,
    /// The month.
    pub month: u32,
}

/// What a run found.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reconciled {
    /// Months that were compared, of all views.
    pub months_compared: usize,
    /// Days that differed, by view.
    pub days_rebuilt: Vec<(&'static str, Vec<String>)>,
    /// Months for which the time was too short.
    pub months_left: usize,
    /// The payload that goes on with them.
    pub next: Option<Task>,
    /// Dead letters whose rows went; they stay counted.
    pub dead_letters_forgotten: u64,
}

/// Compares and repairs.
pub struct Reconciler {
    clickhouse: ClickHouse,
    database: Database,
    lock: WriterLock,
}

impl Reconciler {
    /// Reads the secrets; connects on first use.
    ///
    /// # Errors
    /// When a secret cannot be read.
    pub async fn init() -> Result<Self> {
        let (clickhouse, database) = futures_util::try_join!(ClickHouse::init(), Database::init())?;
        Ok(Self::new(clickhouse, &database))
    }

    /// A reconciler of these stores.
    #[must_use]
    pub fn new(clickhouse: ClickHouse, database: &Database) -> Self {
        Self { clickhouse, database: database.clone(), lock: WriterLock::new(database) }
    }

    /// Compares the months into which events came in the last days, or all, one after the other for as long as there is
    /// time.
    ///
    /// # Errors
    /// When a store does not answer, what was repaired stays so; when the time is too short for a single month; and for
    /// a place in a view that there is not.
    pub async fn run(&self, task: &Task, time_left: Duration) -> Result<Reconciled> {
        let end = Instant::now() + time_left;
        let dead_letters_forgotten = self.forget_dead_letters().await?;
        let parts = self.parts(task).await?;
        let mut found = Reconciled { dead_letters_forgotten, ..Reconciled::default() };
        let mut longest = Duration::ZERO;
        for (done, &(index, month)) in parts.iter().enumerate() {
            let started = Instant::now();
            let (target, day, columns) = VIEWS[index];
            let compared = async {
                // What would hardly end is not begun.
                if done > 0 && started + longest > end {
                    return Ok(None);
                }
                match timeout_at(end, self.compare(target, day, columns, month, end)).await {
                    Ok(days) => days.map(Some),
                    Err(_) if done == 0 => Err(Error::internal(format!("{month} of {target} takes too long"))),
                    Err(_) => Ok(None),
                }
            };
            let next = Task { days: task.days, from: Some(Place { view: target.to_owned(), month }) };
            let days = compared.await.inspect_err(|_| {
                tracing::warn!(next = serde_json::to_string(&next).ok(), "the views before this one were reconciled");
            });
            let Some(days) = days? else {
                found.months_left = parts.len() - done;
                found.next = Some(next);
                break;
            };
            longest = longest.max(started.elapsed());
            found.months_compared += 1;
            if !days.is_empty() {
                tracing::warn!(view = target, month, ?days, "days of a view differed and were rebuilt");
                match found.days_rebuilt.last_mut() {
                    Some((view, rebuilt)) if *view == target => rebuilt.extend(days),
                    _ => found.days_rebuilt.push((target, days)),
                }
            }
        }
        let days_rebuilt: usize = found.days_rebuilt.iter().map(|(_, days)| days.len()).sum();
        let (months_compared, months_left) = (found.months_compared, found.months_left);
        let next = found.next.as_ref().map(serde_json::to_string).transpose()?;
        tracing::info!(
            days_rebuilt,
            months_compared,
            months_left,
            next,
            dead_letters_forgotten,
            "the views were reconciled"
        );
        Ok(found)
    }

    /// Deletes the rows of dead letters that neither can come again under their ids nor can be redriven; gives how many.
    async fn forget_dead_letters(&self) -> Result<u64> {
        let forgotten = sqlx::query!(
            "DELETE FROM dead_letters WHERE message_id IN (
                 SELECT message_id FROM dead_letters WHERE created_at < now() - make_interval(secs => $1) LIMIT $2
             )",
            DEAD_LETTERS_KEPT.as_secs_f64(),
            FORGOTTEN_AT_ONCE,
        );
        Ok(forgotten.execute(self.database.pool()).await?.rows_affected())
    }

    /// The months to compare, each with the index of its view, from the first to the last.
    async fn parts(&self, task: &Task) -> Result<Vec<(usize, u32)>> {
        let sql = "SELECT DISTINCT toYYYYMM(time) AS month FROM events
             WHERE ingested_at > now64(3) - toIntervalDay({days:UInt32}) ORDER BY month";
        let months: Vec<u32> =
            self.clickhouse.consistent_client().query_raw(sql).param("days", task.days).fetch_all().await?;
        let mut parts = Vec::new();
        for (index, (target, ..)) in VIEWS.into_iter().enumerate() {
            // A user's first sign-up has no month of its own to be looked for in.
            let mut of_view =
                if target == "user_retention" { vec![0] } else { self.with_orphans(&months, target).await? };
            of_view.sort_unstable();
            parts.extend(of_view.into_iter().map(|month| (index, month)));
        }
        if let Some(Place { view, month }) = &task.from {
            let index = VIEWS.iter().position(|(target, ..)| target == view);
            let index = index.ok_or_else(|| Error::internal(format!("there is no view {view}")))?;
            parts.retain(|part| *part >= (index, *month));
        }
        Ok(parts)
    }

    /// These months and those of a view of which no event is left.
    async fn with_orphans(&self, months: &[u32], target: &str) -> Result<Vec<u32>> {
        let sql = format!(
            "SELECT DISTINCT toUInt32(_partition_id) AS month FROM {target}
             WHERE _partition_id NOT IN (SELECT DISTINCT _partition_id FROM events) ORDER BY month"
        );
        let orphans: Vec<u32> = self.clickhouse.consistent_client().query_raw(&sql).fetch_all().await?;
        Ok(months.iter().copied().chain(orphans).collect())
    }

    /// Counts a month of a view anew, beside it, and puts it in the view's place if a day differs. Month 0 is all.
    async fn compare(&self, target: &str, day: &str, columns: &str, month: u32, end: Instant) -> Result<Vec<String>> {
        let mut guard = self.lock.acquire(LOCK_WAIT_SECONDS).await?;
        writer::replay(&mut guard, &self.clickhouse).await?;
        let view = migrate::view(target).ok_or_else(|| Error::internal(format!("no migration makes {target}")))?;
        let client = self.clickhouse.consistent_client();
        // All parts of these statements are constants of this crate. A run that was cut short left its table, perhaps of
        // other columns, and perhaps ClickHouse is filling it still.
        let drop = migrate::fill(&format!("DROP TABLE IF EXISTS {target}_anew ${{on_cluster}} SYNC"))?;
        let create = migrate::fill(&format!("CREATE TABLE {target}_anew ${{on_cluster}} AS {target}"))?;
        for statement in [&drop, &create] {
            client.query_raw(statement).execute().await?;
        }
        let select =
            view.replace("FROM events", &format!("FROM (SELECT * FROM events FINAL WHERE {MONTH_ONLY}) AS events"));
        // Nobody cancels what ClickHouse is at when this run is over, and the next one would find it at work.
        let seconds = end.saturating_duration_since(Instant::now()).as_secs() + 1;
        client
            .query_raw(&format!("INSERT INTO {target}_anew {select}"))
            .param("month", month)
            .with_setting("max_partitions_per_insert_block", "0")
            .with_setting("max_execution_time", seconds.to_string())
            .execute()
            .await?;
        let digests = |table: &str| {
            format!(
                "SELECT {day} AS of_day, sum(cityHash64({columns})) AS digest FROM {table} FINAL
                     WHERE {MONTH_ONLY} GROUP BY of_day"
            )
        };
        let differing = format!(
            "SELECT toString(of_day) FROM ({}) AS new FULL JOIN ({}) AS old USING (of_day)
             WHERE new.digest != old.digest ORDER BY of_day",
            digests(&format!("{target}_anew")),
            digests(target),
        );
        let days: Vec<String> = client.query_raw(&differing).param("month", month).fetch_all().await?;
        if !days.is_empty() {
            let partition = if month == 0 { "tuple()".to_owned() } else { month.to_string() };
            let rows: u64 = client.query_raw(&format!("SELECT count() FROM {target}_anew")).fetch_one().await?;
            // A partition without rows is no source.
            let replace = match rows {
                0 => format!("ALTER TABLE {target} ${{on_cluster}} DROP PARTITION {partition}"),
                _ => format!("ALTER TABLE {target} ${{on_cluster}} REPLACE PARTITION {partition} FROM {target}_anew"),
            };
            // Any replica may do it, with what it has of the source.
            if migrate::cluster().is_some() {
                let sync = format!("SYSTEM SYNC REPLICA ${{on_cluster}} {target}_anew");
                client.query_raw(&migrate::fill(&sync)?).execute().await?;
            }
            guard.assert_held().await?;
            client.query_raw(&migrate::fill(&replace)?).execute().await?;
        }
        client.query_raw(&drop).execute().await?;
        self.lock.release(guard).await?;
        Ok(days)
    }
}
