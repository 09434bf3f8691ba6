//! Postgres: a pool of one lazy connection, and transactions whose events and mails are committed with the
//! state they tell of and sent right after.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{Connection, PgConnection, PgPool, Postgres};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::background;
use crate::billing::webhook::Notice;
use crate::config::{self, Secret};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::events::outbox::{Dispatcher, Messages};
use crate::mail::Mail;
use crate::secrets;
use crate::telemetry::trace::TraceContext;

/// A connection that was idle for no longer than this is used without being tried: a sandbox freezes after its reply
/// and not between two statements, and the pool has tried the connection when it came back.
const TRUSTED: Duration = Duration::from_secs(1);

/// A new connection that does not answer for so long is given up.
const LONGEST_TRIAL: Duration = Duration::from_secs(4);

/// A URL; or what RDS writes into its secrets; or the name of such a secret, with what that does not say.
#[derive(Default, serde::Deserialize)]
struct DatabaseSecret {
    url: Option<Secret>,
    secret: Option<String>,
    username: Option<String>,
    password: Option<Secret>,
    host: Option<String>,
    port: Option<u16>,
    dbname: Option<String>,
}

impl DatabaseSecret {
    /// The secret of this name, with what is said here in place of what is said there.
    fn over(self, named: Self) -> Self {
        Self {
            url: named.url,
            secret: None,
            username: named.username,
            password: named.password,
            host: self.host.or(named.host),
            port: self.port.or(named.port),
            dbname: self.dbname.or(named.dbname),
        }
    }

    fn options(self) -> Result<PgConnectOptions> {
        if let Some(url) = self.url {
            return options_of(url.expose());
        }
        let missing = |name: &str| Error::internal(format!("the database secret has neither url nor {name}"));
        let password = self.password.ok_or_else(|| missing("password"))?;
        Ok(PgConnectOptions::new()
            .host(&self.host.ok_or_else(|| missing("host"))?)
            .port(self.port.unwrap_or(5432))
            .username(&self.username.ok_or_else(|| missing("username"))?)
            .password(password.expose())
            .database(self.dbname.as_deref().unwrap_or("postgres"))
            .ssl_mode(PgSslMode::Require))
    }
}

fn options_of(url: &str) -> Result<PgConnectOptions> {
    // The message may quote the URL, password included.
    url.parse().map_err(|_| Error::internal("the database URL is malformed"))
}

/// What the secrets say now.
async fn options() -> Result<PgConnectOptions> {
    let id = config::required("DATABASE_SECRET_ARN")?;
    let mut secret: DatabaseSecret = secrets::read_by_id(&id).await?;
    if let Some(name) = secret.secret.take() {
        let named = secrets::read_by_id(&name).await?;
        secret = secret.over(named);
    }
    secret.options()
}

/// The pool of the process, whose password may be rotated while it lives.
static POOL: OnceLock<PgPool> = OnceLock::new();

/// Postgres refused the credentials: reads them anew, so that the next request finds the right ones.
pub(crate) fn credentials_refused() {
    let Some(pool) = POOL.get() else { return };
    background::spawn(async move {
        match options().await {
            Ok(options) => {
                pool.set_connect_options(options);
                tracing::warn!("Postgres refused the credentials; they were read anew");
            }
            Err(error) => tracing::error!(error.cause = %error, "the credentials of Postgres could not be read anew"),
        }
    });
}

/// When a write was last refused because the server takes none.
static WRITES_REFUSED: Mutex<Option<Instant>> = Mutex::new(None);

/// The server takes no writes: connections that are open by now are closed before they are used again. A reader answers
/// everything else as a writer does, so none of them would be noticed; a new one goes where the server's name leads by
/// then.
pub(crate) fn writes_refused() {
    *WRITES_REFUSED.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    tracing::warn!("Postgres refused to write; its connections will be made anew");
}

/// Whether writes were refused since a connection of this age was made.
fn is_outdated(age: Duration) -> bool {
    let refused = *WRITES_REFUSED.lock().unwrap_or_else(PoisonError::into_inner);
    refused.is_some_and(|refused| refused.elapsed() <= age)
}

/// A pooled connection for a statement with a time limit. Unless it is given back, it is closed:
/// one that hangs would keep its place in the pool, which has no other.
pub struct LentConnection {
    connection: PoolConnection<Postgres>,
    is_well: bool,
}

impl LentConnection {
    /// The next connection that is free.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn of(pool: &PgPool) -> Result<Self> {
        Ok(Self { connection: pool.acquire().await?, is_well: false })
    }

    /// The statement has ended, well or not: the next one may have the connection.
    pub fn give_back(mut self) {
        self.is_well = true;
    }
}

impl Deref for LentConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for LentConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for LentConnection {
    fn drop(&mut self) {
        if !self.is_well {
            self.connection.close_on_drop();
        }
    }
}

/// Begins to connect, unless there is a connection, and returns when whoever wants one waits for this one.
///
/// This is done on another thread. The answer to the server's challenge takes 4,096 rounds of a hash, and sqlx gives way
/// to the event loop after every fifth, which asks the system for news each time: on the thread of that loop it takes
/// several times as long and holds up whatever else is under way.
async fn connect(pool: &PgPool) {
    if pool.size() > 0 {
        return;
    }
    let (begun, has_begun) = oneshot::channel();
    let (pool, runtime) = (pool.clone(), tokio::runtime::Handle::current());
    background::spawn(async move {
        let connecting = background::blocking(move || {
            runtime.block_on(async {
                // The pool is asked first, and then it is said that it was.
                let (connected, _) = join(pool.acquire(), async { begun.send(()) }).await;
                // A failure is told by the statement that needs the connection.
                if let Ok(mut connection) = connected {
                    // A connection that is dropped tries itself in a task of its own, which nobody waits for.
                    let _ = timeout(LONGEST_TRIAL, connection.return_to_pool()).await;
                }
            });
        });
        if let Err(error) = connecting.await {
            tracing::error!(error.cause = %error, "connecting to Postgres ended early");
        }
    });
    let _ = has_begun.await;
}

/// The business data.
#[derive(Clone)]
pub struct Database {
    pool: PgPool,
    dispatcher: Dispatcher,
}

impl Database {
    /// Reads the URL from the secret named by `DATABASE_SECRET_ARN`; connects on first use.
    ///
    /// # Errors
    /// When the secret cannot be read or its URL is malformed.
    pub async fn init() -> Result<Self> {
        let database = Self::with_options(options().await?)?;
        // A process has one database; a second handle on it lives through a rotation by its open connection.
        let _ = POOL.set(database.pool.clone());
        super::connect_by(|| {
            Box::pin(async {
                if let Some(pool) = POOL.get() {
                    connect(pool).await;
                }
            })
        });
        Ok(database)
    }

    /// The database at the URL. One connection, since a sandbox serves one request at a time; tried before use after
    /// a rest, since a thawed sandbox finds its sockets dead.
    ///
    /// # Errors
    /// When the URL is malformed.
    pub fn connect_lazy(url: &str) -> Result<Self> {
        Self::with_options(options_of(url)?)
    }

    fn with_options(options: PgConnectOptions) -> Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .min_connections(0)
            .acquire_timeout(Duration::from_secs(4))
            .test_before_acquire(false)
            .before_acquire(|connection, used| {
                Box::pin(async move {
                    if is_outdated(used.age) {
                        return Ok(false);
                    }
                    if used.idle_for > TRUSTED {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options);
        Ok(Self { dispatcher: Dispatcher::from_env(pool.clone())?, pool })
    }

    /// For single statements.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn begin(&self, trace: &TraceContext) -> Result<Transaction> {
        Ok(Transaction {
            inner: self.pool.begin().await?,
            messages: Messages::of(trace),
            dispatcher: self.dispatcher.clone(),
        })
    }

    /// Hands messages to their queues in the background that one statement has written and committed.
    pub fn dispatch(&self, messages: Messages) {
        self.dispatcher.clone().dispatch(messages);
    }

    /// Asks for nothing, for health checks.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn ping(&self) -> Result<()> {
        let mut connection = LentConnection::of(&self.pool).await?;
        let answered = sqlx::query!("SELECT 1 AS one").fetch_one(&mut *connection).await;
        connection.give_back();
        answered?;
        Ok(())
    }
}

/// A transaction that carries its events and mails: all are committed, or none.
pub struct Transaction {
    inner: sqlx::Transaction<'static, sqlx::Postgres>,
    messages: Messages,
    dispatcher: Dispatcher,
}

impl Transaction {
    /// The connection, for statements.
    pub fn connection(&mut self) -> &mut sqlx::PgConnection {
        &mut self.inner
    }

    /// Publishes an event with this transaction.
    pub fn publish(&mut self, event: Event) {
        self.messages.event(event);
    }

    /// Sends a mail with this transaction.
    ///
    /// # Errors
    /// When the job cannot be written as JSON.
    pub fn send_mail(&mut self, mail: &Mail) -> Result<()> {
        self.messages.mail(mail)
    }

    /// Has an object of Stripe read anew once this transaction is committed.
    ///
    /// # Errors
    /// When the notice cannot be written as JSON.
    pub fn send_notice(&mut self, notice: &Notice) -> Result<()> {
        self.messages.notice(notice)
    }

    /// Commits, then hands events and mails to the queues in the background; what that does not manage, the
    /// relay sends.
    ///
    /// # Errors
    /// When the commit fails; then nothing is sent.
    pub async fn commit(mut self) -> Result<()> {
        self.messages.insert(&mut self.inner).await?;
        self.inner.commit().await?;
        self.dispatcher.dispatch(self.messages);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn to_begin_to_connect_does_not_wait_for_the_server() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let database = Database::connect_lazy(&format!("postgres://nobody@127.0.0.1:{port}/none")).unwrap();

        tokio::time::timeout(Duration::from_secs(1), connect(&database.pool)).await.unwrap();

        assert_eq!(database.pool.size(), 1);
        let (mut connection, _) = tokio::time::timeout(Duration::from_secs(1), silent.accept()).await.unwrap().unwrap();
        let mut first = [0; 1];
        tokio::io::AsyncReadExt::read_exact(&mut connection, &mut first).await.unwrap();
    }
}
