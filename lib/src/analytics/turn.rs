//! Who may change the analytics tables: one writer at a time, in the whole deployment.

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::sync::Mutex;

use crate::error::{Error, Result};
use crate::store::postgres::Database;

/// The advisory lock's number; arbitrary, but the same in every release.
const LOCK: i64 = 0x616e_616c_7974_6963;

/// Hands out turns.
pub struct Turns {
    options: PgConnectOptions,
    idle: Mutex<Option<PgConnection>>,
}

/// The right to write, as long as its connection lives: a writer that dies leaves it to the next one.
pub struct Turn {
    connection: PgConnection,
}

impl Turns {
    /// Turns that are kept in the database.
    #[must_use]
    pub fn new(database: &Database) -> Self {
        Self { options: database.pool().connect_options().as_ref().clone(), idle: Mutex::new(None) }
    }

    /// Waits for a turn, for so many seconds at most.
    ///
    /// # Errors
    /// When the database does not answer, or others keep writing.
    pub async fn wait(&self, seconds: u32) -> Result<Turn> {
        let idle = self.idle.lock().await.take();
        let mut connection = match idle {
            Some(connection) => revive(connection, &self.options).await?,
            None => connect(&self.options).await?,
        };
        sqlx::query!("SELECT set_config('lock_timeout', $1, false) AS set", format!("{seconds}s"))
            .fetch_one(&mut connection)
            .await?;
        sqlx::query!("SELECT pg_advisory_lock($1)::text AS locked", LOCK)
            .fetch_one(&mut connection)
            .await
            // That others are still writing is no fault of anybody: it is worth another try.
            .map_err(Error::unavailable)?;
        Ok(Turn { connection })
    }

    /// Ends a turn. One that is dropped instead ends with its connection.
    ///
    /// # Errors
    /// When the database does not answer; then the turn has ended all the same.
    pub async fn end(&self, mut turn: Turn) -> Result<()> {
        sqlx::query!("SELECT pg_advisory_unlock($1) AS unlocked", LOCK).fetch_one(&mut turn.connection).await?;
        *self.idle.lock().await = Some(turn.connection);
        Ok(())
    }
}

impl Turn {
    /// The connection that holds the turn.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// A thawed sandbox finds its socket dead.
async fn revive(mut connection: PgConnection, options: &PgConnectOptions) -> Result<PgConnection> {
    if connection.ping().await.is_ok() { Ok(connection) } else { connect(options).await }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection> {
    // A machine that vanishes says no goodbye: without keepalives its turn would last for hours.
    let options = options.clone().options([
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
    ]);
    Ok(options.connect().await?)
}
