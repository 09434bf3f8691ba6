//! What an event costs on its way into ClickHouse, next to a bare insert of the same rows; how long it takes to be
//! seen; and how fast each figure is read where there are millions of events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use lib::analytics::block;
use lib::analytics::event::Event;
use lib::analytics::writer::Writer;
use lib::config::Secret;
use lib::migrate::Migrations;
use lib::store::clickhouse::ClickHouse;
use lib::store::postgres::Database;
use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::figures::{median, millis, print, quantile, ratio};

/// Events of one batch, which is what SQS hands to a consumer at most.
const BATCH: usize = 10_000;
const ROUNDS: usize = 10;
const FILL: u64 = 500_000;
const READS: usize = 20;
const SIGHTINGS: usize = 7;
const PATIENCE: Duration = Duration::from_secs(60);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Prints all of it, with so many events in the tables.
pub(crate) fn measure(deployed: &Deployed, events: u64) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(run(deployed, events)).map_err(|error| error.to_string())
}

async fn run(deployed: &Deployed, events: u64) -> Result<(), Failure> {
    let stores = Stores::new(deployed).await?;
    let outcome = async {
        stores.fill(events).await?;
        stores.ingest(events).await?;
        stores.read(deployed, events).await
    }
    .await;
    stores.drop().await?;
    outcome?;
    sightings(deployed)
}

fn address(deployed: &Deployed, name: &str) -> Result<String, Failure> {
    Ok(deployed.address(name).ok_or(format!("{name} is unknown"))?.to_owned())
}

/// Databases of the benchmark's own beside those of the stack.
struct Stores {
    name: String,
    postgres: sqlx::postgres::PgConnectOptions,
    clickhouse_url: String,
    user: String,
    password: String,
    database: Database,
    clickhouse: ClickHouse,
}

impl Stores {
    async fn new(deployed: &Deployed) -> Result<Self, Failure> {
        let name = format!("bench_{}", Uuid::now_v7().simple());
        let postgres: sqlx::postgres::PgConnectOptions = address(deployed, "DATABASE_URL")?.parse()?;
        let mut connection = postgres.connect().await?;
        connection.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await?;
        connection.close().await?;
        let mut url = postgres.clone().database(&name).to_url_lossy();
        url.set_query(None);
        let (clickhouse_url, user, password) = (
            address(deployed, "CLICKHOUSE_URL")?,
            address(deployed, "CLICKHOUSE_USER")?,
            address(deployed, "CLICKHOUSE_PASSWORD")?,
        );
        let database = Database::connect_lazy(url.as_str())?;
        let clickhouse = ClickHouse::connect_lazy(&clickhouse_url, &user, &Secret::new(password.clone()), &name);
        Migrations::new(database.clone(), clickhouse.clone()).run(&json!({})).await?;
        Ok(Self { name, postgres, clickhouse_url, user, password, database, clickhouse })
    }

    async fn drop(self) -> Result<(), Failure> {
        let server = self.clickhouse.client().clone().with_database("default");
        server.query_raw(&format!("DROP DATABASE IF EXISTS {}", self.name)).execute().await?;
        self.database.pool().close().await;
        let mut connection = self.postgres.connect().await?;
        connection.execute(sqlx::AssertSqlSafe(format!("DROP DATABASE {} WITH (FORCE)", self.name))).await?;
        Ok(())
    }

    /// Half a year of events, in the order of their time, made by ClickHouse itself.
    async fn fill(&self, events: u64) -> Result<(), Failure> {
        let started = Instant::now();
        for from in (0..events).step_by(usize::try_from(FILL)?) {
            let rows = FILL.min(events - from);
            self.clickhouse.client().query_raw(&history(from, rows, events)).execute().await?;
        }
        let seconds = started.elapsed().as_secs_f64();
        println!("\n{events} events of half a year, written by ClickHouse itself through all views in {seconds:.0} s");
        Ok(())
    }

    /// The worker's way and a bare insert in turns, each with rows of its own into the same tables.
    async fn ingest(&self, events: u64) -> Result<(), Failure> {
        let writer = Writer::new(self.clickhouse.clone(), &self.database);
        let (mut of_worker, mut of_bare) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let (bodies, others) = (messages(BATCH), messages(BATCH));
            let parsed = parse(&others)?;
            let block = Bytes::from(block::encode(&parsed.iter().collect::<Vec<_>>(), 1_700_000_000_000));

            let started = Instant::now();
            self.insert(block).await?;
            let bare = started.elapsed();

            let started = Instant::now();
            let written = writer.write(&parse(&bodies)?).await?;
            let worker = started.elapsed();
            if written != BATCH {
                return Err(format!("{written} of {BATCH} events were written").into());
            }
            // The first round opens connections.
            if round > 0 {
                of_worker.push(worker);
                of_bare.push(bare);
            }
        }
        println!("\nIngest in batches of {BATCH} beside {events} events, {ROUNDS} of each in turns (targets: 80 %");
        println!("of the bare insert, and that 100,000 rows a second)\n");
        let row = |name: &str, samples: &[Duration]| {
            let share = ratio(median(&of_bare), median(samples)) * 100.0;
            vec![name.to_owned(), millis(median(samples)), per_second(median(samples)), format!("{share:.0}")]
        };
        let heads = ["", "median ms", "rows a second", "% of bare"].map(str::to_owned).to_vec();
        print(&[heads, row("messages in memory to the answer", &of_worker), row("bare insert", &of_bare)]);
        Ok(())
    }

    async fn insert(&self, block: Bytes) -> Result<(), Failure> {
        let mut insert = self
            .clickhouse
            .client()
            .insert_formatted_with("INSERT INTO events FORMAT Native")
            .with_setting("async_insert", "0")
            .with_setting("parallel_view_processing", "1")
            .with_setting("max_partitions_per_insert_block", "0");
        insert.send(block).await?;
        Ok(insert.end().await?)
    }

    /// Each figure by its function, with a count of the rows that ClickHouse read for it.
    async fn read(&self, deployed: &Deployed, events: u64) -> Result<(), Failure> {
        let counting = Counting::start(&self.clickhouse_url).await?;
        let secret = self.secret(deployed, &counting.url).await?;
        let bearer = administrator(deployed).await?;
        let heads = ["figure", "median ms", "p95 ms", "rows read", "one in", "reply", ""];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        let names: Vec<_> = deployed.names().filter(|name| is_figure(name)).cloned().collect();
        for name in names {
            let mut environment = deployed.environment(&name);
            environment.insert("CLICKHOUSE_SECRET_ARN".to_owned(), secret.clone());
            let mut function = Sandbox::start(&deployed.binary(&name), &environment)?;
            let event = Deployed::event(&name, &random_address(), None, Some(&bearer))?;
            let (mut took, mut status) = (Vec::new(), 0);
            let before = counting.rows.load(Ordering::Relaxed);
            for _ in 0..READS {
                let reply = function.invoke(&event)?;
                status = reply.payload["statusCode"].as_u64().unwrap_or_default();
                took.push(reply.took);
            }
            let read = (counting.rows.load(Ordering::Relaxed) - before) / READS as u64;
            let mut misses = Vec::new();
            if quantile(&took, 0.95) > Duration::from_millis(100) {
                misses.push("p95 > 100 ms");
            }
            if read > events / 1000 {
                misses.push("more than one row in 1,000");
            }
            rows.push(vec![
                name.trim_start_matches("analytics-").to_owned(),
                millis(median(&took)),
                millis(quantile(&took, 0.95)),
                read.to_string(),
                (events / read.max(1)).to_string(),
                status.to_string(),
                misses.join(", "),
            ]);
        }
        println!("\nEach figure over its default range, {READS} times, beside {events} events (targets: p95 100 ms,");
        println!("one row read in 1,000)\n");
        print(&rows);
        Ok(())
    }

    /// A secret that leads to these tables by way of a URL.
    async fn secret(&self, deployed: &Deployed, url: &str) -> Result<String, Failure> {
        let body = json!({
            "Name": self.name,
            "SecretString": json!({ "url": url, "user": self.user, "password": self.password, "database": self.name })
                .to_string(),
        });
        let call = client()
            .post(address(deployed, "AWS_ENDPOINT_URL")?)
            .header("x-amz-target", "secretsmanager.CreateSecret")
            .header("content-type", "application/x-amz-json-1.1")
            // The emulator reads the region from the signature's scope and checks nothing.
            .header("authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/secretsmanager/aws4_request");
        let reply: Value =
            serde_json::from_slice(&call.body(body.to_string()).send().await?.error_for_status()?.bytes().await?)?;
        Ok(reply["ARN"].as_str().ok_or("the secret has no ARN")?.to_owned())
    }
}

fn is_figure(name: &str) -> bool {
    name.starts_with("analytics-") && name != "analytics-health"
}

fn client() -> reqwest::Client {
    // Refused only where one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

async fn administrator(deployed: &Deployed) -> Result<String, Failure> {
    let credentials = json!({
        "email": address(deployed, "ADMIN_EMAIL")?, "password": address(deployed, "ADMIN_PASSWORD")?,
        "transport": "bearer",
    });
    let call = client().post(format!("{}/api/auth/signin", address(deployed, "API_URL")?));
    let call = call.header("content-type", "application/json").header("x-forwarded-for", random_address());
    let text = call.body(credentials.to_string()).send().await?.text().await?;
    let reply: Value = serde_json::from_str(&text)?;
    Ok(reply["sessionToken"].as_str().ok_or(text)?.to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "ten thousand")]
fn per_second(took: Duration) -> String {
    format!("{:.0}", BATCH as f64 / took.as_secs_f64())
}

fn parse(bodies: &[String]) -> Result<Vec<Event<'_>>, Failure> {
    bodies.iter().map(|body| Event::parse(body, None).map_err(|rejection| rejection.to_string().into())).collect()
}

/// Answers as a busy product publishes them, of the last day.
fn messages(count: usize) -> Vec<String> {
    let models = [("openai", "gpt-4o-mini"), ("anthropic", "claude-haiku-4-5"), ("google", "gemini-2.5-flash")];
    let time = "2026-11-01T12:00:00.000Z";
    (0..count)
        .map(|n| {
            let (provider, model) = models[n % models.len()];
            json!({
                "specversion": "1.0", "id": Uuid::now_v7(), "source": "/bench", "type": "chat.message_sent",
                "subject": format!("user-{}", n % 5_000), "time": time, "datacontenttype": "application/json",
                "data": {
                    "schemaVersion": 1, "plan": if n % 5 == 0 { "pro" } else { "free" }, "country": "DE",
                    "conversationId": format!("conversation-{}", n / 4), "messageId": Uuid::now_v7(),
                    "provider": provider, "model": model, "requestedModel": model, "inputTokens": 20 + n % 900,
                    "cachedInputTokens": 0, "outputTokens": 10 + n % 500, "reasoningTokens": 0,
                    "costMicroUsd": n % 700, "priceVersion": "bench", "ttftMs": 200 + n % 300,
                    "latencyMs": 900 + n % 4000, "finishReason": "stop", "attempts": 1, "fallbackFrom": null,
                    "streamed": true, "regenerated": false,
                },
            })
            .to_string()
        })
        .collect()
}

/// `rows` events from number `from` on, of `all` in half a year. What they say follows from their number.
fn history(from: u64, rows: u64, all: u64) -> String {
    format!(
        "INSERT INTO events (id, type, subject, time, source, ingested_at, plan, country, method, from_plan, to_plan,
             conversation_id, message_id, provider, model, requested_model, input_tokens, output_tokens,
             cost_micro_usd, price_version, ttft_ms, latency_ms, finish_reason, attempts, streamed, error_class,
             payment_id, invoice_id, amount_minor, currency, decline_code, subscription_id, subscription_status,
             movement, mrr_delta_minor)
         SELECT
             toUInt128(toUnixTimestamp64Milli(at)) * toUInt128('1208925819614629174706176') + cityHash64(n) AS id, kind,
             concat('user-', toString(user)), at, '/bench', at, if(user % 6 = 0, 'pro', 'free'),
             ['US', 'DE', 'GB', 'FR', 'IN', ''][user % 6 + 1], if(startsWith(kind, 'user.sign'), 'password', ''),
             if(kind = 'user.plan_upgraded', 'free', ''), if(kind = 'user.plan_upgraded', 'pro', ''),
             if(is_chat, concat('conversation-', toString(intDiv(n, 40) * 7 + user % 7)), ''),
             if(kind = 'chat.message_sent', toString(n), ''), if(is_chat, ['openai', 'anthropic', 'google'][m + 1], ''),
             if(is_chat, ['gpt-4o-mini', 'claude-haiku-4-5', 'gemini-2.5-flash'][m + 1], '') AS used, used,
             if(kind = 'chat.message_sent', 20 + n % 900, 0), if(kind = 'chat.message_sent', 10 + n % 500, 0),
             if(kind = 'chat.message_sent', toNullable(n % 700), NULL), 'bench',
             if(kind = 'chat.message_sent', toNullable(200 + n % 300), NULL), if(is_chat, 900 + n % 4000, 0),
             if(kind = 'chat.message_sent', 'stop', ''), toInt64(is_chat), is_chat AND n % 3 > 0,
             if(kind = 'chat.message_failed', 'timeout', ''), if(is_paid, toString(n), ''),
             if(is_paid, toString(n), ''), if(is_paid, 2999, 0), if(is_money, 'USD', ''),
             if(kind = 'billing.payment_failed', 'insufficient_funds', ''),
             if(is_money, concat('subscription-', toString(user)), ''),
             if(kind = 'billing.subscription_created', 'active', ''),
             multiIf(kind = 'billing.subscription_created', 'new', kind = 'billing.subscription_canceled', 'churn', ''),
             multiIf(kind = 'billing.subscription_created', 2999, kind = 'billing.subscription_canceled', -2999, 0)
         FROM (
             SELECT
                 number + {from} AS n, cityHash64(n, 1) % greatest(10, intDiv(n, 200)) AS user, cityHash64(n, 2) % 3 AS m,
                 now64(3, 'UTC') - toIntervalSecond(toInt64(15552000 - 15552000 * (n / {all}))) AS at,
                 cityHash64(n, 3) % 1000 AS part,
                 multiIf(part < 700, 'chat.message_sent', part < 715, 'chat.message_failed', part < 850, 'user.signin',
                     part < 960, 'chat.conversation_created', part < 975, 'user.signup', part < 980, 'user.plan_upgraded',
                     part < 985, 'billing.subscription_created', part < 996, 'billing.payment_succeeded',
                     part < 998, 'billing.payment_failed', 'billing.subscription_canceled') AS kind,
                 startsWith(kind, 'chat.') AS is_chat, startsWith(kind, 'billing.payment') AS is_paid,
                 startsWith(kind, 'billing.') AS is_money
             FROM numbers({rows})
         )
         SETTINGS parallel_view_processing = 1, max_partitions_per_insert_block = 0"
    )
}

/// Passes on what is asked of ClickHouse, and counts the rows that it says it read.
struct Counting {
    url: String,
    rows: Arc<AtomicU64>,
}

impl Counting {
    async fn start(target: &str) -> Result<Self, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (rows, target, client) = (Arc::new(AtomicU64::new(0)), target.trim_end_matches('/').to_owned(), client());
        let counted = rows.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let (rows, target, client) = (rows.clone(), target.clone(), client.clone());
                let service = hyper::service::service_fn(move |request| {
                    pass_on(client.clone(), target.clone(), rows.clone(), request)
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Ok(Self { url, rows: counted })
    }
}

async fn pass_on(
    client: reqwest::Client,
    target: String,
    rows: Arc<AtomicU64>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Failure> {
    let (head, body) = request.into_parts();
    let mut headers = head.headers;
    headers.remove("host");
    headers.remove("transfer-encoding");
    let call = client.request(head.method, format!("{target}{}", head.uri)).headers(headers);
    let reply = call.body(body.collect().await?.to_bytes()).send().await?;
    let summary = reply.headers().get("x-clickhouse-summary").and_then(|summary| summary.to_str().ok());
    let summary: Value = summary.and_then(|summary| serde_json::from_str(summary).ok()).unwrap_or_default();
    rows.fetch_add(summary["read_rows"].as_str().and_then(|n| n.parse().ok()).unwrap_or_default(), Ordering::Relaxed);
    let mut response = Response::new(Full::default());
    *response.status_mut() = reply.status();
    *response.headers_mut() = reply.headers().clone();
    *response.body_mut() = Full::new(reply.bytes().await?);
    Ok(response)
}

/// How long a sign-up takes to be seen in its figure, over the deployed queue and worker.
fn sightings(deployed: &Deployed) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let bearer = std::thread::scope(|scope| {
        scope.spawn(|| runtime.block_on(administrator(deployed))).join().map_err(|_| "signing in panicked")
    })??;
    let mut sign_up = deployed.start("auth-signup")?;
    let mut figure = deployed.start("analytics-users-signups")?;
    let event = Deployed::event("analytics-users-signups", &random_address(), None, Some(&bearer))?;
    let mut total = || -> Result<u64, Failure> {
        let payload = figure.invoke(&event)?.payload;
        let body: Value = serde_json::from_str(payload["body"].as_str().unwrap_or_default())?;
        let days = body["data"].as_array().ok_or_else(|| format!("the figure answered {payload}"))?;
        Ok(days.iter().filter_map(|day| day["signups"].as_u64()).sum())
    };
    let mut took = Vec::new();
    for _ in 0..SIGHTINGS {
        let before = total()?;
        let email = format!("bench-{}@example.com", Uuid::now_v7().simple());
        let body = json!({ "email": email, "password": "correct horse battery", "transport": "bearer" });
        let started = Instant::now();
        sign_up.invoke(&Deployed::event("auth-signup", &random_address(), Some(&body), None)?)?;
        while total()? == before {
            if started.elapsed() > PATIENCE {
                return Err("a sign-up was not seen within a minute".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        took.push(started.elapsed());
    }
    println!("\nFrom a sign-up to its figure, {SIGHTINGS} times (target: median 5 s)\n");
    let heads = ["", "median ms", "longest ms"].map(str::to_owned).to_vec();
    print(&[
        heads,
        vec!["POST /api/auth/signup to users/signups".to_owned(), millis(median(&took)), millis(quantile(&took, 1.0))],
    ]);
    Ok(())
}
