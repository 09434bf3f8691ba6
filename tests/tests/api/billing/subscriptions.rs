use futures_util::future::join;
use serde_json::{Value, json};

use super::failures::all_handled;
use super::life::Life;
use super::{replica, stores};
use crate::support::*;

async fn subscribe(api: &Api, person: &Person, plan: &str) -> Value {
    let body = json!({"plan": plan, "paymentMethodId": "pm_card_visa"});
    let reply = api.post("/api/billing/subscriptions").bearer(&person.jwt).json(&body).send().await;
    reply.expect_status(201).body["subscription"].clone()
}

async fn plan_of(api: &Api, person: &Person) -> String {
    let me = api.get("/api/auth/me").bearer(&person.jwt).send().await.expect_status(200);
    let usage = api.get("/api/billing/usage").bearer(&person.jwt).send().await.expect_status(200);
    let plan = me.text_at("/user/plan");
    assert_eq!(usage.body["plan"], plan.as_str());
    let limits = json!({"free": 50_000, "pro": 2_000_000, "enterprise": 20_000_000});
    assert_eq!(usage.body["tokens"]["limit"], limits[&plan]);
    plan
}

/// A price of the same account that stands for none of our plans.
async fn price_of_the_house() -> String {
    let form = "currency=usd&unit_amount=5000&recurring[interval]=month&product_data[name]=Support";
    replica::post("/v1/prices", form).await["id"].as_str().unwrap().to_owned()
}

async fn until(api: &Api, person: &Person, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || async {
        let list = api.get("/api/subscriptions").bearer(&person.jwt).send().await.unless_limited()?;
        let found = list.expect_status(200).body["subscriptions"][0].clone();
        holds(&found).then_some(found)
    })
    .await
}

/// A plan's price is everybody's: a test that archives it must not meet itself at the other door.
static PRICES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

through_both_doors! {
    async fn the_life_of_a_subscription(api: Api) {
        let person = api.sign_up().await;
        assert_eq!(plan_of(&api, &person).await, "free");
        let made = subscribe(&api, &person, "pro").await;
        let id = made["id"].as_str().unwrap().to_owned();
        assert_eq!((&made["plan"], &made["status"], &made["pendingPlan"]), (&json!("pro"), &json!("active"), &Value::Null));
        assert_eq!(plan_of(&api, &person).await, "pro");
        let path = format!("/api/billing/subscriptions/{id}");
        let change = |plan: &str| api.call("PUT", &path).bearer(&person.jwt).json(&json!({"plan": plan})).send();

        let again = json!({"plan": "enterprise", "paymentMethodId": "pm_card_visa"});
        let reply = api.post("/api/subscriptions").bearer(&person.jwt).json(&again).send().await;
        reply.expect_problem(409, "already_subscribed");

        let up = change("enterprise").await.expect_status(200).body["subscription"].clone();
        assert_eq!((&up["plan"], &up["id"]), (&json!("enterprise"), &json!(id)));
        assert_eq!(plan_of(&api, &person).await, "enterprise");

        let down = change("pro").await.expect_status(200).body["subscription"].clone();
        assert_eq!((&down["plan"], &down["pendingPlan"]), (&json!("enterprise"), &json!("pro")));
        assert_eq!(plan_of(&api, &person).await, "enterprise");
        let undone = change("enterprise").await.expect_status(200).body["subscription"].clone();
        assert_eq!((&undone["plan"], &undone["pendingPlan"]), (&json!("enterprise"), &Value::Null));
        change("pro").await.expect_status(200);

        let stripe_id = replica::subscription(&person).await["id"].as_str().unwrap().to_owned();
        replica::control("advance", &json!({"subscription": stripe_id, "to": "renewal"})).await;
        let renewed = until(&api, &person, "the renewal", |found| found["plan"] == "pro").await;
        assert_eq!(renewed["pendingPlan"], Value::Null);
        assert_eq!(plan_of(&api, &person).await, "pro");

        let ends = api.delete(&path).bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(ends.body["subscription"]["cancelAtPeriodEnd"], true);
        let goes_on = change("pro").await.expect_status(200);
        assert_eq!(goes_on.body["subscription"]["cancelAtPeriodEnd"], false);
        let over = api.delete(&format!("{path}?immediately=true")).bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(over.body["subscription"]["status"], "canceled");
        assert_eq!(plan_of(&api, &person).await, "free");
        change("pro").await.expect_problem(404, "not_found");
        mail_to(&person.email, "Your subscription has ended", 1).await;

        let invoices = eventually("the invoices", || async {
            let list = api.get("/api/invoices").bearer(&person.jwt).send().await.expect_status(200);
            (list.body["invoices"].as_array().unwrap().len() >= 3).then_some(list)
        })
        .await;
        // Stripe counts in seconds: the first one and the upgrade's may be of the same.
        let mut invoices = invoices.body["invoices"].as_array().unwrap().iter();
        let first = invoices.rfind(|invoice| invoice["amountPaid"] == 2999).unwrap();
        assert_eq!((&first["status"], &first["currency"]), (&json!("paid"), &json!("USD")));
        assert!(first["number"].is_string() && first["hostedUrl"].is_string() && first["pdfUrl"].is_string(), "{first}");
        assert!(!first["lines"].as_array().unwrap().is_empty());
    }

    async fn what_is_to_end_is_not_to_change(api: Api) {
        let person = api.sign_up().await;
        let made = subscribe(&api, &person, "enterprise").await;
        let path = format!("/api/billing/subscriptions/{}", made["id"].as_str().unwrap());
        let change = async |plan: &str| {
            let call = api.call("PUT", &path).bearer(&person.jwt).json(&json!({"plan": plan}));
            call.send().await.expect_status(200).body["subscription"].clone()
        };
        let end = async |how: &str| {
            let reply = api.delete(&format!("{path}{how}")).bearer(&person.jwt).send().await.expect_status(200);
            let list = api.get("/api/billing/subscriptions").bearer(&person.jwt).send().await.expect_status(200);
            assert_eq!(list.body["subscriptions"][0], reply.body["subscription"]);
            reply.body["subscription"].clone()
        };
        assert_eq!(change("pro").await["pendingPlan"], "pro");
        let ends = end("").await;
        assert_eq!((&ends["cancelAtPeriodEnd"], &ends["pendingPlan"]), (&json!(true), &Value::Null));
        let goes_on = change("pro").await;
        assert_eq!((&goes_on["plan"], &goes_on["pendingPlan"]), (&json!("enterprise"), &json!("pro")));
        end("").await;
        let stays = change("enterprise").await;
        assert_eq!((&stays["cancelAtPeriodEnd"], &stays["pendingPlan"]), (&json!(false), &Value::Null));
        change("pro").await;
        let over = end("?immediately=true").await;
        assert_eq!((&over["status"], &over["pendingPlan"]), (&json!("canceled"), &Value::Null));
    }

    async fn subscriptions_are_billed_in_the_classic_way(api: Api) {
        let (subscriber, visitor) = (api.sign_up().await, api.sign_up().await);
        subscribe(&api, &subscriber, "pro").await;
        assert_eq!(replica::subscription(&subscriber).await["billing_mode"]["type"], "classic");
        let page = api.post("/api/billing/checkout").bearer(&visitor.jwt).json(&json!({"plan": "pro"})).send().await;
        replica::submit(&page.expect_status(201).text_at("/url"), "card=pm_card_visa").await;
        assert_eq!(replica::subscription(&visitor).await["billing_mode"]["type"], "classic");
    }

    async fn a_subscription_is_paid_by_card_alone(api: Api) {
        let person = api.sign_up().await;
        let page = api.post("/api/billing/checkout").bearer(&person.jwt).json(&json!({"plan": "pro"})).send().await;
        page.expect_status(201);
        let sessions = format!("/v1/checkout/sessions?customer={}", replica::customer(&person).await);
        assert_eq!(replica::get(&sessions).await["data"][0]["payment_method_types"], json!(["card"]));
        let begun = api.post("/api/billing/subscriptions").bearer(&person.jwt).json(&json!({"plan": "pro"})).send().await;
        begun.expect_status(201);
        let made = replica::subscription(&person).await;
        assert_eq!(made["payment_settings"]["payment_method_types"], json!(["card"]));
    }

    async fn an_upgrade_just_before_the_renewal_is_paid_for_a_whole_period(api: Api) {
        let person = api.sign_up().await;
        let made = subscribe(&api, &person, "pro").await;
        let at_stripe = replica::subscription(&person).await;
        let end = at_stripe["items"]["data"][0]["current_period_end"].as_i64().unwrap();
        let customer = replica::customer(&person).await;
        all_handled(&customer).await;
        replica::control("advance", &json!({"subscription": at_stripe["id"], "to": end - 3_600})).await;
        let path = format!("/api/billing/subscriptions/{}", made["id"].as_str().unwrap());
        let change = api.call("PUT", &path).bearer(&person.jwt).json(&json!({"plan": "enterprise"}));
        let up = change.send().await.expect_status(200).body["subscription"].clone();
        assert_eq!((&up["plan"], &up["status"]), (&json!("enterprise"), &json!("active")));
        let began = replica::subscription(&person).await["items"]["data"][0]["current_period_start"].as_i64().unwrap();
        assert!((end - 3_600..end - 3_000).contains(&began), "{began} before {end}");
        let invoices = replica::get(&format!("/v1/invoices?customer={customer}")).await;
        let paid = invoices["data"][0]["amount_paid"].as_i64().unwrap();
        assert!((9_980..9_999).contains(&paid), "all but an hour's credit: {paid}");
        let expected = stores::Expected {
            status: "active",
            plan: "enterprise",
            pending: None,
            ends: false,
            entitled: "enterprise",
            told: Some(vec![
                "subscription_created active new 2999 pro".to_owned(),
                "payment_succeeded 2999 pro".to_owned(),
                "plan_upgraded free to pro".to_owned(),
                "subscription_updated active expansion 7000 pro to enterprise".to_owned(),
                format!("payment_succeeded {paid} enterprise"),
                "plan_upgraded pro to enterprise".to_owned(),
            ]),
        };
        stores::agree(&api, &person, &expected).await;
    }

    async fn an_upgrade_that_cannot_be_paid_changes_nothing(api: Api) {
        let person = api.sign_up().await;
        let made = subscribe(&api, &person, "pro").await;
        let stripe_id = replica::subscription(&person).await["id"].as_str().unwrap().to_owned();
        let customer = replica::customer(&person).await;
        let path = format!("/api/billing/subscriptions/{}", made["id"].as_str().unwrap());
        for (card, code) in [
            (Some("pm_card_chargeCustomerFail"), "generic_decline"),
            (Some("pm_card_authenticationRequired"), "subscription_payment_intent_requires_action"),
            (None, "no_payment_method"),
        ] {
            let attached = match card {
                Some(card) => {
                    let path = format!("/v1/payment_methods/{card}/attach");
                    replica::post(&path, &format!("customer={customer}")).await["id"].as_str().unwrap().to_owned()
                }
                None => String::new(),
            };
            let form = format!("default_payment_method={attached}");
            let before = replica::post(&format!("/v1/subscriptions/{stripe_id}"), &form).await;
            let change = api.call("PUT", &path).bearer(&person.jwt).json(&json!({"plan": "enterprise"}));
            let refused = change.send().await.expect_problem(402, "card_declined");
            assert_eq!(refused.body["declineCode"], code);
            assert_eq!(replica::subscription(&person).await, before);
            assert_eq!(plan_of(&api, &person).await, "pro");
        }
        let invoices = replica::get(&format!("/v1/invoices?customer={customer}")).await;
        assert_eq!(invoices["data"].as_array().unwrap().len(), 1, "{invoices}");
        let list = api.get("/api/billing/subscriptions").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!((&list.body["subscriptions"][0]["plan"], &list.body["subscriptions"][0]["status"]), (&json!("pro"), &json!("active")));
    }

    async fn what_is_due_is_paid_before_an_upgrade(api: Api) {
        let life = Life::begin(api.clone(), api.sign_up().await).await;
        life.pay_with("pm_card_visa").await;
        life.use_card("pm_card_chargeCustomerFail").await;
        life.time_goes(json!({"to": "renewal"})).await;
        until(&api, &life.person, "the unpaid renewal", |found| found["status"] == "past_due").await;
        let customer = replica::customer(&life.person).await;
        let before = replica::subscription(&life.person).await;
        let path = format!("/api/billing/subscriptions/{}", life.id);
        let change = || api.call("PUT", &path).bearer(&life.person.jwt).json(&json!({"plan": "enterprise"})).send();
        let refused = change().await.expect_problem(402, "card_declined");
        assert_eq!(refused.body["declineCode"], "generic_decline");
        let attach = "/v1/payment_methods/pm_card_authenticationRequired/attach";
        let card = replica::post(attach, &format!("customer={customer}")).await["id"].as_str().unwrap().to_owned();
        let at_stripe = format!("/v1/subscriptions/{}", before["id"].as_str().unwrap());
        replica::post(&at_stripe, &format!("default_payment_method={card}")).await;
        let refused = change().await.expect_problem(402, "card_declined");
        assert_eq!(refused.body["declineCode"], "invoice_payment_intent_requires_action");
        let after = replica::subscription(&life.person).await;
        assert_eq!((&after["status"], &after["items"]), (&before["status"], &before["items"]));
        assert_eq!(replica::charged(&customer).await, [(2999, 0)]);
        assert_eq!(plan_of(&api, &life.person).await, "pro");

        life.use_card("pm_card_visa").await;
        let up = change().await.expect_status(200).body["subscription"].clone();
        assert_eq!((&up["plan"], &up["status"]), (&json!("enterprise"), &json!("active")));
        let charged = replica::charged(&customer).await;
        assert_eq!(charged.len(), 3, "{charged:?}");
        assert_eq!(charged[..2].iter().filter(|charge| **charge == (2999, 0)).count(), 2, "{charged:?}");
        all_handled(&customer).await;
        let list = api.get("/api/billing/invoices").bearer(&life.person.jwt).send().await.expect_status(200);
        let invoices = list.body["invoices"].as_array().unwrap();
        assert!(invoices.iter().all(|invoice| invoice["status"] == "paid"), "{}", list.text);
    }

    async fn an_upgrade_just_after_the_renewal_pays_for_that_first(api: Api) {
        let life = Life::begin(api.clone(), api.sign_up().await).await;
        life.pay_with("pm_card_visa").await;
        life.time_goes(json!({"to": "period_end"})).await;
        assert_eq!(life.newest_invoice().await["status"], "draft");
        life.change("enterprise").await;
        let customer = replica::customer(&life.person).await;
        let charged = replica::charged(&customer).await;
        assert_eq!(charged.len(), 3, "{charged:?}");
        life.time_goes(json!({"seconds": 7_200})).await;
        assert_eq!(replica::charged(&customer).await, charged);
    }

    async fn ten_declined_upgrades_are_enough(api: Api) {
        let person = api.sign_up().await;
        let made = subscribe(&api, &person, "pro").await;
        let customer = replica::customer(&person).await;
        let attach = "/v1/payment_methods/pm_card_chargeCustomerFail/attach";
        let card = replica::post(attach, &format!("customer={customer}")).await["id"].as_str().unwrap().to_owned();
        let stripe_id = replica::subscription(&person).await["id"].as_str().unwrap().to_owned();
        replica::post(&format!("/v1/subscriptions/{stripe_id}"), &format!("default_payment_method={card}")).await;
        let path = format!("/api/billing/subscriptions/{}", made["id"].as_str().unwrap());
        let change = |plan: &str| api.call("PUT", &path).bearer(&person.jwt).json(&json!({"plan": plan})).send();
        let mut declined = 0;
        // The window may end in between, which allows ten more.
        let limited = loop {
            let reply = change("enterprise").await;
            if reply.status == 429 {
                break reply;
            }
            reply.expect_problem(402, "card_declined");
            declined += 1;
            assert!(declined <= 20);
        };
        limited.expect_problem(429, "too_many_attempts");
        assert!(declined >= 10);
        // What charges no card is none of that.
        change("pro").await.expect_status(200);
    }

    async fn what_was_bought_is_listed_page_by_page(api: Api) {
        let person = api.sign_up().await;
        let first = subscribe(&api, &person, "pro").await["id"].as_str().unwrap().to_owned();
        let end = api.delete(&format!("/api/subscriptions/{first}?immediately=true")).bearer(&person.jwt);
        end.send().await.expect_status(200);
        let second = subscribe(&api, &person, "enterprise").await["id"].as_str().unwrap().to_owned();
        all_handled(&replica::customer(&person).await).await;
        for items in ["subscriptions", "invoices", "payments"] {
            let path = format!("/api/billing/{items}");
            let whole = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
            assert_eq!(whole.body["nextCursor"], Value::Null, "{items}");
            let listed = whole.body[items].as_array().unwrap().iter();
            let ids: Vec<_> = listed.map(|item| item["id"].as_str().unwrap().to_owned()).collect();
            assert!(ids.len() >= 2, "{items}: {}", whole.text);
            if items == "subscriptions" {
                assert!(ids.contains(&first) && ids.contains(&second), "{}", whole.text);
            }
            for limit in [1, ids.len()] {
                assert_eq!(api.ids_by_pages(&person, &path, items, limit).await, ids, "{items}");
            }
        }
    }

    async fn a_cancellation_in_stripes_portal_is_taken_back_by_the_plan(api: Api) {
        let person = api.sign_up().await;
        let made = subscribe(&api, &person, "pro").await;
        let page = api.post("/api/billing/portal").bearer(&person.jwt).send().await.expect_status(201);
        let stripe_id = replica::subscription(&person).await["id"].as_str().unwrap().to_owned();
        replica::submit(&page.text_at("/url"), &format!("subscription={stripe_id}&do=cancel")).await;
        assert!(replica::subscription(&person).await["cancel_at"].is_i64());
        until(&api, &person, "the cancellation", |found| found["cancelAtPeriodEnd"] == true).await;
        let path = format!("/api/billing/subscriptions/{}", made["id"].as_str().unwrap());
        let change = api.call("PUT", &path).bearer(&person.jwt).json(&json!({"plan": "pro"}));
        let goes_on = change.send().await.expect_status(200).body["subscription"].clone();
        assert_eq!((&goes_on["plan"], &goes_on["cancelAtPeriodEnd"]), (&json!("pro"), &json!(false)));
        assert_eq!(replica::subscription(&person).await["cancel_at"], Value::Null);
    }

    async fn a_declined_card_subscribes_nobody(api: Api) {
        let person = api.sign_up().await;
        let body = json!({"plan": "pro", "paymentMethodId": "pm_card_chargeCustomerFail"});
        let reply = api.post("/api/billing/subscriptions").bearer(&person.jwt).json(&body).send().await;
        reply.expect_problem(402, "card_declined");
        let list = api.get("/api/billing/subscriptions").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(list.body["subscriptions"], json!([]));
        assert_eq!(plan_of(&api, &person).await, "free");
        let bad = json!({"plan": "free"});
        let call = api.post("/api/billing/subscriptions").bearer(&person.jwt).header("idempotency-key", "").json(&bad);
        call.send().await.expect_invalid(&["Idempotency-Key", "plan"]);
    }

    async fn a_card_whose_holder_has_to_authenticate_subscribes_when_he_has(api: Api) {
        let person = api.sign_up().await;
        let send = |body: Value| api.post("/api/billing/subscriptions").bearer(&person.jwt).json(&body).send();
        let reply = send(json!({"plan": "pro", "paymentMethodId": "pm_card_threeDSecure2Required"})).await;
        let refused = reply.expect_problem(402, "card_declined");
        assert_eq!(refused.body["declineCode"], "subscription_payment_intent_requires_action");
        assert_eq!(plan_of(&api, &person).await, "free");
        let begun = send(json!({"plan": "pro"})).await.expect_status(201);
        assert_eq!(begun.body["subscription"]["status"], "incomplete");
        // The stand-in has no holder to ask: a card that asks for none stands for one who has agreed.
        let completed = replica::complete(&begun.text_at("/clientSecret"), "pm_card_visa").await;
        assert_eq!(completed["status"], "succeeded", "{completed}");
        until(&api, &person, "the subscription", |found| found["status"] == "active").await;
        assert_eq!(plan_of(&api, &person).await, "pro");
    }

    async fn whoever_is_refused_a_second_subscription_sees_the_first(api: Api) {
        let person = api.sign_up().await;
        let page = api.post("/api/billing/checkout").bearer(&person.jwt).json(&json!({"plan": "pro"})).send().await;
        // Nobody is told of it.
        let customer = replica::customer(&person).await;
        replica::control("webhooks", &json!({"customer": customer, "mode": "hold"})).await;
        replica::submit(&page.expect_status(201).text_at("/url"), "card=pm_card_visa").await;
        assert_eq!(plan_of(&api, &person).await, "free");
        let body = json!({"plan": "pro", "paymentMethodId": "pm_card_visa"});
        let reply = api.post("/api/billing/subscriptions").bearer(&person.jwt).json(&body).send().await;
        reply.expect_problem(409, "already_subscribed");
        assert_eq!(plan_of(&api, &person).await, "pro");
        let list = api.get("/api/billing/subscriptions").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(list.body["subscriptions"][0]["status"], "active", "{}", list.text);
    }

    async fn many_at_once_make_one_subscription(api: Api) {
        let person = api.sign_up().await;
        let body = json!({"plan": "pro", "paymentMethodId": "pm_card_visa"});
        let tries = (0..4).map(|_| api.post("/api/billing/subscriptions").bearer(&person.jwt).json(&body).send());
        let mut statuses: Vec<_> = futures_util::future::join_all(tries).await.iter().map(|reply| reply.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409, 409, 409]);
        replica::subscription(&person).await;
    }

    async fn somebody_elses_subscription_is_none(api: Api) {
        let (owner, stranger) = (api.sign_up().await, api.sign_up().await);
        let id = subscribe(&api, &owner, "pro").await["id"].as_str().unwrap().to_owned();
        for id in [id.as_str(), "not-an-id"] {
            let path = format!("/api/subscriptions/{id}");
            let change = api.call("PUT", &path).bearer(&stranger.jwt).json(&json!({"plan": "pro"}));
            change.send().await.expect_problem(404, "not_found");
            api.delete(&path).bearer(&stranger.jwt).send().await.expect_problem(404, "not_found");
        }
        assert_eq!(plan_of(&api, &owner).await, "pro");
    }

    async fn of_two_checkouts_at_once_one_stays_and_the_other_is_paid_back(api: Api) {
        let person = api.sign_up().await;
        let open = async |plan: &str| {
            let call = api.post("/api/billing/checkout").bearer(&person.jwt).json(&json!({"plan": plan}));
            call.send().await.expect_status(201).text_at("/url")
        };
        let (first, second) = (open("pro").await, open("pro").await);
        join(replica::submit(&first, "card=pm_card_visa"), replica::submit(&second, "card=pm_card_visa")).await;
        let customer = replica::customer(&person).await;
        let statuses = eventually("the end of one of them", || async {
            let found = replica::get(&format!("/v1/subscriptions?status=all&customer={customer}")).await;
            let found = found["data"].as_array().unwrap().iter().map(|found| found["status"].to_string());
            let mut statuses: Vec<_> = found.collect();
            statuses.sort();
            statuses.contains(&"\"canceled\"".to_owned()).then_some(statuses)
        })
        .await;
        assert_eq!(statuses, ["\"active\"", "\"canceled\""]);
        let charges = replica::get(&format!("/v1/charges?customer={customer}")).await;
        let refunded = charges["data"].as_array().unwrap().iter().map(|charge| charge["amount_refunded"].as_i64().unwrap());
        let mut refunded: Vec<_> = refunded.collect();
        refunded.sort_unstable();
        assert_eq!(refunded, [0, 2999]);
        let told = eventually("the money's events", || async {
            let told = stores::told(&person).await;
            let of = |kind: &str| told.iter().filter(|line| line.starts_with(kind)).count();
            (of("payment_succeeded 2999") == 2 && of("payment_refunded 2999") == 1).then_some(told)
        })
        .await;
        let of = |kind: &str| told.iter().filter(|line| line.starts_with(kind)).count();
        assert_eq!(of("subscription_created") - of("subscription_canceled"), 1, "{told:?}");
        assert_eq!(plan_of(&api, &person).await, "pro");
        let page = api.post("/api/billing/checkout").bearer(&person.jwt).json(&json!({"plan": "pro"})).send().await;
        page.expect_problem(409, "already_subscribed");
    }

    async fn a_first_payment_cannot_be_completed_once_another_subscription_runs(api: Api) {
        let person = api.sign_up().await;
        let page = api.post("/api/billing/checkout").bearer(&person.jwt).json(&json!({"plan": "enterprise"})).send().await;
        let page = page.expect_status(201).text_at("/url");
        let begun = api.post("/api/billing/subscriptions").bearer(&person.jwt).json(&json!({"plan": "pro"})).send().await;
        let begun = begun.expect_status(201);
        let (id, secret) = (begun.text_at("/subscription/id"), begun.text_at("/clientSecret"));
        let incomplete = replica::subscription(&person).await;
        replica::submit(&page, "card=pm_card_visa").await;
        eventually("the end of the first payment", || async {
            let list = api.get("/api/billing/subscriptions").bearer(&person.jwt).send().await.unless_limited()?;
            let list = list.expect_status(200).body["subscriptions"].clone();
            let given_up = list.as_array().unwrap().iter().find(|found| found["id"] == id.as_str())?;
            (given_up["status"] == "canceled").then_some(())
        })
        .await;
        let refused = replica::complete(&secret, "pm_card_visa").await;
        assert!(refused["error"].is_object(), "{refused}");
        let invoice = incomplete["latest_invoice"].as_str().unwrap();
        assert_eq!(replica::get(&format!("/v1/invoices/{invoice}")).await["status"], "void");
        let customer = replica::customer(&person).await;
        all_handled(&customer).await;
        assert_eq!(plan_of(&api, &person).await, "enterprise");
        assert_eq!(replica::charged(&customer).await, [(9999, 0)]);
    }

    async fn what_runs_stays_when_an_older_one_is_paid(api: Api) {
        let person = api.sign_up().await;
        let open = async |plan: &str| {
            let call = api.post("/api/billing/checkout").bearer(&person.jwt).json(&json!({"plan": plan}));
            call.send().await.expect_status(201).text_at("/url")
        };
        // The other one has the price made that the older one is of.
        let (page, _) = (open("enterprise").await, open("pro").await);
        let customer = replica::customer(&person).await;
        let prices = replica::get("/v1/prices?lookup_keys[]=ai_chat_pro_2999_usd_month").await;
        // Made at Stripe, and nobody is told of it.
        replica::control("webhooks", &json!({"customer": customer, "mode": "hold"})).await;
        let form = format!(
            "customer={customer}&items[0][price]={}&payment_behavior=default_incomplete\
             &expand[]=latest_invoice.confirmation_secret",
            prices["data"][0]["id"].as_str().unwrap()
        );
        let older = replica::post("/v1/subscriptions", &form).await;
        replica::control("advance", &json!({"customer": customer, "seconds": 3600})).await;
        replica::control("webhooks", &json!({"customer": customer, "mode": "ordered"})).await;
        replica::submit(&page, "card=pm_card_visa").await;
        until(&api, &person, "the subscription", |found| found["status"] == "active").await;
        let secret = older["latest_invoice"]["confirmation_secret"]["client_secret"].as_str().unwrap();
        assert_eq!(replica::complete(secret, "pm_card_visa").await["status"], "succeeded");
        eventually("the end of the older one", || async {
            let older = replica::get(&format!("/v1/subscriptions/{}", older["id"].as_str().unwrap())).await;
            (older["status"] == "canceled").then_some(())
        })
        .await;
        replica::control("webhooks/release", &json!({"customer": customer})).await;
        all_handled(&customer).await;
        assert_eq!(plan_of(&api, &person).await, "enterprise");
        assert_eq!(replica::charged(&customer).await, [(2999, 2999), (9999, 0)]);
    }

    async fn what_is_unpaid_of_a_subscription_that_ends_at_once_is_not_to_be_paid(api: Api) {
        let life = Life::begin(api.clone(), api.sign_up().await).await;
        life.pay_with("pm_card_visa").await;
        life.use_card("pm_card_chargeCustomerFail").await;
        life.time_goes(json!({"to": "renewal"})).await;
        let path = format!("/api/billing/subscriptions/{}?immediately=true", life.id);
        assert_eq!(life.newest_invoice().await["status"], "open");
        let end = api.delete(&path).bearer(&life.person.jwt).send().await.expect_status(200);
        assert_eq!(end.body["subscription"]["status"], "canceled");
        assert_eq!(life.newest_invoice().await["status"], "void");
        let customer = replica::customer(&life.person).await;
        let intents = replica::get(&format!("/v1/payment_intents?customer={customer}")).await;
        assert_eq!(intents["data"][0]["status"], "canceled", "{intents}");
    }

    async fn what_is_unpaid_of_a_subscription_that_stripe_ends_is_not_to_be_paid(api: Api) {
        let life = Life::begin(api.clone(), api.sign_up().await).await;
        life.pay_with("pm_card_visa").await;
        life.use_card("pm_card_chargeCustomerFail").await;
        life.time_goes(json!({"to": "renewal"})).await;
        life.time_goes(json!({"to": "last_retry", "when_unpaid": "cancel"})).await;
        until(&api, &life.person, "its end", |found| found["status"] == "canceled").await;
        eventually("the void invoice", || async {
            let list = api.get("/api/billing/invoices").bearer(&life.person.jwt).send().await.unless_limited()?;
            (list.expect_status(200).body["invoices"][0]["status"] == "void").then_some(())
        })
        .await;
        assert_eq!(life.newest_invoice().await["status"], "void");
        assert_eq!(replica::charged(&replica::customer(&life.person).await).await, [(2999, 0)]);
    }

    async fn what_was_given_up_of_a_subscription_that_is_over_is_not_to_be_paid_either(api: Api) {
        let life = Life::begin(api.clone(), api.sign_up().await).await;
        life.pay_with("pm_card_visa").await;
        life.use_card("pm_card_chargeCustomerFail").await;
        life.time_goes(json!({"to": "renewal"})).await;
        let due = life.newest_invoice().await["id"].as_str().unwrap().to_owned();
        replica::post(&format!("/v1/invoices/{due}/mark_uncollectible"), "").await;
        let stripe_id = replica::subscription(&life.person).await["id"].as_str().unwrap().to_owned();
        // Stripe refuses the voiding a while: the end is noticed all the same, and the voiding made good.
        let voiding = format!("POST /v1/invoices/{due}/void");
        replica::control("faults", &json!({"match": voiding, "status": 429, "times": 2})).await;
        replica::delete(&format!("/v1/subscriptions/{stripe_id}")).await;
        until(&api, &life.person, "its end", |found| found["status"] == "canceled").await;
        eventually("the void invoice", || async {
            (life.newest_invoice().await["status"] == "void").then_some(())
        })
        .await;
    }

    async fn whoever_has_let_a_subscription_lapse_may_subscribe_anew(api: Api) {
        let life = Life::begin(api.clone(), api.sign_up().await).await;
        life.pay_with("pm_card_visa").await;
        life.use_card("pm_card_chargeCustomerFail").await;
        life.time_goes(json!({"to": "renewal"})).await;
        life.time_goes(json!({"to": "last_retry", "when_unpaid": "mark_unpaid"})).await;
        // Of what is unpaid Stripe goes on making invoices, and leaves them alone.
        life.time_goes(json!({"to": "renewal"})).await;
        until(&api, &life.person, "the unpaid subscription", |found| found["status"] == "unpaid").await;
        assert_eq!(plan_of(&api, &life.person).await, "free");
        let customer = replica::customer(&life.person).await;
        let page = api.post("/api/billing/checkout").bearer(&life.person.jwt).json(&json!({"plan": "pro"})).send().await;
        assert!(page.expect_status(201).text_at("/url").contains("/checkout/"));
        let ended = replica::subscription(&life.person).await;
        assert_eq!(ended["status"], "canceled");
        let invoices = replica::get(&format!("/v1/invoices?customer={customer}")).await;
        let statuses = invoices["data"].as_array().unwrap().iter().map(|invoice| &invoice["status"]);
        assert_eq!(statuses.collect::<Vec<_>>(), ["void", "void", "paid"]);
        let made = subscribe(&api, &life.person, "enterprise").await;
        assert_eq!((&made["plan"], &made["status"]), (&json!("enterprise"), &json!("active")));
        assert_eq!(plan_of(&api, &life.person).await, "enterprise");
        all_handled(&customer).await;
        assert_eq!(replica::charged(&customer).await, [(2999, 0), (9999, 0)]);
    }

    async fn a_renewal_that_is_still_a_draft_is_not_paid_when_the_subscription_ends_at_once(api: Api) {
        let life = Life::begin(api.clone(), api.sign_up().await).await;
        life.pay_with("pm_card_visa").await;
        life.time_goes(json!({"to": "period_end"})).await;
        let customer = replica::customer(&life.person).await;
        all_handled(&customer).await;
        assert_eq!(life.newest_invoice().await["status"], "draft");
        let path = format!("/api/billing/subscriptions/{}?immediately=true", life.id);
        let end = api.delete(&path).bearer(&life.person.jwt).send().await.expect_status(200);
        assert_eq!(end.body["subscription"]["status"], "canceled");
        assert_eq!(life.newest_invoice().await["status"], "void");
        life.time_goes(json!({"seconds": 7_200})).await;
        assert_eq!(replica::charged(&customer).await, [(2999, 0)]);
    }

    async fn a_second_subscription_that_is_ended_renews_no_more(api: Api) {
        let person = api.sign_up().await;
        let open = async || {
            let call = api.post("/api/billing/checkout").bearer(&person.jwt).json(&json!({"plan": "pro"}));
            call.send().await.expect_status(201).text_at("/url")
        };
        let (first, second) = (open().await, open().await);
        let customer = replica::customer(&person).await;
        replica::control("webhooks", &json!({"customer": customer, "mode": "hold"})).await;
        replica::submit(&first, "card=pm_card_visa").await;
        replica::submit(&second, "card=pm_card_visa").await;
        let listed = async || {
            let found = replica::get(&format!("/v1/subscriptions?status=all&customer={customer}")).await;
            found["data"].as_array().unwrap().clone()
        };
        // Both have a renewal that is still a draft when anybody is told.
        let ends = listed().await.into_iter().map(|found| found["items"]["data"][0]["current_period_end"].as_i64());
        replica::control("advance", &json!({"customer": customer, "to": ends.max().unwrap()})).await;
        replica::control("webhooks", &json!({"customer": customer, "mode": "ordered"})).await;
        replica::control("webhooks/release", &json!({"customer": customer})).await;
        eventually("the end of one of them", || async {
            listed().await.iter().any(|found| found["status"] == "canceled").then_some(())
        })
        .await;
        all_handled(&customer).await;
        replica::control("advance", &json!({"customer": customer, "seconds": 7_200})).await;
        // Two first payments, and one renewal.
        assert_eq!(replica::charged(&customer).await.len(), 3);
    }

    async fn somebody_elses_card_pays_nothing(api: Api) {
        let (owner, stranger) = (api.sign_up().await, api.sign_up().await);
        subscribe(&api, &owner, "pro").await;
        let card = replica::subscription(&owner).await["default_payment_method"].clone();
        let body = json!({"plan": "pro", "paymentMethodId": card});
        let reply = api.post("/api/billing/subscriptions").bearer(&stranger.jwt).json(&body).send().await;
        reply.expect_invalid(&["paymentMethodId"]);
        let body = json!({"amount": 1999, "currency": "USD", "paymentMethodId": card});
        let reply = api.post("/api/billing/payments").bearer(&stranger.jwt).json(&body).send().await;
        reply.expect_invalid(&["paymentMethodId"]);
        assert_eq!(plan_of(&api, &stranger).await, "free");
    }

    async fn what_is_none_of_our_plans_is_neither_ended_nor_in_the_way(api: Api) {
        let person = api.sign_up().await;
        subscribe(&api, &person, "pro").await;
        let ours = replica::subscription(&person).await;
        let price = price_of_the_house().await;
        let method = ours["default_payment_method"].as_str().unwrap();
        let form = format!(
            "customer={}&items[0][price]={price}&default_payment_method={method}",
            replica::customer(&person).await
        );
        let contract = replica::post("/v1/subscriptions", &form).await["id"].as_str().unwrap().to_owned();
        let status = async |id: &str| replica::get(&format!("/v1/subscriptions/{id}")).await["status"].clone();
        let our_id = ours["id"].as_str().unwrap();
        all_handled(&replica::customer(&person).await).await;
        assert_eq!((status(&contract).await, status(our_id).await), (json!("active"), json!("active")));
        replica::delete(&format!("/v1/subscriptions/{our_id}")).await;
        until(&api, &person, "the end of ours", |found| found["status"] == "canceled").await;
        assert_eq!(plan_of(&api, &person).await, "free");
        subscribe(&api, &person, "pro").await;
        assert_eq!((status(&contract).await, plan_of(&api, &person).await), (json!("active"), "pro".to_owned()));
    }

    async fn a_plan_whose_price_or_product_was_archived_is_sold_all_the_same(api: Api) {
        let _alone = PRICES.lock().await;
        let person = api.sign_up().await;
        let open = || api.post("/api/billing/checkout").bearer(&person.jwt).json(&json!({"plan": "enterprise"})).send();
        open().await.expect_status(201);
        let sold = async || {
            let found = replica::get("/v1/prices?lookup_keys[]=ai_chat_enterprise_9999_usd_month").await;
            found["data"][0].clone()
        };
        for (kind, id) in [("prices", "id"), ("products", "product")] {
            let before = sold().await;
            let archived = before[id].as_str().unwrap();
            replica::post(&format!("/v1/{kind}/{archived}"), "active=false").await;
            open().await.expect_status(201);
            let after = sold().await;
            assert_ne!(after[id], before[id], "{kind}");
            assert_eq!((&after["active"], &after["metadata"]["plan"]), (&json!(true), &json!("enterprise")));
        }
        subscribe(&api, &person, "enterprise").await;
        assert_eq!(plan_of(&api, &person).await, "enterprise");
    }

    async fn a_years_price_counts_by_the_month(api: Api) {
        let person = api.sign_up().await;
        api.post("/api/billing/portal").bearer(&person.jwt).send().await.expect_status(201);
        let form = "currency=usd&unit_amount=29990&recurring[interval]=year&product_data[name]=Pro&metadata[plan]=pro";
        let price = replica::post("/v1/prices", form).await["id"].as_str().unwrap().to_owned();
        let form = format!(
            "customer={}&items[0][price]={price}&default_payment_method=pm_card_visa",
            replica::customer(&person).await
        );
        replica::post("/v1/subscriptions", &form).await;
        until(&api, &person, "the subscription", |found| found["status"] == "active").await;
        eventually("its event", || async {
            let told = stores::told(&person).await;
            let began = told.iter().find(|line| line.starts_with("subscription_created"))?;
            assert_eq!(began, "subscription_created active new 2499 pro");
            Some(())
        })
        .await;
    }

    async fn a_subscription_that_is_moved_to_a_price_without_a_plan_ends_all_the_same(api: Api) {
        let person = api.sign_up().await;
        subscribe(&api, &person, "pro").await;
        let ours = replica::subscription(&person).await;
        let path = format!("/v1/subscriptions/{}", ours["id"].as_str().unwrap());
        let item = ours["items"]["data"][0]["id"].as_str().unwrap();
        replica::post(&path, &format!("items[0][id]={item}&items[0][price]={}", price_of_the_house().await)).await;
        assert_eq!(plan_of(&api, &person).await, "pro");
        replica::delete(&path).await;
        until(&api, &person, "its end", |found| found["status"] == "canceled").await;
        assert_eq!(plan_of(&api, &person).await, "free");
    }

    async fn a_customer_who_was_deleted_at_stripe_is_made_anew(api: Api) {
        let person = api.sign_up().await;
        subscribe(&api, &person, "pro").await;
        let mut customers = vec![replica::customer(&person).await];
        // Twice, since the key under which the first was made anew stands for that one.
        for plan in ["enterprise", "pro"] {
            // What a deleted customer subscribed to ends at Stripe; the replica leaves that to whoever deletes.
            let subscription = replica::subscription(&person).await["id"].clone();
            replica::delete(&format!("/v1/subscriptions/{}", subscription.as_str().unwrap())).await;
            replica::delete(&format!("/v1/customers/{}", customers.last().unwrap())).await;
            until(&api, &person, "the end of the subscription", |newest| newest["status"] == "canceled").await;
            assert_eq!(plan_of(&api, &person).await, "free");
            subscribe(&api, &person, plan).await;
            assert_eq!(plan_of(&api, &person).await, plan);
            let customer = replica::customer(&person).await;
            assert!(!customers.contains(&customer), "{customers:?}");
            customers.push(customer);
        }
    }

    async fn stripes_pages_are_pointed_to(api: Api) {
        let person = api.sign_up().await;
        let page = api.post("/api/billing/checkout").bearer(&person.jwt).json(&json!({"plan": "pro"})).send().await;
        assert!(page.expect_status(201).text_at("/url").contains("/checkout/"));
        let page = api.post("/api/billing/portal").bearer(&person.jwt).send().await.expect_status(201);
        assert!(page.text_at("/url").contains("/portal/"));
        subscribe(&api, &person, "pro").await;
        let page = api.post("/api/billing/checkout").bearer(&person.jwt).json(&json!({"plan": "pro"})).send().await;
        page.expect_problem(409, "already_subscribed");
    }
}
