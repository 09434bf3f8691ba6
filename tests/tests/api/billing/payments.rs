use serde_json::{Value, json};

use super::replica;
use crate::support::*;

fn payment(amount: Value) -> Value {
    json!({"amount": amount, "currency": "USD", "paymentMethodId": "pm_card_visa", "description": "Extra tokens"})
}

through_both_doors! {
    async fn a_card_is_charged_and_the_payment_listed(api: Api) {
        let person = api.sign_up().await;
        let made = api.post("/api/payments").bearer(&person.jwt).json(&payment(json!(1999))).send().await;
        let made = made.expect_status(201).body["payment"].clone();
        assert_eq!((&made["amount"], &made["currency"], &made["status"]), (&json!(1999), &json!("USD"), &json!("succeeded")));
        assert_eq!(made["declineCode"], Value::Null);
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
        body["paymentMethodId"] = "../customers".into();
        send(body.clone()).await.expect_invalid(&["amount", "currency", "paymentMethodId"]);
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
        let other = payment(json!(2600));
        let call = api.post("/api/payments").bearer(&person.jwt).header("idempotency-key", "once").json(&other);
        call.send().await.expect_problem(422, "idempotency_key_reused");
    }
}
