//! The trace of one chat message, as a collector receives it by OTLP.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::*;

/// What a trace of a chat message consists of, each by an attribute of its span.
const CHAT: &[(&str, &str)] = &[
    ("http.route", "/api/chat"),
    ("db.system.name", "postgresql"),
    ("rpc.service", "DynamoDB"),
    ("gen_ai.operation.name", "chat"),
    ("rpc.service", "SQS"),
    ("messaging.system", "aws_sqs"),
    ("service.name", "workers-ingest"),
    ("db.system.name", "clickhouse"),
];
/// What a trace of a subscription consists of.
const SUBSCRIPTION: &[(&str, &str)] = &[
    ("http.route", "/api/billing/subscriptions"),
    ("db.system.name", "postgresql"),
    ("rpc.service", "DynamoDB"),
    ("url.path", "/subscriptions"),
    ("rpc.service", "SQS"),
    ("service.name", "workers-ingest"),
    ("db.system.name", "clickhouse"),
];
/// The client's own span.
const CLIENT: &str = "00f067aa0ba902b7";

async fn spans_of(trace_id: &str) -> Vec<Value> {
    let url = format!("{}/api/sessions/{trace_id}/spans", variable("TRACES_URL"));
    // The collector knows nothing of a trace before its first span.
    client().get(url).send().await.unwrap().json().await.unwrap_or_default()
}

/// All spans of a trace, once every part is there.
async fn whole_trace(trace_id: &str, parts: &[(&str, &str)]) -> Vec<Value> {
    eventually(&format!("one tree with {parts:?} in the trace {trace_id}"), || async {
        let spans = spans_of(trace_id).await;
        (has_all(&spans, parts) && are_one_tree(&spans, CLIENT)).then_some(spans)
    })
    .await
}

fn has_all(spans: &[Value], parts: &[(&str, &str)]) -> bool {
    parts.iter().all(|(name, value)| spans.iter().any(|span| span["metadata"][*name] == *value))
}

/// Whether every span hangs, over its parents, on the span of the client that sent the request. A parent ends, and is
/// sent, after its children.
fn are_one_tree(spans: &[Value], root: &str) -> bool {
    let parents: HashMap<&str, &str> = spans
        .iter()
        .map(|span| (span["id"].as_str().unwrap(), span["parent_span_id"].as_str().unwrap_or_default()))
        .collect();
    spans.iter().all(|span| {
        let mut seen = HashSet::new();
        let mut at = span["id"].as_str().unwrap();
        while at != root {
            assert!(seen.insert(at), "a span is its own ancestor: {span}");
            let Some(parent) = parents.get(at) else { return false };
            at = parent;
        }
        true
    })
}

through_both_doors! {
    async fn a_chat_message_is_one_tree_from_the_request_to_the_analytics(api: Api) {
        let person = api.sign_up().await;
        for stream in [false, true] {
            let trace_id = Uuid::now_v7().simple().to_string();
            api.post("/api/chat")
                .bearer(&person.jwt)
                .header("traceparent", &format!("00-{trace_id}-{CLIENT}-01"))
                .json(&json!({"message": "what a person wrote", "stream": stream}))
                .open()
                .await
                .bytes()
                .await
                .unwrap();
            let spans = whole_trace(&trace_id, CHAT).await;
            let request = spans.iter().find(|span| span["parent_span_id"] == CLIENT && span["metadata"]["http.route"] == "/api/chat");
            let request = request.unwrap_or_else(|| panic!("no span of the request in {spans:#?}"));
            assert_eq!(request["metadata"]["http.response.status_code"], 200);
            let statements = spans.iter().filter_map(|span| span["metadata"]["db.query.text"].as_str());
            assert!(statements.clone().count() > 0);
            for statement in statements {
                assert!(!statement.contains(&person.id), "a value in the text of a statement: {statement}");
            }
            // The model call by the conventions for GenAI.
            let model = spans.iter().find(|span| span["metadata"]["gen_ai.operation.name"] == "chat").unwrap();
            assert_eq!(model["metadata"]["gen_ai.provider.name"], "openai", "{model}");
            // Neither what was written nor who wrote it.
            let everything = json!(spans).to_string();
            for secret in ["what a person wrote", person.email.as_str(), person.jwt.as_str()] {
                assert!(!everything.contains(secret), "{secret} is in a span of {spans:#?}");
            }
        }
    }

    async fn a_subscription_is_one_tree_with_what_stripe_was_asked(api: Api) {
        let person = api.sign_up().await;
        let trace_id = Uuid::now_v7().simple().to_string();
        api.post("/api/billing/subscriptions")
            .bearer(&person.jwt)
            .header("traceparent", &format!("00-{trace_id}-{CLIENT}-01"))
            .json(&json!({"plan": "pro", "paymentMethodId": "pm_card_visa"}))
            .send()
            .await
            .expect_status(201);
        let spans = whole_trace(&trace_id, SUBSCRIPTION).await;
        assert!(!json!(spans).to_string().contains(&person.email), "{spans:#?}");
    }

    async fn a_trace_that_its_client_does_not_sample_is_not_recorded(api: Api) {
        let person = api.sign_up().await;
        let trace_ids = ["00", "01"].map(|flags| (flags, Uuid::now_v7().simple().to_string()));
        for (flags, trace_id) in &trace_ids {
            let reply = api
                .get("/api/auth/me")
                .bearer(&person.jwt)
                .header("traceparent", &format!("00-{trace_id}-00f067aa0ba902b7-{flags}"))
                .send()
                .await
                .expect_status(200);
            assert!(reply.header("traceparent").unwrap().starts_with(&format!("00-{trace_id}")));
        }
        // Sent after the other, so that it tells when that one would have arrived.
        eventually("the sampled trace", || async { (!spans_of(&trace_ids[1].1).await.is_empty()).then_some(()) }).await;
        assert!(spans_of(&trace_ids[0].1).await.is_empty());
    }
}
