use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::lost_answers::{ask_by, way_to_aws};
use crate::support::*;

/// The events of a stream: id, name, data.
fn events(text: &str) -> Vec<(u64, String, Value)> {
    text.split("\n\n")
        .filter_map(|event| {
            let mut lines = event.lines().filter(|line| !line.starts_with(':'));
            let id = lines.next()?.strip_prefix("id: ")?.parse().unwrap();
            let name = lines.next()?.strip_prefix("event: ")?.to_owned();
            Some((id, name, serde_json::from_str(lines.next()?.strip_prefix("data: ")?).unwrap()))
        })
        .collect()
}

/// What the start of a stream in the AI SDK's protocol tells beside it.
fn sdk_start(text: &str) -> Value {
    let mut parts = text.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    parts.next().unwrap()["messageMetadata"].clone()
}

async fn resume(api: &Api, person: &Person, stream: &str, after: Option<u64>) -> Reply {
    let call = api.get(&format!("/api/chat/streams/{stream}")).bearer(&person.jwt);
    match after {
        Some(id) => call.header("last-event-id", &id.to_string()).send().await,
        None => call.send().await,
    }
}

/// Reads a stream until an event of that name has come.
async fn read_to(response: &mut reqwest::Response, name: &str) -> String {
    let mut text = String::new();
    while !text.contains(name) {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    text
}

/// What is left of a stream.
async fn read_rest(response: &mut reqwest::Response) -> String {
    let mut text = String::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    text
}

/// Waits until a stream is written down.
async fn known(stream: &str) {
    eventually("the stream to be known", || async { state(stream).await.is_object().then_some(()) }).await;
}

/// What is known of a stream.
async fn state(stream: &str) -> Value {
    let table = function_variable("chat-resume-stream", "STREAMS_TABLE");
    let key = json!({"stream_id": {"S": stream}, "seq": {"N": "0"}});
    let reply = aws("dynamodb", "DynamoDB_20120810.GetItem", &json!({"TableName": table, "Key": key})).await;
    reply["Item"].clone()
}

/// The streams that a name of a conversation leads to, from the newest on.
async fn streams_of(person: &Person, conversation: &str) -> Vec<Value> {
    let query = json!({
        "TableName": function_variable("chat-resume-stream", "STREAMS_TABLE"), "ScanIndexForward": false,
        "KeyConditionExpression": "stream_id = :name",
        "ExpressionAttributeValues": {":name": {"S": format!("conversation#{}#{conversation}", person.id)}},
    });
    let reply = aws("dynamodb", "DynamoDB_20120810.Query", &query).await;
    reply["Items"].as_array().unwrap().iter().map(|item| item["leads_to"]["S"].clone()).collect()
}

/// A stream under way, whose events a test writes down.
struct Written {
    table: String,
    id: Uuid,
    began: OffsetDateTime,
}

impl Written {
    async fn begin(person: &Person) -> Self {
        let table = function_variable("chat-resume-stream", "STREAMS_TABLE");
        let (id, began) = (Uuid::now_v7(), OffsetDateTime::now_utc());
        let written = Self { table, id, began };
        let state = json!({
            "user_id": {"S": person.id}, "beat_at": {"N": (began.unix_timestamp() * 1_000).to_string()},
            "read_at": {"N": "0"}, "last_id": {"N": "1"}, "is_done": {"BOOL": false}, "is_delivered": {"BOOL": false},
        });
        written.put(0, state).await;
        written
    }

    /// Events, from the one of that id on.
    async fn batch(&self, first: u64, events: Value) {
        self.put(first, json!({"events": {"S": events.to_string()}})).await;
    }

    /// Has it have ended so many minutes ago, with its third event.
    async fn end(&self, person: &Person, minutes_ago: i64) {
        let ended = (self.began.unix_timestamp() - minutes_ago * 60) * 1_000;
        let state = json!({
            "user_id": {"S": person.id}, "beat_at": {"N": ended.to_string()}, "read_at": {"N": "0"},
            "last_id": {"N": "3"}, "is_done": {"BOOL": true}, "is_delivered": {"BOOL": false},
        });
        self.put(0, state).await;
    }

    async fn put(&self, seq: u64, mut item: Value) {
        item["stream_id"] = json!({"S": self.id});
        item["seq"] = json!({"N": seq.to_string()});
        item["expires"] = json!({"N": (self.began.unix_timestamp() + 600).to_string()});
        aws("dynamodb", "DynamoDB_20120810.PutItem", &json!({"TableName": self.table, "Item": item})).await;
    }

    /// Has it be stopped, and not end: its state is looked for by a name of its conversation.
    async fn is_ending(&self, person: &Person, conversation: &str) {
        let update = json!({
            "TableName": self.table, "Key": {"stream_id": {"S": self.id}, "seq": {"N": "0"}},
            "UpdateExpression": "SET stop_wished = :yes", "ExpressionAttributeValues": {":yes": {"BOOL": true}},
        });
        aws("dynamodb", "DynamoDB_20120810.UpdateItem", &update).await;
        self.is_named(person, conversation).await;
    }

    /// Has its function have died a minute ago.
    async fn has_died(&self, person: &Person, conversation: &str) {
        let state = json!({
            "user_id": {"S": person.id}, "beat_at": {"N": ((self.began.unix_timestamp() - 60) * 1_000).to_string()},
            "read_at": {"N": "0"}, "last_id": {"N": "1"}, "is_done": {"BOOL": false}, "is_delivered": {"BOOL": false},
        });
        self.put(0, state).await;
        self.is_named(person, conversation).await;
    }

    async fn is_named(&self, person: &Person, conversation: &str) {
        let name = json!({
            "stream_id": {"S": format!("conversation#{}#{conversation}", person.id)}, "seq": {"N": "0"},
            "leads_to": {"S": self.id}, "expires": {"N": (self.began.unix_timestamp() + 600).to_string()},
        });
        aws("dynamodb", "DynamoDB_20120810.PutItem", &json!({"TableName": self.table, "Item": name})).await;
    }

    async fn open(&self, api: &Api, person: &Person) -> reqwest::Response {
        api.get(&format!("/api/chat/streams/{}", self.id)).bearer(&person.jwt).open().await
    }
}

through_both_doors! {
    async fn a_stream_that_is_not_kept_any_more_is_still_known_to_its_owner(api: Api) {
        let (person, other) = (api.sign_up().await, api.sign_up().await);
        let written = Written::begin(&person).await;
        written.end(&person, 11).await;
        let stream = written.id.to_string();
        for after in [None, Some(1), Some(3)] {
            resume(&api, &person, &stream, after).await.expect_status(204);
            resume(&api, &other, &stream, after).await.expect_problem(404, "not_found");
        }
        let stop = |who: &Person| api.post(&format!("/api/chat/streams/{stream}/stop")).bearer(&who.jwt).send();
        stop(&person).await.expect_status(202);
        stop(&other).await.expect_problem(404, "not_found");
    }

    async fn a_stream_that_has_expired_is_unknown_before_the_table_deletes_it(api: Api) {
        let person = api.sign_up().await;
        let mut written = Written::begin(&person).await;
        written.began -= Duration::from_secs(11 * 60);
        written.end(&person, 0).await;
        let path = format!("/api/chat/streams/{}", written.id);
        api.get(&path).bearer(&person.jwt).send().await.expect_problem(404, "not_found");
        api.post(&format!("{path}/stop")).bearer(&person.jwt).send().await.expect_problem(404, "not_found");
    }

    async fn a_stream_is_replayed_for_ten_minutes(api: Api) {
        let person = api.sign_up().await;
        let written = Written::begin(&person).await;
        written.batch(1, json!([{"delta": "One"}, {"delta": "Two"}, {"error": {"code": "internal", "message": "The end."}}])).await;
        written.end(&person, 9).await;
        let replay = resume(&api, &person, &written.id.to_string(), None).await.expect_status(200);
        let read: Vec<_> = events(&replay.text).into_iter().map(|(id, _, data)| (id, data["text"].clone())).collect();
        assert_eq!(read, [(1, json!("One")), (2, json!("Two")), (3, Value::Null)]);
    }

    async fn a_finished_stream_is_resumed_at_every_event(api: Api) {
        let person = api.sign_up().await;
        let body = json!({"message": "Hello", "stream": true});
        let reply = api.post("/api/chat").bearer(&person.jwt).json(&body).send().await.expect_status(200);
        let all = events(&reply.text);
        let stream = all[0].2["streamId"].as_str().unwrap().to_owned();
        // The record is complete a moment after the reply.
        eventually("the whole record", || async {
            let whole = resume(&api, &person, &stream, None).await.expect_status(200);
            (events(&whole.text) == all).then_some(())
        })
        .await;
        for (id, name, _) in &all {
            let rest = resume(&api, &person, &stream, Some(*id)).await;
            if name == "done" {
                rest.expect_status(204);
            } else {
                let expected: Vec<_> = all.iter().filter(|event| event.0 > *id).cloned().collect();
                assert_eq!(events(&rest.expect_status(200).text), expected, "after {id}");
            }
        }
        let state = state(&stream).await;
        let expires: i64 = state["expires"]["N"].as_str().unwrap().parse().unwrap();
        assert!(expires > OffsetDateTime::now_utc().unix_timestamp() + 23 * 3_600, "it is known for a day");
        let other = api.sign_up().await;
        resume(&api, &other, &stream, None).await.expect_problem(404, "not_found");
        let stop = api.post(&format!("/api/chat/streams/{stream}/stop"));
        stop.bearer(&other.jwt).send().await.expect_problem(404, "not_found");
        api.post(&format!("/api/chat/streams/{stream}/stop")).bearer(&person.jwt).send().await.expect_status(202);
        let malformed = api.get(&format!("/api/chat/streams/{stream}?protocol=morse")).bearer(&person.jwt);
        malformed.header("last-event-id", "x").send().await.expect_invalid(&["Last-Event-ID", "protocol"]);
    }

    async fn an_own_message_is_answered_and_resumed_in_the_protocol_that_is_asked_for(api: Api) {
        let person = api.sign_up().await;
        let ask = |protocol: &str| {
            let call = api.post(&format!("/api/chat?protocol={protocol}")).bearer(&person.jwt);
            call.json(&json!({"message": "Hello", "stream": true})).send()
        };
        let native = ask("native").await.expect_status(200);
        assert!(native.text.starts_with("id: 1\nevent: start\n"), "{}", native.text);
        let reply = ask("ai-sdk").await.expect_status(200);
        assert_eq!(reply.header("x-vercel-ai-ui-message-stream"), Some("v1"));
        assert!(reply.text.ends_with("data: [DONE]\n\n"), "{}", reply.text);
        let start = reply.text.lines().find_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
        let stream = start.unwrap()["messageMetadata"]["streamId"].as_str().unwrap().to_owned();
        // The record is complete a moment after the reply.
        eventually("the whole record", || async {
            let path = format!("/api/chat/streams/{stream}?protocol=ai-sdk");
            let again = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
            assert_eq!(again.header("x-vercel-ai-ui-message-stream"), Some("v1"));
            (again.text == reply.text).then_some(())
        })
        .await;
        ask("morse").await.expect_invalid(&["protocol"]);
    }

    async fn the_ai_sdk_gets_its_own_protocol(api: Api) {
        let person = api.sign_up().await;
        let messages = json!([{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}]);
        let body = json!({"id": "client-chat", "messages": messages, "trigger": "submit-message"});
        let reply = api.post("/api/chat").bearer(&person.jwt).json(&body).send().await.expect_status(200);
        assert_eq!(reply.header("x-vercel-ai-ui-message-stream"), Some("v1"));
        assert!(reply.text.ends_with("data: [DONE]\n\n"), "{}", reply.text);
        let parts: Vec<Value> = reply
            .text
            .lines()
            .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
            .collect();
        let kinds: Vec<_> = parts.iter().map(|part| part["type"].as_str().unwrap()).filter(|kind| *kind != "text-delta").collect();
        assert_eq!(kinds, ["start", "start-step", "text-start", "text-end", "finish-step", "finish"]);
        // The client's name finds the conversation again.
        let again = api.post("/api/chat").bearer(&person.jwt).json(&body).send().await.expect_status(200);
        let first: Value = parts[0]["messageMetadata"]["conversationId"].clone();
        assert!(again.text.contains(first.as_str().unwrap()), "{}", again.text);
        let list = api.get("/api/chat/conversations").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(list.body["conversations"][0]["messageCount"], 4);
        for name in ["no-such-chat".to_owned(), "x".repeat(3_000)] {
            api.get(&format!("/api/chat/{name}/stream")).bearer(&person.jwt).send().await.expect_status(204);
        }
    }
}

/// API Gateway of the emulator gathers a stream before it passes it on; the router does not.
#[tokio::test]
async fn a_stream_is_stopped_keeps_what_came_and_is_read_by_two() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let body = json!({"message": "AIMOCK:slow", "stream": true});
    let mut response = api.post("/api/chat").bearer(&person.jwt).json(&body).open().await;
    let mut text = read_to(&mut response, "event: delta").await;
    let stream = events(&text)[0].2["streamId"].as_str().unwrap().to_owned();
    let stop_and_read = async {
        let stop = api.post(&format!("/api/chat/streams/{stream}/stop")).bearer(&person.jwt);
        stop.send().await.expect_status(202);
        text.push_str(&read_rest(&mut response).await);
    };
    let (second, ()) = tokio::join!(resume(&api, &person, &stream, None), stop_and_read);
    let all = events(&text);
    let done = all.last().unwrap();
    assert_eq!((done.1.as_str(), &done.2["finishReason"]), ("done", &json!("stopped")), "{text}");
    assert_eq!(events(&second.expect_status(200).text), all, "the second reader gets the same");
    let path = format!("/api/chat/conversations/{}", all[0].2["conversationId"].as_str().unwrap());
    let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
    let said: String = all.iter().filter_map(|event| event.2["text"].as_str()).collect();
    assert_eq!(
        (&read.body["messages"][1]["content"], &read.body["messages"][1]["finishReason"]),
        (&json!(said), &json!("stopped"))
    );
}

/// Its writer may lose the table's answer, and write a batch of events again with those that came since.
#[tokio::test]
async fn a_batch_that_is_written_again_with_more_in_it_is_read_again() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let stream = Written::begin(&person).await;
    stream.batch(1, json!([{"delta": "One"}])).await;
    let mut reader = stream.open(&api, &person).await;
    let mut text = read_to(&mut reader, "One").await;
    stream.batch(1, json!([{"delta": "One"}, {"delta": "Two"}])).await;
    stream.batch(3, json!([{"delta": "Three"}, {"error": {"code": "internal", "message": "The end."}}])).await;
    text.push_str(&read_rest(&mut reader).await);
    let read: Vec<_> = events(&text).into_iter().map(|(id, _, data)| (id, data["text"].clone())).collect();
    assert_eq!(read, [(1, json!("One")), (2, json!("Two")), (3, json!("Three")), (4, Value::Null)]);
}

/// Each holds a function for as long as the answer takes, and a page that is loaded anew is one more.
#[tokio::test]
async fn the_sixth_reader_of_a_stream_ends_the_reply_of_the_first() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let stream = Written::begin(&person).await;
    stream.batch(1, json!([{"delta": "One"}])).await;
    let mut readers = Vec::new();
    for _ in 0..6 {
        let mut reader = stream.open(&api, &person).await;
        read_to(&mut reader, "One").await;
        readers.push(reader);
    }
    let rest = read_rest(&mut readers.remove(0)).await;
    // Whoever goes on after it misses nothing.
    assert!(rest.contains("id: 1\nevent: error\ndata: {\"code\":\"rate_limited\""), "{rest}");
    stream.batch(2, json!([{"error": {"code": "internal", "message": "The end."}}])).await;
    for mut reader in readers {
        assert!(read_rest(&mut reader).await.ends_with("\"The end.\"}\n\n"));
    }
}

/// A sandbox that freezes is not told whether its reader is still there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_to_be_delivered_is_replayed() {
    let (api, chat) = (Api::of_router(), format!("chat-{}", Uuid::now_v7()));
    let person = api.sign_up().await;
    let messages = json!([{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}]);
    let body = json!({"id": chat, "messages": messages});
    let event = Deployed::event("chat-send", &random_address(), Some(&body), Some(&person.jwt)).unwrap();
    let reply = deployed().start("chat-send").unwrap().invoke(&event).unwrap().payload;
    assert_eq!(reply["statusCode"], 200, "{reply}");
    let replay = api.get(&format!("/api/chat/{chat}/stream")).bearer(&person.jwt).send().await.expect_status(200);
    assert!(replay.text.ends_with("data: [DONE]\n\n"), "{}", replay.text);
}

/// A client may call a conversation by our id, once it knows it.
#[tokio::test]
async fn a_stream_is_found_and_stopped_by_the_conversations_own_id() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let first = api.post("/api/chat").bearer(&person.jwt).json(&json!({"message": "Hello"})).send().await;
    let id = first.expect_status(200).text_at("/conversationId");
    let messages = json!([{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "AIMOCK:slow"}]}]);
    let body = json!({"id": id, "messages": messages, "trigger": "submit-message"});
    let mut response = api.post("/api/chat").bearer(&person.jwt).json(&body).open().await;
    let mut text = read_to(&mut response, "text-delta").await;
    let start: Value = text.lines().find_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).unwrap();
    assert_eq!(start["messageMetadata"]["conversationId"], id.as_str());
    let mut second = api.get(&format!("/api/chat/{id}/stream")).bearer(&person.jwt).open().await;
    assert_eq!(second.status(), 200);
    let stop = format!("/api/chat/streams/{}/stop", start["messageMetadata"]["streamId"].as_str().unwrap());
    api.post(&stop).bearer(&person.jwt).send().await.expect_status(202);
    text.push_str(&read_rest(&mut response).await);
    assert_eq!(read_rest(&mut second).await, text, "the second reader gets the same");
}

/// Two tabs may have one conversation open.
#[tokio::test]
async fn an_answer_is_resumed_stopped_and_superseded_by_its_conversation_after_a_newer_one_has_ended() {
    let (api, chat) = (Api::of_router(), format!("chat-{}", Uuid::now_v7()));
    let person = api.sign_up().await;
    let said = |name: &str, text: &str| json!({"id": name, "role": "user", "parts": [{"type": "text", "text": text}]});
    let ask = |body: Value| api.post("/api/chat").bearer(&person.jwt).json(&body);
    let runs_beside_a_newer_one = async |name: &str| {
        let mut older = ask(json!({"id": chat, "messages": [said(name, "AIMOCK:pauses")]})).open().await;
        let text = read_to(&mut older, "text-delta").await;
        let start: Value =
            text.lines().find_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).unwrap();
        let stream = start["messageMetadata"]["streamId"].clone();
        let is_known = || async { streams_of(&person, &chat).await.contains(&stream).then_some(()) };
        eventually("the older one to be known", is_known).await;
        let newer = json!({"id": chat, "messages": [said(&format!("{name}-newer"), "Hello")]});
        ask(newer).send().await.expect_status(200);
        (older, stream)
    };
    ask(json!({"id": chat, "messages": [said("q1", "Hello")]})).send().await.expect_status(200);

    let (mut older, stream) = runs_beside_a_newer_one("q2").await;
    let mut second = api.get(&format!("/api/chat/{chat}/stream")).bearer(&person.jwt).open().await;
    assert!(read_to(&mut second, "text-delta").await.contains(stream.as_str().unwrap()));
    let stop = api.post(&format!("/api/chat/streams/{chat}/stop")).bearer(&person.jwt);
    assert_eq!(stop.send().await.expect_status(202).body["streamId"], stream);
    assert!(read_rest(&mut older).await.contains("\"finishReason\":\"stopped\""));

    let (mut older, _) = runs_beside_a_newer_one("q3").await;
    ask(json!({"id": chat, "messages": [said("q3", "Instead")], "messageId": "q3"})).send().await.expect_status(200);
    assert!(read_rest(&mut older).await.contains("\"finishReason\":\"stopped\""));
}

/// Whoever leaves in the middle finds the answer stored.
#[tokio::test]
async fn an_answer_goes_on_without_its_reader() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let body = json!({"message": "AIMOCK:slow", "stream": true});
    let mut response = api.post("/api/chat").bearer(&person.jwt).json(&body).open().await;
    let text = read_to(&mut response, "event: delta").await;
    drop(response);
    let start = events(&text)[0].2.clone();
    let rest = resume(&api, &person, start["streamId"].as_str().unwrap(), Some(1)).await.expect_status(200);
    assert_eq!(events(&rest.text).last().unwrap().1, "done");
    let path = format!("/api/chat/conversations/{}", start["conversationId"].as_str().unwrap());
    let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
    assert_eq!(read.body["messages"][1]["finishReason"], "stop");
    let usage = api.get("/api/chat/usage").bearer(&person.jwt).send().await.expect_status(200);
    assert_eq!(usage.body["tokens"]["used"], read.body["messages"][1]["usage"]["totalTokens"]);
    assert_eq!(usage.body["tokens"]["reserved"], 0);
}

async fn contents(api: &Api, person: &Person, conversation: &str) -> Vec<(String, String)> {
    let path = format!("/api/chat/conversations/{conversation}");
    let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
    let texts = read.body["messages"].as_array().unwrap().iter();
    texts
        .map(|it| (it["content"].as_str().unwrap().to_owned(), it["finishReason"].as_str().unwrap_or("").to_owned()))
        .collect()
}

/// Whoever stops an answer, or leaves it, and goes on at once goes on after it.
#[tokio::test]
async fn what_is_said_after_a_stop_comes_after_it() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let ask = |body: Value| api.post("/api/chat").bearer(&person.jwt).json(&body);
    let mut response = ask(json!({"message": "AIMOCK:slow first", "stream": true})).open().await;
    let start = events(&read_to(&mut response, "event: delta").await)[0].2.clone();
    let conversation = start["conversationId"].as_str().unwrap().to_owned();
    let stop = format!("/api/chat/streams/{}/stop", start["streamId"].as_str().unwrap());
    api.post(&stop).bearer(&person.jwt).send().await.expect_status(202);
    let next = ask(json!({"message": "Second", "conversationId": conversation})).send().await.expect_status(200);
    assert_eq!(next.body["conversationId"], conversation.as_str());
    drop(response);
    // This one is left without a word.
    let mut response =
        ask(json!({"message": "AIMOCK:slow third", "conversationId": conversation, "stream": true})).open().await;
    let start = events(&read_to(&mut response, "event: delta").await)[0].2.clone();
    drop(response);
    eventually("that nobody reads it", || async {
        (state(start["streamId"].as_str().unwrap()).await["is_unread"]["BOOL"] == true).then_some(())
    })
    .await;
    ask(json!({"message": "Fourth", "conversationId": conversation})).send().await.expect_status(200);
    let stored = contents(&api, &person, &conversation).await;
    let questions: Vec<_> = stored.iter().step_by(2).map(|(content, _)| content.as_str()).collect();
    assert_eq!(questions, ["AIMOCK:slow first", "Second", "AIMOCK:slow third", "Fourth"]);
    let ends: Vec<_> = stored.iter().skip(1).step_by(2).map(|(_, end)| end.as_str()).collect();
    assert_eq!(ends, ["stopped", "stop", "stopped", "stop"]);
    let path = format!("/api/chat/conversations/{conversation}");
    let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
    let times: Vec<_> = read.body["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["createdAt"].as_str().unwrap())
        .collect();
    assert!(times.is_sorted(), "{times:?}");
}

/// `useChat` makes anew what it has not waited for.
#[tokio::test]
async fn an_answer_that_is_made_anew_before_its_end_is_stored_once() {
    let (api, chat) = (Api::of_router(), format!("chat-{}", Uuid::now_v7()));
    let person = api.sign_up().await;
    let messages = json!([{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "AIMOCK:slow"}]}]);
    let body = json!({"id": chat, "messages": messages});
    let mut response = api.post("/api/chat").bearer(&person.jwt).json(&body).open().await;
    read_to(&mut response, "text-delta").await;
    let mut again = body.clone();
    again["trigger"] = json!("regenerate-message");
    let reply = api.post("/api/chat").bearer(&person.jwt).json(&again).send().await.expect_status(200);
    let start: Value =
        reply.text.lines().find_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).unwrap();
    let stored = contents(&api, &person, start["messageMetadata"]["conversationId"].as_str().unwrap()).await;
    assert_eq!(stored.iter().map(|(_, end)| end.as_str()).collect::<Vec<_>>(), ["", "stop"]);
}

/// A page that knows the first question alone ends no answer of another page.
#[tokio::test]
async fn an_answer_that_is_made_anew_in_its_place_ends_no_answer_to_another_question() {
    let (api, chat) = (Api::of_router(), format!("chat-{}", Uuid::now_v7()));
    let person = api.sign_up().await;
    let said = |name: &str, text: &str| json!({"id": name, "role": "user", "parts": [{"type": "text", "text": text}]});
    let ask = |body: Value| api.post("/api/chat").bearer(&person.jwt).json(&body);
    let start = ask(json!({"id": chat, "messages": [said("m1", "Hello")]})).send().await.expect_status(200).text;
    let conversation = sdk_start(&start)["conversationId"].as_str().unwrap().to_owned();
    let mut database = PgConnection::connect(&variable("DATABASE_URL")).await.unwrap();
    let change = "UPDATE messages SET content = 'AIMOCK:pauses' WHERE conversation_id = $1::uuid AND role = 'user'";
    sqlx::query(change).bind(&conversation).execute(&mut database).await.unwrap();
    let first = said("m1", "AIMOCK:pauses");
    let begin = async |body: Value| {
        let mut response = ask(body).open().await;
        let start = sdk_start(&read_to(&mut response, "text-delta").await);
        let stream = start["streamId"].as_str().unwrap();
        known(stream).await;
        response
    };
    let mut second = begin(json!({"id": chat, "messages": [first, said("m2", "AIMOCK:slow")]})).await;
    let anew = json!({"id": chat, "messages": [first], "trigger": "regenerate-message"});
    let (mut superseded, mut last) = (begin(anew.clone()).await, begin(anew).await);
    let stop = api.post(&format!("/api/chat/streams/{chat}/stop")).bearer(&person.jwt);
    stop.send().await.expect_status(202);
    for (response, end) in [(&mut second, "stop"), (&mut superseded, "stopped"), (&mut last, "stopped")] {
        let text = read_rest(response).await;
        assert!(text.contains(&format!("\"finishReason\":\"{end}\"")), "{end}: {text}");
    }
    let ends: Vec<_> = contents(&api, &person, &conversation).await.into_iter().map(|(_, end)| end).collect();
    assert_eq!(ends, ["", "stopped", "", "stop"]);
}

/// A stream is written down with its first word, or else a moment later.
#[tokio::test]
async fn a_question_is_edited_right_after_it_was_asked() {
    let (api, chat) = (Api::of_router(), format!("chat-{}", Uuid::now_v7()));
    let person = api.sign_up().await;
    let first = async {
        let body = question(&chat, "AIMOCK:thinks and errs");
        api.post("/api/chat").bearer(&person.jwt).json(&body).send().await.expect_status(200)
    };
    let edit = async {
        let mut database = PgConnection::connect(&variable("DATABASE_URL")).await.unwrap();
        let asked = "SELECT EXISTS (SELECT FROM quota_reservations WHERE user_id = $1::uuid)";
        while !sqlx::query_scalar::<_, bool>(asked).bind(&person.id).fetch_one(&mut database).await.unwrap() {}
        let mut body = question(&chat, "And now?");
        body["messageId"] = json!("m1");
        api.post("/api/chat").bearer(&person.jwt).json(&body).send().await.expect_status(200)
    };
    let (_, edited) = tokio::join!(first, edit);
    let stored = contents(&api, &person, &conversation_of(&edited)).await;
    let stored: Vec<_> = stored.iter().map(|(content, end)| (content.as_str(), end.as_str())).collect();
    assert_eq!((stored.len(), stored[0], stored[1].1), (2, ("And now?", ""), "stop"));
}

/// While they wait for another answer to end, neither of two edits can see the other.
#[tokio::test]
async fn the_later_of_two_edits_stays() {
    let api = Api::of_router();
    let (person, chat, ending) = with_an_ending_answer(&api).await;
    api.post("/api/chat").bearer(&person.jwt).json(&question(&chat, "Hello")).send().await.expect_status(200);
    let mut database = PgConnection::connect(&variable("DATABASE_URL")).await.unwrap();
    reserve(&mut database, &person).await;
    let edit = async |after: u64, text: &str| {
        tokio::time::sleep(Duration::from_millis(after)).await;
        let mut body = question(&chat, text);
        body["messageId"] = json!("m1");
        api.post("/api/chat").bearer(&person.jwt).json(&body).send().await.expect_status(200)
    };
    let end = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        ending.end(&person, 0).await;
    };
    let (first, second, ()) = tokio::join!(edit(0, "AIMOCK:thinks"), edit(200, "Later"), end);
    assert!(first.text.contains("\"finishReason\":\"stop\""), "{}", first.text);
    let stored = contents(&api, &person, &conversation_of(&second)).await;
    let questions: Vec<_> = stored.iter().step_by(2).map(|(content, _)| content.as_str()).collect();
    assert_eq!(questions, ["Later"]);
    let usage = api.get("/api/chat/usage").bearer(&person.jwt).send().await.expect_status(200);
    assert_eq!(usage.body["tokens"]["used"], 23 + 17 + 23, "what was delivered is billed: {}", usage.text);
}

/// A client may have begun a conversation under a name of its own, and made its answer anew by ours.
#[tokio::test]
async fn an_answer_that_is_asked_for_by_the_conversations_id_is_stopped_by_the_clients_name() {
    let (api, chat) = (Api::of_router(), format!("chat-{}", Uuid::now_v7()));
    let person = api.sign_up().await;
    let first = api.post("/api/chat").bearer(&person.jwt).json(&question(&chat, "AIMOCK:slow")).send().await;
    let path = format!("/api/chat/conversations/{}/regenerate", conversation_of(&first.expect_status(200)));
    let mut again = api.post(&path).bearer(&person.jwt).json(&json!({"stream": true})).open().await;
    let mut text = read_to(&mut again, "event: delta").await;
    let stop = api.post(&format!("/api/chat/streams/{chat}/stop")).bearer(&person.jwt).send().await;
    assert_eq!(stop.expect_status(202).body["streamId"], events(&text)[0].2["streamId"]);
    text.push_str(&read_rest(&mut again).await);
    assert!(text.contains("\"finishReason\":\"stopped\""), "{text}");
}

/// The route of its own does in a stream and under a key what a message does: its function has a role of its own.
#[tokio::test]
async fn an_answer_is_made_anew_in_a_stream() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let first = api.post("/api/chat").bearer(&person.jwt).json(&json!({"message": "AIMOCK:slow"})).send().await;
    let conversation = first.expect_status(200).text_at("/conversationId");
    let again = |key: &str| {
        let call = api.post(&format!("/api/chat/conversations/{conversation}/regenerate")).bearer(&person.jwt);
        call.header("idempotency-key", key).json(&json!({"stream": true}))
    };
    let mut superseded = again("first").open().await;
    read_to(&mut superseded, "event: delta").await;
    let second = again("second").send().await.expect_status(200);
    let replay = again("second").send().await.expect_status(200);
    assert_eq!(events(&replay.text)[0], events(&second.text)[0]);
    let ends: Vec<_> = contents(&api, &person, &conversation).await.into_iter().map(|(_, end)| end).collect();
    assert_eq!(ends, ["", "stop"]);

    // What no provider answers leaves neither a stream nor a key that is taken.
    let mut database = PgConnection::connect(&variable("DATABASE_URL")).await.unwrap();
    let change = "UPDATE messages SET content = 'AIMOCK:down' WHERE conversation_id = $1::uuid AND role = 'user'";
    sqlx::query(change).bind(&conversation).execute(&mut database).await.unwrap();
    for _ in 0..2 {
        again("third").send().await.expect_problem(502, "provider_unavailable");
    }
    // The conversation leads to the streams before them alone, and not to two that are dead after a while.
    let before = events(&second.text)[0].2["streamId"].clone();
    eventually("the streams to be forgotten", || async {
        let streams = streams_of(&person, &conversation).await;
        (streams.len() == 2 && streams[0] == before).then_some(())
    })
    .await;
    let path = format!("/api/chat/{conversation}/stream");
    api.get(&path).bearer(&person.jwt).send().await.expect_status(204);
}

/// What carries a connection may end one on which nothing comes.
#[tokio::test]
async fn a_silent_stream_is_kept_open_for_all_its_readers() {
    const PING: &str = ": ping\n\n";
    let api = Api::of_router();
    let person = api.sign_up().await;
    let body = json!({"message": "AIMOCK:pauses", "stream": true});
    let mut first = api.post("/api/chat").bearer(&person.jwt).json(&body).open().await;
    let text = read_to(&mut first, "event: delta").await;
    let silent = Instant::now();
    let path = format!("/api/chat/streams/{}", events(&text)[0].2["streamId"].as_str().unwrap());
    let mut second = api.get(&path).bearer(&person.jwt).open().await;
    let (to_first, to_second) = tokio::join!(read_to(&mut first, PING), read_to(&mut second, PING));
    assert_eq!((to_first.as_str(), to_second), (PING, text + PING));
    assert!(silent.elapsed() > Duration::from_secs(14), "{:?}", silent.elapsed());
    api.post(&format!("{path}/stop")).bearer(&person.jwt).send().await.expect_status(202);
    assert_eq!(read_rest(&mut first).await, read_rest(&mut second).await);
}

/// A model may think for long: whoever reloads meanwhile finds the answer that is to come.
#[tokio::test]
async fn an_answer_is_found_before_its_first_word() {
    let (api, chat) = (Api::of_router(), format!("chat-{}", Uuid::now_v7()));
    let person = api.sign_up().await;
    let messages = json!([{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "AIMOCK:thinks"}]}]);
    let asked = api.post("/api/chat").bearer(&person.jwt).json(&json!({"id": chat, "messages": messages})).open();
    let path = format!("/api/chat/{chat}/stream");
    let found = eventually("a stream", || async {
        let response = api.get(&path).bearer(&person.jwt).open().await;
        (response.status() == 200).then_some(response)
    });
    let mut asked = std::pin::pin!(asked);
    let mut found = tokio::select! {
        found = found => found,
        _ = &mut asked => panic!("it began before it was found"),
    };
    let mut asked = asked.await;
    assert_eq!(read_rest(&mut found).await, read_rest(&mut asked).await);
    // What no provider answers is no stream.
    let messages = json!([{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "AIMOCK:down"}]}]);
    let body = json!({"id": format!("{chat}-2"), "messages": messages});
    let failed = api.post("/api/chat").bearer(&person.jwt).json(&body).send().await;
    assert!(failed.status >= 500, "{}", failed.text);
    eventually("no stream", || async {
        let path = format!("/api/chat/{chat}-2/stream");
        (api.get(&path).bearer(&person.jwt).send().await.status == 204).then_some(())
    })
    .await;
}

/// A model may think for long: whoever wants no more of it says so by the chat's name.
#[tokio::test]
async fn an_answer_is_stopped_before_its_first_word() {
    let (api, chat) = (Api::of_router(), format!("chat-{}", Uuid::now_v7()));
    let (person, other) = (api.sign_up().await, api.sign_up().await);
    let ask = |text: &str| {
        let messages = json!([{"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}]);
        api.post("/api/chat").bearer(&person.jwt).json(&json!({"id": chat, "messages": messages})).send()
    };
    let stop = |who: &Person, name: &str| api.post(&format!("/api/chat/streams/{name}/stop")).bearer(&who.jwt).send();
    let stopped = async {
        stop(&other, &chat).await.expect_problem(404, "not_found");
        stop(&person, &chat).await.expect_status(202)
    };
    let (asked, stopped) = tokio::join!(ask("AIMOCK:thinks long"), stopped);
    let start: Value = asked
        .expect_status(200)
        .text
        .lines()
        .find_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
        .unwrap();
    assert_eq!(start["messageMetadata"]["streamId"], stopped.body["streamId"]);
    let conversation = start["messageMetadata"]["conversationId"].as_str().unwrap();
    // What is said next comes after it.
    ask("And on").await.expect_status(200);
    let stored = contents(&api, &person, conversation).await;
    assert_eq!(stored[..2], [("AIMOCK:thinks long".to_owned(), String::new()), (String::new(), "stopped".to_owned())]);
    assert_eq!((stored.len(), stored[2].0.as_str()), (4, "And on"));
    let usage = api.get("/api/chat/usage").bearer(&person.jwt).send().await.expect_status(200);
    assert_eq!(usage.body["tokens"]["reserved"], 0);
    // No first token is no quick one.
    let silent = format!(
        "SELECT count() FROM events FINAL WHERE subject = '{}' AND ttft_ms IS NULL AND latency_ms > 0",
        person.id
    );
    eventually("its event", || async { (clickhouse(&silent).await.trim() == "1").then_some(()) }).await;
    // By the conversation's own name, and after its end.
    stop(&person, conversation).await.expect_status(202);
    stop(&person, &"x".repeat(2_100)).await.expect_problem(404, "not_found");
}

/// Somebody, and the answer in a conversation of theirs that was stopped and does not end.
async fn with_an_ending_answer(api: &Api) -> (Person, String, Written) {
    let (person, chat) = (api.sign_up().await, format!("chat-{}", Uuid::now_v7()));
    let ending = Written::begin(&person).await;
    ending.is_ending(&person, &chat).await;
    (person, chat, ending)
}

/// Reserves tokens as an answer under way does.
async fn reserve(database: &mut PgConnection, person: &Person) {
    let reserved = "SELECT quota_reserve($1, $2::uuid, 10, 10, 50000)";
    sqlx::query(reserved).bind(Uuid::now_v7()).bind(&person.id).execute(database).await.unwrap();
}

/// The conversation of an answer in the AI SDK's protocol.
fn conversation_of(reply: &Reply) -> String {
    let mut parts = reply.text.lines().filter_map(|line| line.strip_prefix("data: "));
    let start: Value = serde_json::from_str(parts.next().unwrap()).unwrap();
    start["messageMetadata"]["conversationId"].as_str().unwrap().to_owned()
}

/// A question as the AI SDK sends it.
fn question(chat: &str, text: &str) -> Value {
    json!({"id": chat, "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}]})
}

/// What is said after a stop waits for the end of what was stopped, and may be stopped meanwhile, too.
#[tokio::test]
async fn a_second_stop_ends_the_answer_after_the_one_that_is_ending() {
    let api = Api::of_router();
    let (person, chat, ending) = with_an_ending_answer(&api).await;
    // An answer is under way, and does not end before nobody waits for it any more.
    let mut database = PgConnection::connect(&variable("DATABASE_URL")).await.unwrap();
    reserve(&mut database, &person).await;
    let body = question(&chat, "AIMOCK:thinks long");
    let path = format!("/api/chat/streams/{chat}/stop");
    let (asked, stopped) = tokio::join!(
        api.post("/api/chat").bearer(&person.jwt).json(&body).send(),
        api.post(&path).bearer(&person.jwt).send()
    );
    let (asked, stopped) = (asked.expect_status(200), stopped.expect_status(202).text_at("/streamId"));
    assert_ne!(stopped, ending.id.to_string());
    assert!(asked.text.contains(&stopped) && asked.text.contains("\"finishReason\":\"stopped\""), "{}", asked.text);
}

#[tokio::test]
async fn a_second_stop_ends_no_answer_that_is_asked_for_later() {
    let api = Api::of_router();
    let (person, chat, ending) = with_an_ending_answer(&api).await;
    let asks = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        ending.end(&person, 0).await;
        let body = question(&chat, "AIMOCK:slow");
        api.post("/api/chat").bearer(&person.jwt).json(&body).send().await
    };
    let stop = api.post(&format!("/api/chat/streams/{chat}/stop")).bearer(&person.jwt);
    let (stopped, asked) = tokio::join!(stop.send(), asks);
    assert_eq!(stopped.expect_status(202).text_at("/streamId"), ending.id.to_string());
    assert!(asked.expect_status(200).text.contains("\"finishReason\":\"stop\""));
}

/// A function that died leaves a stream without an end.
#[tokio::test]
async fn a_stop_ends_the_answer_after_one_that_is_dead() {
    let (api, chat) = (Api::of_router(), format!("chat-{}", Uuid::now_v7()));
    let person = api.sign_up().await;
    let dead = Written::begin(&person).await;
    dead.has_died(&person, &chat).await;
    let body = question(&chat, "AIMOCK:thinks long");
    let path = format!("/api/chat/streams/{chat}/stop");
    let (asked, stopped) = tokio::join!(
        api.post("/api/chat").bearer(&person.jwt).json(&body).send(),
        api.post(&path).bearer(&person.jwt).send()
    );
    let stopped = stopped.expect_status(202).text_at("/streamId");
    assert_ne!(stopped, dead.id.to_string());
    assert!(asked.expect_status(200).text.contains("\"finishReason\":\"stopped\""));
}

/// What would replace an answer and is stopped before its first word replaces nothing.
#[tokio::test]
async fn an_answer_stays_where_the_next_one_is_stopped_before_its_first_word() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let first = api.post("/api/chat").bearer(&person.jwt).json(&json!({"message": "Hello"})).send().await;
    let first = first.expect_status(200);
    let (conversation, spent) =
        (first.text_at("/conversationId"), first.body["usage"]["totalTokens"].as_i64().unwrap());
    let mut database = PgConnection::connect(&variable("DATABASE_URL")).await.unwrap();
    let change =
        "UPDATE messages SET content = 'AIMOCK:thinks long' WHERE conversation_id = $1::uuid AND role = 'user'";
    sqlx::query(change).bind(&conversation).execute(&mut database).await.unwrap();
    let again = || {
        let path = format!("/api/chat/conversations/{conversation}/regenerate");
        api.post(&path).bearer(&person.jwt).json(&json!({"stream": true})).send()
    };
    let stop = || async {
        let path = format!("/api/chat/streams/{conversation}/stop");
        eventually("the stop", || async {
            let reply = api.post(&path).bearer(&person.jwt).send().await;
            (reply.status == 202).then_some(())
        })
        .await;
    };
    let (stopped, ()) = tokio::join!(again(), stop());
    assert!(stopped.expect_status(200).text.contains("\"finishReason\":\"stopped\""));
    let read = api.get(&format!("/api/chat/conversations/{conversation}")).bearer(&person.jwt).send().await;
    let answer = &read.expect_status(200).body["messages"][1];
    assert_eq!((&answer["id"], &answer["content"]), (&first.body["message"]["id"], &first.body["message"]["content"]));
    let usage = api.get("/api/chat/usage").bearer(&person.jwt).send().await.expect_status(200);
    assert!(usage.body["tokens"]["used"].as_i64().unwrap() > spent, "the prompt is billed: {}", usage.text);
    assert_eq!(usage.body["tokens"]["reserved"], 0);
}

/// What comes to nothing leaves the conversation's running answer to be found.
#[tokio::test]
async fn a_question_that_fails_hides_no_other_answer() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let ask = |body: Value| api.post("/api/chat").bearer(&person.jwt).json(&body);
    let first = ask(json!({"message": "Hello"})).send().await.expect_status(200).text_at("/conversationId");
    let body = |message: &str| json!({"message": message, "conversationId": first, "stream": true});
    let mut running = ask(body("AIMOCK:slow")).open().await;
    let start = events(&read_to(&mut running, "event: delta").await)[0].2.clone();
    ask(body("AIMOCK:down")).send().await.expect_problem(502, "provider_unavailable");
    let path = format!("/api/chat/{first}/stream");
    let found = eventually("the running answer", || async {
        let reply = api.get(&path).bearer(&person.jwt).send().await;
        reply.text.contains(start["messageId"].as_str().unwrap()).then_some(reply)
    });
    found.await.expect_status(200);
}

/// Whoever wants something else of an answer under way, and is refused, keeps it.
#[tokio::test]
async fn what_is_refused_ends_no_answer() {
    let (api, chat) = (Api::of_router(), format!("chat-{}", Uuid::now_v7()));
    let person = api.sign_up().await;
    let said = |name: &str, text: &str| json!({"id": name, "role": "user", "parts": [{"type": "text", "text": text}]});
    let ask = |body: Value| api.post("/api/chat").bearer(&person.jwt).json(&body);
    ask(json!({"id": chat, "messages": [said("q1", "Hello")]})).send().await.expect_status(200);
    let slow = [said("q1", "Hello"), said("q2", "AIMOCK:slow")];
    let mut running = ask(json!({"id": chat, "messages": slow})).open().await;
    let mut text = read_to(&mut running, "text-delta").await;
    for (change, status, code) in [
        (json!({"trigger": "regenerate-message", "model": "no-such-model"}), 400, "model_not_available"),
        (json!({"messageId": "q1", "messages": [said("q1", &"é".repeat(30_000))]}), 429, "quota_exceeded"),
        (json!({"messageId": "q9", "messages": [said("q9", "Never said")]}), 404, "not_found"),
        (
            json!({"messageId": "q9", "trigger": "regenerate-message", "messages": [said("q9", "Never said")]}),
            404,
            "not_found",
        ),
    ] {
        let mut body = json!({"id": chat, "messages": slow});
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        ask(body).send().await.expect_problem(status, code);
    }
    text.push_str(&read_rest(&mut running).await);
    assert!(text.contains("\"finishReason\":\"stop\""), "{text}");
    // What is being answered is known by its name before it is stored.
    let mut running = ask(json!({"id": chat, "messages": [said("q3", "AIMOCK:slow")]})).open().await;
    let start = read_to(&mut running, "text-delta").await;
    let start: Value = start.lines().find_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).unwrap();
    let edit = json!({"id": chat, "messages": [said("q3", "And now?")], "messageId": "q3"});
    ask(edit).send().await.expect_status(200);
    let stored = contents(&api, &person, start["messageMetadata"]["conversationId"].as_str().unwrap()).await;
    let questions: Vec<_> = stored.iter().step_by(2).map(|(content, _)| content.as_str()).collect();
    assert_eq!(questions, ["Hello", "AIMOCK:slow", "And now?"]);
}

/// What nobody can read any more is not paid for to its end.
#[tokio::test]
async fn a_conversation_that_is_deleted_ends_the_answer_in_it() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let ask = |body: Value| api.post("/api/chat").bearer(&person.jwt).json(&body);
    let conversation = ask(json!({"message": "Hello"})).send().await.expect_status(200).text_at("/conversationId");
    let body = json!({"message": "AIMOCK:pauses", "conversationId": conversation, "stream": true});
    let mut running = ask(body).open().await;
    let start = events(&read_to(&mut running, "event: delta").await)[0].2.clone();
    let stream = start["streamId"].as_str().unwrap();
    known(stream).await;
    let path = format!("/api/chat/conversations/{conversation}");
    api.delete(&path).bearer(&person.jwt).send().await.expect_status(204);
    let rest = read_rest(&mut running).await;
    assert!(rest.contains("\"finishReason\":\"stopped\""), "{rest}");
    api.get(&path).bearer(&person.jwt).send().await.expect_problem(404, "not_found");
}

/// A client's own name for a conversation may be the id of one that is gone.
#[tokio::test]
async fn a_second_deletion_ends_no_answer_in_another_conversation() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let first = api.post("/api/chat").bearer(&person.jwt).json(&json!({"message": "Hello"})).send().await;
    let id = first.expect_status(200).text_at("/conversationId");
    let path = format!("/api/chat/conversations/{id}");
    api.delete(&path).bearer(&person.jwt).send().await.expect_status(204);
    let mut running = api.post("/api/chat").bearer(&person.jwt).json(&question(&id, "AIMOCK:slow")).open().await;
    let start = sdk_start(&read_to(&mut running, "text-delta").await);
    let stream = start["streamId"].as_str().unwrap();
    known(stream).await;
    api.delete(&path).bearer(&person.jwt).send().await.expect_problem(404, "not_found");
    let rest = read_rest(&mut running).await;
    assert!(rest.contains("\"finishReason\":\"stop\""), "{rest}");
}

/// Its first answer may be stored after the conversation was looked for, and before the answer is.
#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_deleted_that_is_stored_meanwhile() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let body = json!({"message": "AIMOCK:slow", "stream": true});
    let mut running = api.post("/api/chat").bearer(&person.jwt).json(&body).open().await;
    let start = events(&read_to(&mut running, "event: delta").await)[0].2.clone();
    let path = format!("/api/chat/conversations/{}", start["conversationId"].as_str().unwrap());
    let (looks, is_looked_for) = mpsc::channel();
    let (ends, has_ended) = mpsc::channel::<()>();
    let has_ended = Mutex::new(has_ended);
    let way = way_to_aws(move |call, pass_on| {
        if call.contains("conversation#") {
            let _ = looks.send(());
            // The channel is closed once it has.
            let _ = has_ended.lock().unwrap().recv();
        }
        pass_on()
    });
    let mut event = Deployed::event("chat-delete-conversation", &random_address(), None, Some(&person.jwt)).unwrap();
    event["pathParameters"]["id"] = start["conversationId"].clone();
    let deleted = std::thread::spawn(move || ask_by(&way, "chat-delete-conversation", &event));
    is_looked_for.recv_timeout(Duration::from_secs(20)).unwrap();
    read_rest(&mut running).await;
    eventually("the end", || async {
        (state(start["streamId"].as_str().unwrap()).await["is_done"]["BOOL"] == true).then_some(())
    })
    .await;
    api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
    drop(ends);
    assert_eq!(deleted.join().unwrap()["statusCode"], 204);
    api.get(&path).bearer(&person.jwt).send().await.expect_problem(404, "not_found");
}

/// A conversation is stored with its first answer.
#[tokio::test]
async fn a_conversation_is_deleted_before_its_first_answer_ends() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let body = json!({"message": "AIMOCK:slow", "stream": true});
    let mut response = api.post("/api/chat").bearer(&person.jwt).json(&body).open().await;
    let start = events(&read_to(&mut response, "event: delta").await)[0].2.clone();
    let path = format!("/api/chat/conversations/{}", start["conversationId"].as_str().unwrap());
    api.delete(&path).bearer(&api.sign_up().await.jwt).send().await.expect_problem(404, "not_found");
    api.delete(&path).bearer(&person.jwt).send().await.expect_status(204);
    while response.chunk().await.unwrap().is_some() {}
    api.get(&path).bearer(&person.jwt).send().await.expect_problem(404, "not_found");
    api.delete(&path).bearer(&person.jwt).send().await.expect_problem(404, "not_found");
    let usage = api.get("/api/chat/usage").bearer(&person.jwt).send().await.expect_status(200);
    assert!(usage.body["tokens"]["used"].as_i64().unwrap() > 0, "what was produced is billed");
    assert_eq!(usage.body["tokens"]["reserved"], 0);
}
