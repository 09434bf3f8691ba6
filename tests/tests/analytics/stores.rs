//! A database of its own for each test in the Postgres and the ClickHouse of the running stack.

use std::time::Duration;

use lib::analytics::event::Event;
use lib::analytics::reconcile::Reconciler;
use lib::analytics::writer::Writer;
use lib::config::Secret;
use lib::migrate::Migrations;
use lib::store::clickhouse::ClickHouse;
use lib::store::postgres::Database;
use sandbox::variable;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, Executor};
use uuid::Uuid;

/// What a migration has, as its function in an account does.
pub const PATIENCE: Duration = Duration::from_secs(600);

pub struct Stores {
    pub name: String,
    pub database: Database,
    pub clickhouse: ClickHouse,
}

impl Stores {
    /// Fresh databases with the schema in them.
    pub async fn fresh() -> Self {
        let stores = Self::empty().await;
        stores.migrations().run(&json!({}), PATIENCE).await.expect("migrations");
        stores
    }

    /// Fresh databases without a schema.
    pub async fn empty() -> Self {
        let name = format!("test_{}", Uuid::now_v7().simple());
        let admin: sqlx::postgres::PgConnectOptions = variable("DATABASE_URL").parse().expect("DATABASE_URL");
        let mut connection = admin.connect().await.expect("Postgres");
        let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        connection.execute(create).await.expect("a database");
        connection.close().await.expect("closing");
        let mut url = admin.database(&name).to_url_lossy();
        url.set_query(None);
        let database = Database::connect_lazy(url.as_str()).expect("the database's URL");
        Self { clickhouse: clickhouse(&variable("CLICKHOUSE_URL"), &name), name, database }
    }

    pub fn migrations(&self) -> Migrations {
        Migrations::new(self.database.clone(), self.clickhouse.clone())
    }

    /// Migrations whose ClickHouse is at another address.
    pub fn migrations_by(&self, clickhouse_url: &str) -> Migrations {
        Migrations::new(self.database.clone(), clickhouse(clickhouse_url, &self.name))
    }

    /// A writer as another sandbox would have it, by way of `clickhouse_url`.
    pub fn writer_by(&self, clickhouse_url: &str) -> Writer {
        Writer::new(clickhouse(clickhouse_url, &self.name), &self.database)
    }

    /// A reconciler whose ClickHouse is at another address.
    pub fn reconciler_by(&self, clickhouse_url: &str) -> Reconciler {
        Reconciler::new(clickhouse(clickhouse_url, &self.name), &self.database)
    }

    pub fn writer(&self) -> Writer {
        Writer::new(self.clickhouse.clone(), &self.database)
    }

    pub async fn left_batches(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM ingest_batches").fetch_one(self.database.pool()).await.expect("count")
    }

    /// Rows of the raw table, and the total of a view's target, which must be the same.
    pub async fn counted(&self) -> (u64, u64) {
        let raw = self.clickhouse.client().query("SELECT count() FROM events").fetch_one().await.expect("raw");
        let query = self.clickhouse.client().query("SELECT sum(events) FROM request_totals");
        (raw, query.fetch_one().await.expect("view"))
    }

    pub async fn drop(self) {
        let server = self.clickhouse.client().clone().with_database("default");
        server.query_raw(&format!("DROP DATABASE IF EXISTS {}", self.name)).execute().await.expect("dropping");
        self.database.pool().close().await;
        let admin: sqlx::postgres::PgConnectOptions = variable("DATABASE_URL").parse().expect("DATABASE_URL");
        let mut connection = admin.connect().await.expect("Postgres");
        let mut attempts = 0;
        loop {
            let drop = sqlx::AssertSqlSafe(format!("DROP DATABASE {} WITH (FORCE)", self.name));
            let Err(error) = connection.execute(drop).await else { break };
            // The server's own vacuuming may be at work there: it is not ours to end, and goes by itself.
            let is_refused = error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("42501"));
            attempts += 1;
            assert!(is_refused && attempts < 50, "dropping: {error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn clickhouse(url: &str, database: &str) -> ClickHouse {
    let password = Secret::new(variable("CLICKHOUSE_PASSWORD"));
    ClickHouse::connect_lazy(url, &variable("CLICKHOUSE_USER"), &password, database).expect("an HTTP client")
}

/// Valid messages, one event each.
pub fn signups(count: usize) -> Vec<String> {
    (0..count).map(|n| signup(Uuid::now_v7(), n).to_string()).collect()
}

pub fn signup(id: Uuid, n: usize) -> Value {
    json!({
        "specversion": "1.0", "id": id, "source": "/test", "type": "user.signup", "subject": format!("user-{n}"),
        "time": format!("2026-{:02}-{:02}T12:00:00Z", n % 12 + 1, n % 28 + 1),
        "data": {"schemaVersion": 1, "plan": "free", "country": null, "method": "password"},
    })
}

pub fn parse(bodies: &[String]) -> Vec<Event<'_>> {
    bodies.iter().map(|body| Event::parse(body, None).expect("a valid event")).collect()
}
