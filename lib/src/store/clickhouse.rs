//! ClickHouse over HTTP.

use clickhouse::Client;
use tracing::{Span, debug_span};

use crate::config::Secret;
use crate::error::Result;
use crate::secrets;

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

/// What one figure may take: seconds, and rows read.
const MAX_SECONDS: u32 = 10;
const MAX_ROWS: u32 = 1_000_000_000;

/// The span of a statement, named by its verb and what that is for.
pub(crate) fn span(statement: &str) -> Span {
    debug_span!(
        "clickhouse",
        otel.name = format!("clickhouse {statement}"),
        otel.kind = "client",
        db.system.name = "clickhouse",
    )
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
        Ok(Self::connect_lazy(&secret.url, &secret.user, &secret.password, &secret.database))
    }

    /// The same as the user that may only read, with bounds on what a query may take.
    ///
    /// # Errors
    /// When the secret cannot be read.
    pub async fn reader() -> Result<Self> {
        let secret: ClickHouseSecret = secrets::read("CLICKHOUSE_SECRET_ARN").await?;
        let user = if secret.reader.is_empty() { &secret.user } else { &secret.reader };
        let mut reader = Self::connect_lazy(&secret.url, user, &secret.password, &secret.database);
        reader.client = reader
            .client
            .with_setting("max_execution_time", MAX_SECONDS.to_string())
            .with_setting("max_rows_to_read", MAX_ROWS.to_string());
        Ok(reader)
    }

    /// A database at the URL.
    #[must_use]
    pub fn connect_lazy(url: &str, user: &str, password: &Secret, database: &str) -> Self {
        let client =
            Client::default().with_url(url).with_user(user).with_password(password.expose()).with_database(database);
        Self { client, database: database.to_owned() }
    }

    /// The client, for queries.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
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
