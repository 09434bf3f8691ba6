use std::path::PathBuf;

use serde_json::{Value, json};

use super::{replica, stores};
use crate::support::*;

fn payment(amount: Value) -> Value {
    json!({"amount": amount, "currency": "USD", "paymentMethodId": "pm_card_visa", "description": "Extra tokens"})
}

through_both_doors! {
    async fn a_card_is_charged_and_the_payment_listed(api: Api) {
        let person = api.sign_up().await;
        let made = api.post("/api/payments").bearer(&person.jwt).json(&payment(json!(1999))).send().await;
        let made = made.expect_status(201);
        assert_eq!(made.body.get("clientSecret"), None);
        let made = made.body["payment"].clone();
        assert_eq!((&made["amount"], &made["currency"], &made["status"]), (&json!(1999), &json!("USD"), &json!("succeeded")));
        assert_eq!((&made["description"], &made["declineCode"]), (&json!("Extra tokens"), &Value::Null));
        let list = api.get("/api/billing/payments").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(list.body, json!({"payments": [made], "nextCursor": null}));
        let stranger = api.sign_up().await;
        let list = api.get("/api/payments").bearer(&stranger.jwt).send().await.expect_status(200);
        assert_eq!(list.body["payments"], json!([]));
    }

    async fn a_declined_card_is_told_with_its_reason_and_kept(api: Api) {
        let person = api.sign_up().await;
        let mut body = payment(json!(1999));
        body["paymentMethodId"] = "pm_card_visa_chargeDeclinedInsufficientFunds".into();
        for _ in 0..2 {
            let call = api.post("/api/billing/payments").bearer(&person.jwt).header("idempotency-key", "d").json(&body);
            let reply = call.send().await.expect_problem(402, "card_declined");
            assert_eq!(reply.body["declineCode"], "insufficient_funds");
        }
        let list = api.get("/api/payments").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(list.body["payments"].as_array().unwrap().len(), 1, "{}", list.text);
        assert_eq!(list.body["payments"][0]["declineCode"], "insufficient_funds");
    }

    async fn ten_refused_cards_are_enough(api: Api) {
        let person = api.sign_up().await;
        let pay = |card: &str| {
            let body = json!({"amount": 1999, "currency": "USD", "paymentMethodId": card});
            api.post("/api/billing/payments").bearer(&person.jwt).json(&body).send()
        };
        pay("pm_card_visa").await.expect_status(201);
        for _ in 0..5 {
            pay("pm_card_chargeDeclined").await.expect_problem(402, "card_declined");
            pay("pm_unknown").await.expect_problem(400, "validation_failed");
        }
        // The window may end in between, which allows ten more.
        let mut limited = None;
        for _ in 0..11 {
            let reply = pay("pm_card_chargeDeclined").await;
            if reply.status == 429 {
                limited = Some(reply.expect_problem(429, "too_many_attempts"));
                break;
            }
        }
        let limited = limited.expect("twenty-one refused cards within two windows were not limited");
        assert!(limited.body["retryAfterSeconds"].as_u64().unwrap() > 0);
        let body = json!({"plan": "pro", "paymentMethodId": "pm_card_chargeDeclined"});
        let reply = api.post("/api/billing/subscriptions").bearer(&person.jwt).json(&body).send().await;
        reply.expect_problem(429, "too_many_attempts");
    }

    async fn a_card_whose_holder_has_to_authenticate_is_charged_when_he_has(api: Api) {
        let person = api.sign_up().await;
        let mut body = payment(json!(1999));
        body["paymentMethodId"] = "pm_card_threeDSecure2Required".into();
        let pay = || api.post("/api/billing/payments").bearer(&person.jwt).header("idempotency-key", "3ds").json(&body).send();
        let made = pay().await.expect_status(201);
        assert_eq!(made.body["payment"]["status"], "requires_action");
        assert_eq!(pay().await.expect_status(201).body, made.body);
        let charges = format!("/v1/charges?customer={}", replica::customer(&person).await);
        assert_eq!(replica::get(&charges).await["data"], json!([]));

        // The stand-in has no holder to ask: a card that asks for none stands for one who has agreed.
        let completed = replica::complete(&made.text_at("/clientSecret"), "pm_card_visa").await;
        assert_eq!(completed["status"], "succeeded", "{completed}");
        let paid = eventually("the payment", || async {
            let list = api.get("/api/billing/payments").bearer(&person.jwt).send().await.unless_limited()?;
            let found = list.expect_status(200).body["payments"][0].clone();
            (found["status"] == "succeeded").then_some(found)
        })
        .await;
        assert_eq!((&paid["id"], &paid["amount"]), (&made.body["payment"]["id"], &json!(1999)));
        assert_eq!(replica::get(&charges).await["data"].as_array().unwrap().len(), 1);
    }

    async fn amounts_and_currencies_that_cannot_be_charged_are_named(api: Api) {
        let person = api.sign_up().await;
        let send = |body: Value| api.post("/api/billing/payments").bearer(&person.jwt).json(&body).send();
        for bad in [json!(-1), json!(0), json!(1.5), json!(49), json!(100_000_000), json!(1e300), json!("100")] {
            send(payment(bad)).await.expect_invalid(&["amount"]);
        }
        let mut body = payment(json!(1999));
        body["currency"] = "XXX".into();
        send(body.clone()).await.expect_invalid(&["currency"]);
        body["amount"] = 0.into();
        for method in ["../customers", "4242424242424242"] {
            body["paymentMethodId"] = method.into();
            send(body.clone()).await.expect_invalid(&["amount", "currency", "paymentMethodId"]);
        }
        // Less than the currency's least amount is named beside what is wrong with the others.
        body = payment(json!(40));
        body["description"] = 5.into();
        send(body.clone()).await.expect_invalid(&["amount", "description"]);
        body["paymentMethodId"] = "x".into();
        let call = api.post("/api/billing/payments").bearer(&person.jwt).header("idempotency-key", "").json(&body);
        call.send().await.expect_invalid(&["Idempotency-Key", "amount", "description", "paymentMethodId"]);
        body = payment(json!(1999));
        body["paymentMethodId"] = "pm_unknown".into();
        send(body).await.expect_invalid(&["paymentMethodId"]);
        api.post("/api/billing/payments").json(&payment(json!(1999))).send().await.expect_problem(401, "unauthenticated");
    }

    async fn many_tries_at_once_make_one_charge(api: Api) {
        let person = api.sign_up().await;
        let body = payment(json!(2500));
        let tries = (0..8).map(|_| {
            api.post("/api/billing/payments").bearer(&person.jwt).header("idempotency-key", "once").json(&body).send()
        });
        let replies = futures_util::future::join_all(tries).await;
        assert!(replies.iter().all(|reply| matches!(reply.status, 201 | 409)), "{:?}", replies.iter().map(|r| &r.text).collect::<Vec<_>>());
        assert!(replies.iter().any(|reply| reply.status == 201));
        let intents = replica::get(&format!("/v1/payment_intents?customer={}", replica::customer(&person).await)).await;
        assert_eq!(intents["data"].as_array().unwrap().len(), 1, "{intents}");
        assert_eq!(replica::get(&format!("/v1/charges?customer={}", replica::customer(&person).await)).await["data"].as_array().unwrap().len(), 1);
        let other = payment(json!(2600));
        let call = api.post("/api/payments").bearer(&person.jwt).header("idempotency-key", "once").json(&other);
        call.send().await.expect_problem(422, "idempotency_key_reused");
    }
}

/// Card data that is sent although nobody asked for it, and the keys, are in no table and in no log.
#[tokio::test]
async fn neither_cards_nor_keys_are_written_down() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let (number, cvc) = ("4000056655665556", "cvc-9f3a1c");
    let mut body = payment(json!(1999));
    body["card"] = json!({"number": number, "cvc": cvc, "exp_month": 12, "exp_year": 2031});
    let paid =
        api.post("/api/billing/payments").bearer(&person.jwt).header("idempotency-key", "k").json(&body).send().await;
    paid.expect_status(201);
    for path in ["/api/billing/payments", "/api/billing/subscriptions"] {
        let mut body = body.clone();
        body["plan"] = "pro".into();
        body["paymentMethodId"] = number.into();
        let refused = api.post(path).bearer(&person.jwt).json(&body).send().await.expect_invalid(&["paymentMethodId"]);
        assert!(!refused.text.contains(number));
    }
    let body = json!({"plan": "pro", "paymentMethodId": "pm_card_chargeDeclined"});
    api.post("/api/billing/subscriptions")
        .bearer(&person.jwt)
        .json(&body)
        .send()
        .await
        .expect_problem(402, "card_declined");

    let key = function_secret("STRIPE_SECRET_ARN").await["key"].as_str().unwrap().to_owned();
    let hook = variable("STRIPE_WEBHOOK_SECRET");
    let secrets = [number, cvc, key.as_str(), hook.as_str()];
    let mut connection = stores::postgres().await;
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    assert!(tables.contains(&"payments".to_owned()), "{tables:?}");
    for table in tables {
        for secret in secrets {
            let sql = format!("SELECT count(*) FROM {table} t WHERE position($1 IN t::text) > 0");
            let found: i64 =
                sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(secret).fetch_one(&mut connection).await.unwrap();
            assert_eq!(found, 0, "{table} has a secret");
        }
    }
    let table = function_variable("billing-create-payment", "IDEMPOTENCY_TABLE");
    let items = aws("dynamodb", "DynamoDB_20120810.Scan", &json!({"TableName": table})).await.to_string();
    assert!(items.contains("reply"), "{items}");
    let mut logs = 0;
    for entry in std::fs::read_dir(PathBuf::from(variable("LOCAL_STACK_DIR")).join("log")).unwrap() {
        let path = entry.unwrap().path();
        let log = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        logs += usize::from(log.contains("Stripe was asked"));
        for secret in secrets {
            assert!(!log.contains(secret) && !items.contains(secret), "{} has a secret", path.display());
        }
    }
    assert!(logs > 0, "the functions' logs are elsewhere");
}

/// The secret that a variable of the deployed functions names.
async fn function_secret(name: &str) -> Value {
    let id = function_variable("billing-create-payment", name);
    let found = aws("secretsmanager", "secretsmanager.GetSecretValue", &json!({"SecretId": id})).await;
    serde_json::from_str(found["SecretString"].as_str().unwrap()).unwrap()
}
