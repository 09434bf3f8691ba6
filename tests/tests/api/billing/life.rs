//! The life of a subscription, after each step of which the API, Postgres, Stripe and ClickHouse say the same, and
//! every change of state was told exactly once.

use serde_json::{Value, json};

use super::replica;
use super::stores::{Expected, agree};
use crate::support::*;

/// A person with a subscription, and what happens to it.
pub struct Life {
    pub api: Api,
    pub person: Person,
    /// The API's id of the subscription.
    pub id: String,
    /// Completes the first payment.
    secret: String,
}

impl Life {
    /// Subscribes to `pro` without a card: the first payment is the client's to complete.
    pub async fn begin(api: Api, person: Person) -> Self {
        let body = json!({"plan": "pro"});
        let reply = api.post("/api/billing/subscriptions").bearer(&person.jwt).json(&body).send().await;
        let reply = reply.expect_status(201);
        let (id, secret) = (reply.text_at("/subscription/id"), reply.text_at("/clientSecret"));
        Self { api, person, id, secret }
    }

    /// Completes the first payment by a card.
    pub async fn pay_with(&self, card: &str) -> Value {
        replica::complete(&self.secret, card).await
    }

    pub async fn change(&self, plan: &str) {
        let path = format!("/api/billing/subscriptions/{}", self.id);
        let call = self.api.call("PUT", &path).bearer(&self.person.jwt).json(&json!({"plan": plan}));
        call.send().await.expect_status(200);
    }

    pub async fn cancel(&self) {
        let path = format!("/api/billing/subscriptions/{}", self.id);
        self.api.delete(&path).bearer(&self.person.jwt).send().await.expect_status(200);
    }

    pub async fn time_goes(&self, how: Value) {
        let mut wanted = how;
        wanted["subscription"] = replica::subscription(&self.person).await["id"].clone();
        replica::control("advance", &wanted).await;
    }

    /// Uses another card from now on, on Stripe's own page.
    pub async fn use_card(&self, card: &str) {
        let page = self.api.post("/api/billing/portal").bearer(&self.person.jwt).send().await.expect_status(201);
        replica::submit(&page.text_at("/url"), &format!("do=card&card={card}")).await;
    }

    pub async fn newest_invoice(&self) -> Value {
        let customer = replica::customer(&self.person).await;
        let invoices = replica::get(&format!("/v1/invoices?customer={customer}")).await;
        invoices["data"][0].clone()
    }

    /// Pays the newest invoice on its own page.
    pub async fn pay_newest(&self) {
        let invoice = self.newest_invoice().await;
        assert_eq!(invoice["status"], "open");
        replica::submit(invoice["hosted_invoice_url"].as_str().unwrap(), "card=pm_card_visa").await;
    }

    /// A whole life, without waiting for anybody to notice.
    pub async fn pass(&self) {
        self.pay_with("pm_card_chargeDeclinedInsufficientFunds").await;
        self.pay_with("pm_card_visa").await;
        self.time_goes(json!({"to": "renewal"})).await;
        self.time_goes(json!({"seconds": 10 * 86_400})).await;
        self.change("enterprise").await;
        self.change("pro").await;
        self.time_goes(json!({"to": "renewal"})).await;
        self.use_card("pm_card_chargeCustomerFail").await;
        self.time_goes(json!({"to": "renewal"})).await;
        self.pay_newest().await;
        self.cancel().await;
        self.change("pro").await;
        self.cancel().await;
        self.time_goes(json!({"to": "period_end"})).await;
    }
}

/// A life that is watched.
struct Watched {
    life: Life,
    expected: Expected,
}

impl Watched {
    /// Expects a state and the events that led to it.
    async fn becomes(&mut self, change: impl FnOnce(&mut Expected), told: &[&str]) {
        change(&mut self.expected);
        self.expected.told.get_or_insert_default().extend(told.iter().map(|line| (*line).to_owned()));
        agree(&self.life.api, &self.life.person, &self.expected).await;
    }
}

#[tokio::test]
async fn four_stores_agree_at_each_step_of_a_life() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let expected = Expected {
        status: "incomplete",
        plan: "pro",
        pending: None,
        ends: false,
        entitled: "free",
        told: Some(Vec::new()),
    };
    let mut life = Watched { life: Life::begin(api, person).await, expected };
    life.becomes(|_| {}, &[]).await;

    // A card that is declined first, then one that pays.
    let declined = life.life.pay_with("pm_card_chargeDeclinedInsufficientFunds").await;
    assert_eq!(declined["error"]["decline_code"], "insufficient_funds");
    life.becomes(|_| {}, &["payment_failed 2999 insufficient_funds free"]).await;
    life.life.pay_with("pm_card_visa").await;
    let began = ["subscription_created active new 2999 pro", "payment_succeeded 2999 pro", "plan_upgraded free to pro"];
    life.becomes(|now| (now.status, now.entitled) = ("active", "pro"), &began).await;

    life.life.time_goes(json!({"to": "renewal"})).await;
    life.becomes(|_| {}, &["payment_succeeded 2999 pro"]).await;

    life.life.time_goes(json!({"seconds": 10 * 86_400})).await;
    life.life.change("enterprise").await;
    let difference = life.life.newest_invoice().await["amount_due"].as_i64().unwrap();
    assert!((7_900..8_100).contains(&difference), "all of a new period less two thirds of the old one: {difference}");
    let paid = format!("payment_succeeded {difference} enterprise");
    let upgraded =
        ["subscription_updated active expansion 7000 pro to enterprise", "plan_upgraded pro to enterprise", &paid];
    life.becomes(|now| (now.plan, now.entitled) = ("enterprise", "enterprise"), &upgraded).await;

    life.life.change("pro").await;
    let noted = ["subscription_updated active none enterprise to enterprise"];
    life.becomes(|now| now.pending = Some("pro"), &noted).await;
    life.life.time_goes(json!({"to": "renewal"})).await;
    let downgraded = [
        "subscription_updated active contraction -7000 enterprise to pro",
        "plan_downgraded enterprise to pro",
        "payment_succeeded 2999 pro",
    ];
    life.becomes(|now| (now.plan, now.pending, now.entitled) = ("pro", None, "pro"), &downgraded).await;

    life.life.use_card("pm_card_chargeCustomerFail").await;
    life.life.time_goes(json!({"to": "renewal"})).await;
    let failed = ["payment_failed 2999 generic_decline pro", "subscription_updated past_due none pro to pro"];
    // The plan is kept for a while.
    life.becomes(|now| now.status = "past_due", &failed).await;
    mail_to(&life.life.person.email, "Your payment failed", 1).await;

    life.life.pay_newest().await;
    let recovered = ["payment_succeeded 2999 pro", "subscription_updated active none pro to pro"];
    life.becomes(|now| now.status = "active", &recovered).await;

    let noted = ["subscription_updated active none pro to pro"];
    life.life.cancel().await;
    life.becomes(|now| now.ends = true, &noted).await;
    life.life.change("pro").await;
    life.becomes(|now| now.ends = false, &noted).await;
    life.life.cancel().await;
    life.becomes(|now| now.ends = true, &noted).await;

    life.life.time_goes(json!({"to": "period_end"})).await;
    let ended = ["subscription_canceled churn -2999 pro", "plan_downgraded pro to free"];
    life.becomes(|now| (now.status, now.entitled) = ("canceled", "free"), &ended).await;
    mail_to(&life.life.person.email, "Your subscription has ended", 1).await;
    // The first payment's failure, before anything had begun, was for the page alone to tell.
    let failed = mails_to(&life.life.person.email).await;
    assert_eq!(failed.iter().filter(|mail| mail.subject == "Your payment failed").count(), 1, "{failed:?}");
}
