//! What the reconciliation does where Stripe has more than there is time for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::PgPool;
use time::OffsetDateTime;

use super::orders::{billing_of, drop_database, own_schema};
use crate::lost_answers::{own_answer, way_to_aws};

const DAY: i64 = 86_400;
/// What a run keeps for its end.
const TO_END: Duration = Duration::from_secs(60);

/// A Stripe that lists events, and has none of the objects that they are about.
struct Stub {
    /// When each was created, its type, and its object.
    events: Vec<(i64, &'static str, String)>,
    /// How long a call takes that contains the words.
    slow: Mutex<(&'static str, Duration)>,
    calls: Mutex<Vec<String>>,
}

impl Stub {
    fn start(events: Vec<(i64, &'static str, String)>) -> (Arc<Self>, String) {
        let slow = Mutex::new(("nothing", Duration::ZERO));
        let stub = Arc::new(Self { events, slow, calls: Mutex::default() });
        let serving = stub.clone();
        let address = way_to_aws(move |call, _| {
            let target = call.split(' ').nth(1).unwrap();
            serving.calls.lock().unwrap().push(target.to_owned());
            let (words, wait) = *serving.slow.lock().unwrap();
            if target.contains(words) {
                std::thread::sleep(wait);
            }
            let url = reqwest::Url::parse(&format!("http://stripe{target}")).unwrap();
            match url.path() {
                "/v1/events" => own_answer(&serving.listed(&url.query_pairs().into_owned().collect())),
                _ => own_answer(&json!({"customer": null})),
            }
        });
        (stub, address)
    }

    fn is_slow(&self, words: &'static str, wait: Duration) {
        *self.slow.lock().unwrap() = (words, wait);
    }

    /// Those asked for, newest first.
    fn listed(&self, query: &HashMap<String, String>) -> Value {
        let bound = |name: &str| query[name].parse::<i64>().unwrap();
        let created = bound("created[gte]")..=bound("created[lte]");
        let is_of_type = |kind: &str| match query["type"].strip_suffix('*') {
            Some(beginning) => kind.starts_with(beginning),
            None => kind == query["type"],
        };
        let found = self.events.iter().enumerate().rev();
        let found = found.filter(|(_, (at, kind, _))| created.contains(at) && is_of_type(kind));
        let found: Vec<Value> = found
            .map(|(number, (at, kind, object))| {
                let id = format!("evt_{number}");
                json!({"id": id, "type": kind, "created": at, "data": {"object": {"id": object}}})
            })
            .collect();
        let from = query
            .get("starting_after")
            .map_or(0, |after| 1 + found.iter().position(|event| event["id"] == after.as_str()).unwrap());
        let page: Vec<_> = found[from..].iter().take(bound("limit").try_into().unwrap()).collect();
        json!({"object": "list", "data": page, "has_more": from + page.len() < found.len()})
    }

    /// The calls since the last time.
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn reads(&self) -> usize {
        self.calls().iter().filter(|call| !call.starts_with("/v1/events")).count()
    }
}

async fn number(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_long_list_is_gone_through_in_more_than_one_run() {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    // Ten invoices that change every hour for a month, and a second that is full of others.
    let mut events: Vec<_> =
        (1..30 * 24).map(|hour| (now - hour * 3600, "invoice.updated", format!("in_{}", hour % 10))).collect();
    events.extend((0..250).map(|_| (now - 20 * DAY, "payment_intent.created", "pi_1".to_owned())));
    events.extend((0..9).map(|_| (now - 2 * DAY, "customer.created", "cus_1".to_owned())));
    events.sort_unstable();
    let asked_for = i64::try_from(events.len()).unwrap() - 9;
    let (stub, address) = Stub::start(events);
    let (url, pool) = own_schema().await;
    let billing = billing_of(&url, &address);

    stub.is_slow("/v1/events", Duration::from_millis(20));
    let (started, first) = (Instant::now(), billing.reconcile(false, TO_END + Duration::from_secs(6)).await.unwrap());
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    assert!((1..30 * DAY).contains(&first.unlisted_seconds), "{first:?}");
    let noted = number(&pool, "SELECT count(*) FROM stripe_events").await;
    assert!((1..asked_for).contains(&noted), "{noted} of {asked_for}: {first:?}");
    // What was noted is handled meanwhile, each object once.
    assert_eq!((first.left, i64::try_from(first.made_good).unwrap()), (Some(0), noted), "{first:?}");
    assert!((1..=11).contains(&stub.reads()));

    stub.is_slow("nothing", Duration::ZERO);
    let second = billing.reconcile(false, TO_END + Duration::from_secs(300)).await.unwrap();
    assert_eq!((second.unlisted_seconds, second.left), (0, Some(0)), "{second:?}");
    assert_eq!(i64::try_from(first.made_good + second.made_good).unwrap(), asked_for, "{first:?} {second:?}");
    assert_eq!(number(&pool, "SELECT count(*) FROM stripe_events WHERE processed_at IS NULL").await, 0);
    // It went on where the first had come to.
    let calls = stub.calls();
    let oldest =
        calls.iter().filter_map(|call| call.split_once("created%5Bgte%5D=")?.1.split('&').next()?.parse().ok());
    let from: i64 = oldest.min().unwrap();
    assert!((now - from - first.unlisted_seconds - 3600).abs() < 400, "{from} {first:?}");

    assert_eq!(billing.reconcile(false, TO_END + Duration::from_secs(60)).await.unwrap().made_good, 0);
    drop(billing);
    pool.close().await;
    drop_database(&url).await;
}

#[tokio::test]
async fn objects_for_which_there_is_no_time_are_the_next_runs() {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let invoices = (0..8).map(|number| (now - 3000 + number, "invoice.paid", format!("in_{}", number / 2)));
    let (stub, address) = Stub::start(invoices.collect());
    let (url, pool) = own_schema().await;
    sqlx::query(
        "INSERT INTO stripe_events VALUES ('evt_old', 'invoice.paid', 'in_old', now() - interval '31 days', now())",
    )
    .execute(&pool)
    .await
    .unwrap();
    sqlx::query("INSERT INTO stripe_watermark (until) VALUES (now() - interval '2 hours')")
        .execute(&pool)
        .await
        .unwrap();
    let billing = billing_of(&url, &address);

    stub.is_slow("/v1/invoices/in_2", Duration::from_secs(5));
    let (started, first) = (Instant::now(), billing.reconcile(false, TO_END + Duration::from_secs(3)).await.unwrap());
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert_eq!((first.listed, first.made_good, first.left), (8, 4, None), "{first:?}");
    assert_eq!(number(&pool, "SELECT count(*) FROM stripe_events WHERE id = 'evt_old'").await, 0);

    stub.is_slow("nothing", Duration::ZERO);
    let second = billing.reconcile(false, TO_END + Duration::from_secs(60)).await.unwrap();
    assert_eq!((second.made_good, second.left), (4, Some(0)), "{second:?}");
    drop(billing);
    pool.close().await;
    drop_database(&url).await;
}
