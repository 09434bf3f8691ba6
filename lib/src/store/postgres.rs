//! Postgres: a pool of one lazy connection, and transactions whose events and mails are committed with the
//! state they tell of and sent right after.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::billing::webhook::Notice;
use crate::config::Secret;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::events::outbox::{Dispatcher, Pending};
use crate::mail::Mail;
use crate::secrets;
use crate::telemetry::trace::TraceContext;

#[derive(serde::Deserialize)]
struct DatabaseSecret {
    url: Secret,
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
        let secret: DatabaseSecret = secrets::read("DATABASE_SECRET_ARN").await?;
        Self::connect_lazy(secret.url.expose())
    }

    /// The database at the URL. One connection, since a sandbox serves one request at a time; tested before
    /// use, since a thawed sandbox finds its sockets dead.
    ///
    /// # Errors
    /// When the URL is malformed.
    pub fn connect_lazy(url: &str) -> Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .min_connections(0)
            .acquire_timeout(Duration::from_secs(4))
            .test_before_acquire(true)
            .connect_lazy(url)
            // The message may quote the URL, password included.
            .map_err(|_| Error::internal("the database URL is malformed"))?;
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
            pending: Vec::new(),
            dispatcher: self.dispatcher.clone(),
            traceparent: trace.to_string(),
        })
    }

    /// Asks for nothing, for health checks.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query!("SELECT 1 AS one").fetch_one(&self.pool).await?;
        Ok(())
    }
}

/// A transaction that carries its events and mails: all are committed, or none.
pub struct Transaction {
    inner: sqlx::Transaction<'static, sqlx::Postgres>,
    pending: Vec<Pending>,
    dispatcher: Dispatcher,
    traceparent: String,
}

impl Transaction {
    /// The connection, for statements.
    pub fn connection(&mut self) -> &mut sqlx::PgConnection {
        &mut self.inner
    }

    /// Publishes an event with this transaction.
    pub fn publish(&mut self, mut event: Event) {
        event.traceparent = Some(self.traceparent.clone());
        self.pending.push(Pending::event(&event));
    }

    /// Sends a mail with this transaction.
    ///
    /// # Errors
    /// When the job cannot be written as JSON.
    pub fn send_mail(&mut self, mail: &Mail) -> Result<()> {
        self.pending.push(Pending::mail(mail)?);
        Ok(())
    }

    /// Has an object of Stripe read anew once this transaction is committed.
    ///
    /// # Errors
    /// When the notice cannot be written as JSON.
    pub fn send_notice(&mut self, notice: &Notice) -> Result<()> {
        self.pending.push(Pending::notice(notice)?);
        Ok(())
    }

    /// Commits, then hands events and mails to the queues in the background; what that does not manage, the
    /// relay sends.
    ///
    /// # Errors
    /// When the commit fails; then nothing is sent.
    pub async fn commit(mut self) -> Result<()> {
        crate::events::outbox::insert(&mut self.inner, &self.pending).await?;
        self.inner.commit().await?;
        self.dispatcher.dispatch(self.pending);
        Ok(())
    }
}
