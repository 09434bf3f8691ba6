//! Health checks: each dependency is asked for something trivial, all at once, within a deadline.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::Serialize;
use tokio::sync::OnceCell;

use crate::auth::session::Sessions;
use crate::clock;
use crate::config;
use crate::error::Result;
use crate::http::response::Response;
use crate::secrets;
use crate::store::clickhouse::ClickHouse;
use crate::store::postgres::Database;
use crate::store::queue::Queue;
use futures_util::future::BoxFuture;

/// A dependency that has not answered by then counts as down.
const DEADLINE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Up,
    Down,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dependency {
    status: Status,
    latency_ms: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    status: Status,
    version: &'static str,
    uptime_seconds: u64,
    dependencies: BTreeMap<&'static str, Dependency>,
}

/// The dependencies that the function's environment names.
pub struct Health {
    started: Instant,
    database: Option<OnceCell<Database>>,
    sessions: Option<Sessions>,
    queue: Option<Queue>,
    clickhouse: Option<OnceCell<ClickHouse>>,
    secret: Option<&'static str>,
}

impl Health {
    /// Finds out which dependencies there are. Their secrets are read when they are asked, again until that succeeds:
    /// a dependency that is down is no error, saying so is the point.
    ///
    /// # Errors
    /// When the AWS configuration is incomplete.
    pub async fn init() -> Result<Self> {
        let named = |variable| config::optional(variable).is_some();
        let secret = ["DATABASE_SECRET_ARN", "CLICKHOUSE_SECRET_ARN"].into_iter().find(|variable| named(variable));
        Ok(Self {
            started: process_start(),
            database: named("DATABASE_SECRET_ARN").then(OnceCell::new),
            sessions: if named("SESSIONS_TABLE") { Some(Sessions::from_env()?) } else { None },
            queue: Queue::optional("EVENTS_QUEUE_URL")?,
            clickhouse: named("CLICKHOUSE_SECRET_ARN").then(OnceCell::new),
            secret,
        })
    }

    /// Asks all dependencies: 200 when all are up, 503 otherwise.
    ///
    /// # Errors
    /// When the report cannot be written.
    pub async fn report(&self) -> Result<Response> {
        let mut checks: Vec<BoxFuture<'_, (&'static str, Dependency)>> = Vec::new();
        if let Some(database) = &self.database {
            let ping = async { database.get_or_try_init(Database::init).await?.ping().await };
            checks.push(Box::pin(check("postgres", ping)));
        }
        if let Some(sessions) = &self.sessions {
            checks.push(Box::pin(check("dynamodb", sessions.ping())));
        }
        if let Some(queue) = &self.queue {
            checks.push(Box::pin(check("sqs", queue.ping())));
        }
        if let Some(clickhouse) = &self.clickhouse {
            let ping = async { clickhouse.get_or_try_init(ClickHouse::init).await?.ping().await };
            checks.push(Box::pin(check("clickhouse", ping)));
        }
        if let Some(variable) = self.secret {
            checks.push(Box::pin(check("secrets", secrets::ping(variable))));
        }
        let dependencies: BTreeMap<_, _> = join_all(checks).await.into_iter().collect();
        let up = dependencies.values().all(|dependency| dependency.status == Status::Up);
        let report = Report {
            status: if up { Status::Up } else { Status::Down },
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            dependencies,
        };
        let status = if up { http::StatusCode::OK } else { http::StatusCode::SERVICE_UNAVAILABLE };
        Response::json(status, &report)
    }
}

async fn check(name: &'static str, ping: impl Future<Output = Result<()>> + Send) -> (&'static str, Dependency) {
    let started = Instant::now();
    let status = match tokio::time::timeout(DEADLINE, ping).await {
        Ok(Ok(())) => Status::Up,
        Ok(Err(error)) => {
            tracing::warn!(dependency = name, error.cause = %error, "a dependency is down");
            Status::Down
        }
        Err(_) => {
            tracing::warn!(dependency = name, "a dependency did not answer in time");
            Status::Down
        }
    };
    (name, Dependency { status, latency_ms: clock::whole_millis(started.elapsed()) })
}

fn process_start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}
