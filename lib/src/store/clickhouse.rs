//! ClickHouse over HTTP.

use clickhouse::Client;

use crate::config::Secret;
use crate::error::Result;
use crate::secrets;

#[derive(serde::Deserialize)]
struct ClickHouseSecret {
    url: String,
    user: String,
    password: Secret,
    database: String,
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
