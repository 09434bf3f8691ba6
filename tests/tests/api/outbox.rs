//! The outbox's relay, with more before it than it has time for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::billing::orders::{drop_database, own_schema};
use crate::lost_answers::{LOST, own_answer, start_by, way_to_aws};

/// What a queue answers that takes all of a call.
fn taken(call: &str) -> Vec<u8> {
    let (_, body) = call.split_once("\r\n\r\n").unwrap();
    let batch: Value = serde_json::from_str(body).unwrap();
    let entries = batch["Entries"].as_array().unwrap().iter();
    let entries = entries.map(|entry| json!({"Id": entry["Id"], "MessageId": entry["Id"], "MD5OfMessageBody": ""}));
    own_answer(&json!({"Successful": entries.collect::<Vec<_>>(), "Failed": []}))
}

#[tokio::test]
async fn the_relay_ends_in_time_and_tells_what_is_left() {
    const MAILS: i64 = 10_000;
    const EVENTS: i64 = 3;
    let (url, pool) = own_schema().await;
    let database = json!({"SecretString": json!({"url": url}).to_string()});
    let pause = Arc::new(AtomicU64::new(2000));
    let paused = pause.clone();
    let way = way_to_aws(move |call, pass_on| {
        if call.contains("GetSecretValue") {
            return own_answer(&database);
        }
        if !call.contains("SendMessageBatch") {
            return pass_on();
        }
        if call.contains("refused") {
            return LOST.to_vec();
        }
        std::thread::sleep(Duration::from_millis(paused.load(Ordering::SeqCst)));
        taken(call)
    });
    let fill = async |queue: &str, body: &str, messages: i64| {
        sqlx::query(
            "INSERT INTO outbox (id, queue, body, created_at)
             SELECT gen_random_uuid(), $1, $2, now() - interval '1 hour' FROM generate_series(1, $3)",
        )
        .bind(queue)
        .bind(body)
        .bind(messages)
        .execute(&pool)
        .await
        .unwrap();
    };
    fill("mail", "{}", MAILS).await;
    fill("events", "{}", EVENTS).await;
    let mut relay = start_by(&way, "workers-relay-outbox");
    let has_told = |log: &str| log.contains("\"outbox_oldest_s\":36");

    let run = relay.invoke(&json!({})).unwrap().payload;
    let (sent, left) = (run["sent"].as_i64().unwrap(), run["left"].as_i64().unwrap());
    assert!(sent > EVENTS && left > 0 && sent + left == MAILS + EVENTS, "{run}");
    assert!(run["oldestSeconds"].as_i64().unwrap() >= 3600, "{run}");
    assert!(has_told(&relay.log().join("\n")), "{:?}", relay.log());
    // Many mails keep no event waiting.
    let waiting: i64 =
        sqlx::query_scalar("SELECT count(*) FROM outbox WHERE queue = 'events'").fetch_one(&pool).await.unwrap();
    assert_eq!(waiting, 0);

    pause.store(0, Ordering::SeqCst);
    let next = relay.invoke(&json!({})).unwrap().payload;
    assert_eq!((&next["sent"], &next["left"]), (&json!(left), &json!(0)), "{next}");

    // A queue that takes nothing is told of, and so is what waits for it.
    fill("stripe", r#""refused""#, 1).await;
    let failed = relay.invoke(&json!({})).err().expect("a queue that takes nothing");
    assert!(has_told(&failed), "{failed}");
    drop(relay);
    pool.close().await;
    drop_database(&url).await;
}
