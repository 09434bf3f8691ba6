use base64::Engine;
use ring::hmac;
use sandbox::deployed::{Deployed, random_address};
use serde_json::json;

use super::stores;
use crate::support::*;

fn sign(secret: &str, at: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{at}.{body}").as_bytes());
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

through_both_doors! {
    async fn only_what_stripe_signed_is_taken(api: Api) {
        let secret = variable("STRIPE_WEBHOOK_SECRET");
        let body = json!({"id": "evt_none", "type": "balance.available", "data": {"object": {"id": "é"}}}).to_string();
        let at = now();
        let good = sign(&secret, at, &body);
        let wrong = sign("whsec_other", at, &body);
        let post = |header: String, body: String| {
            api.post("/api/billing/webhook").header("stripe-signature", &header).body("application/json", body).send()
        };
        for header in [format!("t={at},v1={good}"), format!("t={at},v1={wrong},v1={good}"), format!("v1={good},v0=x,t={at}")] {
            let reply = post(header.clone(), body.clone()).await.expect_status(200);
            assert_eq!(reply.body, json!({"received": true}));
            assert!(reply.header("ratelimit").is_none(), "{header}");
            post(header, format!("{body} ")).await.expect_problem(400, "invalid_signature");
        }
        let (old, future) = (at - 400, at + 400);
        for header in [
            format!("t={at},v1={wrong}"),
            format!("t={old},v1={}", sign(&secret, old, &body)),
            format!("t={future},v1={}", sign(&secret, future, &body)),
            format!("t={at}"),
            format!("v1={good}"),
            "garbage".to_owned(),
        ] {
            post(header, body.clone()).await.expect_problem(400, "invalid_signature");
        }
        for header in [
            format!("t={at},v1={}", good.to_uppercase()),
            format!("t={at},v0={good}"),
            format!("t=now,v1={good}"),
            format!("t={at}0000000000000,v1={good}"),
            "=,=,,t==".to_owned(),
            "t=,v1=".to_owned(),
        ] {
            post(header, body.clone()).await.expect_problem(400, "invalid_signature");
        }
        let call = api.post("/api/billing/webhook").body("application/json", body);
        call.send().await.expect_problem(400, "invalid_signature");
        let garbage = "not JSON";
        post(format!("t={at},v1={}", sign(&secret, at, garbage)), garbage.to_owned()).await.expect_problem(400, "invalid_json");
    }

    async fn what_is_unknown_changes_nothing(api: Api) {
        let secret = variable("STRIPE_WEBHOOK_SECRET");
        // What no other run has told of.
        let run = uuid::Uuid::now_v7().simple().to_string();
        for (kind, object, is_read) in [
            ("invoice.paid", "in", true),
            ("customer.subscription.deleted", "sub", true),
            ("payment_intent.succeeded", "pi", true),
            ("new.kind", "x", false),
        ] {
            let (event, id) = (format!("evt_{object}{run}"), format!("{object}_{run}"));
            // Found in Stripe's list before its webhook came: it is queued all the same.
            if object == "in" {
                let found = "WITH found AS (INSERT INTO stripe_events (id, kind, object_id) VALUES ($1, 'invoice.paid', 'in_x')
                             RETURNING 1) SELECT to_jsonb(count(*)) FROM found";
                assert_eq!(stores::row(found, &event).await, 1);
            }
            let body = json!({"id": event, "type": kind, "data": {"object": {"id": id}}}).to_string();
            let at = now();
            let header = format!("t={at},v1={}", sign(&secret, at, &body));
            for _ in 0..2 {
                let call = api.post("/api/billing/webhook").header("stripe-signature", &header);
                call.body("application/json", body.clone()).send().await.expect_status(200);
            }
            let noted = "SELECT to_jsonb(count(*)) FROM stripe_events WHERE id = $1";
            assert_eq!(stores::row(noted, &event).await, i64::from(is_read), "{kind} is noted once, if it is read");
            if is_read {
                eventually(&format!("{kind} to be handled"), || async {
                    let handled = "SELECT to_jsonb(count(*)) FROM stripe_events WHERE id = $1 AND processed_at IS NOT NULL";
                    (stores::row(handled, &event).await == 1).then_some(())
                })
                .await;
            }
            let mirrored = "SELECT to_jsonb(count(*)) FROM (
                SELECT stripe_id FROM subscriptions UNION ALL SELECT stripe_id FROM invoices
                UNION ALL SELECT stripe_id FROM payments) mirrored WHERE stripe_id = $1";
            assert_eq!(stores::row(mirrored, &id).await, 0, "{kind}");
        }
    }
}

/// API Gateway may hand over the body in base64: the signature is of the bytes in it.
#[tokio::test]
async fn a_body_in_base64_is_checked_as_it_was_sent() {
    let secret = variable("STRIPE_WEBHOOK_SECRET");
    let body = json!({"id": "evt_none", "type": "balance.available", "data": {"object": {"id": "\u{e9}"}}}).to_string();
    let at = now();
    let status_of = async |signed: &str| {
        let mut event = Deployed::event("billing-webhook", &random_address(), None, None).unwrap();
        let signature = format!("t={at},v1={}", sign(&secret, at, signed));
        event["headers"]["Stripe-Signature"] = signature.clone().into();
        event["multiValueHeaders"]["Stripe-Signature"] = json!([signature]);
        event["body"] = base64::engine::general_purpose::STANDARD.encode(&body).into();
        event["isBase64Encoded"] = true.into();
        invoke("billing-webhook", event.to_string()).await["statusCode"].clone()
    };
    assert_eq!(status_of(&body).await, 200);
    assert_eq!(status_of(&format!("{body} ")).await, 400);
}
