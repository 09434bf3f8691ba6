//! One running subscription a user, also when two checkout pages are finished at once: the one that was made later is
//! ended and its money given back.

use uuid::Uuid;

use crate::billing::object::{self, Subscription};
use crate::billing::service::Billing;
use crate::error::{Error, Result};
use crate::store::postgres::Transaction;

impl Billing {
    /// A subscription as it is once its user has no second one: it, or the other one, may have been ended for that.
    /// The user's lock is held.
    pub(crate) async fn keep_first(
        &self,
        transaction: &mut Transaction,
        user_id: Uuid,
        now: Subscription,
    ) -> Result<Subscription> {
        if !now.runs() {
            return Ok(now);
        }
        let others = sqlx::query_scalar!(
            "SELECT stripe_id FROM subscriptions WHERE user_id = $1 AND stripe_id <> $2 AND running",
            user_id,
            now.id,
        )
        .fetch_all(transaction.connection())
        .await?;
        for id in others {
            let Some(other) = self.read_subscription(&id).await?.filter(Subscription::runs) else { continue };
            if (other.created, &other.id) < (now.created, &now.id) {
                self.give_back(&now).await?;
                let ended = self.read_subscription(&now.id).await?;
                return ended.ok_or_else(|| Error::internal("Stripe lost the subscription that was ended"));
            }
            self.give_back(&other).await?;
            Box::pin(self.mirror_subscription(transaction, user_id, &other.id)).await?;
        }
        Ok(now)
    }

    /// The money goes first: whatever fails then, the subscription still runs and is found again.
    async fn give_back(&self, second: &Subscription) -> Result<()> {
        let path = format!("/subscriptions/{}", second.id);
        let expand = vec![("expand[]", "latest_invoice.payments".to_owned())];
        let invoice = self.stripe.get(&path, &expand).await?["latest_invoice"].take();
        if invoice["amount_paid"].as_i64().unwrap_or(0) > 0 {
            for intent in object::intents_of(&invoice) {
                let form = vec![("payment_intent", intent.clone()), ("reason", "duplicate".to_owned())];
                match self.stripe.post("/refunds", &form, &format!("give-back-{intent}")).await {
                    Err(failure) if failure.has_code("charge_already_refunded") => {}
                    outcome => drop(outcome?),
                }
            }
        }
        match self.stripe.delete(&path).await {
            Err(failure) if failure.is_missing() => {}
            outcome => drop(outcome?),
        }
        tracing::warn!(stripe.subscription = second.id, "a second subscription was ended and its money given back");
        Ok(())
    }
}
