use sandbox::Sandbox;
use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::lost_answers::Lossy;
use crate::support::*;

async fn dead_letters(queue: &str) -> Vec<Value> {
    let ask = json!({
        "QueueUrl": queue, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"], "VisibilityTimeout": 1,
    });
    let reply = aws("sqs", "AmazonSQS.ReceiveMessage", &ask).await;
    reply["Messages"].as_array().cloned().unwrap_or_default()
}

/// A valid event, unless its plan is none.
fn event(id: Uuid, plan: &str) -> String {
    json!({
        "specversion": "1.0", "id": id, "source": "/test", "type": "user.signin", "subject": format!("dead-letters-{id}"),
        "time": "2025-01-02T03:04:05Z",
        "data": {"schemaVersion": 1, "plan": plan, "country": null, "method": "password"},
    })
    .to_string()
}

/// Of these messages, those that are counted as dead letters.
async fn counted(messages: &[String]) -> Vec<String> {
    let mut database = PgConnection::connect(&variable("DATABASE_URL")).await.unwrap();
    let counted = "SELECT message_id FROM dead_letters WHERE message_id = ANY($1) ORDER BY message_id";
    sqlx::query_scalar(counted).bind(messages).fetch_all(&mut database).await.unwrap()
}

/// Messages as the worker gets them, each by its id, its text and how often it was delivered.
fn batch(messages: &[(&String, String, &str)]) -> Value {
    let record = |(id, body, deliveries): &(&String, String, &str)| {
        let attributes = json!({"ApproximateReceiveCount": deliveries, "SentTimestamp": "1735787045000"});
        json!({"messageId": id, "receiptHandle": "r", "body": body, "attributes": attributes, "messageAttributes": {}})
    };
    json!({"Records": messages.iter().map(record).collect::<Vec<_>>()})
}

/// What the worker answers when these are to be delivered again, and no others.
fn again(messages: &[&String]) -> Value {
    let failures: Vec<_> = messages.iter().map(|id| json!({"itemIdentifier": id})).collect();
    json!({"batchItemFailures": failures})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clickhouse_does_not_take_is_delivered_again() {
    // What cannot be repaired within the invocation, so that the worker does not try again and again.
    let settings = json!({
        "url": variable("CLICKHOUSE_URL"), "user": variable("CLICKHOUSE_USER"),
        "password": variable("CLICKHOUSE_PASSWORD"), "database": "absent",
    });
    let secret = open_secret("dead-letters", &settings).await;
    let mut environment = deployed().environment("workers-ingest");
    environment.insert("CLICKHOUSE_SECRET_ARN".to_owned(), secret.clone());
    let last = environment["EVENTS_MAX_RECEIVE_COUNT"].clone();
    let mut worker = Sandbox::start(&binary("workers-ingest"), &environment).unwrap();
    let ids: [String; 3] = std::array::from_fn(|_| Uuid::now_v7().to_string());
    let [first, poison, given_up] = &ids;
    let sound = || event(Uuid::now_v7(), "free");
    let poisoned = event(Uuid::now_v7(), "gold");
    let messages = [(first, sound(), "1"), (poison, poisoned, "1"), (given_up, sound(), last.as_str())];
    let answer = worker.invoke(&batch(&messages)).unwrap().payload;
    assert_eq!(answer, again(&[first, given_up]));
    assert_eq!(counted(&ids).await, [poison.clone(), given_up.clone()]);
    delete_secret(&secret).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_dead_letter_queue_does_not_take_is_delivered_again() {
    let ids: [String; 2] = std::array::from_fn(|_| Uuid::now_v7().to_string());
    let [poison, sound] = &ids;
    let messages = [(poison, event(Uuid::now_v7(), "gold"), "1"), (sound, event(Uuid::now_v7(), "free"), "1")];
    let answer = Lossy::refusing("AmazonSQS.SendMessageBatch").ask("workers-ingest", &batch(&messages));
    assert_eq!(answer, again(&[poison]));
    // It will be one, here or by SQS itself, and is counted once whatever comes of this try.
    assert_eq!(counted(&ids).await, std::slice::from_ref(poison));
}

/// Through the real queue, the emulator's event source and the deployed worker; what came along is counted.
#[tokio::test]
async fn what_can_never_be_counted_goes_to_the_dead_letters_with_the_reason() {
    let (events, dead) =
        (function_variable("auth-signup", "EVENTS_QUEUE_URL"), function_variable("workers-ingest", "EVENTS_DLQ_URL"));
    let (good, bad) = (Uuid::now_v7(), Uuid::now_v7());
    let (poison, sound) = (event(bad, "gold"), event(good, "free"));
    let torn = format!("{{\"{bad}\"");
    let mut ids = Vec::new();
    for body in [&poison, &torn, &sound] {
        let sent = aws("sqs", "AmazonSQS.SendMessage", &json!({"QueueUrl": events, "MessageBody": body})).await;
        ids.push(sent["MessageId"].as_str().unwrap().to_owned());
    }
    for (body, reason) in [(&poison, "plan"), (&torn, "JSON")] {
        let letter = eventually("the dead letter", || async {
            dead_letters(&dead).await.into_iter().find(|letter| letter["Body"] == **body)
        })
        .await;
        let told = letter["MessageAttributes"]["reason"]["StringValue"].as_str().unwrap_or_default().to_owned();
        assert!(told.contains(reason), "{letter}");
    }
    eventually("the count of dead letters", || async { (counted(&ids).await.len() == 2).then_some(()) }).await;
    let ingested = format!("SELECT count() FROM events WHERE subject IN ('dead-letters-{good}', 'dead-letters-{bad}')");
    eventually("the sound event in ClickHouse", || async { (clickhouse(&ingested).await.trim() == "1").then_some(()) })
        .await;
}
