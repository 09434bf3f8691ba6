//! What happens when Stripe fails, is slow, or does what it was asked and nobody learns of it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures_util::future::join;
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use time::OffsetDateTime;

use super::life::Life;
use super::{replica, stores};
use crate::support::*;

/// A run of the reconciliation is for all customers: one that a test waits for must not be another's.
static RECONCILIATION: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A person who is a customer already, and whose own card's id nobody else's requests contain.
struct Payer {
    api: Api,
    person: Person,
    customer: String,
    card: String,
}

impl Payer {
    async fn new(api: &Api) -> Self {
        let (api, person) = (api.clone(), api.sign_up().await);
        api.post("/api/billing/portal").bearer(&person.jwt).send().await.expect_status(201);
        let customer = replica::customer(&person).await;
        let card = replica::post("/v1/payment_methods", "type=card&card[token]=tok_visa").await;
        Self { api, person, customer, card: card["id"].as_str().unwrap().to_owned() }
    }

    async fn post(&self, path: &str, key: &str, body: &Value) -> Reply {
        let call = self.api.post(path).bearer(&self.person.jwt).header("idempotency-key", key);
        call.json(body).send().await
    }

    async fn pay(&self, key: &str) -> Reply {
        let body = json!({"amount": 1999, "currency": "EUR", "paymentMethodId": self.card});
        self.post("/api/billing/payments", key, &body).await
    }

    async fn subscribe(&self, key: &str) -> Reply {
        let body = json!({"plan": "pro", "paymentMethodId": self.card});
        self.post("/api/billing/subscriptions", key, &body).await
    }

    async fn get(&self, path: &str) -> Value {
        self.api.get(path).bearer(&self.person.jwt).send().await.expect_status(200).body
    }

    /// Charges that succeeded, in minor units.
    async fn charged(&self) -> Vec<i64> {
        let charges = replica::get(&format!("/v1/charges?customer={}", self.customer)).await;
        let charges = charges["data"].as_array().unwrap().iter();
        charges
            .filter(|charge| charge["status"] == "succeeded")
            .map(|charge| charge["amount"].as_i64().unwrap())
            .collect()
    }

    /// Waits for what a sign-in waits for, by Postgres's clock: a busy machine is slow to sign anybody in.
    async fn could_sign_in(&self) {
        let mut connection = stores::postgres().await;
        sqlx::query("SET lock_timeout = '3s'").execute(&mut connection).await.unwrap();
        let row = sqlx::query("SELECT FROM users WHERE id = $1::uuid FOR SHARE").bind(&self.person.id);
        row.execute(&mut connection).await.expect("the user's row is not kept locked");
    }

    /// Stripe ends the one subscription that there is.
    async fn is_ended(&self) {
        let stripe_id = replica::subscription(&self.person).await["id"].as_str().unwrap().to_owned();
        replica::delete(&format!("/v1/subscriptions/{stripe_id}")).await;
    }

    async fn fails(&self, words: &str, how: Value) {
        let mut fault = how;
        fault["match"] = words.into();
        replica::control("faults", &fault).await;
    }
}

/// Waits until all is handled that Stripe has told of a customer: a notice that is handled later reads the object as it
/// is then.
pub async fn all_handled(customer: &str) {
    let is_read =
        |kind: &str| ["customer.subscription.", "invoice.", "payment_intent."].iter().any(|of| kind.starts_with(of));
    let left = "SELECT to_jsonb(count(*)) FROM unnest(string_to_array($1, ',')) told (id)
        WHERE NOT EXISTS (SELECT FROM stripe_events e WHERE e.id = told.id AND e.processed_at IS NOT NULL)";
    eventually("Stripe's events to be handled", || async {
        let events = replica::get(&format!("/_replica/webhooks?limit=1000&customer={customer}")).await;
        let events = events["data"].as_array().unwrap().iter().map(|event| &event["payload"]);
        let read = events.filter(|event| is_read(event["type"].as_str().unwrap()));
        let ids: Vec<&str> = read.map(|event| event["id"].as_str().unwrap()).collect();
        (!ids.is_empty() && stores::row(left, &ids.join(",")).await == 0).then_some(())
    })
    .await;
}

/// Keeps a user's billing busy for as long as the connection lives.
async fn busy(person: &Person) -> PgConnection {
    let mut connection = stores::postgres().await;
    let lock = "SELECT pg_advisory_lock(hashtextextended('billing:' || $1, 0))";
    sqlx::query(lock).bind(&person.id).execute(&mut connection).await.unwrap();
    connection
}

through_both_doors! {
    async fn a_request_does_not_wait_without_end_for_another_of_its_user(api: Api) {
        let (payer, plan) = (Payer::new(&api).await, json!({"plan": "pro"}));
        let checkout = || payer.post("/api/billing/checkout", "waits", &plan);
        let (other, started) = (busy(&payer.person).await, Instant::now());
        for refused in <[Reply; 2]>::from(tokio::join!(checkout(), payer.subscribe("waits"))) {
            refused.expect_problem(503, "unavailable");
        }
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        drop(other);
        checkout().await.expect_status(201);
        payer.subscribe("waits").await.expect_status(201);
        assert_eq!(payer.charged().await, [2999]);
    }

    async fn a_sign_in_does_not_wait_for_what_a_worker_asks_stripe(api: Api) {
        let payer = Payer::new(&api).await;
        payer.subscribe("ends").await.expect_status(201);
        all_handled(&payer.customer).await;
        // What is unpaid of the subscription that has ended is looked for.
        let stripe_id = replica::subscription(&payer.person).await["id"].as_str().unwrap().to_owned();
        payer.fails(&format!("/v1/invoices?subscription={stripe_id}"), json!({"delay_seconds": 5.5})).await;
        payer.is_ended().await;
        eventually("the end of the plan", || async {
            payer.could_sign_in().await;
            (payer.get("/api/auth/me").await["user"]["plan"] == "free").then_some(())
        })
        .await;
        all_handled(&payer.customer).await;
    }

    async fn a_sign_in_does_not_wait_for_what_a_request_asks_stripe(api: Api) {
        let payer = Payer::new(&api).await;
        payer.subscribe("ends").await.expect_status(201);
        all_handled(&payer.customer).await;
        // That it has ended is found out on the way.
        replica::control("webhooks", &json!({"customer": payer.customer, "mode": "drop"})).await;
        payer.is_ended().await;
        payer.fails(&format!("POST /v1/subscriptions? customer={}", payer.customer), json!({"delay_seconds": 5.5})).await;
        let is_made = Cell::new(false);
        let subscribing = async {
            let reply = payer.subscribe("again").await;
            is_made.set(true);
            reply
        };
        let meanwhile = eventually("the subscription", || async {
            payer.could_sign_in().await;
            is_made.get().then_some(())
        });
        let (reply, ()) = join(subscribing, meanwhile).await;
        reply.expect_status(201);
    }

    async fn a_payment_that_stripe_refuses_to_work_on_is_made_later(api: Api) {
        let payer = Payer::new(&api).await;
        // Before there is anything to pay, and when it is to be paid.
        let words = format!("customer={}", payer.customer);
        payer.fails(&format!("currency=eur&{words}"), json!({"status": 503})).await;
        payer.pay("later").await.expect_problem(503, "stripe_unavailable");
        payer.fails(&format!("payment_method={}", payer.card), json!({"status": 500})).await;
        payer.pay("later").await.expect_problem(503, "stripe_unavailable");
        assert_eq!(payer.charged().await, [0; 0]);
        let payments = payer.get("/api/billing/payments").await;
        assert!(payments["payments"].as_array().unwrap().iter().all(|payment| payment["status"] != "succeeded"), "{payments}");

        let made = payer.pay("later").await.expect_status(201).body["payment"].clone();
        assert_eq!((&made["status"], &made["amount"]), (&json!("succeeded"), &json!(1999)));
        assert_eq!(payer.pay("later").await.expect_status(201).body["payment"], made);
        assert_eq!(payer.charged().await, [1999]);
        assert_eq!(payer.get("/api/billing/payments").await["payments"], json!([made]));
    }

    async fn what_failed_at_stripe_is_done_once_though_stripe_repeats_the_failure(api: Api) {
        let person = api.sign_up().await;
        let portal = || api.post("/api/billing/portal").bearer(&person.jwt).send();
        let making = format!("POST /v1/customers? email={}", person.email);
        replica::control("faults", &json!({"match": making, "status": 500})).await;
        portal().await.expect_problem(503, "stripe_unavailable");
        portal().await.expect_status(201);
        let customers = replica::get(&format!("/v1/customers?email={}", person.email.replace('@', "%40"))).await;
        assert_eq!(customers["data"].as_array().unwrap().len(), 1);

        let payer = Payer::new(&api).await;
        let failed = json!({"status": 500});
        payer.fails(&format!("/v1/payment_methods/{}/attach?", payer.card), failed.clone()).await;
        payer.subscribe("once").await.expect_problem(503, "stripe_unavailable");
        payer.fails(&format!("POST /v1/subscriptions? customer={}", payer.customer), failed.clone()).await;
        payer.subscribe("once").await.expect_problem(503, "stripe_unavailable");
        payer.subscribe("once").await.expect_status(201);
        replica::subscription(&payer.person).await;
        assert_eq!(payer.charged().await, [2999]);

        // It was made, and is found: there is no second one.
        payer.fails(&format!("currency=eur&customer={}", payer.customer), json!({"status": 500, "done": true})).await;
        payer.pay("paid").await.expect_problem(503, "stripe_unavailable");
        payer.fails(&format!("/confirm? payment_method={}", payer.card), failed).await;
        payer.pay("paid").await.expect_problem(503, "stripe_unavailable");
        payer.pay("paid").await.expect_status(201);
        assert_eq!(payer.charged().await, [1999, 2999]);
        let intents = replica::get(&format!("/v1/payment_intents?customer={}", payer.customer)).await;
        assert_eq!(intents["data"].as_array().unwrap().len(), 2, "{intents}");
    }

    async fn a_payment_whose_answer_gets_lost_is_asked_for(api: Api) {
        let payer = Payer::new(&api).await;
        payer.fails(&format!("payment_method={}", payer.card), json!({"lose": true, "times": 2})).await;
        let made = payer.pay("lost").await.expect_status(201);
        assert_eq!(made.body["payment"]["status"], "succeeded");
        assert_eq!(payer.charged().await, [1999]);
    }

    async fn a_subscription_is_made_once_whatever_gets_lost(api: Api) {
        let payer = Payer::new(&api).await;
        let create = format!("POST /v1/subscriptions? customer={}", payer.customer);
        payer.fails(&create, json!({"status": 503})).await;
        payer.subscribe("once").await.expect_problem(503, "stripe_unavailable");
        assert_eq!(payer.get("/api/billing/subscriptions").await["subscriptions"], json!([]));
        assert_eq!(payer.get("/api/auth/me").await["user"]["plan"], "free");
        assert_eq!(payer.charged().await, [0; 0]);

        payer.fails(&create, json!({"lose": true, "times": 2})).await;
        let made = payer.subscribe("once").await.expect_status(201);
        assert_eq!(made.body["subscription"]["status"], "active");
        assert_eq!(payer.subscribe("once").await.expect_status(201).body, made.body);
        assert_eq!(payer.charged().await, [2999]);
        replica::subscription(&payer.person).await;

        // A change that is not made leaves all as it was; one that is made is told of, also when its answer is lost.
        let id = made.text_at("/subscription/id");
        let path = format!("/api/billing/subscriptions/{id}");
        let stripe_id = replica::subscription(&payer.person).await["id"].as_str().unwrap().to_owned();
        let change = format!("POST /v1/subscriptions/{stripe_id}?");
        let put = |plan: &str| api.call("PUT", &path).bearer(&payer.person.jwt).json(&json!({"plan": plan})).send();
        payer.fails(&change, json!({"status": 502})).await;
        put("enterprise").await.expect_problem(503, "stripe_unavailable");
        assert_eq!(payer.get("/api/auth/me").await["user"]["plan"], "pro");
        payer.fails(&change, json!({"lose": true, "times": 2})).await;
        let changed = put("enterprise").await.expect_status(200);
        assert_eq!(changed.body["subscription"]["plan"], "enterprise");
        assert_eq!(payer.charged().await.len(), 2);
        payer.fails(&change, json!({"lose": true, "times": 2})).await;
        let ends = api.delete(&path).bearer(&payer.person.jwt).send().await.expect_status(200);
        assert_eq!(ends.body["subscription"]["cancelAtPeriodEnd"], true);
        payer.fails(&format!("DELETE /v1/subscriptions/{stripe_id}?"), json!({"lose": true, "times": 2})).await;
        let over = api.delete(&format!("{path}?immediately=true")).bearer(&payer.person.jwt).send().await;
        assert_eq!(over.expect_status(200).body["subscription"]["status"], "canceled");
    }

    async fn a_payment_method_that_was_used_up_is_named(api: Api) {
        let payer = Payer::new(&api).await;
        // Stripe names neither a code nor the parameter.
        payer.fails(&format!("/v1/payment_methods/{}/attach?", payer.card), json!({"status": 400})).await;
        payer.subscribe("used").await.expect_invalid(&["paymentMethodId"]);
        payer.fails(&format!("/confirm? payment_method={}", payer.card), json!({"status": 400})).await;
        payer.pay("used-too").await.expect_invalid(&["paymentMethodId"]);
        let intents = replica::get(&format!("/v1/payment_intents?customer={}", payer.customer)).await;
        assert_eq!((&intents["data"][0]["status"], intents["data"].as_array().unwrap().len()), (&json!("canceled"), 1));
        assert_eq!(payer.charged().await, [0; 0]);
        assert_eq!(payer.get("/api/auth/me").await["user"]["plan"], "free");
    }

    async fn a_first_payment_that_nobody_completed_is_given_up_whatever_gets_lost(api: Api) {
        let payer = Payer::new(&api).await;
        let begun = payer.post("/api/billing/subscriptions", "begun", &json!({"plan": "enterprise"})).await;
        assert_eq!(begun.expect_status(201).body["subscription"]["status"], "incomplete");
        let stripe_id = replica::subscription(&payer.person).await["id"].as_str().unwrap().to_owned();
        payer.fails(&format!("DELETE /v1/subscriptions/{stripe_id}?"), json!({"lose": true, "times": 2})).await;
        payer.subscribe("another").await.expect_problem(503, "stripe_unavailable");
        let made = payer.subscribe("another").await.expect_status(201).body["subscription"].clone();
        assert_eq!((&made["plan"], &made["status"]), (&json!("pro"), &json!("active")));
        assert_eq!(payer.charged().await, [2999]);
        let all = replica::get(&format!("/v1/subscriptions?status=all&customer={}", payer.customer)).await;
        let statuses = all["data"].as_array().unwrap().iter().map(|found| &found["status"]);
        assert_eq!(statuses.collect::<Vec<_>>(), ["active", "canceled"]);
        let invoices = replica::get(&format!("/v1/invoices?customer={}", payer.customer)).await;
        let statuses = invoices["data"].as_array().unwrap().iter().map(|invoice| &invoice["status"]);
        assert_eq!(statuses.collect::<Vec<_>>(), ["paid", "void"]);
    }

    async fn stripes_pages_fail_with_it(api: Api) {
        let payer = Payer::new(&api).await;
        let words = format!("customer={}", payer.customer);
        payer.fails(&format!("/v1/checkout/sessions? mode=subscription&{words}"), json!({"status": 503})).await;
        let call = api.post("/api/billing/checkout").bearer(&payer.person.jwt).json(&json!({"plan": "pro"}));
        call.send().await.expect_problem(503, "stripe_unavailable");
        // One that is busy is asked again after a while.
        let busy = |times: u32| json!({"status": 429, "times": times});
        payer.fails(&format!("/v1/billing_portal/sessions? {words}"), busy(2)).await;
        let call = api.post("/api/billing/portal").bearer(&payer.person.jwt);
        call.send().await.expect_problem(503, "stripe_unavailable");
        payer.fails(&format!("/v1/billing_portal/sessions? {words}"), busy(1)).await;
        let call = api.post("/api/billing/portal").bearer(&payer.person.jwt);
        call.send().await.expect_status(201);
        // As long as the portal's settings were never saved.
        payer.fails(&format!("/v1/billing_portal/sessions? {words}"), json!({"status": 400})).await;
        let call = api.post("/api/billing/portal").bearer(&payer.person.jwt);
        call.send().await.expect_problem(503, "stripe_unavailable");
    }
}

/// Other requests are refused after five seconds.
#[tokio::test]
async fn whoever_has_paid_waits_longer_for_another_request_of_his() {
    let payer = Payer::new(&Api::of_router()).await;
    let other = busy(&payer.person).await;
    // The payment, and what is told of it.
    let waits = "SELECT to_jsonb(count(*) > 0) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                 AND classid::bigint << 32 | objid::bigint = hashtextextended('billing:' || $1, 0)";
    let busy_for_a_while = async {
        eventually("the payment to wait", || async {
            (stores::row(waits, &payer.person.id).await == true).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        drop(other);
    };
    let (paid, ()) = tokio::join!(payer.pay("waits"), busy_for_a_while);
    assert_eq!(paid.expect_status(201).body["payment"]["status"], "succeeded");
    assert_eq!(payer.charged().await, [1999]);
}

/// Stripe answers later than anybody waits for, but does what it was asked.
#[tokio::test]
async fn a_payment_that_takes_too_long_is_made_once() {
    let payer = Payer::new(&Api::of_router()).await;
    payer.fails(&format!("payment_method={}", payer.card), json!({"delay_seconds": 7})).await;
    let made = payer.pay("slow").await.expect_status(201);
    assert_eq!(made.body["payment"]["status"], "succeeded");
    assert_eq!(payer.charged().await, [1999]);
}

#[tokio::test]
async fn an_event_that_was_never_delivered_is_found() {
    let payer = Payer::new(&Api::of_router()).await;
    payer.subscribe("found").await.expect_status(201);
    all_handled(&payer.customer).await;
    let _alone = RECONCILIATION.lock().await;
    replica::control("webhooks", &json!({"customer": payer.customer, "mode": "drop"})).await;
    let stripe_id = replica::subscription(&payer.person).await["id"].as_str().unwrap().to_owned();
    replica::post(&format!("/v1/subscriptions/{stripe_id}"), "cancel_at_period_end=true").await;
    replica::control("advance", &json!({"subscription": stripe_id, "to": "period_end"})).await;
    let shown = async || payer.get("/api/billing/subscriptions").await["subscriptions"][0].clone();
    assert_eq!(shown().await["status"], "active");
    // What Stripe no longer lists is no longer kept, unless it was not handled.
    let own = payer.person.id.replace('-', "");
    let noted = "WITH noted AS (INSERT INTO stripe_events (id, kind, object_id, received_at, processed_at)
                     SELECT 'evt_' || how || $1, 'invoice.paid', 'in_' || how || $1, now() - interval '31 days', at
                     FROM (VALUES ('handled', now()), ('left', NULL)) AS events (how, at) RETURNING 1)
                 SELECT to_jsonb(count(*)) FROM noted";
    assert_eq!(stores::row(noted, &own).await, 2);
    let kept = "SELECT to_jsonb(string_agg(id, ',')) FROM stripe_events WHERE id LIKE 'evt\\_%' || $1";
    replica::control("faults", &json!({"match": format!("/v1/invoices/in_left{own}"), "status": 400})).await;
    let run = async || attempt("workers-reconcile-stripe", json!({"atOnce": true}).to_string()).await;
    // One that cannot be handled keeps neither the others from it nor itself from being tried again.
    let failed = run().await.unwrap_err();
    assert!(failed["errorMessage"].as_str().unwrap().contains("could not be handled"), "{failed}");
    assert_eq!(shown().await["status"], "canceled");
    assert_eq!(payer.get("/api/auth/me").await["user"]["plan"], "free");
    assert_eq!(stores::row(kept, &own).await, format!("evt_left{own}"));
    let done = run().await.unwrap();
    assert!(done["madeGood"].as_u64().unwrap() > 0, "{done}");
    assert_eq!(stores::row(kept, &own).await, Value::Null);
}

#[tokio::test]
async fn what_is_heard_of_late_counts_on_its_day() {
    const LATE: i64 = 3 * 86_400;
    let payer = Payer::new(&Api::of_router()).await;
    let began = OffsetDateTime::now_utc().unix_timestamp() - LATE;
    replica::control("advance", &json!({"customer": payer.customer, "seconds": -LATE})).await;
    payer.subscribe("late").await.expect_status(201);
    let paid = payer.pay("late").await.expect_status(201).body["payment"].clone();
    let intents = replica::get(&format!("/v1/payment_intents?customer={}", payer.customer)).await;
    let intent = intents["data"].as_array().unwrap().iter().find(|intent| intent["amount"] == paid["amount"]).unwrap();
    replica::post("/v1/refunds", &format!("payment_intent={}&amount=500", intent["id"].as_str().unwrap())).await;
    all_handled(&payer.customer).await;
    // As if nothing had been heard of Stripe since then.
    let unheard =
        "WITH unheard AS (UPDATE subscriptions SET updated_at = now() - interval '4 days' WHERE user_id = $1::uuid
                   RETURNING 1) SELECT to_jsonb(count(*)) FROM unheard";
    assert_eq!(stores::row(unheard, &payer.person.id).await, 1);
    let stripe_id = replica::subscription(&payer.person).await["id"].as_str().unwrap().to_owned();
    replica::delete(&format!("/v1/subscriptions/{stripe_id}")).await;
    all_handled(&payer.customer).await;
    let told = format!(
        "SELECT type, toUnixTimestamp(time) BETWEEN {began} - 5 AND toUnixTimestamp(now()) - {LATE} + 5 FROM events FINAL
         WHERE subject = '{}' AND (type LIKE 'billing.%' OR type LIKE 'user.plan_%') ORDER BY time, id FORMAT JSONCompactEachRow",
        payer.person.id
    );
    let expected = [
        ("billing.subscription_created", 1),
        ("billing.payment_succeeded", 1),
        ("billing.payment_succeeded", 1),
        ("billing.payment_refunded", 1),
        ("billing.subscription_canceled", 1),
        // The plan itself changed when it was heard of.
        ("user.plan_upgraded", 0),
        ("user.plan_downgraded", 0),
    ];
    eventually("all events", || async {
        let told = clickhouse(&told).await;
        let mut told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut expected: Vec<Value> = expected.iter().map(|told| json!(told)).collect();
        let last = told.iter().rposition(|told| told[1] == 1);
        assert!(last.is_none_or(|last| told[last][0] == "billing.subscription_canceled" || told.len() < 7), "{told:?}");
        told.sort_by_key(Value::to_string);
        expected.sort_by_key(Value::to_string);
        (told == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_subscription_that_was_paid_later_and_is_heard_of_late_began_with_its_payment() {
    const LATE: i64 = 3 * 86_400;
    let payer = Payer::new(&Api::of_router()).await;
    replica::control("advance", &json!({"customer": payer.customer, "seconds": -LATE})).await;
    let life = Life::begin(payer.api.clone(), payer.person.clone()).await;
    replica::control("webhooks", &json!({"customer": payer.customer, "mode": "hold"})).await;
    // A few hours later, and heard of when all that is held has come.
    life.time_goes(json!({"seconds": 4 * 3_600})).await;
    let paid = OffsetDateTime::now_utc().unix_timestamp() - LATE + 4 * 3_600;
    life.pay_with("pm_card_visa").await;
    replica::control("webhooks/release", &json!({"customer": payer.customer})).await;
    let told = format!(
        "SELECT toUnixTimestamp(time) FROM events FINAL WHERE subject = '{}' AND type = 'billing.subscription_created'",
        payer.person.id
    );
    let began: i64 = eventually("the beginning", || async { clickhouse(&told).await.trim().parse().ok() }).await;
    assert!((paid - 10..=paid + 60).contains(&began), "{began} instead of {paid}");
}

#[tokio::test]
async fn a_payment_that_is_heard_of_after_the_end_gives_no_plan_back() {
    let payer = Payer::new(&Api::of_router()).await;
    replica::control("webhooks", &json!({"customer": payer.customer, "mode": "hold"})).await;
    let made = payer.subscribe("heard-of-later").await.expect_status(201).text_at("/subscription/id");
    // Stripe tells whole seconds.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let path = format!("/api/billing/subscriptions/{made}?immediately=true");
    payer.api.delete(&path).bearer(&payer.person.jwt).send().await.expect_status(200);
    replica::control("webhooks/release", &json!({"customer": payer.customer})).await;
    let told = format!(
        "SELECT countIf(type = 'billing.payment_succeeded' AND plan = 'pro'), countIf(type = 'user.plan_downgraded'),
             argMax(plan, (time, id)) FROM events FINAL WHERE subject = '{}' FORMAT TSV",
        payer.person.id
    );
    let last = eventually("the payment and the end", || async {
        let told = clickhouse(&told).await;
        told.trim().strip_prefix("1\t1\t").map(str::to_owned)
    });
    assert_eq!(last.await, "free");
}

#[tokio::test]
async fn the_grace_of_an_unpaid_plan_begins_with_the_oldest_invoice() {
    let api = Api::of_router();
    let life = Life::begin(api.clone(), api.sign_up().await).await;
    life.pay_with("pm_card_visa").await;
    life.use_card("pm_card_chargeCustomerFail").await;
    life.time_goes(json!({"to": "renewal"})).await;
    let mut expected =
        stores::Expected { status: "past_due", plan: "pro", pending: None, ends: false, entitled: "pro", told: None };
    stores::agree(&api, &life.person, &expected).await;
    let grace = stores::row(
        "SELECT to_jsonb(extract(epoch FROM grace_end - current_period_start)::bigint) FROM subscriptions WHERE user_id = $1::uuid",
        &life.person.id,
    );
    let grace = grace.await.as_i64().unwrap();
    assert_eq!(grace, 7 * 86_400, "seven days from the unpaid invoice");

    // A month later the next invoice is unpaid too, and prolongs nothing.
    life.time_goes(json!({"to": "last_retry", "when_unpaid": "leave_past_due"})).await;
    life.time_goes(json!({"to": "renewal"})).await;
    stores::agree(&api, &life.person, &expected).await;
    let customer = replica::customer(&life.person).await;
    let invoices = replica::get(&format!("/v1/invoices?status=open&customer={customer}")).await;
    assert_eq!(invoices["data"].as_array().unwrap().len(), 2, "{invoices}");
    let still = stores::row(
        "SELECT to_jsonb(extract(epoch FROM grace_end - current_period_start)::bigint) FROM subscriptions WHERE user_id = $1::uuid",
        &life.person.id,
    );
    assert!(still.await.as_i64().unwrap() < 0);

    // Stripe goes by the newest invoice.
    life.pay_newest().await;
    expected.status = "active";
    stores::agree(&api, &life.person, &expected).await;

    // What was left unpaid before that payment is past.
    life.time_goes(json!({"to": "renewal"})).await;
    expected.status = "past_due";
    stores::agree(&api, &life.person, &expected).await;
    let grace = stores::row(
        "SELECT to_jsonb(extract(epoch FROM grace_end - current_period_start)::bigint) FROM subscriptions WHERE user_id = $1::uuid",
        &life.person.id,
    );
    assert_eq!(grace.await.as_i64().unwrap(), 7 * 86_400);
}

#[tokio::test]
async fn an_unpaid_plan_ends_with_its_grace_unless_stripe_was_paid() {
    let payer = Payer::new(&Api::of_router()).await;
    let webhooks = async |mode: &str| {
        replica::control("webhooks", &json!({"customer": payer.customer, "mode": mode})).await;
    };
    // A month and a grace ago, and some days.
    replica::control("advance", &json!({"customer": payer.customer, "seconds": -50 * 86_400})).await;
    let life = Life::begin(payer.api.clone(), payer.person.clone()).await;
    life.pay_with("pm_card_visa").await;
    all_handled(&payer.customer).await;
    let _alone = RECONCILIATION.lock().await;
    webhooks("drop").await;
    life.use_card("pm_card_chargeCustomerFail").await;
    life.time_goes(json!({"to": "renewal"})).await;
    let mirrored = async |change: &'static str| assert_eq!(stores::row(change, &payer.person.id).await, 1);
    // As if this had been heard of in time.
    mirrored(
        "WITH due AS (UPDATE subscriptions SET status = 'past_due', grace_end = now() - interval '1 second'
                      WHERE user_id = $1::uuid AND status = 'active' RETURNING 1) SELECT to_jsonb(count(*)) FROM due",
    )
    .await;
    let stripe_id = replica::subscription(&payer.person).await["id"].as_str().unwrap().to_owned();
    let plan_after_a_run = async || {
        invoke("workers-reconcile-stripe", json!({}).to_string()).await;
        payer.get("/api/auth/me").await["user"]["plan"].clone()
    };

    payer.fails(&format!("/v1/subscriptions/{stripe_id}"), json!({"status": 503})).await;
    assert_eq!(plan_after_a_run().await, "pro", "nobody knows whether it was paid");
    assert_eq!(plan_after_a_run().await, "free");
    mail_to(&payer.person.email, "Your plan is paused", 1).await;

    // As if it had been paid within the grace, and nothing heard of it.
    let heard = async || replica::control("webhooks/release", &json!({"customer": payer.customer})).await;
    heard().await;
    all_handled(&payer.customer).await;
    life.pay_newest().await;
    mirrored(
        "WITH kept AS (UPDATE users SET plan = 'pro' WHERE id = $1::uuid AND plan = 'free' RETURNING 1)
         SELECT to_jsonb(count(*)) FROM kept",
    )
    .await;
    assert_eq!(plan_after_a_run().await, "pro");
    let mails = mails_to(&payer.person.email).await;
    assert_eq!(mails.iter().filter(|mail| mail.subject == "Your plan is paused").count(), 1, "{mails:?}");

    // Paid after it, it is back as soon as that is heard of.
    mirrored(
        "WITH taken AS (UPDATE users SET plan = 'free' WHERE id = $1::uuid AND plan = 'pro' RETURNING 1)
         SELECT to_jsonb(count(*)) FROM taken",
    )
    .await;
    webhooks("ordered").await;
    heard().await;
    let expected =
        stores::Expected { status: "active", plan: "pro", pending: None, ends: false, entitled: "pro", told: None };
    stores::agree(&payer.api, &payer.person, &expected).await;
}

/// No attempt has failed: the bank asks for the card's holder, who is not there.
#[tokio::test]
async fn a_renewal_that_waits_for_the_cards_holder_is_told_of_once() {
    let api = Api::of_router();
    let life = Life::begin(api.clone(), api.sign_up().await).await;
    life.pay_with("pm_card_visa").await;
    let (customer, stripe_id) = (replica::customer(&life.person).await, replica::subscription(&life.person).await);
    let stripe_id = stripe_id["id"].as_str().unwrap();
    let attach = "/v1/payment_methods/pm_card_authenticationRequired/attach";
    let card = replica::post(attach, &format!("customer={customer}")).await["id"].as_str().unwrap().to_owned();
    replica::post(&format!("/v1/subscriptions/{stripe_id}"), &format!("default_payment_method={card}")).await;
    life.time_goes(json!({"to": "renewal"})).await;
    let expected =
        stores::Expected { status: "past_due", plan: "pro", pending: None, ends: false, entitled: "pro", told: None };
    stores::agree(&api, &life.person, &expected).await;
    mail_to(&life.person.email, "Your payment failed", 1).await;
    replica::post(&format!("/v1/subscriptions/{stripe_id}"), "metadata[seen]=again").await;
    all_handled(&customer).await;
    life.pay_newest().await;
    stores::agree(&api, &life.person, &stores::Expected { status: "active", ..expected }).await;
    let mails = mails_to(&life.person.email).await;
    assert_eq!(mails.iter().filter(|mail| mail.subject == "Your payment failed").count(), 1, "{mails:?}");
}

/// Nobody ends the subscription of a user who is deleted; that it is paid for still, the log tells.
#[tokio::test]
async fn a_subscription_whose_user_is_gone_is_warned_of() {
    let api = Api::of_router();
    let life = Life::begin(api.clone(), api.sign_up().await).await;
    life.pay_with("pm_card_visa").await;
    let customer = replica::customer(&life.person).await;
    all_handled(&customer).await;
    let deleted =
        "WITH gone AS (DELETE FROM users WHERE id = $1::uuid RETURNING 1) SELECT to_jsonb(count(*)) FROM gone";
    assert_eq!(stores::row(deleted, &life.person.id).await, 1);
    life.time_goes(json!({"to": "renewal"})).await;
    let stripe_id = replica::subscription(&life.person).await["id"].as_str().unwrap().to_owned();
    let logs = std::path::PathBuf::from(variable("LOCAL_STACK_DIR")).join("log");
    eventually("the warning", || async {
        let logs = std::fs::read_dir(&logs).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        let told = logs.map(|log| String::from_utf8_lossy(&log).into_owned()).any(|log| {
            log.lines()
                .any(|line| line.contains(&stripe_id) && line.contains("whose user is gone") && line.contains("WARN"))
        });
        told.then_some(())
    })
    .await;
}
