//! Stripe's objects, as far as they are mirrored. Fields that moved between versions of its API are looked for in
//! both places: the billing period on the subscription or on its items, an invoice's subscription beside or
//! inside `parent`.

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::billing::plan::Plan;
use crate::error::{Error, Result};

/// A subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeSubscription {
    /// Stripe's id.
    pub id: String,
    /// Stripe's id of the customer.
    pub customer: String,
    /// Stripe's status.
    pub status: String,
    /// What it is for, if it is one of our plans.
    pub priced: Option<Plan>,
    /// The item that carries the price.
    pub item: String,
    /// Minor units of a month.
    pub amount: i64,
    /// ISO 4217, upper case.
    pub currency: String,
    /// When the billing period began.
    pub period_start: OffsetDateTime,
    /// When it ends.
    pub period_end: OffsetDateTime,
    /// Whether it ends with its period.
    pub cancel_at_period_end: bool,
    /// Whether its end is set as a date and not by the flag; each is taken back by itself.
    pub ends_by_date: bool,
    /// When its trial ends or ended.
    pub trial_end: Option<OffsetDateTime>,
    /// When it was made.
    pub created: OffsetDateTime,
    /// When it ended.
    pub ended: Option<OffsetDateTime>,
    /// When its first invoice was paid, as long as that is its latest.
    pub first_paid: Option<OffsetDateTime>,
    /// What was paid for until the moment beside it: a cheaper plan begins then.
    pub paid: Option<(Plan, OffsetDateTime)>,
    /// The try of ours that made it.
    pub made_by: Option<String>,
    /// Whether its newest invoice is known to be its first and unpaid.
    pub lacks_first_payment: bool,
    /// Stripe's id of its newest invoice.
    pub latest_invoice: Option<String>,
    /// What a client completes the first payment with.
    pub client_secret: Option<String>,
}

impl StripeSubscription {
    /// Reads Stripe's object.
    ///
    /// # Errors
    /// When a field is missing in every version's place.
    pub fn read(value: &Value) -> Result<Self> {
        let item = &value["items"]["data"][0];
        let price = if item["price"].is_object() { &item["price"] } else { &item["plan"] };
        let period = |name: &str| moment(&value[name]).or_else(|| moment(&item[name]));
        let metadata = &value["metadata"];
        let paid = Plan::parse(metadata["paid_plan"].as_str().unwrap_or_default())
            .zip(metadata["paid_until"].as_str().and_then(|text| text.parse().ok()).and_then(at));
        let amount = price["unit_amount"].as_i64().or_else(|| price["amount"].as_i64()).unwrap_or(0);
        let invoice = &value["latest_invoice"];
        let period_end = period("current_period_end").ok_or_else(|| lacks("current_period_end"))?;
        let (ends, end) = (value["cancel_at_period_end"] == true, moment(&value["cancel_at"]));
        Ok(Self {
            id: text(value, "id")?,
            customer: id_of(&value["customer"]).ok_or_else(|| lacks("customer"))?,
            status: text(value, "status")?,
            priced: price["metadata"]["plan"].as_str().and_then(Plan::parse).filter(|plan| *plan != Plan::Free),
            item: item["id"].as_str().unwrap_or_default().to_owned(),
            amount: monthly(amount * item["quantity"].as_i64().unwrap_or(1), price),
            currency: currency(price).or_else(|| currency(value)).unwrap_or_else(|| "USD".to_owned()),
            period_start: period("current_period_start").ok_or_else(|| lacks("current_period_start"))?,
            period_end,
            cancel_at_period_end: ends || end.is_some_and(|end| end <= period_end),
            ends_by_date: !ends && end.is_some(),
            trial_end: moment(&value["trial_end"]),
            created: moment(&value["created"]).ok_or_else(|| lacks("created"))?,
            ended: moment(&value["ended_at"]),
            first_paid: moment(&invoice["status_transitions"]["paid_at"])
                .filter(|_| invoice["billing_reason"] == "subscription_create"),
            paid,
            made_by: metadata["made_by"].as_str().map(str::to_owned),
            lacks_first_payment: invoice["billing_reason"] == "subscription_create" && invoice["status"] != "paid",
            latest_invoice: id_of(invoice),
            client_secret: invoice["confirmation_secret"]["client_secret"]
                .as_str()
                .or_else(|| invoice["payment_intent"]["client_secret"].as_str())
                .map(str::to_owned),
        })
    }

    /// Falls back to a plan, the mirrored one, where Stripe's price carries none of ours.
    #[must_use]
    pub fn known_as(self, plan: Option<Plan>) -> Self {
        Self { priced: self.priced.or(plan), ..self }
    }

    /// The plan that is paid for now, and the cheaper one that begins with the next period, if any.
    #[must_use]
    pub fn plans(&self) -> Option<(Plan, Option<Plan>)> {
        let priced = self.priced?;
        match self.paid {
            Some((paid, until)) if paid != priced && self.period_start < until => Some((paid, Some(priced))),
            _ => Some((priced, None)),
        }
    }

    /// Whether it has ever begun. A first payment that was given up ends as `canceled`, too, which its newest invoice
    /// tells, if that was asked for.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        match self.status.as_str() {
            "incomplete" | "incomplete_expired" => false,
            "canceled" => !self.lacks_first_payment,
            _ => true,
        }
    }

    /// Whether it has begun and not ended.
    #[must_use]
    pub fn runs(&self) -> bool {
        matches!(self.status.as_str(), "trialing" | "active" | "past_due")
    }

    /// Whether it is one of our plans that has begun and not ended. A customer may have other subscriptions.
    #[must_use]
    pub fn runs_for_a_plan(&self) -> bool {
        self.runs() && self.priced.is_some()
    }

    /// Whether this idempotent request created it and it still lives: a key that comes again after its subscription has
    /// ended makes another one.
    #[must_use]
    pub fn is_made_by(&self, operation: &str) -> bool {
        self.made_by.as_deref() == Some(operation) && !self.is_over()
    }

    /// Whether it is over for good, or never began and never will.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "canceled" | "incomplete_expired")
    }

    /// Whether Stripe has given up collecting it: it entitles to nothing and makes no more charges, and is not over.
    #[must_use]
    pub fn has_lapsed(&self) -> bool {
        self.status == "unpaid"
    }

    /// What it adds to the monthly revenue.
    #[must_use]
    pub fn mrr(&self) -> i64 {
        match (self.status.as_str(), self.plans()) {
            ("active" | "past_due", Some((plan, Some(_)))) => plan.terms().amount,
            ("active" | "past_due", Some((_, None))) => self.amount,
            _ => 0,
        }
    }
}

/// A payment intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentIntent {
    /// Stripe's id.
    pub id: String,
    /// Stripe's id of the customer.
    pub customer: Option<String>,
    /// Minor units.
    pub amount: i64,
    /// ISO 4217, upper case.
    pub currency: String,
    /// Stripe's status.
    pub status: String,
    /// What the client wrote.
    pub description: Option<String>,
    /// When it was last tried to collect it.
    pub charged: Option<OffsetDateTime>,
    /// The charge that failed last and why.
    pub failure: Option<(String, Option<String>)>,
    /// Minor units given back.
    pub refunded: i64,
    /// Whether it was made by `POST /api/billing/payments`; an invoice's payments are told of by their invoice.
    pub single: bool,
    /// When it was made.
    pub created: OffsetDateTime,
}

impl PaymentIntent {
    /// Reads Stripe's object, with `latest_charge` expanded or `charges` in it.
    ///
    /// # Errors
    /// When a field is missing.
    pub fn read(value: &Value) -> Result<Self> {
        let error = &value["last_payment_error"];
        let latest = &value["latest_charge"];
        let charge = if latest.is_object() { latest } else { &value["charges"]["data"][0] };
        let failure = error.is_object().then(|| {
            let code = error["decline_code"].as_str().or_else(|| error["code"].as_str());
            let failed = error["charge"].as_str().map(str::to_owned).or_else(|| id_of(latest));
            (failed.unwrap_or_default(), code.map(str::to_owned))
        });
        Ok(Self {
            id: text(value, "id")?,
            customer: id_of(&value["customer"]),
            amount: value["amount"].as_i64().ok_or_else(|| lacks("amount"))?,
            currency: currency(value).ok_or_else(|| lacks("currency"))?,
            status: text(value, "status")?,
            description: value["description"].as_str().map(str::to_owned),
            charged: moment(&charge["created"]),
            failure,
            refunded: charge["amount_refunded"].as_i64().unwrap_or(0),
            single: value["metadata"]["made_by"].is_string(),
            created: moment(&value["created"]).ok_or_else(|| lacks("created"))?,
        })
    }
}

/// An invoice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeInvoice {
    /// Stripe's id.
    pub id: String,
    /// Stripe's id of the customer.
    pub customer: Option<String>,
    /// Stripe's id of the subscription that it is for.
    pub subscription: Option<String>,
    /// The number on the document.
    pub number: Option<String>,
    /// Stripe's status.
    pub status: String,
    /// Minor units.
    pub amount_due: i64,
    /// Minor units.
    pub amount_paid: i64,
    /// ISO 4217, upper case.
    pub currency: String,
    /// When the billing period began.
    pub period_start: OffsetDateTime,
    /// When it ends.
    pub period_end: OffsetDateTime,
    /// What is billed, as the API shows it.
    pub lines: Value,
    /// A page that shows it.
    pub hosted_url: Option<String>,
    /// The document.
    pub pdf_url: Option<String>,
    /// Whether collection was attempted, even if the bank then asked the cardholder to authenticate.
    pub attempted: bool,
    /// Attempts to collect it.
    pub attempts: i64,
    /// Those that Stripe itself made and that failed.
    pub failed_attempts: i64,
    /// Stripe's ids of the payment intents that collect it, where they were asked for.
    pub intents: Vec<String>,
    /// When it was made.
    pub created: OffsetDateTime,
    /// When it was paid.
    pub paid: Option<OffsetDateTime>,
}

impl StripeInvoice {
    /// Reads Stripe's object.
    ///
    /// # Errors
    /// When a field is missing in every version's place.
    pub fn read(value: &Value) -> Result<Self> {
        let created = moment(&value["created"]).ok_or_else(|| lacks("created"))?;
        let subscription =
            id_of(&value["subscription"]).or_else(|| id_of(&value["parent"]["subscription_details"]["subscription"]));
        let status = value["status"].as_str().unwrap_or("draft").to_owned();
        let attempts = value["attempt_count"].as_i64().unwrap_or(0);
        let lines = value["lines"]["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        // An invoice's own period is the time in which items were added to it.
        let bound = |name: &'static str| lines.iter().filter_map(move |line| moment(&line["period"][name]));
        let own = |name: &str| moment(&value[name]).unwrap_or(created);
        Ok(Self {
            id: text(value, "id")?,
            customer: id_of(&value["customer"]),
            subscription,
            number: value["number"].as_str().map(str::to_owned),
            // The attempt that succeeded is the last one.
            attempts,
            attempted: value["attempted"] == true,
            intents: intents_of(value),
            failed_attempts: if status == "paid" { (attempts - 1).max(0) } else { attempts },
            status,
            amount_due: value["amount_due"].as_i64().unwrap_or(0),
            amount_paid: value["amount_paid"].as_i64().unwrap_or(0),
            currency: currency(value).ok_or_else(|| lacks("currency"))?,
            period_start: bound("start").min().unwrap_or_else(|| own("period_start")),
            period_end: bound("end").max().unwrap_or_else(|| own("period_end")),
            paid: moment(&value["status_transitions"]["paid_at"]),
            lines: lines.iter().map(line).collect(),
            hosted_url: value["hosted_invoice_url"].as_str().map(str::to_owned),
            pdf_url: value["invoice_pdf"].as_str().map(str::to_owned),
            created,
        })
    }

    /// Whether it can still be paid, including drafts and invoices that Stripe has given up on.
    #[must_use]
    pub fn is_unpaid(&self) -> bool {
        matches!(self.status.as_str(), "draft" | "open" | "uncollectible")
    }
}

/// What an amount of a price's interval comes to in a month, to the nearest minor unit.
fn monthly(amount: i64, price: &Value) -> i64 {
    // The older shape has the interval beside the amount.
    let recurring = if price["recurring"].is_object() { &price["recurring"] } else { price };
    let (times, months) = match recurring["interval"].as_str() {
        Some("day") => (365, 12),
        Some("week") => (52, 12),
        Some("year") => (1, 12),
        _ => (1, 1),
    };
    let months = months * recurring["interval_count"].as_i64().unwrap_or(1).max(1);
    (amount * times + months / 2) / months
}

fn line(value: &Value) -> Value {
    let bound = |name: &str| moment(&value["period"][name]).map(crate::clock::rfc3339);
    json!({
        "description": value["description"].as_str(),
        "amount": value["amount"].as_i64().unwrap_or(0),
        "currency": currency(value),
        "periodStart": bound("start"),
        "periodEnd": bound("end"),
    })
}

/// Stripe's ids of the payment intents that collect an invoice, with `payments` expanded or of the older shape.
fn intents_of(invoice: &Value) -> Vec<String> {
    intents_where(invoice, |_| true)
}

/// Those of them that were paid. The older shape has one intent, which was paid if its invoice was.
#[must_use]
pub fn paid_intents_of(invoice: &Value) -> Vec<String> {
    intents_where(invoice, |payment| payment["status"] == "paid")
}

fn intents_where(invoice: &Value, is_wanted: fn(&Value) -> bool) -> Vec<String> {
    let payments = invoice["payments"]["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let wanted = payments.iter().filter(|payment| is_wanted(payment));
    let found = wanted.filter_map(|payment| id_of(&payment["payment"]["payment_intent"]));
    found.chain(id_of(&invoice["payment_intent"])).collect()
}

/// An attempt to collect an invoice that failed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failed {
    /// Why: the bank's reason where there is one.
    pub decline_code: Option<String>,
    /// When.
    pub at: Option<OffsetDateTime>,
}

impl Failed {
    /// The failure that a charge is, if it is one.
    #[must_use]
    pub fn of(charge: &Value) -> Option<Self> {
        let code = charge["failure_code"].as_str();
        let reason = charge["outcome"]["reason"].as_str().filter(|_| code == Some("card_declined"));
        let decline_code = reason.or(code).map(str::to_owned);
        (charge["status"] == "failed").then(|| Self { decline_code, at: moment(&charge["created"]) })
    }
}

/// An id, of an object that may be expanded.
#[must_use]
pub fn id_of(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["id"].as_str()).map(str::to_owned)
}

fn text(value: &Value, name: &'static str) -> Result<String> {
    value[name].as_str().map(str::to_owned).ok_or_else(|| lacks(name))
}

fn currency(value: &Value) -> Option<String> {
    value["currency"].as_str().map(str::to_uppercase)
}

/// A moment, which Stripe tells in seconds.
pub(super) fn moment(value: &Value) -> Option<OffsetDateTime> {
    value.as_i64().and_then(at)
}

fn at(seconds: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds).ok()
}

#[track_caller]
fn lacks(name: &'static str) -> Error {
    Error::internal(format!("an object of Stripe lacks {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription() -> Value {
        json!({
            "id": "sub_1", "customer": "cus_1", "status": "active", "created": 1000, "metadata": {},
            "cancel_at_period_end": false, "trial_end": null, "latest_invoice": "in_1",
            "items": {"data": [{
                "id": "si_1", "quantity": 1, "current_period_start": 1000, "current_period_end": 2000,
                "price": {"metadata": {"plan": "pro"}, "unit_amount": 2999, "currency": "usd"},
            }]},
        })
    }

    #[test]
    fn reads_the_period_in_both_places() {
        let new = subscription();
        let mut old = subscription();
        let item = old["items"]["data"][0].as_object_mut().unwrap();
        item.remove("current_period_start");
        item.remove("current_period_end");
        let plan = item.remove("price").unwrap();
        item.insert("plan".to_owned(), json!({"metadata": plan["metadata"], "amount": 2999, "currency": "usd"}));
        assert!(StripeSubscription::read(&old).is_err());
        old["current_period_start"] = 1000.into();
        old["current_period_end"] = 2000.into();
        assert_eq!(StripeSubscription::read(&old).unwrap(), StripeSubscription::read(&new).unwrap());
    }

    #[test]
    fn the_revenue_is_a_months() {
        let mrr = |interval: &str, count: i64, amount: i64| {
            let mut value = subscription();
            let price = &mut value["items"]["data"][0]["price"];
            price["unit_amount"] = amount.into();
            price["recurring"] = json!({"interval": interval, "interval_count": count});
            StripeSubscription::read(&value).unwrap().mrr()
        };
        assert_eq!([mrr("month", 1, 2_999), mrr("month", 3, 6_000), mrr("year", 1, 29_990)], [2_999, 2_000, 2_499]);
        assert_eq!([mrr("year", 2, 48_000), mrr("week", 1, 600), mrr("day", 1, 120)], [2_000, 2_600, 3_650]);
        let mut old = subscription();
        let item = &mut old["items"]["data"][0];
        item["plan"] = json!({"metadata": {"plan": "pro"}, "amount": 12_000, "currency": "usd", "interval": "year"});
        item["price"] = Value::Null;
        assert_eq!(StripeSubscription::read(&old).unwrap().mrr(), 1_000);
    }

    #[test]
    fn what_was_given_up_before_its_first_payment_has_not_begun() {
        let begun = |status: &str, invoice: Value| {
            let mut value = subscription();
            value["status"] = status.into();
            value["latest_invoice"] = invoice;
            StripeSubscription::read(&value).unwrap().has_begun()
        };
        let invoice = |reason: &str, status: &str| json!({"id": "in_1", "billing_reason": reason, "status": status});
        assert!(!begun("canceled", invoice("subscription_create", "void")));
        assert!(!begun("incomplete", invoice("subscription_create", "open")));
        assert!(begun("canceled", invoice("subscription_create", "paid")));
        assert!(begun("canceled", invoice("subscription_cycle", "open")));
        assert!(begun("canceled", json!("in_1")) && begun("unpaid", json!(null)));
    }

    #[test]
    fn reads_an_invoices_subscription_in_both_places() {
        let bare = json!({"id": "in_1", "customer": "cus_1", "status": "open", "created": 5, "currency": "usd"});
        let (mut old, mut new) = (bare.clone(), bare);
        old["subscription"] = "sub_1".into();
        new["parent"] = json!({"subscription_details": {"subscription": {"id": "sub_1"}}});
        assert_eq!(StripeInvoice::read(&old).unwrap(), StripeInvoice::read(&new).unwrap());
        assert_eq!(StripeInvoice::read(&new).unwrap().subscription.as_deref(), Some("sub_1"));
    }

    #[test]
    fn reads_an_invoices_payments_in_both_places() {
        let payment = json!({"payment": {"type": "payment_intent", "payment_intent": "pi_1"}});
        assert_eq!(intents_of(&json!({"payments": {"data": [payment]}})), ["pi_1"]);
        assert_eq!(intents_of(&json!({"payment_intent": {"id": "pi_1"}})), ["pi_1"]);
        assert!(intents_of(&json!({"payments": {"data": []}, "payment_intent": null})).is_empty());
    }

    #[test]
    fn only_what_was_paid_is_given_back() {
        let payment = |id: &str, status: &str| json!({"status": status, "payment": {"type": "payment_intent", "payment_intent": id}});
        let tried = [payment("pi_1", "canceled"), payment("pi_2", "open"), payment("pi_3", "paid")];
        assert_eq!(paid_intents_of(&json!({"payments": {"data": tried}})), ["pi_3"]);
        assert_eq!(paid_intents_of(&json!({"payment_intent": "pi_1"})), ["pi_1"]);
    }

    #[test]
    fn an_invoices_period_is_that_of_its_lines() {
        let mut value = json!({
            "id": "in_1", "created": 5, "currency": "usd", "period_start": 1000, "period_end": 2000,
            "lines": {"data": []},
        });
        let period = |value: &Value| {
            let invoice = StripeInvoice::read(value).unwrap();
            (invoice.period_start.unix_timestamp(), invoice.period_end.unix_timestamp())
        };
        assert_eq!(period(&value), (1000, 2000));
        let line = |start: i64, end: i64| json!({"period": {"start": start, "end": end}});
        value["lines"]["data"] = json!([line(2000, 3000), line(1500, 2000), {}]);
        assert_eq!(period(&value), (1500, 3000));
    }

    #[test]
    fn a_decline_has_the_banks_reason_or_else_the_code() {
        let charge = |code: Option<&str>, reason: Option<&str>| {
            let outcome = json!({"reason": reason});
            let failed = json!({"status": "failed", "created": 1000, "failure_code": code, "outcome": outcome});
            Failed::of(&failed).map(|failed| (failed.decline_code, failed.at))
        };
        let told = |code: &str| Some((Some(code.to_owned()), at(1000)));
        assert_eq!(charge(Some("card_declined"), Some("insufficient_funds")), told("insufficient_funds"));
        assert_eq!(charge(Some("expired_card"), Some("generic_decline")), told("expired_card"));
        assert_eq!(charge(None, None), Some((None, at(1000))));
        assert_eq!(Failed::of(&json!({"status": "succeeded", "created": 1000})), None);
    }

    #[test]
    fn a_cheaper_plan_begins_with_the_next_period() {
        let mut value = subscription();
        value["metadata"] = json!({"paid_plan": "enterprise", "paid_until": "2000"});
        let now = StripeSubscription::read(&value).unwrap();
        assert_eq!((now.plans(), now.mrr()), (Some((Plan::Enterprise, Some(Plan::Pro))), 9_999));
        value["items"]["data"][0]["current_period_start"] = 2000.into();
        let then = StripeSubscription::read(&value).unwrap();
        assert_eq!((then.plans(), then.mrr()), (Some((Plan::Pro, None)), 2_999));
    }

    #[test]
    fn an_end_is_set_by_a_flag_or_a_date() {
        let read = |flag: bool, date: Value| {
            let mut value = subscription();
            (value["cancel_at_period_end"], value["cancel_at"]) = (flag.into(), date);
            let now = StripeSubscription::read(&value).unwrap();
            (now.cancel_at_period_end, now.ends_by_date)
        };
        assert_eq!(read(false, Value::Null), (false, false));
        assert_eq!(read(true, 2000.into()), (true, false));
        assert_eq!(read(false, 2000.into()), (true, true));
        // It goes on after this period.
        assert_eq!(read(false, 2001.into()), (false, true));
    }

    #[test]
    fn what_has_ended_is_of_no_try() {
        let mut value = subscription();
        value["metadata"]["made_by"] = "work".into();
        let now = StripeSubscription::read(&value).unwrap();
        assert!(now.is_made_by("work") && !now.is_made_by("other"));
        value["status"] = "canceled".into();
        assert!(!StripeSubscription::read(&value).unwrap().is_made_by("work"));
    }

    #[test]
    fn what_has_no_plans_price_runs_for_no_plan() {
        let mut value = subscription();
        assert!(StripeSubscription::read(&value).unwrap().runs_for_a_plan());
        value["items"]["data"][0]["price"]["metadata"] = json!({});
        let other = StripeSubscription::read(&value).unwrap();
        assert!(other.runs() && !other.runs_for_a_plan());
        // A subscription that was told to be a plan's stays that plan's.
        let known = other.known_as(Some(Plan::Pro));
        assert_eq!((known.plans(), known.mrr()), (Some((Plan::Pro, None)), 2_999));
        assert!(StripeSubscription::read(&value).unwrap().known_as(None).plans().is_none());
    }

    #[test]
    fn only_failed_attempts_count_as_failed() {
        let invoice = |status: &str, attempts: i64| {
            let value =
                json!({"id": "in_1", "status": status, "attempt_count": attempts, "created": 5, "currency": "usd"});
            StripeInvoice::read(&value).unwrap().failed_attempts
        };
        assert_eq!([invoice("open", 0), invoice("open", 2), invoice("paid", 0), invoice("paid", 3)], [0, 2, 0, 2]);
    }
}
