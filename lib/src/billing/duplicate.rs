//! One running subscription a user, also when two checkout pages are finished at once: the one that is found running
//! second is ended and its money given back.

use uuid::Uuid;

use crate::billing::service::Billing;
use crate::billing::stripe::Failure;
use crate::billing::stripe_object::{self, StripeInvoice, StripeSubscription};
use crate::error::{Error, Result};
use crate::store::postgres::Transaction;

impl Billing {
    /// Keeps one running subscription per user. Returns this subscription's present state, and Stripe's ids of others
    /// that were ended and must be mirrored. One already published as running stays; of two such, the older.
    /// Subscriptions outside our plans are left alone. The user's lock is held.
    pub(crate) async fn keep_first(
        &self,
        transaction: &mut Transaction,
        user_id: Uuid,
        now: StripeSubscription,
        was_running: bool,
    ) -> Result<(StripeSubscription, Vec<String>)> {
        let mut ended = Vec::new();
        if !now.runs_for_a_plan() {
            return Ok((now, ended));
        }
        for id in others_running(transaction, user_id, &now.id).await? {
            let other = self.read_subscription(&id).await?.filter(StripeSubscription::runs_for_a_plan);
            let Some(other) = other else { continue };
            if !was_running || (other.created, &other.id) < (now.created, &now.id) {
                self.end_second(&now).await?;
                let now = self.read_subscription(&now.id).await?;
                let now = now.ok_or_else(|| Error::internal("Stripe lost the subscription that was ended"))?;
                return Ok((now, ended));
            }
            self.end_second(&other).await?;
            ended.push(id);
        }
        if !was_running {
            // Paid later, they would be second ones.
            for id in others_incomplete(transaction, user_id, &now.id).await? {
                if let Some(other) = self.read_subscription(&id).await?.filter(|other| !other.is_over()) {
                    self.give_back(&other).await?;
                }
                ended.push(id);
            }
        }
        Ok((now, ended))
    }

    async fn end_second(&self, second: &StripeSubscription) -> Result<()> {
        self.give_back(second).await?;
        tracing::warn!(stripe.subscription = second.id, "a second subscription was ended and its money given back");
        Ok(())
    }

    /// Ends a subscription, voids what is unpaid of it and pays back what was paid last. The money goes first: whatever
    /// fails then, the subscription still runs and is found again.
    pub(crate) async fn give_back(&self, subscription: &StripeSubscription) -> Result<()> {
        // What is void before the payments are read is not paid after.
        self.void_unpaid_invoices(&subscription.id).await?;
        let path = format!("/subscriptions/{}", subscription.id);
        let expand = vec![("expand[]", "latest_invoice.payments".to_owned())];
        let Some(mut found) = self.stripe.find(&path, &expand).await? else { return Ok(()) };
        let invoice = found["latest_invoice"].take();
        if invoice["amount_paid"].as_i64().unwrap_or(0) > 0 {
            for intent in stripe_object::paid_intents_of(&invoice) {
                let form = vec![("payment_intent", intent.clone()), ("reason", "duplicate".to_owned())];
                match self.stripe.post_repeatable("/refunds", &form, &format!("give-back-{intent}")).await {
                    Err(failure) if failure.has_code("charge_already_refunded") => {}
                    outcome => drop(outcome?),
                }
            }
        }
        Ok(self.end(&subscription.id).await?)
    }

    /// Voids what is unpaid of a subscription that is over or about to be: its payment would buy nothing. What was paid
    /// meanwhile stays paid.
    pub(crate) async fn void_unpaid_invoices(&self, subscription: &str) -> Result<()> {
        for invoice in self.unpaid_invoices(subscription).await? {
            let path = format!("/invoices/{}", invoice.id);
            if invoice.status == "draft" {
                // Stripe neither voids a draft nor deletes a subscription's; left alone, it is collected within the hour.
                let form = vec![("auto_advance", "false".to_owned())];
                let key = format!("finalize-{}-{}", invoice.id, Uuid::now_v7());
                match self.stripe.post_repeatable(&format!("{path}/finalize"), &form, &key).await {
                    Err(Failure::Refused { .. }) => {}
                    outcome => drop(outcome?),
                }
            }
            // Under the same key, Stripe would refuse for a day what it has refused once.
            let key = format!("void-{}-{}", invoice.id, Uuid::now_v7());
            match self.stripe.post_repeatable(&format!("{path}/void"), &[], &key).await {
                Err(failure @ Failure::Refused { .. }) => {
                    if StripeInvoice::read(&self.stripe.get(&path, &[]).await?)?.is_unpaid() {
                        return Err(failure.into());
                    }
                }
                outcome => drop(outcome?),
            }
        }
        Ok(())
    }
}

/// Stripe's ids of the user's other subscriptions that were told to run.
pub(crate) async fn others_running(transaction: &mut Transaction, user_id: Uuid, id: &str) -> Result<Vec<String>> {
    let others = sqlx::query_scalar!(
        "SELECT stripe_id FROM subscriptions WHERE user_id = $1 AND stripe_id <> $2 AND running",
        user_id,
        id,
    );
    Ok(others.fetch_all(transaction.connection()).await?)
}

/// Stripe's ids of the user's other subscriptions of which the first payment was told to be missing.
async fn others_incomplete(transaction: &mut Transaction, user_id: Uuid, id: &str) -> Result<Vec<String>> {
    let others = sqlx::query_scalar!(
        "SELECT stripe_id FROM subscriptions WHERE user_id = $1 AND stripe_id <> $2 AND status = 'incomplete'",
        user_id,
        id,
    );
    Ok(others.fetch_all(transaction.connection()).await?)
}
