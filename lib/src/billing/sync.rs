//! Brings the mirror up to what Stripe has: reads an object there, under the lock of its user, and writes row,
//! plan, events and mails in one transaction.

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::billing::duplicate::others_running;
use crate::billing::payment::Payment;
use crate::billing::plan::Plan;
use crate::billing::service::{Billing, LockTimeout, lock};
use crate::billing::stripe_object::{self, Failed, PaymentIntent, StripeInvoice, StripeSubscription};
use crate::billing::subscription::{self, Subscription};
use crate::billing::transition::{self, Change, Movement, Published};
use crate::clock;
use crate::error::Result;
use crate::events::{Event, Subject};
use crate::mail::{Mail, MailKind, Recipient};
use crate::store::postgres::Transaction;
use crate::telemetry::trace::TraceContext;

/// How long before its end a trial's user is told: Stripe's event of that comes three days before, by another clock.
const TRIAL_NOTICE: Duration = Duration::hours(3 * 24 + 1);

/// A kind of object that is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A subscription.
    Subscription,
    /// An invoice.
    Invoice,
    /// A payment intent.
    Payment,
}

impl Billing {
    /// Mirrors the object of a kind and an id. What belongs to nobody here changes nothing. What is unpaid of a
    /// subscription that is over, however it ended, is voided then: whoever paid it would get nothing for it.
    ///
    /// # Errors
    /// When the database or Stripe does not answer; then nothing is changed, unless it was the voiding that failed.
    pub async fn sync(&self, kind: Kind, id: &str, trace: &TraceContext) -> Result<()> {
        let mut transaction = self.database.begin(trace).await?;
        let Some(user_id) = self.owner(&mut transaction, kind, id).await? else { return Ok(()) };
        lock(transaction.connection(), user_id, LockTimeout::Worker).await?;
        let subscription = match kind {
            Kind::Subscription => {
                let mirrored = self.mirror_subscription(&mut transaction, user_id, id).await?;
                let subscription = mirrored.map(|(_, now)| now);
                let unpaid = subscription.as_ref().filter(|now| now.status == "past_due");
                // Its invoice may have been told of before this was so, and is not told of again.
                if let Some(invoice) = unpaid.and_then(|now| now.latest_invoice.as_ref()) {
                    self.mirror_invoice(&mut transaction, user_id, invoice).await?;
                }
                subscription
            }
            Kind::Payment => {
                self.mirror_payment(&mut transaction, user_id, id).await?;
                return transaction.commit().await;
            }
            // Those that are voided are told of, too: there is nothing more to look for.
            Kind::Invoice => match self.mirror_invoice(&mut transaction, user_id, id).await? {
                Some((invoice, subscription)) if invoice.is_unpaid() => subscription,
                _ => None,
            },
        };
        conclude(transaction, user_id).await?;
        match subscription {
            Some(over) if over.is_over() => self.void_unpaid_invoices(&over.id).await,
            _ => Ok(()),
        }
    }

    /// Whose the object is: by the mirror, or else by its customer.
    async fn owner(&self, transaction: &mut Transaction, kind: Kind, id: &str) -> Result<Option<Uuid>> {
        let known = sqlx::query_scalar!(
            r#"SELECT user_id AS "user_id!" FROM subscriptions WHERE stripe_id = $1
               UNION ALL SELECT user_id FROM invoices WHERE stripe_id = $1
               UNION ALL SELECT user_id FROM payments WHERE stripe_id = $1"#,
            id,
        );
        if let Some(user_id) = known.fetch_optional(transaction.connection()).await? {
            return Ok(Some(user_id));
        }
        let Some(value) = self.stripe.find(&path(kind, id), &[]).await? else { return Ok(None) };
        let Some(customer) = stripe_object::id_of(&value["customer"]) else { return Ok(None) };
        let runs =
            kind == Kind::Subscription && StripeSubscription::read(&value).is_ok_and(|now| now.runs_for_a_plan());
        let known = sqlx::query_scalar!("SELECT user_id FROM billing_customers WHERE stripe_id = $1", customer);
        if let Some(user_id) = known.fetch_optional(transaction.connection()).await? {
            return Ok(Some(user_id));
        }
        // A webhook may be faster than the transaction that notes the customer.
        let Some(value) = self.stripe.find(&format!("/customers/{customer}"), &[]).await? else {
            return Ok(None);
        };
        let named = value["metadata"]["user_id"].as_str().and_then(|id| Uuid::try_parse(id).ok());
        let Some(user_id) = named else { return Ok(None) };
        let noted = sqlx::query_scalar!(
            "INSERT INTO billing_customers (user_id, stripe_id) SELECT id, $2 FROM users WHERE id = $1
             ON CONFLICT DO NOTHING RETURNING user_id",
            user_id,
            customer,
        );
        if noted.fetch_optional(transaction.connection()).await?.is_some() {
            return Ok(Some(user_id));
        }
        let known = sqlx::query_scalar!("SELECT user_id FROM billing_customers WHERE stripe_id = $1", customer);
        let known = known.fetch_optional(transaction.connection()).await?;
        if known.is_none() && runs {
            tracing::warn!(stripe.subscription = id, "a subscription is paid for whose user is gone");
        }
        Ok(known)
    }

    /// A subscription as Stripe has it, with its newest invoice.
    pub(crate) async fn read_subscription(&self, id: &str) -> Result<Option<StripeSubscription>> {
        let expand = vec![("expand[]", "latest_invoice".to_owned())];
        let value = self.stripe.find(&path(Kind::Subscription, id), &expand).await?;
        value.as_ref().map(StripeSubscription::read).transpose()
    }

    /// When the oldest of the open invoices was made that none was paid after: later ones do not prolong the grace. One
    /// that was paid made the subscription active again, whatever was left open before.
    async fn unpaid_since(&self, subscription: &StripeSubscription) -> Result<OffsetDateTime> {
        let invoices = self.newest_invoices(&subscription.id).await?;
        let since_payment = invoices.iter().take_while(|invoice| invoice.status != "paid");
        let open = since_payment.filter(|invoice| invoice.status == "open");
        Ok(open.map(|invoice| invoice.created).min().unwrap_or(subscription.period_start))
    }

    /// Those of a subscription's newest hundred invoices that can still be paid, newest first.
    pub(crate) async fn unpaid_invoices(&self, subscription: &str) -> Result<Vec<StripeInvoice>> {
        let mut invoices = self.newest_invoices(subscription).await?;
        invoices.retain(StripeInvoice::is_unpaid);
        Ok(invoices)
    }

    async fn newest_invoices(&self, subscription: &str) -> Result<Vec<StripeInvoice>> {
        let query = vec![("subscription", subscription.to_owned()), ("limit", "100".to_owned())];
        let newest = self.stripe.get("/invoices", &query).await?;
        newest["data"].as_array().into_iter().flatten().map(StripeInvoice::read).collect()
    }

    /// The attempts to collect an invoice that failed, first to last.
    async fn failures(&self, invoice: &StripeInvoice) -> Result<Vec<Failed>> {
        let mut failed = Vec::new();
        for intent in invoice.intents.iter().filter(|_| invoice.attempts > 0) {
            let query = vec![("payment_intent", intent.clone()), ("limit", "100".to_owned())];
            let charges = self.stripe.get("/charges", &query).await?;
            failed.extend(charges["data"].as_array().into_iter().flatten().filter_map(Failed::of));
        }
        // Stripe lists an intent's newest first.
        failed.reverse();
        failed.sort_by_key(|failed| failed.at);
        Ok(failed)
    }

    /// When a payment was last refunded.
    async fn last_refund(&self, payment: &str) -> Result<Option<OffsetDateTime>> {
        let query = vec![("payment_intent", payment.to_owned()), ("limit", "1".to_owned())];
        let refunds = self.stripe.get("/refunds", &query).await?;
        Ok(stripe_object::moment(&refunds["data"][0]["created"]))
    }

    /// Mirrors a subscription and gives it as the API shows it, with Stripe's object. The user's plan follows when the
    /// transaction is concluded.
    pub(crate) async fn mirror_subscription(
        &self,
        transaction: &mut Transaction,
        user_id: Uuid,
        id: &str,
    ) -> Result<Option<(Subscription, StripeSubscription)>> {
        let Some(now) = self.read_subscription(id).await? else { return Ok(None) };
        let row = sqlx::query!(
            "SELECT id, plan, pending_plan, status, cancel_at_period_end, running, mrr_minor, trial_mail_sent, updated_at
             FROM subscriptions WHERE stripe_id = $1",
            id,
        )
        .fetch_optional(transaction.connection())
        .await?;
        let was_running = row.as_ref().is_some_and(|row| row.running);
        let (now, ended) = self.keep_first(transaction, user_id, now, was_running).await?;
        let published = match &row {
            None => Published::default(),
            Some(row) => Published {
                plan: Some(Plan::stored(&row.plan)?),
                status: row.status.clone(),
                pending: row.pending_plan.as_deref().map(Plan::stored).transpose()?,
                ends: row.cancel_at_period_end,
                running: row.running,
                mrr: row.mrr_minor,
            },
        };
        // A price without a plan, to which somebody has moved a subscription of ours, leaves it the plan it had.
        let now = now.known_as(published.plan);
        let Some((plan, pending)) = now.plans() else { return Ok(None) };
        let returning = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM subscriptions WHERE user_id = $1 AND began) AS "any!""#,
            user_id,
        )
        .fetch_one(transaction.connection())
        .await?;
        let (next, change) = transition::change(&published, &now, plan, returning);
        let own_id = row.as_ref().map_or_else(Uuid::now_v7, |row| row.id);
        let happened = match (change, &row) {
            (Some(Change::Began(..)), None) => Some(now.first_paid.unwrap_or(now.created)),
            (Some(Change::Began(..)), Some(_)) => now.first_paid,
            // It was not so when the mirror was last brought up to date, and comes after what was told then.
            (Some(Change::Ended(_)), Some(row)) => now.ended.map(|ended| ended.max(row.updated_at + Duration::SECOND)),
            _ => None,
        };
        let event = change.map(|change| event(user_id, own_id, plan, &now, change).happened(happened));
        let trial_left = now.trial_end.filter(|_| now.status == "trialing").map(|end| end - clock::now());
        // The end of a trial that was prolonged since is told of anew.
        let noticed =
            row.as_ref().is_some_and(|row| row.trial_mail_sent) && trial_left.is_none_or(|left| left <= TRIAL_NOTICE);
        let notice_due = trial_left.is_some_and(|left| left <= TRIAL_NOTICE) && !now.cancel_at_period_end && !noticed;
        let grace_end = match now.status.as_str() {
            "past_due" => Some(self.unpaid_since(&now).await? + self.grace),
            _ => None,
        };
        let shown = sqlx::query_as!(
            subscription::Row,
            "INSERT INTO subscriptions (id, user_id, stripe_id, plan, pending_plan, status, current_period_start,
                 current_period_end, cancel_at_period_end, trial_end, grace_end, running, began, mrr_minor, currency,
                 trial_mail_sent, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $13, $14, $15, $16, $17)
             ON CONFLICT (stripe_id) DO UPDATE SET plan = excluded.plan, pending_plan = excluded.pending_plan,
                 status = excluded.status, current_period_start = excluded.current_period_start,
                 current_period_end = excluded.current_period_end,
                 cancel_at_period_end = excluded.cancel_at_period_end, trial_end = excluded.trial_end,
                 grace_end = excluded.grace_end, running = excluded.running,
                 began = subscriptions.began OR excluded.began, mrr_minor = excluded.mrr_minor,
                 currency = excluded.currency,
                 trial_mail_sent = excluded.trial_mail_sent,
                 updated_at = excluded.updated_at
             RETURNING id, plan, pending_plan, status, current_period_start, current_period_end,
                 cancel_at_period_end, trial_end, created_at",
            own_id,
            user_id,
            id,
            plan.as_str(),
            pending.map(Plan::as_str),
            now.status,
            now.period_start,
            now.period_end,
            now.cancel_at_period_end,
            now.trial_end,
            grace_end,
            next.running,
            next.mrr,
            now.currency,
            noticed || notice_due,
            now.created,
            clock::now(),
        )
        .fetch_one(transaction.connection())
        .await?;
        if now.trial_end.is_some() {
            sqlx::query!(
                "UPDATE billing_customers SET trial_used_at = coalesce(trial_used_at, now()) WHERE user_id = $1",
                user_id,
            )
            .execute(transaction.connection())
            .await?;
        }
        if let Some(event) = event {
            transaction.publish(event);
        }
        if matches!(change, Some(Change::Ended(_))) && others_running(transaction, user_id, id).await?.is_empty() {
            transaction.send_mail(&Mail::new(MailKind::SubscriptionEnded, Recipient::User(user_id)))?;
        }
        if notice_due {
            transaction.send_mail(&Mail::new(MailKind::TrialEnding, Recipient::User(user_id)))?;
        }
        // Duplicates that were ended are mirrored last, so that the user is never seen without a running subscription.
        for id in &ended {
            Box::pin(self.mirror_subscription(transaction, user_id, id)).await?;
        }
        Ok(Some((shown.shown()?, now)))
    }

    /// Mirrors a payment and gives it as the API shows it.
    pub(crate) async fn mirror_payment(
        &self,
        transaction: &mut Transaction,
        user_id: Uuid,
        id: &str,
    ) -> Result<Option<Payment>> {
        let expand = vec![("expand[]", "latest_charge".to_owned())];
        let Some(value) = self.stripe.find(&path(Kind::Payment, id), &expand).await? else { return Ok(None) };
        let now = PaymentIntent::read(&value)?;
        let row = sqlx::query!("SELECT id, status, failed_charge, refunded FROM payments WHERE stripe_id = $1", id)
            .fetch_optional(transaction.connection())
            .await?;
        let own_id = row.as_ref().map_or_else(Uuid::now_v7, |row| row.id);
        // The failures of an invoice's payments are told of by their invoice.
        let failure = now.failure.as_ref().filter(|_| now.single);
        let failed =
            failure.filter(|(charge, _)| row.as_ref().and_then(|row| row.failed_charge.as_ref()) != Some(charge));
        let succeeded = now.status == "succeeded" && row.as_ref().is_none_or(|row| row.status != "succeeded");
        let refunded = now.refunded - row.as_ref().map_or(0, |row| row.refunded);
        let decline_code = now.failure.as_ref().and_then(|(_, code)| code.clone());
        let shown = sqlx::query_as!(
            Payment,
            "INSERT INTO payments (id, user_id, stripe_id, amount, currency, status, description, decline_code,
                 failed_charge, refunded, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             ON CONFLICT (stripe_id) DO UPDATE SET amount = excluded.amount, status = excluded.status,
                 decline_code = excluded.decline_code,
                 failed_charge = coalesce(excluded.failed_charge, payments.failed_charge),
                 refunded = greatest(payments.refunded, excluded.refunded)
             RETURNING id, amount, currency, status, description, decline_code, created_at",
            own_id,
            user_id,
            id,
            now.amount,
            now.currency,
            now.status,
            now.description,
            decline_code,
            failure.map(|(charge, _)| charge.as_str()),
            now.refunded,
            now.created,
        )
        .fetch_one(transaction.connection())
        .await?;
        let subject = subject(transaction, user_id).await?;
        let tell = |kind, amount: i64| {
            Event::about(&subject, kind)
                .with("paymentId", own_id.to_string())
                .with("amountMinor", amount)
                .with("currency", now.currency.as_str())
        };
        if let Some((_, code)) = failed {
            let event = tell("billing.payment_failed", now.amount).with("declineCode", code.as_deref());
            transaction.publish(event.happened(now.charged));
        }
        if succeeded && now.single {
            transaction.publish(tell("billing.payment_succeeded", now.amount).happened(now.charged));
        }
        if refunded > 0 {
            let refunded_at = self.last_refund(id).await?;
            transaction.publish(tell("billing.payment_refunded", refunded).happened(refunded_at));
        }
        Ok(Some(shown))
    }

    /// Mirrors an invoice and the subscription that it is for, and gives both as Stripe has them.
    async fn mirror_invoice(
        &self,
        transaction: &mut Transaction,
        user_id: Uuid,
        id: &str,
    ) -> Result<Option<(StripeInvoice, Option<StripeSubscription>)>> {
        let expand = vec![("expand[]", "payments".to_owned())];
        let Some(value) = self.stripe.find(&path(Kind::Invoice, id), &expand).await? else { return Ok(None) };
        let now = StripeInvoice::read(&value)?;
        let failures = self.failures(&now).await?;
        // A person's own tries are charges that Stripe does not count; a try without a card is none.
        let failed = now.failed_attempts.max(i64::try_from(failures.len()).unwrap_or(i64::MAX));
        let row =
            sqlx::query!("SELECT id, status, failed_attempts, failure_mailed FROM invoices WHERE stripe_id = $1", id)
                .fetch_optional(transaction.connection())
                .await?;
        let own_id = row.as_ref().map_or_else(Uuid::now_v7, |row| row.id);
        let published = row.as_ref().map_or(0, |row| row.failed_attempts);
        let paid = now.status == "paid" && now.amount_paid > 0 && row.as_ref().is_none_or(|row| row.status != "paid");
        sqlx::query!(
            "INSERT INTO invoices (id, user_id, stripe_id, number, status, amount_due, amount_paid, currency,
                 period_start, period_end, lines, hosted_url, pdf_url, failed_attempts, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
             ON CONFLICT (stripe_id) DO UPDATE SET number = excluded.number, status = excluded.status,
                 amount_due = excluded.amount_due, amount_paid = excluded.amount_paid,
                 period_start = excluded.period_start, period_end = excluded.period_end, lines = excluded.lines,
                 hosted_url = excluded.hosted_url, pdf_url = excluded.pdf_url,
                 failed_attempts = greatest(invoices.failed_attempts, excluded.failed_attempts)",
            own_id,
            user_id,
            id,
            now.number,
            now.status,
            now.amount_due,
            now.amount_paid,
            now.currency,
            now.period_start,
            now.period_end,
            now.lines,
            now.hosted_url,
            now.pdf_url,
            failed,
            now.created,
        )
        .execute(transaction.connection())
        .await?;
        let mirrored = match &now.subscription {
            Some(subscription) => self.mirror_subscription(transaction, user_id, subscription).await?,
            None => None,
        };
        let subscription = mirrored.map(|(_, subscription)| subscription);
        let (plan, _) = entitled(transaction, user_id).await?;
        // What was paid was paid for its plan, also where the user has lost that since.
        let paid_plan = subscription.as_ref().and_then(StripeSubscription::plans).map_or(plan, |(plan, _)| plan);
        let tell = |kind, amount: i64, plan: Plan| {
            Event::about(&Subject { user_id, plan, country: None }, kind)
                .with("paymentId", own_id.to_string())
                .with("invoiceId", own_id.to_string())
                .with("amountMinor", amount)
                .with("currency", now.currency.as_str())
        };
        for attempt in published..failed {
            let failed = usize::try_from(attempt).ok().and_then(|attempt| failures.get(attempt)).cloned();
            let Failed { decline_code, at } = failed.unwrap_or_default();
            let event = tell("billing.payment_failed", now.amount_due, plan).with("declineCode", decline_code);
            transaction.publish(event.happened(at));
        }
        // Of one that has not begun, Stripe tries no payment again, and no plan is to be kept. Where the bank asks for the
        // card's holder, no attempt has failed, and yet the subscription is past due.
        let has_failed = failed > published && subscription.as_ref().is_some_and(StripeSubscription::runs);
        let is_due = now.attempted
            && !row.is_some_and(|row| row.failure_mailed)
            && subscription.as_ref().is_some_and(|subscription| subscription.status == "past_due");
        if now.status == "open" && (has_failed || is_due) {
            transaction.send_mail(&Mail::new(MailKind::PaymentFailed, Recipient::User(user_id)))?;
            sqlx::query!("UPDATE invoices SET failure_mailed = true WHERE stripe_id = $1", id)
                .execute(transaction.connection())
                .await?;
        }
        if paid {
            let event = tell("billing.payment_succeeded", now.amount_paid, paid_plan);
            // Told as of now, what was paid for would be taken for the plan that the user has since then.
            transaction.publish(if paid_plan == plan { event.happened(now.paid) } else { event.at(now.paid) });
        }
        Ok(Some((now, subscription)))
    }
}

fn path(kind: Kind, id: &str) -> String {
    match kind {
        Kind::Subscription => format!("/subscriptions/{id}"),
        Kind::Invoice => format!("/invoices/{id}"),
        Kind::Payment => format!("/payment_intents/{id}"),
    }
}

fn event(user_id: Uuid, id: Uuid, plan: Plan, now: &StripeSubscription, change: Change) -> Event {
    let subject = Subject { user_id, plan, country: None };
    let (kind, movement, delta) = match change {
        Change::Began(movement, delta) => ("billing.subscription_created", movement, delta),
        Change::Moved { movement, delta, .. } => ("billing.subscription_updated", movement, delta),
        Change::Ended(delta) => ("billing.subscription_canceled", Movement::Churn, delta),
    };
    let mut event = Event::about(&subject, kind)
        .with("subscriptionId", id.to_string())
        .with("movement", movement.as_str())
        .with("mrrDeltaMinor", delta)
        .with("currency", now.currency.as_str());
    if !matches!(change, Change::Ended(_)) {
        event = event.with("status", now.status.as_str());
    }
    if let Change::Moved { from, .. } = change {
        event = event.with("fromPlan", from.as_str());
    }
    event
}

async fn subject(transaction: &mut Transaction, user_id: Uuid) -> Result<Subject> {
    let plan = sqlx::query_scalar!("SELECT plan FROM users WHERE id = $1", user_id);
    let plan = plan.fetch_one(transaction.connection()).await?;
    Ok(Subject { user_id, plan: Plan::stored(&plan)?, country: None })
}

/// The best plan that a subscription entitles to at this moment, and whether one runs at all.
async fn entitled(transaction: &mut Transaction, user_id: Uuid) -> Result<(Plan, bool)> {
    let running = sqlx::query!(
        r#"SELECT plan, (status <> 'past_due' OR grace_end > $2) AS "entitles!"
           FROM subscriptions WHERE user_id = $1 AND status IN ('trialing', 'active', 'past_due')"#,
        user_id,
        clock::now(),
    )
    .fetch_all(transaction.connection())
    .await?;
    let entitling = running.iter().filter(|row| row.entitles).map(|row| Plan::stored(&row.plan));
    let plans = entitling.collect::<Result<Vec<_>>>()?;
    let best = plans.into_iter().max_by_key(|plan| plan.terms().amount).unwrap_or(Plan::Free);
    Ok((best, !running.is_empty()))
}

/// Sets the user's plan to the best that a subscription entitles to at this moment, and commits: a sign-in waits for the
/// user's row, and must not wait for Stripe. Whoever loses the plan to the end of a grace is told. The user's lock is
/// held.
pub(crate) async fn conclude(mut transaction: Transaction, user_id: Uuid) -> Result<()> {
    let (best, runs) = entitled(&mut transaction, user_id).await?;
    let before = subject(&mut transaction, user_id).await?.plan;
    if best == before {
        return transaction.commit().await;
    }
    sqlx::query!("UPDATE users SET plan = $2, updated_at = now() WHERE id = $1", user_id, best.as_str())
        .execute(transaction.connection())
        .await?;
    if best == Plan::Free && runs {
        transaction.send_mail(&Mail::new(MailKind::PlanPaused, Recipient::User(user_id)))?;
    }
    let up = best.terms().amount > before.terms().amount;
    let kind = if up { "user.plan_upgraded" } else { "user.plan_downgraded" };
    let subject = Subject { user_id, plan: best, country: None };
    transaction.publish(Event::about(&subject, kind).with("fromPlan", before.as_str()).with("toPlan", best.as_str()));
    transaction.commit().await
}
