//! What was accepted is not lost and not counted twice, whatever dies in between: processes of the stack under
//! test are ended by `kill -9` in the middle of their work. And nobody is locked out of their own account.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::future::{join, try_join_all};
use sandbox::deployed::{Deployed, random_address, root};
use sandbox::{Sandbox, variable};
use serde_json::{Value, json};
use sqlx::postgres::PgPool;
use tokio::sync::{RwLock, Semaphore};
use uuid::Uuid;

const EVENTS: usize = 10_000;
const PASSWORD: &str = "correct horse battery";
/// As long as a loaded machine may need to start a service again and work off the queue.
const PATIENCE: Duration = Duration::from_secs(60);
/// Relaying waits for a row's age and for the schedule, which starts anew with the emulator.
const PATIENCE_WITH_RELAY: Duration = Duration::from_secs(120);

/// Whoever kills what others need is alone; who only needs it is not.
static STACK: RwLock<()> = RwLock::const_new(());

fn client() -> reqwest::Client {
    // Installed by whichever test comes first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap()
}

/// Asks again and again until the answer is there.
async fn eventually<T>(what: &str, patience: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The stack's own `kill -9` of a service.
fn kill_service(name: &str) {
    let killed = Command::new("python3")
        .arg(root().join("localstack/stack.py"))
        .args(["--profile", &variable("STACK_PROFILE"), "kill", name])
        .status();
    assert!(killed.unwrap().success(), "{name} could not be killed");
}

/// Kills the processes of a worker, which the emulator starts by itself.
fn kill_worker(name: &str) -> usize {
    let mark = format!("AWS_LAMBDA_FUNCTION_NAME={}-{name}", variable("STACK_NAME")).into_bytes();
    let is_worker = |folder: &Path| {
        std::fs::read(folder.join("environ"))
            .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| *entry == *mark))
    };
    let processes: Vec<PathBuf> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_worker(path))
        .collect();
    for process in &processes {
        // It may have ended by itself in between.
        let _ = Command::new("kill").arg("-9").arg(process.file_name().unwrap()).status();
    }
    processes.len()
}

/// A call of SQS.
async fn sqs(client: &reqwest::Client, action: &str, body: &Value) -> Option<Value> {
    let reply = client
        .post(variable("AWS_ENDPOINT_URL"))
        .header("content-type", "application/x-amz-json-1.0")
        .header("x-amz-target", format!("AmazonSQS.{action}"))
        .header(
            "authorization",
            "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=0",
        )
        .body(body.to_string())
        .send()
        .await
        .ok()?;
    if !reply.status().is_success() {
        return None;
    }
    let text = reply.text().await.ok()?;
    Some(if text.is_empty() { Value::Null } else { serde_json::from_str(&text).ok()? })
}

fn events_queue(deployed: &Deployed) -> String {
    deployed.environment("auth-signup")["EVENTS_QUEUE_URL"].clone()
}

fn deployed() -> Deployed {
    let functions = PathBuf::from(variable("LOCAL_STACK_DIR")).join("functions");
    Deployed::read(&variable("STACK_PROFILE"), functions).unwrap()
}

/// One number out of ClickHouse, if it answers.
async fn count(client: &reqwest::Client, sql: String) -> Option<usize> {
    let reply = client
        .post(format!("{}/?database={}", variable("CLICKHOUSE_URL"), variable("CLICKHOUSE_DATABASE")))
        .header("x-clickhouse-user", variable("CLICKHOUSE_USER"))
        .header("x-clickhouse-key", variable("CLICKHOUSE_PASSWORD"))
        .body(sql)
        .send()
        .await
        .ok()?;
    if !reply.status().is_success() {
        return None;
    }
    reply.text().await.ok()?.trim().parse().ok()
}

/// Sign-ups that never were, all from one source and on one day of long ago.
struct Crowd {
    source: String,
    day: String,
    queue_url: String,
    client: reqwest::Client,
    /// Closed once something was killed.
    killed: Semaphore,
}

impl Crowd {
    fn new(deployed: &Deployed, day: &str) -> Self {
        Self {
            source: format!("/durability/{}", Uuid::now_v7()),
            day: day.to_owned(),
            queue_url: events_queue(deployed),
            client: client(),
            killed: Semaphore::new(0),
        }
    }

    /// Sends them all, ten a call, several calls at a time, and the last quarter when something was killed. A call without an answer is repeated, as SQS's
    /// clients do, so that the queue may well get some of them twice.
    async fn send(&self) {
        let batches: Vec<Value> = (0..EVENTS / 10).map(|_| self.batch()).collect();
        let lanes = batches.chunks(EVENTS / 10 / 8).map(async |lane| {
            for (index, batch) in lane.iter().enumerate() {
                if index == lane.len() * 3 / 4 {
                    let _ = self.killed.acquire().await;
                }
                eventually("the queue takes events", PATIENCE, async || {
                    let reply = sqs(&self.client, "SendMessageBatch", batch).await?;
                    (reply["Successful"].as_array()?.len() == 10).then_some(())
                })
                .await;
            }
            Ok::<_, ()>(())
        });
        try_join_all(lanes).await.unwrap();
    }

    fn batch(&self) -> Value {
        let entries: Vec<Value> = (0..10)
            .map(|index| {
                let event = json!({
                    "specversion": "1.0",
                    "id": Uuid::now_v7(),
                    "source": self.source,
                    "type": "user.signup",
                    "subject": Uuid::now_v7(),
                    "time": format!("{}T12:00:00.000Z", self.day),
                    "datacontenttype": "application/json",
                    "data": { "schemaVersion": 1, "plan": "free", "country": null, "method": "password" },
                });
                json!({ "Id": index.to_string(), "MessageBody": event.to_string() })
            })
            .collect();
        json!({ "QueueUrl": self.queue_url, "Entries": entries })
    }

    async fn counted(&self) -> Option<usize> {
        count(&self.client, format!("SELECT uniqExact(id) FROM events WHERE source = '{}'", self.source)).await
    }

    /// Kills something when some of them are counted, of which it tells how many, and others are not.
    async fn kill_midway(&self, kill: impl FnOnce()) -> usize {
        let counted =
            eventually("some events are counted", PATIENCE, async || self.counted().await.filter(|n| *n > 0)).await;
        kill();
        self.killed.close();
        counted
    }

    /// The figure of the API for the day.
    async fn figure(&self) -> Option<i64> {
        let credentials = json!({
            "email": variable("ADMIN_EMAIL"), "password": variable("ADMIN_PASSWORD"), "transport": "bearer",
        });
        let signed_in = self
            .client
            .post(format!("{}/api/auth/signin", variable("API_URL")))
            .header("content-type", "application/json")
            .header("x-forwarded-for", random_address())
            .body(credentials.to_string())
            .send()
            .await
            .ok()?;
        let signed_in: Value = serde_json::from_str(&signed_in.text().await.ok()?).ok()?;
        let day = &self.day;
        let reply = self
            .client
            .get(format!("{}/api/analytics/users/signups?startDate={day}&endDate={day}", variable("API_URL")))
            .bearer_auth(signed_in["token"].as_str()?)
            .send()
            .await
            .ok()?;
        let reply: Value = serde_json::from_str(&reply.text().await.ok()?).ok()?;
        reply["data"][0]["signups"].as_i64()
    }

    /// All are counted, each once, in the table and in the figure; and it stays so when the queue is empty.
    async fn arrives(&self, figure_before: i64) {
        eventually("all events are counted", PATIENCE, async || self.counted().await.filter(|n| *n == EVENTS)).await;
        eventually("the queue is empty", PATIENCE, async || {
            let names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"];
            let asked = json!({ "QueueUrl": self.queue_url, "AttributeNames": names });
            let reply = sqs(&self.client, "GetQueueAttributes", &asked).await?;
            names.iter().all(|name| reply["Attributes"][name] == "0").then_some(())
        })
        .await;
        let figure = eventually("the figure is answered", PATIENCE, async || self.figure().await).await;
        assert_eq!(figure - figure_before, i64::try_from(EVENTS).unwrap(), "the figure of {}", self.day);
        assert_eq!(self.counted().await, Some(EVENTS), "distinct events of {}", self.source);
    }

    async fn figure_before(&self) -> i64 {
        eventually("the figure is answered", PATIENCE, async || self.figure().await).await
    }
}

#[tokio::test]
async fn killing_the_ingest_worker_loses_no_event() {
    let _alone = STACK.write().await;
    let deployed = deployed();
    let crowd = Crowd::new(&deployed, "2001-03-01");
    let before = crowd.figure_before().await;
    // A dead worker's messages come back when their visibility ends: six minutes in production.
    set_visibility_timeout(&crowd, 10).await;
    join(crowd.send(), async {
        let counted = crowd.kill_midway(|| assert!(kill_worker("workers-ingest") > 0, "no ingest worker runs")).await;
        // The next worker, too.
        eventually("a new worker counts events", PATIENCE, async || crowd.counted().await.filter(|n| *n > counted))
            .await;
        kill_worker("workers-ingest");
    })
    .await;
    crowd.arrives(before).await;
    set_visibility_timeout(&crowd, 360).await;
}

async fn set_visibility_timeout(crowd: &Crowd, seconds: u32) {
    let attributes = json!({ "VisibilityTimeout": seconds.to_string() });
    let asked = json!({ "QueueUrl": crowd.queue_url, "Attributes": attributes });
    assert!(sqs(&crowd.client, "SetQueueAttributes", &asked).await.is_some(), "the queue refuses the attribute");
}

#[tokio::test]
async fn killing_the_queue_and_its_consumer_loses_no_event() {
    let _alone = STACK.write().await;
    let deployed = deployed();
    let crowd = Crowd::new(&deployed, "2001-03-02");
    let before = crowd.figure_before().await;
    join(crowd.send(), crowd.kill_midway(|| kill_service("aws"))).await;
    crowd.arrives(before).await;
}

#[tokio::test]
async fn killing_clickhouse_loses_no_event() {
    let _alone = STACK.write().await;
    let deployed = deployed();
    let crowd = Crowd::new(&deployed, "2001-03-03");
    let before = crowd.figure_before().await;
    join(crowd.send(), crowd.kill_midway(|| kill_service("clickhouse"))).await;
    crowd.arrives(before).await;
}

/// Hands everything on to the emulator but messages for its queues: their senders wait for ever.
struct Stall {
    address: String,
    stalled: mpsc::Receiver<()>,
}

impl Stall {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (sender, stalled) = mpsc::channel();
        let emulator = variable("AWS_ENDPOINT_URL").replace("http://", "");
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (emulator, sender) = (emulator.clone(), sender.clone());
                std::thread::spawn(move || hand_on(stream, &emulator, &sender));
            }
        });
        Self { address, stalled }
    }
}

fn hand_on(mut function: TcpStream, emulator: &str, stalled: &mpsc::Sender<()>) {
    let mut emulator = TcpStream::connect(emulator).unwrap();
    let (mut replies, mut back) = (emulator.try_clone().unwrap(), function.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut replies, &mut back));
    let mut buffer = vec![0; 1 << 16];
    // A client has one request on a connection at a time, and begins each with its head.
    while let Ok(length @ 1..) = function.read(&mut buffer) {
        if String::from_utf8_lossy(&buffer[..length]).contains("AmazonSQS.SendMessage") {
            let _ = stalled.send(());
            // Until the function dies.
            let _ = std::io::copy(&mut function, &mut std::io::sink());
            return;
        }
        if emulator.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn the_relay_delivers_what_a_function_killed_after_its_commit_did_not_send() {
    let _whole = STACK.read().await;
    let deployed = deployed();
    let database = PgPool::connect(&variable("DATABASE_URL")).await.unwrap();
    let stall = Stall::start();
    let mut environment = deployed.environment("auth-signup");
    environment.insert("AWS_ENDPOINT_URL".to_owned(), stall.address.clone());
    let mut sign_up = Sandbox::start(&deployed.binary("auth-signup"), &environment).unwrap();

    let email = format!("durability-{}@example.com", Uuid::now_v7().simple());
    let body = json!({ "email": email, "password": PASSWORD });
    let event = Deployed::event("auth-signup", &random_address(), Some(&body), None).unwrap();
    let reply = sign_up.invoke_unfinished(&event, PATIENCE).unwrap().payload;
    assert_eq!(reply["statusCode"], 201, "{reply}");
    let body: Value = serde_json::from_str(reply["body"].as_str().unwrap()).unwrap();
    let user_id = body["user"]["id"].as_str().unwrap().to_owned();
    stall.stalled.recv_timeout(PATIENCE).expect("the function sends its event after its commit");
    sign_up.kill();

    let in_outbox = async || -> i64 {
        let rows =
            sqlx::query_scalar("SELECT count(*) FROM outbox WHERE queue = 'events' AND body LIKE '%' || $1 || '%'");
        rows.bind(&user_id).fetch_one(&database).await.unwrap()
    };
    assert_eq!(in_outbox().await, 1, "the event is in the outbox");
    let client = client();
    eventually("the relayed event is counted once", PATIENCE_WITH_RELAY, async || {
        let sql = format!("SELECT uniqExact(id) FROM events WHERE type = 'user.signup' AND subject = '{user_id}'");
        count(&client, sql).await.filter(|counted| *counted == 1)
    })
    .await;
    eventually("the outbox has forgotten it", PATIENCE, async || (in_outbox().await == 0).then_some(())).await;
}

#[tokio::test]
async fn wrong_passwords_from_everywhere_do_not_lock_the_owner_out() {
    const ATTACKERS: usize = 20;
    const ATTEMPTS_EACH: usize = 10;

    let _whole = STACK.read().await;
    let deployed = deployed();
    let email = format!("durability-{}@example.com", Uuid::now_v7().simple());
    let mut sign_up = deployed.start("auth-signup").unwrap();
    let body = json!({ "email": email, "password": PASSWORD });
    let event = Deployed::event("auth-signup", &random_address(), Some(&body), None).unwrap();
    assert_eq!(sign_up.invoke(&event).unwrap().payload["statusCode"], 201);

    // Processes of our own, so that the limits are those of production.
    let mut environment = deployed.environment("auth-signin");
    environment.insert("AUTH_LIMITS".to_owned(), "strict".to_owned());
    let start = || Sandbox::start(&deployed.binary("auth-signin"), &environment).unwrap();
    let sign_in = |function: &mut Sandbox, password: &str| {
        let body = json!({ "email": email, "password": password });
        let event = Deployed::event("auth-signin", &random_address(), Some(&body), None).unwrap();
        function.invoke(&event).unwrap()
    };
    std::thread::scope(|scope| {
        for _ in 0..ATTACKERS {
            scope.spawn(|| {
                let mut function = start();
                for _ in 0..ATTEMPTS_EACH {
                    let reply = sign_in(&mut function, "not the password").payload;
                    assert_eq!(reply["statusCode"], 401, "{reply}");
                }
            });
        }
    });

    let mut function = start();
    let attack = sign_in(&mut function, "not the password");
    let reply = sign_in(&mut function, PASSWORD);
    assert_eq!(reply.payload["statusCode"], 200, "{}", reply.payload);
    assert!(reply.took < attack.took, "the owner waits for {:?}, an attacker for {:?}", reply.took, attack.took);
}
