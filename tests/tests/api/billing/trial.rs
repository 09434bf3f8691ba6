//! Trials, which the local stage does not give: by the deployed functions with trials switched on.

use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use super::life::Life;
use super::{replica, stores};
use crate::support::*;

fn with_trials(function: &str) -> Sandbox {
    let mut environment = deployed().environment(function);
    environment.insert("TRIAL_DAYS".to_owned(), "2".to_owned());
    Sandbox::start(&deployed().binary(function), &environment).unwrap()
}

fn subscribe(sandbox: &mut Sandbox, person: &Person, body: Value) -> Value {
    let name = "billing-create-subscription";
    let mut event = Deployed::event(name, &random_address(), Some(&body), Some(&person.jwt)).unwrap();
    for headers in ["headers", "multiValueHeaders"] {
        event[headers].as_object_mut().unwrap().retain(|name, _| !name.eq_ignore_ascii_case("idempotency-key"));
    }
    let reply = sandbox.invoke(&event).unwrap().payload;
    assert_eq!(reply["statusCode"], 201, "{reply}");
    let reply = serde_json::from_str::<Value>(reply["body"].as_str().unwrap()).unwrap();
    assert_eq!(reply.get("clientSecret"), None, "there is nothing to complete: {reply}");
    reply["subscription"].clone()
}

/// Subscribes on Stripe's own page.
async fn check_out(sandbox: &mut Sandbox, person: &Person) {
    let body = json!({"plan": "pro"});
    let event = Deployed::event("billing-checkout", &random_address(), Some(&body), Some(&person.jwt)).unwrap();
    let reply = sandbox.invoke(&event).unwrap().payload;
    assert_eq!(reply["statusCode"], 201, "{reply}");
    let reply: Value = serde_json::from_str(reply["body"].as_str().unwrap()).unwrap();
    replica::submit(reply["url"].as_str().unwrap(), "card=pm_card_visa").await;
}

/// The newest subscription, once it has that status.
async fn newest(api: &Api, person: &Person, status: &str) -> Value {
    eventually(&format!("the status {status}"), || async {
        let list = api.get("/api/billing/subscriptions").bearer(&person.jwt).send().await.unless_limited()?;
        let list = list.expect_status(200);
        let newest = list.body["subscriptions"][0].clone();
        (newest["status"] == status).then_some(newest)
    })
    .await
}

#[tokio::test]
async fn a_customer_has_one_trial() {
    let mut sandbox = with_trials("billing-create-subscription");
    let api = Api::of_router();
    let person = api.sign_up().await;
    let made = subscribe(&mut sandbox, &person, json!({"plan": "pro", "paymentMethodId": "pm_card_visa"}));
    assert_eq!((&made["status"], made["trialEnd"].is_string()), (&json!("trialing"), true), "{made}");
    let mut expected = stores::Expected {
        status: "trialing",
        plan: "pro",
        pending: None,
        ends: false,
        entitled: "pro",
        told: Some(vec!["subscription_created trialing new pro".to_owned(), "plan_upgraded free to pro".to_owned()]),
    };
    stores::agree(&api, &person, &expected).await;
    mail_to(&person.email, "Your trial ends soon", 1).await;

    // Another plan within the trial costs nothing yet, dearer or cheaper.
    let path = format!("/api/billing/subscriptions/{}", made["id"].as_str().unwrap());
    let put = |plan: &str| api.call("PUT", &path).bearer(&person.jwt).json(&json!({"plan": plan})).send();
    put("enterprise").await.expect_status(200);
    (expected.plan, expected.entitled) = ("enterprise", "enterprise");
    let told = expected.told.as_mut().unwrap();
    told.push("subscription_updated trialing none pro to enterprise".to_owned());
    told.push("plan_upgraded pro to enterprise".to_owned());
    stores::agree(&api, &person, &expected).await;
    put("pro").await.expect_status(200);
    (expected.plan, expected.entitled) = ("pro", "pro");
    let told = expected.told.as_mut().unwrap();
    told.push("subscription_updated trialing none enterprise to pro".to_owned());
    told.push("plan_downgraded enterprise to pro".to_owned());
    stores::agree(&api, &person, &expected).await;

    let stripe_id = replica::subscription(&person).await["id"].clone();
    replica::control("advance", &json!({"subscription": stripe_id, "to": "renewal"})).await;
    expected.status = "active";
    let told = expected.told.as_mut().unwrap();
    told.push("subscription_updated active expansion 2999 pro to pro".to_owned());
    told.push("payment_succeeded 2999 pro".to_owned());
    stores::agree(&api, &person, &expected).await;
    assert_eq!(mails_to(&person.email).await.iter().filter(|mail| mail.subject == "Your trial ends soon").count(), 1);

    let over = api.delete(&format!("{path}?immediately=true")).bearer(&person.jwt).send().await;
    over.expect_status(200);
    let again = subscribe(&mut sandbox, &person, json!({"plan": "pro", "paymentMethodId": "pm_card_visa"}));
    assert_eq!((&again["status"], &again["trialEnd"]), (&json!("active"), &Value::Null), "no second trial");
    eventually("the second subscription's event", || async {
        let told = stores::told(&person).await;
        told.contains(&"subscription_created active reactivation 2999 pro".to_owned()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_checkout_begins_with_the_one_trial() {
    let mut sandbox = with_trials("billing-checkout");
    let api = Api::of_router();
    let person = api.sign_up().await;
    check_out(&mut sandbox, &person).await;
    let made = newest(&api, &person, "trialing").await;
    assert!(made["trialEnd"].is_string(), "{made}");
    let at_stripe = replica::subscription(&person).await;
    assert_eq!(at_stripe["trial_settings"]["end_behavior"]["missing_payment_method"], "cancel");
    let path = format!("/api/billing/subscriptions/{}?immediately=true", made["id"].as_str().unwrap());
    api.delete(&path).bearer(&person.jwt).send().await.expect_status(200);
    check_out(&mut sandbox, &person).await;
    let again = newest(&api, &person, "active").await;
    assert_eq!(again["trialEnd"], Value::Null, "no second trial");
}

/// A subscription of a person who is a customer already, made at Stripe with a trial.
async fn trial_at_stripe(api: &Api, person: &Person, trial: &str) -> Value {
    // A page that nobody fills in makes the customer and the plan's price.
    let page = api.post("/api/billing/checkout").bearer(&person.jwt).json(&json!({"plan": "pro"})).send().await;
    page.expect_status(201);
    let (customer, pro) = (replica::customer(person).await, "ai_chat_pro_2999_usd_month");
    let prices = replica::get(&format!("/v1/prices?lookup_keys[]={pro}&active=true")).await;
    let price = prices["data"][0]["id"].as_str().unwrap();
    let form = format!("customer={customer}&items[0][price]={price}&default_payment_method=pm_card_visa&{trial}");
    replica::post("/v1/subscriptions", &form).await
}

/// Stripe tells of it three days before by its own clock, which may be ahead of ours.
#[tokio::test]
async fn a_trials_end_is_told_of_whichever_clock_is_ahead() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let end = time::OffsetDateTime::now_utc().unix_timestamp() + 3 * 86_400 + 600;
    let made = trial_at_stripe(&api, &person, &format!("trial_end={end}")).await;
    newest(&api, &person, "trialing").await;
    mail_to(&person.email, "Your trial ends soon", 1).await;

    // Prolonged, it ends later, and that is told of as well.
    for days in [20, 2] {
        let end = time::OffsetDateTime::now_utc().unix_timestamp() + days * 86_400;
        let path = format!("/v1/subscriptions/{}", made["id"].as_str().unwrap());
        replica::post(&path, &format!("trial_end={end}")).await;
        eventually("the other end", || async {
            let shown = newest(&api, &person, "trialing").await["trialEnd"].as_str().unwrap().to_owned();
            let shown = time::OffsetDateTime::parse(&shown, &Rfc3339).unwrap();
            (shown.unix_timestamp() == end).then_some(())
        })
        .await;
    }
    mail_to(&person.email, "Your trial ends soon", 2).await;
}

#[tokio::test]
async fn whoever_has_ended_a_trial_is_told_of_no_payment() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let made = trial_at_stripe(&api, &person, "trial_period_days=2&cancel_at_period_end=true").await;
    assert_eq!(newest(&api, &person, "trialing").await["cancelAtPeriodEnd"], true);
    replica::delete(&format!("/v1/subscriptions/{}", made["id"].as_str().unwrap())).await;
    mail_to(&person.email, "Your subscription has ended", 1).await;
    let mails = mails_to(&person.email).await;
    assert!(mails.iter().all(|mail| mail.subject != "Your trial ends soon"), "{mails:?}");
}

#[tokio::test]
async fn whoever_has_paid_before_has_no_trial() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let page = api.post("/api/billing/checkout").bearer(&person.jwt).json(&json!({"plan": "pro"})).send().await;
    replica::submit(&page.expect_status(201).text_at("/url"), "card=pm_card_visa").await;
    let paid = newest(&api, &person, "active").await;
    let path = format!("/api/billing/subscriptions/{}?immediately=true", paid["id"].as_str().unwrap());
    api.delete(&path).bearer(&person.jwt).send().await.expect_status(200);
    let mut sandbox = with_trials("billing-create-subscription");
    let again = subscribe(&mut sandbox, &person, json!({"plan": "pro", "paymentMethodId": "pm_card_visa"}));
    assert_eq!((&again["status"], &again["trialEnd"]), (&json!("active"), &Value::Null), "{again}");
}

/// A trial without a card ends with itself.
#[tokio::test]
async fn a_trial_without_a_card_is_no_subscription() {
    let mut sandbox = with_trials("billing-create-subscription");
    let api = Api::of_router();
    let person = api.sign_up().await;
    subscribe(&mut sandbox, &person, json!({"plan": "pro"}));
    let notice = mail_to(&person.email, "Your trial ends soon", 1).await;
    assert!(notice.text.contains("without a card, your subscription ends"), "{notice:?}");
    let stripe_id = replica::subscription(&person).await["id"].clone();
    replica::control("advance", &json!({"subscription": stripe_id, "to": "renewal"})).await;
    let expected = stores::Expected {
        status: "canceled",
        plan: "pro",
        pending: None,
        ends: false,
        entitled: "free",
        told: Some(vec![
            "subscription_created trialing new pro".to_owned(),
            "plan_upgraded free to pro".to_owned(),
            "subscription_canceled churn pro".to_owned(),
            "plan_downgraded pro to free".to_owned(),
        ]),
    };
    stores::agree(&api, &person, &expected).await;
}

/// A first payment that nobody completes leaves nothing.
#[tokio::test]
async fn a_first_payment_that_is_not_made_expires() {
    let api = Api::of_router();
    let life = Life::begin(api.clone(), api.sign_up().await).await;
    life.time_goes(json!({"seconds": 24 * 3_600})).await;
    let expected = stores::Expected {
        status: "incomplete_expired",
        plan: "pro",
        pending: None,
        ends: false,
        entitled: "free",
        told: Some(Vec::new()),
    };
    stores::agree(&api, &life.person, &expected).await;
    let body = json!({"plan": "enterprise", "paymentMethodId": "pm_card_visa"});
    let made = api.post("/api/billing/subscriptions").bearer(&life.person.jwt).json(&body).send().await;
    assert_eq!(made.expect_status(201).body["subscription"]["status"], "active");
}

/// Stripe's own list counts, too: its messages may all have been lost.
#[tokio::test]
async fn whoever_has_had_a_trial_at_stripe_gets_no_second_one() {
    let mut sandbox = with_trials("billing-create-subscription");
    let api = Api::of_router();
    let person = api.sign_up().await;
    let made = subscribe(&mut sandbox, &person, json!({"plan": "pro", "paymentMethodId": "pm_card_visa"}));
    assert_eq!(made["status"], "trialing");
    let path = format!("/api/billing/subscriptions/{}?immediately=true", made["id"].as_str().unwrap());
    api.delete(&path).bearer(&person.jwt).send().await.expect_status(200);
    mail_to(&person.email, "Your subscription has ended", 1).await;
    let forgotten = "WITH gone AS (DELETE FROM subscriptions WHERE user_id = $1::uuid RETURNING id)
                     UPDATE billing_customers SET trial_used_at = NULL WHERE user_id = $1::uuid
                     RETURNING (SELECT to_jsonb(count(*)) FROM gone)";
    assert_eq!(stores::row(forgotten, &person.id).await, 1);
    let again = subscribe(&mut sandbox, &person, json!({"plan": "pro", "paymentMethodId": "pm_card_visa"}));
    assert_eq!((&again["status"], &again["trialEnd"]), (&json!("active"), &Value::Null));
}

/// A first payment that was given up used up no trial, and what comes after it is somebody's first subscription.
#[tokio::test]
async fn whoever_gave_up_a_first_payment_has_the_trial_still() {
    let mut sandbox = with_trials("billing-create-subscription");
    let api = Api::of_router();
    let life = Life::begin(api.clone(), api.sign_up().await).await;
    let given_up = api.delete(&format!("/api/billing/subscriptions/{}", life.id)).bearer(&life.person.jwt).send().await;
    assert_eq!(given_up.expect_status(200).body["subscription"]["status"], "canceled");
    let made = subscribe(&mut sandbox, &life.person, json!({"plan": "pro", "paymentMethodId": "pm_card_visa"}));
    assert_eq!(made["status"], "trialing");
    eventually("the subscription's event", || async {
        let told = stores::told(&life.person).await;
        told.contains(&"subscription_created trialing new pro".to_owned()).then_some(())
    })
    .await;
}
