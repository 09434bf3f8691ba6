//! The schemas of Postgres and ClickHouse, and locally the first admin.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::time::Instant;
use uuid::Uuid;

use crate::analytics::writer;
use crate::analytics::writer_lock::{WriterGuard, WriterLock};
use crate::auth::email::Email;
use crate::auth::password::{self, NewPassword};
use crate::config::{self, Stage};
use crate::crypto;
use crate::error::{Error, Result};
use crate::http::validate::{Fields, FromFields};
use crate::store::clickhouse::{ClickHouse, Reader, identifier};
use crate::store::postgres::Database;

static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// Version, name and statements of each migration of ClickHouse, in order. A statement can be run again: what
/// was cut short begins anew.
const CLICKHOUSE: &[(u32, &str, &str)] = &[
    (1, "events", include_str!("../migrations/clickhouse/0001_events.sql")),
    (2, "views", include_str!("../migrations/clickhouse/0002_views.sql")),
    (3, "users", include_str!("../migrations/clickhouse/0003_users.sql")),
    (4, "grains", include_str!("../migrations/clickhouse/0004_grains.sql")),
    (5, "retention", include_str!("../migrations/clickhouse/0005_retention.sql")),
];

/// Seconds that a migration waits for the writers before it.
const LOCK_WAIT_SECONDS: u32 = 120;

/// How long a migration of Postgres waits for a table. Whoever comes after it waits behind it, reader or not.
const TABLE_WAIT: &str = "SET lock_timeout = '3s'";
/// What a lock that others held, a deadlock with them, a server that ends or begins, and one that is not there say.
const PASSING: [&str; 6] = ["55P03", "40P01", "57P01", "57P02", "57P03", "08"];
/// The pause after the first try; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// What a run came to.
#[derive(Debug, Serialize)]
pub struct Migrated {
    /// The versions in place.
    pub postgres: Vec<i64>,
    /// The versions in place.
    pub clickhouse: Vec<u32>,
    /// What became of the admin.
    pub admin: Seeded,
}

/// What became of the admin that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Seeded {
    /// The account is new.
    Created,
    /// The account was there, and is an admin's.
    Exists,
    /// None was asked for.
    None,
}

crate::request! {
    /// An admin to begin with: the address counts as verified, the password is that of a new account only.
    struct Admin { email: Email, password: NewPassword }
}

/// Brings the stores up to date.
pub struct Migrations {
    database: Database,
    clickhouse: ClickHouse,
    lock: WriterLock,
    /// The account to make for the figures.
    reader: Option<Reader>,
}

impl Migrations {
    /// Reads the secrets; connects on first use. `CLICKHOUSE_MANAGE_READER` says whether the account that only
    /// reads is made here.
    ///
    /// # Errors
    /// When a secret cannot be read.
    pub async fn init() -> Result<Self> {
        let (database, clickhouse) = futures_util::try_join!(Database::init(), ClickHouse::init())?;
        let is_managed = config::parsed("CLICKHOUSE_MANAGE_READER", false)?;
        let reader = if is_managed { ClickHouse::reader_account().await? } else { None };
        Ok(Self { reader, ..Self::new(database, clickhouse) })
    }

    /// Migrations of these stores.
    #[must_use]
    pub fn new(database: Database, clickhouse: ClickHouse) -> Self {
        Self { lock: WriterLock::new(&database), database, clickhouse, reader: None }
    }

    /// Applies what is missing, then sees to the admin of the payload. Half of the time may pass until others let go of a
    /// table of Postgres.
    ///
    /// # Errors
    /// When a store does not answer or refuses, which the cause then names, and for an admin outside the local stage.
    pub async fn run(&self, payload: &serde_json::Value, time_left: Duration) -> Result<Migrated> {
        // No event is written meanwhile, so a view that is added misses none and counts none twice.
        let mut guard = self.lock.acquire(LOCK_WAIT_SECONDS).await.map_err(|error| behind("Postgres", &error))?;
        self.migrate_postgres(time_left / 2).await.map_err(|error| behind("Postgres", &error))?;
        self.migrate_clickhouse(&mut guard).await.map_err(|error| behind("ClickHouse", &error))?;
        self.lock.release(guard).await?;
        Ok(Migrated {
            postgres: POSTGRES.iter().map(|migration| migration.version).collect(),
            clickhouse: CLICKHOUSE.iter().map(|(version, ..)| *version).collect(),
            admin: match payload.get("admin").filter(|admin| !admin.is_null()) {
                Some(admin) => self.seed(admin).await?,
                None => Seeded::None,
            },
        })
    }

    /// Each migration is a transaction with its own row of `_sqlx_migrations`: one that did not end well can be run again.
    async fn migrate_postgres(&self, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        let mut pause = FIRST_PAUSE;
        loop {
            let Err(error) = self.try_postgres().await else { return Ok(()) };
            if !passes(&error) {
                return Err(Error::internal(error));
            }
            if Instant::now() + pause > end {
                let seconds = patience.as_secs();
                return Err(Error::unavailable(format!("it was tried again and again for {seconds} s: {error}")));
            }
            tracing::warn!(error.cause = %error, "a migration of Postgres is tried again");
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// On a connection of its own: a migration that fails leaves sqlx's lock of migrators to the session.
    async fn try_postgres(&self) -> std::result::Result<(), MigrateError> {
        let mut connection = self.database.pool().connect_options().connect().await?;
        connection.execute(TABLE_WAIT).await?;
        // What `run` does, which no task can wait for with a connection that it owns.
        POSTGRES.run_direct(None, &mut connection, false).await?;
        Ok(connection.close().await?)
    }

    async fn migrate_clickhouse(&self, guard: &mut WriterGuard) -> Result<()> {
        let done = prepare(&self.clickhouse).await?;
        if let Some((version, name, _)) = CLICKHOUSE.iter().find(|(version, _, statements)| {
            done.iter().any(|applied| applied.version == *version && applied.checksum != checksum(statements))
        }) {
            return Err(Error::internal(format!(
                "migration {version} ({name}) of ClickHouse was changed since it was applied; \
                 a local stack begins anew by `make reset`"
            )));
        }
        let known = |applied: &Applied| CLICKHOUSE.iter().any(|(version, ..)| *version == applied.version);
        if let Some(applied) = done.iter().find(|applied| !known(applied)) {
            return Err(Error::internal(format!(
                "ClickHouse has migration {}, which this code is older than: its figures may be wrong",
                applied.version
            )));
        }
        if !done.is_empty() {
            writer::replay(guard, &self.clickhouse).await?;
        }
        for (version, name, statements) in CLICKHOUSE {
            if !done.iter().any(|applied| applied.version == *version) {
                apply(&self.clickhouse, guard, *version, name, statements).await?;
            }
        }
        if let Some(reader) = &self.reader {
            for statement in reader.statements(self.clickhouse.database(), &fill("${on_cluster}")?)? {
                self.clickhouse.client().query_raw(&statement).execute().await?;
            }
        }
        Ok(())
    }

    async fn seed(&self, admin: &serde_json::Value) -> Result<Seeded> {
        if Stage::from_env()? != Stage::Local {
            return Err(Error::internal("an admin is seeded at stage local only; elsewhere set ADMIN_EMAILS"));
        }
        let object = admin.as_object().ok_or_else(|| Error::internal("admin is not an object"))?;
        let mut fields = Fields::body(object);
        let parsed = Admin::from_fields(&mut fields);
        let Admin { email, password } = fields.finish(parsed)?;
        let hash = password::hash(password).await?;
        let created = sqlx::query_scalar!(
            r#"INSERT INTO users (id, email, password_hash, role, email_verified_at)
               VALUES ($1, $2, $3, 'admin', now())
               ON CONFLICT (email) DO UPDATE
               SET role = 'admin', email_verified_at = coalesce(users.email_verified_at, now()), updated_at = now()
               RETURNING id = $1 AS "created!""#,
            Uuid::now_v7(),
            email.as_str(),
            hash,
        )
        .fetch_one(self.database.pool())
        .await?;
        Ok(if created { Seeded::Created } else { Seeded::Exists })
    }
}

/// Whether the same may go well a moment later.
fn passes(error: &MigrateError) -> bool {
    match error {
        MigrateError::Execute(sqlx::Error::Io(_)) | MigrateError::ExecuteMigration(sqlx::Error::Io(_), _) => true,
        MigrateError::Execute(sqlx::Error::Database(cause))
        | MigrateError::ExecuteMigration(sqlx::Error::Database(cause), _) => {
            cause.code().is_some_and(|code| PASSING.iter().any(|class| code.starts_with(class)))
        }
        _ => false,
    }
}

/// Says which store it was: the other one is as it was before, or already as it should be. `deploy/guide.py` looks for
/// these words.
#[track_caller]
fn behind(store: &str, error: &Error) -> Error {
    Error::caused(error.code(), format!("the schema of {store} is not up to date: {error}"))
}

#[derive(clickhouse::Row, Deserialize)]
struct Applied {
    version: u32,
    checksum: String,
}

/// Tells a migration that was changed from the one that was applied.
fn checksum(statements: &str) -> String {
    hex::encode(crypto::sha256(statements.as_bytes()))
}

/// Makes database and table of versions; gives the migrations that are in place.
async fn prepare(clickhouse: &ClickHouse) -> Result<Vec<Applied>> {
    let server = clickhouse.client().clone().with_database("default");
    let database = identifier(clickhouse.database())?;
    server.query_raw(&fill(&format!("CREATE DATABASE IF NOT EXISTS {database} ${{on_cluster}}"))?).execute().await?;
    let versions = "CREATE TABLE IF NOT EXISTS schema_migrations ${on_cluster} (
            version UInt32, name String, applied_at DateTime DEFAULT now()
        ) ENGINE = ${replicated}ReplacingMergeTree ORDER BY version";
    clickhouse.client().query_raw(&fill(versions)?).execute().await?;
    let checksums = "ALTER TABLE schema_migrations ${on_cluster} ADD COLUMN IF NOT EXISTS checksum String";
    clickhouse.client().query_raw(&fill(checksums)?).execute().await?;
    let applied = "SELECT version, checksum FROM schema_migrations FINAL ORDER BY version";
    Ok(clickhouse.client().query(applied).fetch_all().await?)
}

async fn apply(
    clickhouse: &ClickHouse,
    guard: &mut WriterGuard,
    version: u32,
    name: &str,
    statements: &str,
) -> Result<()> {
    for statement in split(&fill(statements)?) {
        clickhouse.client().query_raw(statement).execute().await?;
        if let Some(view) = View::of(statement) {
            guard.assert_held().await?;
            view.rebuild(clickhouse).await?;
        }
    }
    clickhouse
        .client()
        .query("INSERT INTO schema_migrations (version, name, checksum) VALUES (?, ?, ?)")
        .bind(version)
        .bind(name)
        .bind(checksum(statements))
        .execute()
        .await?;
    tracing::info!(migration.version = version, migration.name = name, "a ClickHouse migration was applied");
    Ok(())
}

/// A materialized view: the statement that makes it also says how to make all of its rows at once.
struct View<'a> {
    target: &'a str,
    select: &'a str,
}

impl<'a> View<'a> {
    fn of(statement: &'a str) -> Option<Self> {
        let (head, select) = statement.split_once(" AS\n")?;
        let is_view = head.contains("CREATE MATERIALIZED VIEW");
        let target = head.rsplit_once(" TO ").filter(|_| is_view)?.1;
        Some(Self { target, select })
    }

    /// Fills the view's table with what is in the events already. Nobody writes meanwhile.
    async fn rebuild(&self, clickhouse: &ClickHouse) -> Result<()> {
        let client = clickhouse.consistent_client();
        client.query_raw(&fill(&format!("TRUNCATE TABLE {} ${{on_cluster}}", self.target))?).execute().await?;
        client
            .query_raw(&format!("INSERT INTO {} {}", self.target, self.select))
            .with_setting("max_partitions_per_insert_block", "0")
            .execute()
            .await?;
        Ok(())
    }
}

/// Statements end with a semicolon at the end of a line.
fn split(statements: &str) -> impl Iterator<Item = &str> {
    statements.split(";\n").map(str::trim).filter(|statement| !statement.is_empty())
}

/// Fills in what depends on the server: `CLICKHOUSE_CLUSTER` names the cluster, whose tables are then replicated.
pub(crate) fn fill(statements: &str) -> Result<String> {
    fill_for(statements, cluster().as_deref())
}

/// The cluster whose servers have replicas of the tables, if there are several.
pub(crate) fn cluster() -> Option<String> {
    config::optional("CLICKHOUSE_CLUSTER")
}

fn fill_for(statements: &str, cluster: Option<&str>) -> Result<String> {
    let (on_cluster, replicated, window) = match cluster {
        Some(cluster) => (format!("ON CLUSTER {}", identifier(cluster)?), "Replicated", "replicated"),
        None => (String::new(), "", "non_replicated"),
    };
    Ok(statements
        .replace("${on_cluster}", &on_cluster)
        .replace("${replicated}", replicated)
        .replace("${deduplication}", &format!("{window}_deduplication_window = 1000")))
}

/// How the rows of a view's table are made from the events, by the latest migration that says so.
pub(crate) fn view(target: &str) -> Option<&'static str> {
    let statements = CLICKHOUSE.iter().flat_map(|(.., statements)| split(statements));
    statements.filter_map(View::of).filter(|view| view.target == target).last().map(|view| view.select)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_cut_apart_and_versions_rise() {
        assert_eq!(split("A;\nB ;\n\n").collect::<Vec<_>>(), ["A", "B"]);
        assert!(CLICKHOUSE.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for (_, name, statements) in CLICKHOUSE {
            let filled = fill(statements).unwrap();
            assert!(!filled.contains("${"), "{name} has a placeholder that nothing fills");
        }
    }

    #[test]
    fn a_cluster_gets_everything_everywhere() {
        for (_, name, statements) in CLICKHOUSE {
            for statement in split(&fill_for(statements, Some("main")).unwrap()) {
                let code: Vec<&str> =
                    statement.lines().filter(|line| !line.is_empty() && !line.starts_with("--")).collect();
                let is_ddl = ["CREATE ", "DROP ", "ALTER "].iter().any(|verb| code[0].starts_with(verb));
                assert!(is_ddl && format!("{} ", code[0]).contains(" ON CLUSTER main "), "{name}: {statement}");
                let engine = code.iter().find(|line| line.starts_with("ENGINE = "));
                assert_eq!(engine.is_some(), code[0].starts_with("CREATE TABLE"), "{name}: {statement}");
                assert!(engine.is_none_or(|engine| engine.starts_with("ENGINE = Replicated")), "{name}: {statement}");
            }
        }
        assert!(fill_for("${on_cluster}", Some("main; DROP")).is_err());
    }

    #[test]
    fn every_table_of_a_view_remembers_tokens() {
        for (cluster, setting) in [(None, " non_replicated_dedup"), (Some("main"), " replicated_dedup")] {
            for (_, _, statements) in CLICKHOUSE {
                let filled = fill_for(statements, cluster).unwrap();
                let tables = filled.matches("CREATE TABLE").count();
                assert_eq!(filled.matches(&format!("{setting}lication_window = 1000;")).count(), tables);
            }
        }
    }
}
