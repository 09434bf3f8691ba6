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
}

impl ClickHouse {
    /// Reads address and credentials from the secret named by `CLICKHOUSE_SECRET_ARN`; connects on first use.
    ///
    /// # Errors
    /// When the secret cannot be read.
    pub async fn init() -> Result<Self> {
        let secret: ClickHouseSecret = secrets::read("CLICKHOUSE_SECRET_ARN").await?;
        let client = Client::default()
            .with_url(secret.url)
            .with_user(secret.user)
            .with_password(secret.password.expose())
            .with_database(secret.database);
        Ok(Self { client })
    }

    /// The client, for queries.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
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
