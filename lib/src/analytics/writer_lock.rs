//! Who may change the analytics tables: one writer at a time, in the whole deployment.

use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::sync::Mutex;

use crate::error::{Error, Result};
use crate::store::postgres::Database;

/// The advisory lock's number; arbitrary, but the same in every release.
const LOCK: i64 = 0x616e_616c_7974_6963;

/// The lock of the writers.
pub struct WriterLock {
    /// For its connect options, which follow a rotation of the password.
    pool: PgPool,
    idle: Mutex<Option<PgConnection>>,
}

/// The right to write, as long as its connection lives: a writer that dies leaves it to the next one.
pub struct WriterGuard {
    connection: PgConnection,
}

impl WriterLock {
    /// The lock in this database.
    #[must_use]
    pub fn new(database: &Database) -> Self {
        Self { pool: database.pool().clone(), idle: Mutex::new(None) }
    }

    /// Waits for the lock, for so many seconds at most.
    ///
    /// # Errors
    /// When the database does not answer, or others keep writing.
    pub async fn acquire(&self, seconds: u32) -> Result<WriterGuard> {
        let idle = self.idle.lock().await.take();
        let mut connection = match idle {
            Some(connection) => revive(connection, &self.pool).await?,
            None => connect(&self.pool).await?,
        };
        // A machine that vanishes says no goodbye: without keepalives it would hold the lock for hours. They are not
        // among the options of the connection, which a proxy before the database refuses.
        sqlx::query!(
            "WITH settings AS MATERIALIZED (
                SELECT set_config('lock_timeout', $1, false) AS patience,
                    set_config('tcp_keepalives_idle', '10', false) AS idle,
                    set_config('tcp_keepalives_interval', '5', false) AS pause,
                    set_config('tcp_keepalives_count', '3', false) AS tries
             )
             SELECT pg_advisory_lock($2)::text AS locked FROM settings",
            format!("{seconds}s"),
            LOCK,
        )
        .fetch_one(&mut connection)
        .await?;
        Ok(WriterGuard { connection })
    }

    /// Releases the lock. A guard that is dropped instead releases it with its connection.
    ///
    /// # Errors
    /// When the database does not answer; then the lock is free all the same.
    pub async fn release(&self, mut guard: WriterGuard) -> Result<()> {
        sqlx::query!("SELECT pg_advisory_unlock($1) AS unlocked", LOCK).fetch_one(&mut guard.connection).await?;
        *self.idle.lock().await = Some(guard.connection);
        Ok(())
    }
}

impl WriterGuard {
    /// The connection that holds the lock.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Makes sure of the lock, which goes with its connection: while nothing is asked on that one, it ends unnoticed.
    ///
    /// # Errors
    /// When the connection has ended, and others may be writing.
    pub async fn assert_held(&mut self) -> Result<()> {
        let answered = self.connection.ping().await;
        answered.map_err(|error| Error::unavailable(format!("the turn to write analytics was lost: {error}")))
    }
}

/// A thawed sandbox finds its socket dead.
async fn revive(mut connection: PgConnection, pool: &PgPool) -> Result<PgConnection> {
    if connection.ping().await.is_ok() { Ok(connection) } else { connect(pool).await }
}

async fn connect(pool: &PgPool) -> Result<PgConnection> {
    Ok(pool.connect_options().connect().await?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn server() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, format!("postgres://writer@127.0.0.1:{port}/none?sslmode=disable"))
    }

    #[tokio::test]
    async fn connects_as_the_pool_does_now_and_without_options() {
        let ((_old, before), (new, after)) = (server().await, server().await);
        let database = Database::connect_lazy(&before).unwrap();
        let lock = WriterLock::new(&database);
        database.pool().set_connect_options(after.parse().unwrap());

        let asked = async {
            let (mut connection, _) = new.accept().await.unwrap();
            let length = connection.read_u32().await.unwrap();
            let mut startup = vec![0; length as usize - 4];
            connection.read_exact(&mut startup).await.unwrap();
            startup
        };
        let asked = tokio::time::timeout(Duration::from_secs(5), asked);
        let startup = tokio::select! {
            startup = asked => startup.unwrap(),
            guard = lock.acquire(1) => panic!("nobody gave a guard: {:?}", guard.err()),
        };

        let startup = String::from_utf8_lossy(&startup).into_owned();
        let parameters: Vec<&str> = startup.split('\0').collect();
        assert!(parameters.contains(&"writer") && !parameters.contains(&"options"), "{parameters:?}");
    }
}
