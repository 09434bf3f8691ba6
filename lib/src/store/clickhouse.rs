//! ClickHouse over HTTP.

use std::time::Duration;

use clickhouse::Client;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use tracing::{Span, debug_span};

use crate::config::Secret;
use crate::crypto;
use crate::error::{Error, Result};
use crate::outbound;
use crate::secrets;

const CONNECT: Duration = Duration::from_secs(3);
/// The server closes connections that were idle for three seconds.
const IDLE: Duration = Duration::from_secs(2);
/// What a reply waits for its figures: longer than the server works on one, shorter than its function may run.
const READ_TIMEOUT: Duration = Duration::from_secs(12);

#[derive(serde::Deserialize)]
struct ClickHouseSecret {
    url: String,
    user: String,
    password: Secret,
    database: String,
    /// A user that may only read; without one the other user reads too.
    #[serde(default)]
    reader: String,
}

/// What one figure may take: seconds, rows read, bytes of memory.
const LIMITS: [(&str, &str); 3] =
    [("max_execution_time", "10"), ("max_rows_to_read", "1000000000"), ("max_memory_usage", "4000000000")];

/// The span of a statement, named by its verb and what that is for.
pub(crate) fn span(statement: &str) -> Span {
    debug_span!(
        "clickhouse",
        otel.name = format!("clickhouse {statement}"),
        otel.kind = "client",
        db.system.name = "clickhouse",
    )
}

/// What reads come to, unless the server does not answer in time.
///
/// # Errors
/// Theirs; 503 when they take too long.
pub(crate) async fn in_time<T>(reads: impl Future<Output = Result<T>>) -> Result<T> {
    let outcome = tokio::time::timeout(READ_TIMEOUT, reads).await;
    outcome.unwrap_or_else(|_| Err(Error::unavailable("ClickHouse did not answer in time")))
}

/// A user that may only read, within bounds.
pub struct Reader {
    /// The name.
    pub user: String,
    /// The password.
    pub password: Secret,
}

impl Reader {
    /// What makes the account, or brings one that is there to the password and the bounds of today. The password
    /// goes as its hash: statements are kept in the server's log.
    ///
    /// # Errors
    /// When a name could carry SQL.
    pub fn statements(&self, database: &str, on_cluster: &str) -> Result<[String; 3]> {
        let (user, database) = (identifier(&self.user)?, identifier(database)?);
        let hash = hex::encode(crypto::sha256(self.password.expose().as_bytes()));
        let bounds: String = LIMITS.iter().map(|(name, value)| format!(", {name} = {value} READONLY")).collect();
        let account = format!("IDENTIFIED WITH sha256_hash BY '{hash}' SETTINGS readonly = 1{bounds}");
        Ok([
            format!("CREATE USER IF NOT EXISTS {user} {on_cluster} {account}"),
            format!("ALTER USER {user} {on_cluster} {account}"),
            format!("GRANT {on_cluster} SELECT ON {database}.* TO {user}"),
        ])
    }
}

/// A name from the configuration, which cannot be bound in DDL.
pub(crate) fn identifier(name: &str) -> Result<&str> {
    let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if good { Ok(name) } else { Err(Error::internal("a ClickHouse name may have letters, digits and _ only")) }
}

/// The analytics store.
#[derive(Clone)]
pub struct ClickHouse {
    client: Client,
    database: String,
}

impl ClickHouse {
    /// Reads address and credentials from the secret named by `CLICKHOUSE_SECRET_ARN`; connects on first use.
    ///
    /// # Errors
    /// When the secret cannot be read.
    pub async fn init() -> Result<Self> {
        let secret: ClickHouseSecret = secrets::read("CLICKHOUSE_SECRET_ARN").await?;
        Self::connect_lazy(&secret.url, &secret.user, &secret.password, &secret.database)
    }

    /// The same as the user that may only read, whose account bounds what a query may take. Without such a user
    /// the bounds go with each query.
    ///
    /// # Errors
    /// When the secret cannot be read.
    pub async fn reader() -> Result<Self> {
        let secret: ClickHouseSecret = secrets::read("CLICKHOUSE_SECRET_ARN").await?;
        if !secret.reader.is_empty() {
            // An account of readonly = 1 refuses every setting.
            return Self::connect_lazy(&secret.url, &secret.reader, &secret.password, &secret.database);
        }
        let mut reader = Self::connect_lazy(&secret.url, &secret.user, &secret.password, &secret.database)?;
        for (name, value) in LIMITS {
            reader.client = reader.client.with_setting(name, value);
        }
        Ok(reader)
    }

    /// The user that may only read, as the secret names it.
    ///
    /// # Errors
    /// When the secret cannot be read.
    pub async fn reader_account() -> Result<Option<Reader>> {
        let ClickHouseSecret { reader, password, .. } = secrets::read("CLICKHOUSE_SECRET_ARN").await?;
        Ok((!reader.is_empty()).then_some(Reader { user: reader, password }))
    }

    /// A database at the URL.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn connect_lazy(url: &str, user: &str, password: &Secret, database: &str) -> Result<Self> {
        let http =
            HttpClient::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(outbound::connector(url, CONNECT)?);
        let client = Client::with_http_client(http)
            .with_url(url)
            .with_user(user)
            .with_password(password.expose())
            .with_database(database);
        Ok(Self { client, database: database.to_owned() })
    }

    /// The client, for queries.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A client whose queries see all that was written before them: a replica that lags behind asks for what it lacks
    /// before it answers.
    #[must_use]
    pub fn consistent_client(&self) -> Client {
        self.client.clone().with_setting("select_sequential_consistency", "1")
    }

    /// The database's name.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Asks for a constant, for health checks.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn ping(&self) -> Result<()> {
        self.client.query("SELECT 1").fetch_one::<u8>().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_reads_one_database_within_bounds() {
        let reader = Reader { user: "reader".to_owned(), password: Secret::new("it's secret".to_owned()) };
        let [create, alter, grant] = reader.statements("analytics", "ON CLUSTER main").unwrap();
        assert!(
            create.starts_with("CREATE USER IF NOT EXISTS reader ON CLUSTER main IDENTIFIED WITH sha256_hash BY '")
        );
        assert!(alter.starts_with("ALTER USER reader ON CLUSTER main IDENTIFIED WITH sha256_hash BY '"));
        for statement in [&create, &alter] {
            assert!(!statement.contains("secret"), "{statement}");
            assert!(statement.contains("readonly = 1, max_execution_time = 10 READONLY"), "{statement}");
        }
        assert_eq!(grant, "GRANT ON CLUSTER main SELECT ON analytics.* TO reader");
        let bad = Reader { user: "r; DROP TABLE events".to_owned(), ..reader };
        assert!(bad.statements("analytics", "").is_err());
    }

    #[test]
    fn names_cannot_carry_sql() {
        assert!(identifier("analytics_2").is_ok());
        for bad in ["", "a b", "a`", "a;DROP", "é"] {
            assert!(identifier(bad).is_err(), "{bad}");
        }
    }
}
