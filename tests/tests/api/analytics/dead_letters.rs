use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::*;

async fn dead_letters(queue: &str) -> Vec<Value> {
    let ask = json!({
        "QueueUrl": queue, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"], "VisibilityTimeout": 1,
    });
    let reply = aws("sqs", "AmazonSQS.ReceiveMessage", &ask).await;
    reply["Messages"].as_array().cloned().unwrap_or_default()
}

/// Through the real queue, the emulator's event source and the deployed worker; what came along is counted.
#[tokio::test]
async fn what_can_never_be_counted_goes_to_the_dead_letters_with_the_reason() {
    let (events, dead) =
        (function_variable("auth-signup", "EVENTS_QUEUE_URL"), function_variable("workers-ingest", "EVENTS_DLQ_URL"));
    let (good, bad) = (Uuid::now_v7(), Uuid::now_v7());
    let event = |id: Uuid, plan: &str| {
        json!({
            "specversion": "1.0", "id": id, "source": "/test", "type": "user.signin", "subject": format!("dead-letters-{id}"),
            "time": "2025-01-02T03:04:05Z",
            "data": {"schemaVersion": 1, "plan": plan, "country": null, "method": "password"},
        })
        .to_string()
    };
    let (poison, sound) = (event(bad, "gold"), event(good, "free"));
    let torn = format!("{{\"{bad}\"");
    for body in [&poison, &sound, &torn] {
        aws("sqs", "AmazonSQS.SendMessage", &json!({"QueueUrl": events, "MessageBody": body})).await;
    }
    for (body, reason) in [(&poison, "plan"), (&torn, "JSON")] {
        let letter = eventually("the dead letter", || async {
            dead_letters(&dead).await.into_iter().find(|letter| letter["Body"] == **body)
        })
        .await;
        let told = letter["MessageAttributes"]["reason"]["StringValue"].as_str().unwrap_or_default().to_owned();
        assert!(told.contains(reason), "{letter}");
    }
    let counted = format!("SELECT count() FROM events WHERE subject IN ('dead-letters-{good}', 'dead-letters-{bad}')");
    eventually("the sound event in ClickHouse", || async { (clickhouse(&counted).await.trim() == "1").then_some(()) })
        .await;
}
