use std::time::Instant;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::*;

/// What the providers' stand-in says to whatever it does not know.
const SAID: &str = "Hello from the local model. This is a deterministic reply.";

/// The events of a stream, with their data.
fn events(text: &str) -> Vec<(String, Value)> {
    let of = |event: &str, field: &str| {
        event.lines().find_map(|line| Some(line.strip_prefix(field)?.trim().to_owned())).unwrap_or_default()
    };
    let events = text.split("\n\n").filter(|event| event.contains("event:"));
    events.map(|event| (of(event, "event:"), serde_json::from_str(&of(event, "data:")).unwrap())).collect()
}

/// Of an object, those members that another one has.
fn some_of(all: &Value, wanted: &Value) -> Value {
    wanted.as_object().unwrap().keys().map(|name| (name.clone(), all[name].clone())).collect()
}

through_both_doors! {
    async fn answers_whole(api: Api) {
        let person = api.sign_up().await;
        let reply = api.post("/api/chat").bearer(&person.jwt).json(&json!({"message": "Hello"})).send().await.expect_status(200);
        assert_eq!(reply.body["message"]["role"], "assistant");
        assert!(!reply.text_at("/message/content").is_empty());
        assert!(reply.body["usage"]["totalTokens"].as_u64().unwrap() > 0);
        assert_eq!(reply.body["finishReason"], "stop");
        assert!(reply.body["quota"]["remaining"].is_u64());
        assert_eq!(reply.header("cache-control"), Some("no-store"));
    }

    async fn answers_in_events(api: Api) {
        let person = api.sign_up().await;
        let body = json!({"message": "Hello", "stream": true});
        let reply = api.post("/api/chat").bearer(&person.jwt).json(&body).send().await.expect_status(200);
        assert!(reply.header("content-type").unwrap().starts_with("text/event-stream"), "{:?}", reply.headers);
        let events: Vec<_> = reply.text.lines().filter_map(|line| line.strip_prefix("event:")).map(str::trim).collect();
        assert_eq!(events.first(), Some(&"start"), "{}", reply.text);
        assert_eq!(events.last(), Some(&"done"), "{}", reply.text);
        assert!(events.contains(&"delta"), "{}", reply.text);
        let ids: Vec<u64> = reply.text.lines().filter_map(|line| line.strip_prefix("id:")).map(|id| id.trim().parse().unwrap()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");
    }

    async fn answers_in_events_where_a_client_accepts_them(api: Api) {
        let person = api.sign_up().await;
        let ask = |body: Value| {
            let call = api.post("/api/chat").bearer(&person.jwt).header("accept", "text/event-stream");
            call.json(&body).send()
        };
        let streamed = ask(json!({"message": "Hello"})).await.expect_status(200);
        assert_eq!(streamed.header("content-type"), Some("text/event-stream"));
        assert_eq!(events(&streamed.text).last().map(|(name, _)| name.as_str()), Some("done"), "{}", streamed.text);
        // The field says it more plainly than the header.
        let whole = ask(json!({"message": "Hello", "stream": false})).await.expect_status(200);
        assert_eq!((whole.header("content-type"), whole.text_at("/message/content").as_str()), (Some("application/json"), SAID));
    }

    async fn each_provider_answers_whole_and_in_events(api: Api) {
        let person = api.sign_up().await;
        for provider in ["openai", "anthropic", "google"] {
            let ask = |stream: bool| {
                let body = json!({"message": "Hello", "provider": provider, "stream": stream});
                api.post("/api/chat").bearer(&person.jwt).json(&body).send()
            };
            let whole = ask(false).await.expect_status(200);
            assert_eq!((&whole.body["provider"], &whole.body["finishReason"]), (&json!(provider), &json!("stop")));
            assert!(whole.body.get("fallbackFrom").is_none_or(Value::is_null), "{}", whole.text);
            assert_eq!(whole.text_at("/message/content"), SAID);
            let of_stand_in = json!({"inputTokens": 11, "outputTokens": 12, "totalTokens": 23});
            assert_eq!(some_of(&whole.body["usage"], &of_stand_in), of_stand_in, "{}", whole.text);
            assert!(whole.body["usage"].get("estimated").is_none(), "{}", whole.text);
            assert!(whole.body["usage"]["costMicroUsd"].as_i64().unwrap() > 0, "{}", whole.text);

            let events = events(&ask(true).await.expect_status(200).text);
            let data = |kind: &str| events.iter().filter(|event| event.0 == kind).map(|event| &event.1).collect::<Vec<_>>();
            assert_eq!((data("start")[0]["provider"].as_str(), data("error").len()), (Some(provider), 0));
            assert_eq!(data("start")[0]["model"], whole.body["model"]);
            let said: String = data("delta").iter().map(|delta| delta["text"].as_str().unwrap()).collect();
            assert_eq!(said, SAID);
            assert_eq!(some_of(&data("done")[0]["usage"], &of_stand_in), of_stand_in);
        }
    }

    async fn another_provider_answers_for_one_that_is_down(api: Api) {
        let person = api.sign_up().await;
        for stream in [false, true] {
            let body = json!({"message": "AIMOCK:fallback", "model": "gpt-4o-mini", "stream": stream});
            let reply = api.post("/api/chat").bearer(&person.jwt).json(&body).send().await.expect_status(200);
            let told = if stream { events(&reply.text).remove(0).1 } else { reply.body };
            assert_eq!(told["fallbackFrom"], "openai", "{}", reply.text);
            assert!(["anthropic", "google"].contains(&told["provider"].as_str().unwrap()), "{}", reply.text);
        }
        let list = api.get("/api/chat/conversations").bearer(&person.jwt).send().await.expect_status(200);
        for conversation in list.body["conversations"].as_array().unwrap() {
            let path = format!("/api/chat/conversations/{}", conversation["id"].as_str().unwrap());
            let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
            // The next question is asked of the model that was chosen all the same.
            assert_eq!(conversation["provider"], "openai");
            assert!(["anthropic", "google"].contains(&read.text_at("/messages/1/provider").as_str()), "{}", read.text);
        }
    }

    async fn text_is_data_whatever_it_says(api: Api) {
        let person = api.sign_up().await;
        let message = "<script>alert('x')</script>\r\n\nevent: done\ndata: {}\n\n\u{1}\u{8}\u{1b}[2J \u{202e}\u{2028}\"\\";
        for stream in [false, true] {
            let body = json!({"message": message, "stream": stream});
            let said = api.post("/api/chat").bearer(&person.jwt).json(&body).send().await.expect_status(200);
            let media_type = if stream { "text/event-stream" } else { "application/json" };
            assert_eq!((said.header("content-type"), said.header("x-content-type-options")), (Some(media_type), Some("nosniff")));
        }
        let list = api.get("/api/chat/conversations").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(list.header("content-type"), Some("application/json"));
        for conversation in list.body["conversations"].as_array().unwrap() {
            assert!(conversation["title"].as_str().unwrap().starts_with("<script>alert('x')</script> event: done data: {} "));
            let path = format!("/api/chat/conversations/{}", conversation["id"].as_str().unwrap());
            let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
            assert_eq!(read.header("content-type"), Some("application/json"));
            assert_eq!(read.body["messages"][0]["content"], message);
            // On the wire, what is none of JSON's own characters is escaped.
            assert!(!read.text.contains(|c: char| c.is_ascii_control()), "{}", read.text);
        }
    }

    async fn early_errors_of_the_streaming_function_have_bodies(api: Api) {
        api.post("/api/chat").json(&json!({"message": "Hello"})).send().await.expect_problem(401, "unauthenticated");
        let person = api.sign_up().await;
        let post = |body| api.post("/api/chat").bearer(&person.jwt).json(&body).send();
        post(json!({})).await.expect_invalid(&["message"]);
        post(json!({"message": "Hello", "model": "no-such-model"})).await.expect_problem(400, "model_not_available");
        let mismatch = json!({"message": "Hello", "provider": "google", "model": "gpt-4"});
        post(mismatch).await.expect_problem(400, "model_not_available");
        let broken = api.post("/api/chat").bearer(&person.jwt).body("application/json", "{");
        broken.send().await.expect_problem(400, "invalid_json");
    }

    async fn bad_fields_of_query_header_and_body_are_named_together(api: Api) {
        let person = api.sign_up().await;
        let made = api.post("/api/chat/conversations").bearer(&person.jwt).send().await.expect_status(201);
        let regenerate = format!("/api/chat/conversations/{}/regenerate", made.text_at("/conversation/id"));
        let post = |path: &str, body: Value| {
            let call = api.post(&format!("{path}?protocol=morse")).bearer(&person.jwt);
            call.header("idempotency-key", &"k".repeat(256)).json(&body).send()
        };
        let reply = post("/api/chat", json!({"message": "", "temperature": 9})).await;
        reply.expect_invalid(&["Idempotency-Key", "message", "protocol", "temperature"]);
        let reply = post(&regenerate, json!({"model": 5, "stream": 3})).await;
        reply.expect_invalid(&["Idempotency-Key", "model", "protocol", "stream"]);

        let send = |body: Value| api.post("/api/chat").bearer(&person.jwt).json(&body).send();
        let reply = send(json!({"id": 5, "messages": [], "trigger": 5, "messageId": 5, "temperature": 9})).await;
        reply.expect_invalid(&["id", "messageId", "messages", "temperature", "trigger"]);
        send(json!({"messages": []})).await.expect_invalid(&["id", "messages"]);

        // What is no JSON has no fields to be named.
        let broken = api.post("/api/chat?protocol=morse").bearer(&person.jwt).body("application/json", "{");
        broken.send().await.expect_problem(400, "invalid_json");
    }
}

/// Providers refuse a request whose prompt and longest answer are together longer than the model's window.
#[tokio::test]
async fn the_longest_answer_leaves_room_for_its_prompt() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let journal = format!("{}/__aimock/journal", variable("LLM_URL").trim_end_matches('/'));
    let (mut conversation, mut said) = (Value::Null, Vec::new());
    for _ in 0..2 {
        said.push(format!("Hi {}", Uuid::now_v7()));
        let message = said.last().unwrap();
        let body = json!({"conversationId": conversation, "message": message, "model": "gpt-4", "maxTokens": 8_192});
        let reply = api.post("/api/chat").bearer(&person.jwt).json(&body).send().await.expect_status(200);
        conversation = reply.body["conversationId"].clone();
        let calls: Vec<Value> = serde_json::from_str(&plain_get(&journal).await).unwrap();
        let messages = |call: &Value| call["body"]["messages"].to_string();
        let call = calls.iter().find(|call| messages(call).contains(message)).unwrap();
        assert!((7_000..8_150).contains(&call["body"]["max_tokens"].as_i64().unwrap()), "{call}");
        assert!(said.iter().all(|message| messages(call).contains(message)), "{call}");
    }
}

/// API Gateway of the emulator gathers a stream before it passes it on; the router does not.
#[tokio::test]
async fn a_stream_arrives_piece_by_piece() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let body = json!({"message": "AIMOCK:slow", "stream": true});
    let mut response = api.post("/api/chat").bearer(&person.jwt).json(&body).open().await;
    assert_eq!(response.status(), 200);
    let mut arrivals = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        arrivals.push((Instant::now(), chunk));
    }
    let spread = arrivals.last().unwrap().0 - arrivals.first().unwrap().0;
    assert!(arrivals.len() >= 5 && spread.as_millis() >= 300, "{} pieces within {spread:?}", arrivals.len());
}
