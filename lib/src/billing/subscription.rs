//! Subscriptions: made, changed and ended at Stripe, shown from the mirror.

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::auth::limits::Limits;
use crate::billing::payment::PaymentMethod;
use crate::billing::plan::Plan;
use crate::billing::service::Billing;
use crate::billing::stripe::Failure;
use crate::billing::stripe_object::{self, StripeSubscription};
use crate::billing::sync;
use crate::clock;
use crate::error::{Code, Error, Result};
use crate::http::page::{self, Cursor, Limit};
use crate::http::validate::{Field, Invalid, Raw};
use crate::store::postgres::{Database, Transaction};
use crate::telemetry::trace::TraceContext;

/// A subscription as the API shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscription {
    /// The subscription's id.
    pub id: Uuid,
    /// The plan's id.
    pub plan: &'static str,
    /// Stripe's status.
    pub status: String,
    /// When the billing period began.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub current_period_start: OffsetDateTime,
    /// When it ends.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub current_period_end: OffsetDateTime,
    /// Whether the subscription ends with it.
    pub cancel_at_period_end: bool,
    /// The cheaper plan that begins then, unless it ends.
    pub pending_plan: Option<&'static str>,
    /// When the trial ends or ended.
    #[serde(serialize_with = "crate::clock::text::option::serialize")]
    pub trial_end: Option<OffsetDateTime>,
    /// When it was made.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub created_at: OffsetDateTime,
}

pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) plan: String,
    pub(crate) pending_plan: Option<String>,
    pub(crate) status: String,
    pub(crate) current_period_start: OffsetDateTime,
    pub(crate) current_period_end: OffsetDateTime,
    pub(crate) cancel_at_period_end: bool,
    pub(crate) trial_end: Option<OffsetDateTime>,
    pub(crate) created_at: OffsetDateTime,
}

impl Row {
    pub(crate) fn shown(self) -> Result<Subscription> {
        // Undone, a cancellation brings it back; until then, nothing is to begin.
        let ends = self.cancel_at_period_end || self.status == "canceled";
        let pending_plan = self.pending_plan.filter(|_| !ends);
        Ok(Subscription {
            id: self.id,
            plan: Plan::stored(&self.plan)?.as_str(),
            status: self.status,
            current_period_start: self.current_period_start,
            current_period_end: self.current_period_end,
            cancel_at_period_end: self.cancel_at_period_end,
            pending_plan: pending_plan.as_deref().map(Plan::stored).transpose()?.map(Plan::as_str),
            trial_end: self.trial_end,
            created_at: self.created_at,
        })
    }
}

/// A plan that costs something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaidPlan(pub Plan);

impl Field for PaidPlan {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        match Plan::parse(raw.text()?) {
            Some(plan) if plan != Plan::Free => Ok(Self(plan)),
            _ => Err(Invalid::new("unknown", "Must be `pro` or `enterprise`.")),
        }
    }
}

/// A user's subscriptions, newest first.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    database: &Database,
    user_id: Uuid,
    limit: Limit,
    after: Option<Cursor>,
) -> Result<(Vec<Subscription>, Option<String>)> {
    let (at, id) = page::place(after);
    let rows = sqlx::query_as!(
        Row,
        "SELECT id, plan, pending_plan, status, current_period_start, current_period_end, cancel_at_period_end,
             trial_end, created_at
         FROM subscriptions WHERE user_id = $1 AND (created_at, id) < ($2, $3)
         ORDER BY created_at DESC, id DESC LIMIT $4",
        user_id,
        at,
        id,
        limit.0 + 1,
    )
    .fetch_all(database.pool())
    .await?;
    let shown = rows.into_iter().map(Row::shown).collect::<Result<Vec<_>>>()?;
    Ok(page::split(shown, limit, |last| Cursor { at: last.created_at, id: last.id }))
}

/// The standing of a user without a running subscription.
pub(crate) struct Unsubscribed {
    pub(crate) transaction: Transaction,
    /// What an earlier try of the same request has made.
    pub(crate) made: Option<String>,
    /// Whether a subscription has begun before, by Stripe's list: the mirror may not have been told.
    pub(crate) has_subscribed: bool,
}

/// Whether this is the user's first subscription, as far as the mirror knows. The user's lock is held.
pub(crate) async fn is_first(transaction: &mut Transaction, user_id: Uuid) -> Result<bool> {
    let first = sqlx::query_scalar!(
        r#"SELECT NOT EXISTS (SELECT FROM billing_customers WHERE user_id = $1 AND trial_used_at IS NOT NULL)
               AND NOT EXISTS (SELECT FROM subscriptions WHERE user_id = $1 AND began) AS "first!""#,
        user_id,
    );
    Ok(first.fetch_one(transaction.connection()).await?)
}

impl Billing {
    /// All that a customer ever subscribed to, at Stripe.
    async fn subscriptions_of(&self, customer: &str) -> Result<Vec<StripeSubscription>> {
        self.listed(customer).await?.iter().map(StripeSubscription::read).collect()
    }

    async fn listed(&self, customer: &str) -> Result<Vec<Value>, Failure> {
        let query = vec![
            ("customer", customer.to_owned()),
            ("status", "all".to_owned()),
            ("limit", "100".to_owned()),
            ("expand[]", "data.latest_invoice".to_owned()),
        ];
        let mut all = self.stripe.get("/subscriptions", &query).await?;
        Ok(all["data"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// What an earlier try of the same request has made.
    async fn made_by(&self, customer: &str, operation: &str) -> Result<Option<Value>, Failure> {
        let is_own = |value: &Value| StripeSubscription::read(value).is_ok_and(|found| found.is_made_by(operation));
        Ok(self.listed(customer).await?.into_iter().find(is_own))
    }

    /// Refuses a user who has a subscription at Stripe, whatever the mirror knew, and then commits what it has learned;
    /// gives up what never began, and what Stripe no longer collects. The user's lock is held by the transaction, which
    /// goes on otherwise.
    pub(crate) async fn refuse_second(
        &self,
        mut transaction: Transaction,
        user_id: Uuid,
        customer: &str,
        made_by: Option<&str>,
    ) -> Result<Unsubscribed> {
        let all = self.subscriptions_of(customer).await?;
        let has_subscribed = all.iter().any(|found| found.priced.is_some() && found.has_begun());
        let mut taken = false;
        for found in all {
            if made_by.is_some_and(|operation| found.is_made_by(operation)) {
                return Ok(Unsubscribed { transaction, made: Some(found.id), has_subscribed });
            }
            if found.is_over() {
                continue;
            }
            if found.priced.is_some() && found.status == "incomplete" {
                // It may have been paid meanwhile.
                self.give_back(&found).await?;
            }
            let mut mirrored = self.mirror_subscription(&mut transaction, user_id, &found.id).await?;
            if mirrored.as_ref().is_some_and(|(_, now)| now.has_lapsed()) {
                self.end(&found.id).await?;
                mirrored = self.mirror_subscription(&mut transaction, user_id, &found.id).await?;
                self.void_unpaid_invoices(&found.id).await?;
            }
            taken |= mirrored.is_some_and(|(_, now)| !now.is_over());
        }
        if taken {
            sync::conclude(transaction, user_id).await?;
            return Err(Error::new(Code::AlreadySubscribed, "Change or cancel the subscription that there is."));
        }
        Ok(Unsubscribed { transaction, made: None, has_subscribed })
    }

    /// Ends a subscription at once; one that has ended stays so.
    pub(crate) async fn end(&self, id: &str) -> Result<(), Failure> {
        match self.stripe.delete(&format!("/subscriptions/{id}")).await {
            // The first of two tries did it.
            Err(failure) if failure.is_missing() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Subscribes a user, once for all tries of the same request. With a payment method the first payment is made
    /// at once; without one, the secret given along completes it on the client's side.
    ///
    /// # Errors
    /// 409 `already_subscribed`; 402 `card_declined`; 503 `stripe_unavailable`.
    pub async fn subscribe(
        &self,
        user_id: Uuid,
        plan: Plan,
        method: Option<&PaymentMethod>,
        operation: Uuid,
        trace: &TraceContext,
    ) -> Result<(Subscription, Option<String>)> {
        let customer = self.customer(user_id).await?;
        let operation = operation.to_string();
        let transaction = self.begin_for(user_id, trace).await?;
        let standing = self.refuse_second(transaction, user_id, &customer, Some(&operation)).await?;
        let mut transaction = standing.transaction;
        let id = match standing.made {
            Some(id) => id,
            None => {
                let first = !standing.has_subscribed && is_first(&mut transaction, user_id).await?;
                self.create(&customer, plan, method, first, &operation).await?
            }
        };
        let mirrored = self.mirror_subscription(&mut transaction, user_id, &id).await?;
        let (shown, now) = mirrored.ok_or_else(|| Error::internal("Stripe lost the subscription that it made"))?;
        sync::conclude(transaction, user_id).await?;
        let secret = if now.status == "incomplete" { self.first_secret(&id).await? } else { None };
        Ok((shown, secret))
    }

    async fn create(
        &self,
        customer: &str,
        plan: Plan,
        method: Option<&PaymentMethod>,
        first: bool,
        operation: &str,
    ) -> Result<String> {
        let mut form = vec![
            ("customer", customer.to_owned()),
            ("items[0][price]", self.price(plan).await?),
            ("metadata[made_by]", operation.to_owned()),
            // A method of which the payment takes days would leave it open whether the plan is paid.
            ("payment_settings[payment_method_types][0]", "card".to_owned()),
            ("payment_settings[save_default_payment_method]", "on_subscription".to_owned()),
            // Without it, Stripe's newer versions prorate and make invoices in another way.
            ("billing_mode[type]", "classic".to_owned()),
        ];
        match method {
            Some(method) => {
                let attach = vec![("customer", customer.to_owned())];
                let path = format!("/payment_methods/{}/attach", method.as_str());
                let attached = self.stripe.post_repeatable(&path, &attach, &format!("attach-{operation}")).await;
                let attached = attached.map_err(|failure| failure.of_method())?;
                let attached = stripe_object::id_of(&attached).unwrap_or_else(|| method.as_str().to_owned());
                form.push(("default_payment_method", attached));
                // A declined card leaves no subscription behind.
                form.push(("payment_behavior", "error_if_incomplete".to_owned()));
            }
            None => form.push(("payment_behavior", "default_incomplete".to_owned())),
        }
        if first {
            form.extend(self.trial("trial_period_days", "trial_settings[end_behavior][missing_payment_method]"));
        }
        let made = || self.made_by(customer, operation);
        let made = match self.stripe.post_once("/subscriptions", &form, &format!("subscribe-{operation}"), made).await {
            // Whether it was made, Stripe knows.
            Err(failure) if failure.is_unclear() => self.made_by(customer, operation).await?.ok_or(failure)?,
            made => made?,
        };
        stripe_object::id_of(&made).ok_or_else(|| Error::internal("Stripe made a subscription without an id"))
    }

    /// The form fields, by their names, of the trial that a first subscription begins with, if there is one. It ends
    /// the subscription if there is no card by then.
    pub(crate) fn trial(&self, days: &'static str, without_card: &'static str) -> Vec<(&'static str, String)> {
        match self.trial_days {
            ..=0 => Vec::new(),
            given => vec![(days, given.to_string()), (without_card, "cancel".to_owned())],
        }
    }

    /// What the client completes the first payment with.
    async fn first_secret(&self, id: &str) -> Result<Option<String>> {
        let expand = vec![("expand[]", "latest_invoice.confirmation_secret".to_owned())];
        let value = self.stripe.get(&format!("/subscriptions/{id}"), &expand).await?;
        Ok(StripeSubscription::read(&value)?.client_secret)
    }

    /// The user's subscription at Stripe, if it goes on. The user's lock is held.
    async fn ongoing(&self, transaction: &mut Transaction, user_id: Uuid, id: Uuid) -> Result<StripeSubscription> {
        let none = || Error::not_found("subscription");
        let known =
            sqlx::query_scalar!("SELECT stripe_id FROM subscriptions WHERE id = $1 AND user_id = $2", id, user_id);
        let stripe_id = known.fetch_optional(transaction.connection()).await?.ok_or_else(none)?;
        let (_, now) = self.mirror_subscription(transaction, user_id, &stripe_id).await?.ok_or_else(none)?;
        Ok(now)
    }

    /// Moves a subscription to a plan: a dearer one at once, with a period that begins now and is billed at once, less
    /// what is left of the old one, which is paid before if it was not; a cheaper one when what is paid for ends; the
    /// same one undoes a cancellation or a move to a cheaper one.
    ///
    /// # Errors
    /// 404 for an unknown, foreign or ended subscription; 402 `card_declined`, which leaves the plan as it was; 429
    /// `too_many_attempts` after too many of those; 503 `stripe_unavailable`.
    pub async fn change_plan(
        &self,
        user_id: Uuid,
        id: Uuid,
        to: Plan,
        limits: &Limits,
        trace: &TraceContext,
    ) -> Result<Subscription> {
        let mut transaction = self.begin_for(user_id, trace).await?;
        let now = self.ongoing(&mut transaction, user_id, id).await?;
        let (plan, pending) = now.plans().ok_or_else(|| Error::not_found("subscription"))?;
        if !now.runs() {
            return Err(Error::not_found("subscription"));
        }
        // Stripe takes one of them at a time.
        let mut form = match now.ends_by_date {
            true => vec![("cancel_at", String::new())],
            false => vec![("cancel_at_period_end", "false".to_owned())],
        };
        let other = pending.unwrap_or(plan) != to;
        let charged = other && to.terms().amount > plan.terms().amount && now.status != "trialing";
        if other {
            form.push(("items[0][id]", now.item.clone()));
            form.push(("items[0][price]", self.price(to).await?));
            let later = to.terms().amount < plan.terms().amount && now.status != "trialing";
            if charged {
                form.push(("proration_behavior", "always_invoice".to_owned()));
                // The quota is a month's, however little is left of the period.
                form.push(("billing_cycle_anchor", "now".to_owned()));
                form.push(("payment_behavior", "error_if_incomplete".to_owned()));
            } else {
                form.push(("proration_behavior", "none".to_owned()));
            }
            // Stripe bills the new price from the next period on; until then the plan is what was paid for.
            let (paid, until) = if later {
                (plan.as_str().to_owned(), now.period_end.unix_timestamp().to_string())
            } else {
                (String::new(), String::new())
            };
            form.push(("metadata[paid_plan]", paid));
            form.push(("metadata[paid_until]", until));
        }
        let change = async {
            if charged {
                self.pay_due(&now.id).await?;
            }
            let path = format!("/subscriptions/{}", now.id);
            let outcome = self.stripe.post(&path, &form, &format!("change-{}", Uuid::now_v7())).await;
            let outcome = outcome.map_err(Failure::of_own_card);
            let is_done = |now: &StripeSubscription| {
                let next = now.plans().map(|(plan, pending)| pending.unwrap_or(plan));
                next == Some(to) && !now.cancel_at_period_end && !now.ends_by_date
            };
            self.finish(transaction, user_id, &now.id, outcome, is_done).await
        };
        if charged { limits.card(user_id, clock::now(), change).await } else { change.await }
    }

    /// Pays what is due of a subscription by its own card, the oldest first: what is left of a period that nobody paid
    /// is no credit. What Stripe has given up, or what was paid or voided meanwhile, is not due.
    async fn pay_due(&self, subscription: &str) -> Result<()> {
        let unpaid = self.unpaid_invoices(subscription).await?;
        for invoice in unpaid.iter().rev().filter(|invoice| invoice.status != "uncollectible") {
            let path = format!("/invoices/{}", invoice.id);
            let is_settled = |value: &Value| !matches!(value["status"].as_str(), Some("draft" | "open"));
            let settled = || async { Ok(Some(self.stripe.get(&path, &[]).await?).filter(is_settled)) };
            // Another try may be by another card: it is another payment.
            let key = format!("pay-{}-{}", invoice.id, Uuid::now_v7());
            let failure = match self.stripe.post_once(&format!("{path}/pay"), &[], &key, settled).await {
                Ok(paid) if is_settled(&paid) => continue,
                Ok(_) => Failure::Declined(None),
                Err(failure @ Failure::Declined(_)) => failure,
                Err(_) if settled().await?.is_some() => continue,
                // Stripe names neither a code nor a parameter where there is no card.
                Err(Failure::Refused { status: 400, .. }) => Failure::Declined(Some("no_payment_method".to_owned())),
                Err(failure) => failure,
            };
            return Err(failure.into());
        }
        Ok(())
    }

    /// Ends a subscription, with its period or at once. What is unpaid of one that ends at once is not to be paid.
    ///
    /// # Errors
    /// 404 for an unknown or foreign subscription; 503 `stripe_unavailable`.
    pub async fn cancel(
        &self,
        user_id: Uuid,
        id: Uuid,
        immediately: bool,
        trace: &TraceContext,
    ) -> Result<Subscription> {
        let mut transaction = self.begin_for(user_id, trace).await?;
        let now = self.ongoing(&mut transaction, user_id, id).await?;
        if immediately || !now.runs() {
            let outcome = match now.is_over() {
                true => Ok(()),
                false => self.end(&now.id).await,
            };
            let shown = self.finish(transaction, user_id, &now.id, outcome, StripeSubscription::is_over).await?;
            // Only now: Stripe takes one whose unpaid invoice is void for paid. Its webhook has them voided, too.
            if let Err(error) = self.void_unpaid_invoices(&now.id).await {
                tracing::warn!(error.cause = %error, "what is unpaid of an ended subscription was not voided yet");
            }
            Ok(shown)
        } else {
            let form = vec![("cancel_at_period_end", "true".to_owned())];
            let path = format!("/subscriptions/{}", now.id);
            let outcome = self.stripe.post(&path, &form, &format!("cancel-{}", Uuid::now_v7())).await;
            self.finish(transaction, user_id, &now.id, outcome, |now| now.cancel_at_period_end || now.is_over()).await
        }
    }

    /// Mirrors what has become of a change. Where Stripe's answer got lost, its object tells whether it was done.
    async fn finish<T>(
        &self,
        mut transaction: Transaction,
        user_id: Uuid,
        id: &str,
        outcome: Result<T, Failure>,
        is_done: impl Fn(&StripeSubscription) -> bool,
    ) -> Result<Subscription> {
        let lost = match outcome {
            Err(failure) if failure.is_unclear() => Some(failure),
            outcome => outcome.map(|_| None)?,
        };
        let mirrored = self.mirror_subscription(&mut transaction, user_id, id).await?;
        let (shown, now) = mirrored.ok_or_else(|| Error::not_found("subscription"))?;
        if let Some(failure) = lost
            && !is_done(&now)
        {
            return Err(failure.into());
        }
        sync::conclude(transaction, user_id).await?;
        Ok(shown)
    }
}
