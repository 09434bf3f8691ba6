//! What all of billing needs: the database, Stripe, and the terms that a deployment sets.

use serde_json::Value;
use sqlx::PgConnection;
use time::Duration;
use uuid::Uuid;

use crate::billing::plan::Plan;
use crate::billing::stripe::{Failure, Stripe};
use crate::billing::stripe_object;
use crate::config;
use crate::error::{Error, Result};
use crate::store::postgres::{Database, Transaction};
use crate::telemetry::trace::TraceContext;

/// Billing, over the database and Stripe.
pub struct Billing {
    /// The mirror.
    pub database: Database,
    /// The truth.
    pub stripe: Stripe,
    /// How long a plan is kept while a payment is due.
    pub grace: Duration,
    /// Days of a first subscription's trial; 0 is none.
    pub trial_days: i64,
    /// Where Stripe's pages lead back to.
    pub app_url: String,
}

impl Billing {
    /// Reads secrets, `PAST_DUE_GRACE_DAYS` and `TRIAL_DAYS`; connects lazily.
    ///
    /// # Errors
    /// When a variable or a secret is missing or malformed.
    pub async fn init() -> Result<Self> {
        let (database, stripe) = futures_util::try_join!(Database::init(), Stripe::init())?;
        Ok(Self {
            database,
            stripe,
            grace: Duration::days(config::parsed("PAST_DUE_GRACE_DAYS", 7)?),
            trial_days: config::parsed("TRIAL_DAYS", 0)?,
            app_url: config::app_url()?,
        })
    }

    /// Begins a transaction that holds the lock on the user's billing.
    ///
    /// # Errors
    /// 503 `unavailable` when the lock is not free in time.
    pub(crate) async fn begin_for(&self, user_id: Uuid, trace: &TraceContext) -> Result<Transaction> {
        self.begin_in_time(user_id, LockTimeout::Request, trace).await
    }

    /// The same with this lock time-out.
    ///
    /// # Errors
    /// 503 `unavailable` when the lock is not free in time.
    pub(crate) async fn begin_in_time(
        &self,
        user_id: Uuid,
        timeout: LockTimeout,
        trace: &TraceContext,
    ) -> Result<Transaction> {
        let mut transaction = self.database.begin(trace).await?;
        lock(transaction.connection(), user_id, timeout).await?;
        Ok(transaction)
    }

    /// Stripe's id of the user as a customer, who is made on first use, and anew when deleted there.
    pub(crate) async fn customer(&self, user_id: Uuid) -> Result<String> {
        let known = sqlx::query_scalar!("SELECT stripe_id FROM billing_customers WHERE user_id = $1", user_id);
        let known = known.fetch_optional(self.database.pool()).await?;
        if let Some(id) = &known {
            let found = self.stripe.find(&format!("/customers/{id}"), &[]).await?;
            if found.is_some_and(|customer| customer["deleted"] != true) {
                return Ok(id.clone());
            }
        }
        let user = sqlx::query!("SELECT email, name FROM users WHERE id = $1", user_id)
            .fetch_optional(self.database.pool())
            .await?
            .ok_or_else(Error::unauthenticated)?;
        let own = user_id.to_string();
        // One that was made when its answer got lost is found again.
        let found = self.customer_of(&user.email, &own).await?.as_ref().and_then(stripe_object::id_of);
        let id = match found {
            Some(id) => id,
            None => {
                let mut form = vec![("email", user.email.clone()), ("metadata[user_id]", own.clone())];
                form.extend(user.name.map(|name| ("name", name)));
                // The first key stands for the customer that was made with it, deleted or not.
                let key = match &known {
                    Some(deleted) => format!("customer-{user_id}-{deleted}"),
                    None => format!("customer-{user_id}"),
                };
                let made = || self.customer_of(&user.email, &own);
                let made = self.stripe.post_once("/customers", &form, &key, made).await?;
                stripe_object::id_of(&made).ok_or_else(|| Error::internal("Stripe made a customer without an id"))?
            }
        };
        let stored = sqlx::query_scalar!(
            "INSERT INTO billing_customers (user_id, stripe_id) VALUES ($1, $2)
             ON CONFLICT (user_id) DO UPDATE SET stripe_id = CASE billing_customers.stripe_id
                 WHEN $3 THEN excluded.stripe_id ELSE billing_customers.stripe_id END RETURNING stripe_id",
            user_id,
            id,
            known,
        );
        Ok(stored.fetch_one(self.database.pool()).await?)
    }

    /// The customer that was made for a user.
    async fn customer_of(&self, email: &str, user_id: &str) -> Result<Option<Value>, Failure> {
        let query = vec![("email", email.to_owned()), ("limit", "100".to_owned())];
        let mut found = self.stripe.get("/customers", &query).await?;
        let customers = found["data"].as_array_mut().into_iter().flatten();
        Ok(customers.map(Value::take).find(|customer| customer["metadata"]["user_id"] == user_id))
    }

    /// Stripe's id of a plan's price, which is made, with its product, on first use, and anew when either was archived.
    pub(crate) async fn price(&self, plan: Plan) -> Result<String> {
        let (terms, key) = (plan.terms(), lookup_key(plan));
        let known = self.known_price(&key).await?;
        if let Some(id) = known.as_ref().filter(|price| is_sold(price)).and_then(stripe_object::id_of) {
            return Ok(id);
        }
        let form = vec![
            ("product_data[name]", terms.name.to_owned()),
            ("unit_amount", terms.amount.to_string()),
            ("currency", terms.currency.to_lowercase()),
            ("recurring[interval]", terms.interval.to_owned()),
            ("lookup_key", key.clone()),
            // An archived price has it still.
            ("transfer_lookup_key", "true".to_owned()),
            ("metadata[plan]", plan.as_str().to_owned()),
        ];
        // The first key stands for the price that was made with it, archived or not.
        let once = match known.as_ref().and_then(stripe_object::id_of) {
            Some(archived) => format!("price-{key}-{archived}"),
            None => format!("price-{key}"),
        };
        let sold = || async { Ok(self.known_price(&key).await?.filter(is_sold)) };
        let made = match self.stripe.post_once("/prices", &form, &once, sold).await {
            Ok(made) => made,
            // Somebody else was faster: a lookup key is one price's.
            Err(failure) => sold().await?.ok_or(failure)?,
        };
        stripe_object::id_of(&made).ok_or_else(|| Error::internal("Stripe made a price without an id"))
    }

    /// The price that has a lookup key, archived or not, with its product.
    async fn known_price(&self, key: &str) -> Result<Option<Value>, Failure> {
        let query = vec![("lookup_keys[]", key.to_owned()), ("expand[]", "data.product".to_owned())];
        let mut prices = self.stripe.get("/prices", &query).await?;
        Ok(prices["data"].get_mut(0).map(Value::take))
    }
}

/// Whether Stripe takes a price for a new subscription.
fn is_sold(price: &Value) -> bool {
    price["active"] == true && price["product"]["active"] != false
}

/// The name by which a plan's price is found; another amount is another price.
fn lookup_key(plan: Plan) -> String {
    let terms = plan.terms();
    format!("ai_chat_{}_{}_{}_{}", terms.id, terms.amount, terms.currency.to_lowercase(), terms.interval)
}

/// How long another's lock is waited for, with a connection that others lack meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LockTimeout {
    /// However many requests a user sends at once, the last has given up after this.
    Request,
    /// Longer, for a request that has been paid for: what follows is only to be written down.
    Payer,
    /// Longer than any request that was there before holds the lock, and less than a worker's time.
    Worker,
}

impl LockTimeout {
    const fn as_setting(self) -> &'static str {
        match self {
            Self::Request => "5s",
            Self::Payer => "15s",
            Self::Worker => "35s",
        }
    }
}

/// Waits until nothing else about the user's billing is under way, and keeps it so until the transaction ends.
///
/// # Errors
/// 503 `unavailable` when the lock is not free in time.
pub(crate) async fn lock(connection: &mut PgConnection, user_id: Uuid, timeout: LockTimeout) -> Result<()> {
    sqlx::query!(
        "WITH settings AS MATERIALIZED (SELECT set_config('lock_timeout', $1, true) AS patience)
         SELECT pg_advisory_xact_lock(hashtextextended($2, 0))::text AS locked FROM settings",
        timeout.as_setting(),
        format!("billing:{user_id}"),
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}
