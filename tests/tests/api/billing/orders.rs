//! The webhooks of one life, recorded and then played in random orders with random duplicates, while Stripe's own
//! state goes on: the end is always the same, and nothing that was paid or failed is told twice or not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use lib::billing::service::Billing;
use lib::billing::stripe::Stripe;
use lib::billing::webhook::Notice;
use lib::config::Secret;
use lib::store::postgres::Database;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgPool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use super::life::Life;
use super::stores::Expected;
use super::{replica, stores};
use crate::support::*;

/// Between an id and the number of the order that it is played in.
const MARK: &str = "_o";
/// Where that goes in the recording.
const PLACE: &str = "\u{1}";

/// A generator of which the seed is known, so that what fails can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// The events of a life, and by them what Stripe had at each moment of it.
struct Recording {
    events: Vec<Value>,
    /// For each object what it was from an event on.
    objects: BTreeMap<String, Vec<(usize, Value)>>,
    /// The payments of each invoice, which no event shows.
    payments: BTreeMap<String, Value>,
}

impl Recording {
    async fn of_a_life() -> Self {
        let api = Api::of_router();
        let person = api.sign_up().await;
        let customer = held(&api, &person).await;
        Life::begin(api, person).await.pass().await;
        let found = replica::get(&format!("/_replica/webhooks?limit=1000&customer={customer}")).await;
        let events: Vec<&Value> = found["data"].as_array().unwrap().iter().map(|event| &event["payload"]).collect();
        let ids: BTreeSet<_> = events.iter().map(|event| event["data"]["object"]["id"].as_str().unwrap()).collect();
        let mut payments = serde_json::Map::new();
        for id in ids.iter().filter(|id| id.starts_with("in_")) {
            let invoice = replica::get(&format!("/v1/invoices/{id}?expand[]=payments")).await;
            payments.insert((*id).to_owned(), invoice["payments"].clone());
        }
        let mut text = json!([events, payments]).to_string();
        for id in &ids {
            text = text.replace(&format!("\"{id}\""), &json!(format!("{id}{PLACE}")).to_string());
        }
        let (events, payments): (Vec<Value>, _) = serde_json::from_str(&text).unwrap();
        let mut objects = BTreeMap::<String, Vec<(usize, Value)>>::new();
        for (index, event) in events.iter().enumerate() {
            let object = &event["data"]["object"];
            objects.entry(object["id"].as_str().unwrap().to_owned()).or_default().push((index, object.clone()));
        }
        Self { events, objects, payments }
    }

    /// An object after an event.
    fn object(&self, id: &str, at: usize) -> Option<Value> {
        let states = self.objects.get(id)?;
        let (_, state) = states.iter().rev().find(|(index, _)| *index <= at)?;
        let mut state = state.clone();
        if let Some(payments) = self.payments.get(id) {
            state["payments"] = payments.clone();
        }
        Some(state)
    }

    /// Objects of a kind after an event, newest first.
    fn all(&self, prefix: &str, at: usize) -> Vec<Value> {
        let mut found: Vec<_> = self
            .objects
            .iter()
            .filter(|(id, states)| id.starts_with(prefix) && states[0].0 <= at)
            .map(|(id, states)| (states[0].0, self.object(id, at).unwrap()))
            .collect();
        found.sort_by_key(|(first, _)| std::cmp::Reverse(*first));
        found.into_iter().map(|(_, object)| object).collect()
    }

    /// What Stripe answers to a request for ids as they were recorded.
    fn answer(&self, target: &str, at: usize, user: Uuid) -> Option<Value> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: HashMap<_, _> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let list = |data: Vec<Value>| Some(json!({"object": "list", "data": data, "has_more": false}));
        match path.strip_prefix("/v1/")?.split_once('/') {
            None if path == "/v1/invoices" => list(
                self.all("in_", at)
                    .into_iter()
                    .filter(|invoice| {
                        invoice["parent"]["subscription_details"]["subscription"] == query["subscription"]
                    })
                    .collect(),
            ),
            None if path == "/v1/charges" => list(
                self.all("ch_", at).into_iter().filter(|c| c["payment_intent"] == query["payment_intent"]).collect(),
            ),
            Some(("customers", id)) => Some(json!({"id": id, "metadata": {"user_id": user}})),
            Some(("payment_intents", id)) => {
                let mut intent = self.object(id, at)?;
                if let Some(charge) = intent["latest_charge"].as_str() {
                    intent["latest_charge"] = self.object(charge, at)?;
                }
                Some(intent)
            }
            Some((_, id)) => self.object(id, at),
            None => None,
        }
    }
}

/// The text of a recorded value, about the customer of one order.
fn marked(value: &Value, mark: &str) -> String {
    value.to_string().replace(json!(PLACE).to_string().trim_matches('"'), mark)
}

/// Has the events of a person kept back from now on; Stripe's id of the customer, who is made for that.
async fn held(api: &Api, person: &Person) -> String {
    api.post("/api/billing/portal").bearer(&person.jwt).send().await.expect_status(201);
    let customer = replica::customer(person).await;
    replica::control("webhooks", &json!({"customer": customer, "mode": "hold"})).await;
    customer
}

/// Stripe, asked for what it has: as far as each order's time has come.
struct Stub {
    recording: Arc<Recording>,
    /// By the order's number: after which event, and whose it is.
    orders: Mutex<HashMap<usize, (usize, Uuid)>>,
}

impl Stub {
    #[expect(clippy::disallowed_methods, reason = "a server beside the test")]
    async fn start(recording: Arc<Recording>) -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let stub = Arc::new(Self { recording, orders: Mutex::default() });
        let serving = stub.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let stub = serving.clone();
                tokio::spawn(async move { stub.serve(stream).await });
            }
        });
        (stub, address)
    }

    /// Requests without a body, one after the other.
    async fn serve(&self, mut stream: TcpStream) {
        let mut received = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            while let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(received.drain(..end + 4).collect()).unwrap();
                let mut words = head.split(' ');
                assert_eq!(words.next(), Some("GET"), "nothing is to be changed: {head}");
                let (status, body) = self.answer(words.next().unwrap());
                let length = body.len();
                let reply = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
                );
                if stream.write_all(reply.as_bytes()).await.is_err() {
                    return;
                }
            }
            match stream.read(&mut chunk).await {
                Ok(read @ 1..) => received.extend_from_slice(&chunk[..read]),
                _ => return,
            }
        }
    }

    fn answer(&self, target: &str) -> (&str, String) {
        if target.starts_with("/v1/events?") {
            return ("200 OK", self.listed(target));
        }
        let number = target.split(MARK).nth(1).unwrap().split(|c: char| !c.is_ascii_digit()).next().unwrap();
        let mark = format!("{MARK}{number}");
        let (at, user) = self.orders.lock().unwrap()[&number.parse().unwrap()];
        let answer = self.recording.answer(&target.replace(&mark, PLACE), at, user);
        answer.map_or_else(
            || ("404 Not Found", json!({"error": {"code": "resource_missing"}}).to_string()),
            |value| ("200 OK", marked(&value, &mark)),
        )
    }

    /// The events of the last order so far, of which no webhook has told.
    fn listed(&self, target: &str) -> String {
        let orders = self.orders.lock().unwrap();
        let (number, (at, _)) = orders.iter().max_by_key(|(number, _)| **number).unwrap();
        let mark = format!("{MARK}{number}");
        let url = reqwest::Url::parse(&format!("http://stripe{target}")).unwrap();
        let query: HashMap<_, _> = url.query_pairs().collect();
        let bound = |name: &str| query[name].parse::<i64>().unwrap();
        let created = bound("created[gte]")..=bound("created[lte]");
        let beginning = query["type"].trim_end_matches('*');
        let is_asked_for = |event: &&Value| {
            let kind = event["type"].as_str().unwrap();
            let is_of_type = if beginning.ends_with('.') { kind.starts_with(beginning) } else { kind == beginning };
            is_of_type && created.contains(&event["created"].as_i64().unwrap())
        };
        let data: Vec<_> = self.recording.events[..=*at].iter().rev().filter(is_asked_for).collect();
        marked(&json!({"object": "list", "data": data, "has_more": false}), &mark)
    }
}

/// When each event arrives, counted in events: at once or much later, once or more often.
fn arrivals(random: &mut Random, events: usize) -> Vec<(usize, usize)> {
    // From nearly in order to nearly all after the end.
    let latest = [1, 4, events / 4, events, 4 * events][random.below(5)];
    let mut arrivals = Vec::new();
    for event in 0..events {
        for _ in 0..=[0, 0, 0, 1, 2][random.below(5)] {
            arrivals.push((event + random.below(latest + 1), random.below(1 << 20), event));
        }
    }
    arrivals.sort_unstable();
    arrivals.into_iter().map(|(at, _, event)| (at.min(events - 1), event)).collect()
}

/// What is left of an order in the database, without what differs by nature: who pays before the failure is noticed gets
/// no mail of it.
async fn outcome(pool: &PgPool, user: Uuid, mark: &str) -> Value {
    let rows: Value = sqlx::query_scalar(
        "SELECT jsonb_build_object(
             'plan', (SELECT plan FROM users WHERE id = $1),
             'subscriptions', (SELECT jsonb_agg(to_jsonb(s) - '{id,user_id,updated_at}'::text[]) FROM subscriptions s WHERE user_id = $1),
             'invoices', (SELECT jsonb_agg(to_jsonb(i) - '{id,user_id,failure_mailed}'::text[] ORDER BY stripe_id) FROM invoices i WHERE user_id = $1),
             'payments', (SELECT jsonb_agg(to_jsonb(p) - '{id,user_id}'::text[] ORDER BY stripe_id) FROM payments p WHERE user_id = $1))",
    )
    .bind(user)
    .fetch_one(pool)
    .await
    .unwrap();
    serde_json::from_str(&rows.to_string().replace(mark, "")).unwrap()
}

/// What was told of a user, in the order of telling; it is taken away, so that the next user's is found as fast.
async fn told(pool: &PgPool, user: Uuid) -> Vec<Value> {
    let bodies: Vec<String> =
        sqlx::query_scalar("SELECT body FROM outbox WHERE queue = 'events' AND body LIKE '%' || $1 || '%' ORDER BY id")
            .bind(user.to_string())
            .fetch_all(pool)
            .await
            .unwrap();
    bodies.iter().map(|body| serde_json::from_str(body).unwrap()).collect()
}

/// Money as it was told, in any order of telling.
fn money(told: &[Value]) -> Vec<String> {
    let mut lines: Vec<_> = told
        .iter()
        .filter(|event| event["type"].as_str().unwrap().starts_with("billing.payment_"))
        .map(|event| format!("{} {} {}", event["type"], event["data"]["amountMinor"], event["data"]["declineCode"]))
        .collect();
    lines.sort();
    lines
}

/// Each event of the subscription follows from the one before, and nothing remains of what it added.
fn check_story(told: &[Value], seed: u64) {
    let (mut running, mut began, mut revenue, mut plan) = (false, 0, 0, "free".to_owned());
    let mut last = Value::Null;
    for event in told {
        let data = &event["data"];
        revenue += data["mrrDeltaMinor"].as_i64().unwrap_or(0);
        match event["type"].as_str().unwrap() {
            "billing.subscription_created" => {
                assert!(!running, "seed {seed}");
                (running, began) = (true, began + 1);
            }
            "billing.subscription_updated" => {
                assert!(running, "seed {seed}");
                let delta = data["mrrDeltaMinor"].as_i64().unwrap();
                let movement = ["contraction", "none", "expansion"][usize::try_from(delta.signum() + 1).unwrap()];
                assert_eq!(data["movement"], movement, "seed {seed}");
            }
            "billing.subscription_canceled" => {
                assert!(running, "seed {seed}");
                running = false;
            }
            "user.plan_upgraded" | "user.plan_downgraded" => {
                assert_eq!(data["fromPlan"], plan, "seed {seed}");
                plan = data["toPlan"].as_str().unwrap().to_owned();
                assert_ne!(last, *data, "seed {seed}");
                last = data.clone();
            }
            _ => {}
        }
    }
    assert_eq!((running, began < 2, revenue, plan.as_str()), (false, true, 0, "free"), "seed {seed}");
}

/// A database of its own, of which nothing is relayed, and which may lose what it has.
pub async fn own_database() -> String {
    let name = format!("test_{}", Uuid::now_v7().simple());
    let admin: sqlx::postgres::PgConnectOptions = variable("DATABASE_URL").parse().unwrap();
    let mut connection = admin.connect().await.unwrap();
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    connection.execute(AssertSqlSafe(format!("ALTER DATABASE {name} SET synchronous_commit = off"))).await.unwrap();
    connection.close().await.unwrap();
    let mut url = admin.database(&name).to_url_lossy();
    url.set_query(None);
    url.to_string()
}

/// The same with the schema in it.
pub async fn own_schema() -> (String, PgPool) {
    let url = own_database().await;
    let pool = PgPool::connect(&url).await.unwrap();
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lib/migrations/postgres");
    sqlx::migrate::Migrator::new(migrations).await.unwrap().run(&pool).await.unwrap();
    (url, pool)
}

pub async fn drop_database(url: &str) {
    let name = url.rsplit('/').next().unwrap();
    let mut connection = stores::postgres().await;
    connection.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await.unwrap();
}

/// Billing on a database of its own and before a Stripe at an address.
pub fn billing_of(database: &str, stripe: &str) -> Billing {
    Billing {
        database: Database::connect_lazy(database).unwrap(),
        stripe: Stripe::new(stripe, &Secret::new("sk_test_local".to_owned())).unwrap(),
        grace: time::Duration::days(7),
        trial_days: 0,
        app_url: ORIGIN.to_owned(),
    }
}

/// The time that a reconciliation has.
const PATIENCE: Duration = Duration::from_secs(900);

fn count(name: &str, default: usize) -> usize {
    optional_variable(name).map_or(default, |count| count.parse().unwrap())
}

/// `ORDERS` says how many; each is one seed.
#[tokio::test]
async fn every_order_of_a_lifes_webhooks_ends_alike() {
    let orders = count("ORDERS", 50);
    let recording = Arc::new(Recording::of_a_life().await);
    let events = recording.events.len();
    assert!(events > 40, "a whole life has more than {events} events");
    let (stub, address) = Stub::start(recording.clone()).await;
    let (url, pool) = own_schema().await;

    let user_of = async |number: usize| {
        let user = Uuid::now_v7();
        sqlx::query("INSERT INTO users (id, email, password_hash) VALUES ($1, $2, '')")
            .bind(user)
            .bind(format!("{number}@example.com"))
            .execute(&pool)
            .await
            .unwrap();
        user
    };
    let play = async |number: usize, billing: &Billing| {
        let seed = u64::try_from(number).unwrap();
        let (mut random, mark, user) = (Random(seed), format!("{MARK}{number}"), user_of(number).await);
        // The first order is the one in which they happened.
        let arrivals = match number {
            0 => (0..events).map(|event| (event, event)).collect(),
            _ => arrivals(&mut random, events),
        };
        for (at, event) in arrivals {
            stub.orders.lock().unwrap().insert(number, (at, user));
            let event = serde_json::from_str(&marked(&recording.events[event], &mark)).unwrap();
            let Some(notice) = Notice::of(&event) else { continue };
            billing.handle(&notice).await.unwrap_or_else(|error| panic!("seed {seed}: {error:?}: {event}"));
        }
        let told = told(&pool, user).await;
        check_story(&told, seed);
        (outcome(&pool, user, &mark).await, money(&told))
    };
    // Few, so that other tests have their share of the machine.
    let (lanes, started) = (2, std::time::Instant::now());
    let lane = async |lane: usize| {
        let billing = billing_of(&url, &address);
        let mut ends = Vec::new();
        for number in (lane..orders).step_by(lanes) {
            ends.push((number, play(number, &billing).await));
        }
        ends
    };
    let mut ends: Vec<_> = join_all((0..lanes).map(lane)).await.into_iter().flatten().collect();
    ends.sort_by_key(|(number, _)| *number);
    // Of one, no webhook tells: its events are found in Stripe's list, in the midst of the life and after it.
    let user = user_of(orders).await;
    for at in [events / 2, events - 1] {
        stub.orders.lock().unwrap().insert(orders, (at, user));
        let compared = billing_of(&url, &address).reconcile(true, PATIENCE).await.unwrap();
        assert!(compared.made_good > 10 && (compared.left, compared.unlisted_seconds) == (Some(0), 0), "{compared:?}");
    }
    let told = told(&pool, user).await;
    check_story(&told, u64::try_from(orders).unwrap());
    ends.push((orders, (outcome(&pool, user, &format!("{MARK}{orders}")).await, money(&told))));
    let (_, first) = &ends[0];
    assert_eq!(first.0["subscriptions"][0]["status"], "canceled", "{first:?}");
    assert_eq!(first.1.iter().filter(|line| line.contains("payment_failed")).count(), 2, "{:?}", first.1);
    assert_eq!(first.1.iter().filter(|line| line.contains("payment_succeeded")).count(), 5, "{:?}", first.1);
    for (number, end) in &ends {
        assert_eq!(end, first, "seed {number}");
    }
    eprintln!("{orders} orders of {events} events in {:?}", started.elapsed());
    pool.close().await;
    drop_database(&url).await;
}

/// Whole lives at once, whose webhooks come signed, shuffled and twice: `LIVES` says how many.
#[tokio::test]
async fn lives_end_alike_however_their_webhooks_come_in() {
    let live = |number: usize| async move {
        let api = Api::of_router();
        let person = api.sign_up().await;
        let customer = held(&api, &person).await;
        let during = ["shuffle", "duplicate", "hold"][number % 3];
        replica::control("webhooks", &json!({"customer": customer, "mode": during})).await;
        let life = Life::begin(api, person).await;
        life.pass().await;
        if during == "hold" {
            replica::control("webhooks", &json!({"customer": customer, "mode": "duplicate"})).await;
        }
        let late = json!({"customer": customer, "order": "shuffled", "seed": number});
        replica::control("webhooks/release", &late).await;
        life
    };
    let expected = Expected {
        status: "canceled",
        plan: "pro",
        pending: None,
        ends: true,
        entitled: "free",
        // What was skipped was not told; what was paid and what remains is compared all the same.
        told: None,
    };
    let paid = "payment_succeeded";
    let wanted = ["payment_failed generic_decline", "payment_failed insufficient_funds", paid, paid, paid, paid, paid];
    let mut lives = std::pin::pin!(stream::iter(0..count("LIVES", 9)).map(live).buffer_unordered(3));
    while let Some(life) = lives.next().await {
        stores::agree(&life.api, &life.person, &expected).await;
        let told = eventually("the money's events", || async {
            let told = stores::told(&life.person).await;
            // Without amounts, which depend on the second, and plans, which may have gone on.
            let told = told.iter().filter(|line| line.starts_with("payment")).map(|line| {
                let words = line.split(' ').filter(|word| word.contains('_'));
                words.collect::<Vec<_>>().join(" ")
            });
            let mut told: Vec<_> = told.collect();
            told.sort();
            (told.len() >= wanted.len()).then_some(told)
        })
        .await;
        assert_eq!(told, wanted, "{}", life.person.id);
    }
}
