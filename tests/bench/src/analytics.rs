//! What analytics can take and how fast it answers, at as many events as are asked for: the real functions of the
//! running stack, against databases of their own that are gone afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lib::analytics::block::Rows;
use lib::analytics::delivery::{self, Events};
use lib::analytics::event::Event;
use lib::analytics::writer::Writer;
use lib::clock;
use lib::config::Secret;
use lib::store::clickhouse::ClickHouse;
use lib::store::postgres::Database;
use sandbox::Sandbox;
use sandbox::deployed::{Deployed, Environment, random_address};
use sandbox::history::{self, History, Told};
use sandbox::relay::Relay;
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use uuid::Uuid;

use crate::chat::{Stack, processes_with, ticks};
use crate::figures::{median, millis, print, quantile};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The secrets that lead to a database: to Postgres, and to ClickHouse straight and by the relay.
const SECRETS: [&str; 3] = ["postgres", DIRECT, RELAYED];
const DIRECT: &str = "clickhouse";
const RELAYED: &str = "relay";
/// How the names of the databases begin.
const PREFIX: &str = "bench_";
/// Events of a block of the filling, and of a batch that is measured.
const BLOCK: usize = 50_000;
const BATCH: usize = 10_000;
/// Batches that are measured, if there are as many events.
const BATCHES: usize = 60;
const WARM_UP: usize = 3;
const SAMPLES: usize = 40;
const ARRIVALS: usize = 15;
const PATIENCE: Duration = Duration::from_secs(30);
const SETTLING: Duration = Duration::from_secs(120);
/// Figures that are of all time up to the end of the range, for which every event up to it would have to be read.
const TO_DATE: [&str; 9] = [
    "analytics-chat-conversations",
    "analytics-revenue-by-plan",
    "analytics-revenue-failed-payments",
    "analytics-revenue-ltv",
    "analytics-revenue-mrr",
    "analytics-revenue-subscriptions",
    "analytics-users-count",
    "analytics-users-growth",
    "analytics-users-retention",
];

/// Prints all of it.
pub(crate) fn measure(deployed: &Deployed, events: usize) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(run(deployed, events)).map_err(|error| error.to_string())
}

async fn run(deployed: &Deployed, events: usize) -> Result<(), Failure> {
    let stack = Stack::of(deployed)?;
    sweep(deployed).await?;
    let [main, twin, third] = [Stores::new(deployed)?, Stores::new(deployed)?, Stores::new(deployed)?];
    let measured = async {
        for stores in [&main, &twin, &third] {
            stores.create().await?;
        }
        ingest(&main, &twin, &third, events).await?;
        // What merges from now on is what the figures read.
        for others in [&twin, &third] {
            others.drop().await?;
        }
        main.settle().await?;
        figures(&stack, &main, events).await
    }
    .await;
    let dropped = [main.drop().await, twin.drop().await, third.drop().await];
    measured?;
    dropped.into_iter().collect::<Result<(), _>>()?;
    arrivals(&stack, deployed).await
}

/// Drops what a run left that was killed. Two at a time would measure each other anyway.
async fn sweep(deployed: &Deployed) -> Result<(), Failure> {
    let mut postgres = PgConnection::connect(address(deployed, "DATABASE_URL")?).await?;
    let of_postgres: Vec<String> =
        sqlx::query_scalar("SELECT datname FROM pg_database").fetch_all(&mut postgres).await?;
    let of_clickhouse = Stores::new(deployed)?.sql("default", "SHOW DATABASES").await?;
    let names: BTreeSet<&str> = of_postgres.iter().map(String::as_str).chain(of_clickhouse.lines()).collect();
    for name in names.into_iter().filter(|name| name.starts_with(PREFIX)) {
        Stores::named(deployed, name.to_owned())?.drop().await?;
    }
    Ok(())
}

/// A database of Postgres and one of ClickHouse, and the secrets that lead functions to them.
struct Stores<'a> {
    deployed: &'a Deployed,
    client: reqwest::Client,
    name: String,
    relay: Relay,
}

impl<'a> Stores<'a> {
    fn new(deployed: &'a Deployed) -> Result<Self, Failure> {
        Self::named(deployed, format!("{PREFIX}{}", Uuid::now_v7().simple()))
    }

    fn named(deployed: &'a Deployed, name: String) -> Result<Self, Failure> {
        let relay = Relay::start(address(deployed, "CLICKHOUSE_URL")?)?;
        Ok(Self { deployed, client: reqwest::Client::builder().tcp_nodelay(true).build()?, name, relay })
    }

    async fn create(&self) -> Result<(), Failure> {
        let mut postgres = PgConnection::connect(address(self.deployed, "DATABASE_URL")?).await?;
        postgres.execute(AssertSqlSafe(format!("CREATE DATABASE {}", self.name))).await?;
        // The accounts of the stack, on another way into another database.
        let deployed = self.deployed.environment("workers-ingest");
        let id = json!({ "SecretId": deployed.get("CLICKHOUSE_SECRET_ARN").ok_or("ClickHouse's secret is unknown")? });
        let secret = self.secrets("GetSecretValue", &id).await?;
        let mut clickhouse: Value = serde_json::from_str(secret["SecretString"].as_str().unwrap_or_default())?;
        clickhouse["url"] = json!(address(self.deployed, "CLICKHOUSE_URL")?);
        clickhouse["database"] = json!(self.name);
        let mut relayed = clickhouse.clone();
        relayed["url"] = json!(self.relay.url);
        let postgres = json!({ "url": self.postgres_url()? });
        for (store, secret) in SECRETS.into_iter().zip([postgres, clickhouse, relayed]) {
            let secret = json!({ "Name": format!("{}-{store}", self.name), "SecretString": secret.to_string() });
            self.secrets("CreateSecret", &secret).await?;
            // Of this secret the functions' roles know nothing.
            let policy = json!({ "Version": "2012-10-17", "Statement": {
                "Effect": "Allow", "Principal": "*", "Action": "secretsmanager:GetSecretValue", "Resource": "*",
            }});
            let opened = json!({ "SecretId": secret["Name"], "ResourcePolicy": policy.to_string() });
            self.secrets("PutResourcePolicy", &opened).await?;
        }
        let migrated = self.start("workers-migrate")?.invoke(&json!({}))?.payload;
        if migrated["clickhouse"].is_array() { Ok(()) } else { Err(format!("migrations: {migrated}").into()) }
    }

    async fn drop(&self) -> Result<(), Failure> {
        for store in SECRETS {
            let secret = json!({ "SecretId": format!("{}-{store}", self.name), "ForceDeleteWithoutRecovery": true });
            match self.secrets("DeleteSecret", &secret).await {
                Err(error) if !error.to_string().contains("ResourceNotFoundException") => return Err(error),
                _ => {}
            }
        }
        self.sql("default", &format!("DROP DATABASE IF EXISTS {}", self.name)).await?;
        let mut postgres = PgConnection::connect(address(self.deployed, "DATABASE_URL")?).await?;
        let started = Instant::now();
        // Where a process of the server's own is cleaning up, it may not be made to leave; it leaves by itself.
        while let Err(error) =
            postgres.execute(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name))).await
        {
            if started.elapsed() > PATIENCE {
                return Err(error.into());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    fn postgres_url(&self) -> Result<String, Failure> {
        let url = address(self.deployed, "DATABASE_URL")?;
        let (server, _) = url.rsplit_once('/').ok_or("DATABASE_URL has no path")?;
        Ok(format!("{server}/{}", self.name))
    }

    /// Starts a function that works on these databases.
    fn start(&self, function: &str) -> Result<Sandbox, String> {
        self.start_by(function, DIRECT)
    }

    /// The same with the relay in between, which takes its time.
    fn start_relayed(&self, function: &str) -> Result<Sandbox, String> {
        self.start_by(function, RELAYED)
    }

    fn start_by(&self, function: &str, clickhouse: &str) -> Result<Sandbox, String> {
        let mut environment: Environment = self.deployed.environment(function);
        environment.insert("DATABASE_SECRET_ARN".to_owned(), format!("{}-postgres", self.name));
        environment.insert("CLICKHOUSE_SECRET_ARN".to_owned(), format!("{}-{clickhouse}", self.name));
        Sandbox::start(&self.deployed.binary(function), &environment)
    }

    fn writer(&self) -> Result<Writer, Failure> {
        let password = Secret::new(address(self.deployed, "CLICKHOUSE_PASSWORD")?.to_owned());
        let (url, user) = (address(self.deployed, "CLICKHOUSE_URL")?, address(self.deployed, "CLICKHOUSE_USER")?);
        let clickhouse = ClickHouse::connect_lazy(url, user, &password, &self.name)?;
        Ok(Writer::new(clickhouse, &Database::connect_lazy(&self.postgres_url()?)?))
    }

    async fn secrets(&self, action: &str, body: &Value) -> Result<Value, Failure> {
        let credential = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/secretsmanager/aws4_request, \
                          SignedHeaders=host, Signature=0";
        let call = self
            .client
            .post(address(self.deployed, "AWS_ENDPOINT_URL")?)
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", format!("secretsmanager.{action}"))
            .header("authorization", credential);
        let reply = call.body(body.to_string()).send().await?;
        let good = reply.status().is_success();
        let text = reply.text().await?;
        if good { Ok(serde_json::from_str(&text)?) } else { Err(text.into()) }
    }

    async fn clickhouse(&self, database: &str, parameters: &[(&str, &str)], body: Vec<u8>) -> Result<String, Failure> {
        let parameters = parameters.iter().copied().chain([("database", database)]);
        let call = self
            .client
            .post(reqwest::Url::parse_with_params(address(self.deployed, "CLICKHOUSE_URL")?, parameters)?)
            .header("x-clickhouse-user", address(self.deployed, "CLICKHOUSE_USER")?)
            .header("x-clickhouse-key", address(self.deployed, "CLICKHOUSE_PASSWORD")?);
        let reply = call.body(body).send().await?;
        let good = reply.status().is_success();
        let text = reply.text().await?;
        if good { Ok(text) } else { Err(text.into()) }
    }

    async fn sql(&self, database: &str, sql: &str) -> Result<String, Failure> {
        self.clickhouse(database, &[], sql.to_owned().into_bytes()).await
    }

    /// An insert and nothing else, with the settings that the worker's has.
    async fn insert(&self, table: &str, block: Vec<u8>) -> Result<Duration, Failure> {
        let (query, token) = (format!("INSERT INTO {table} FORMAT Native"), Uuid::now_v7().to_string());
        let parameters = [
            ("query", query.as_str()),
            ("insert_deduplication_token", token.as_str()),
            ("insert_deduplicate", "1"),
            ("deduplicate_blocks_in_dependent_materialized_views", "1"),
            ("async_insert", "0"),
            ("parallel_view_processing", "1"),
            ("optimize_on_insert", "0"),
            ("max_partitions_per_insert_block", "0"),
        ];
        let started = Instant::now();
        self.clickhouse(&self.name, &parameters, block).await?;
        Ok(started.elapsed())
    }

    /// Waits until the server has merged what it wants to.
    async fn settle(&self) -> Result<(), Failure> {
        let (started, mut quiet) = (Instant::now(), 0);
        while quiet < 3 && started.elapsed() < SETTLING {
            let merges = self.sql("default", "SELECT count() FROM system.merges").await?;
            quiet = if merges.trim() == "0" { quiet + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// The same rows in all tables as the other's have, without writing them again.
    async fn copy(&self, other: &Self) -> Result<(), Failure> {
        let parts = format!(
            "SELECT DISTINCT table, partition_id FROM system.parts WHERE active AND database = '{}'
                AND table != 'schema_migrations'",
            other.name
        );
        for line in self.sql("default", &parts).await?.lines() {
            let (table, partition) = line.split_once('\t').ok_or("two columns")?;
            let attach = format!("ALTER TABLE {table} ATTACH PARTITION ID '{partition}' FROM {}.{table}", other.name);
            self.sql(&self.name, &attach).await?;
        }
        Ok(())
    }
}

fn address<'a>(deployed: &'a Deployed, name: &str) -> Result<&'a str, Failure> {
    deployed.address(name).ok_or_else(|| format!("{name} is unknown").into())
}

fn parse(told: &[Told]) -> Result<Vec<Event<'_>>, Failure> {
    let events: Result<Vec<_>, _> = told.iter().map(|told| Event::parse(&told.body, Some(told.time))).collect();
    events.map_err(|rejection| rejection.to_string().into())
}

/// The same events as SQS delivers them, as text, and as ClickHouse takes them.
struct Batch {
    delivery: Value,
    text: String,
    rows: Vec<u8>,
}

impl Batch {
    fn of(history: &mut History) -> Result<Self, Failure> {
        let told: Vec<Told> = history.by_ref().take(BATCH).collect();
        let (delivery, parsed) = (history::delivery(&told), parse(&told)?);
        let mut rows = Rows::new(clock::millis(clock::now()));
        rows.extend(&parsed);
        let rows = rows.encode(&vec![true; parsed.len()]);
        Ok(Self { text: delivery.to_string(), delivery, rows })
    }
}

/// Fills the databases, then gives the last batches to the worker of the first, to bare inserts of the second, and to
/// what the worker does once it has its event, with the third.
async fn ingest(main: &Stores<'_>, twin: &Stores<'_>, third: &Stores<'_>, events: usize) -> Result<(), Failure> {
    let batches = BATCHES.min(events / BATCH).max(1);
    let mut history = History::new(events);
    let (filling, writer) = (events.saturating_sub(batches * BATCH), main.writer()?);
    let (mut filled, started) = (0, Instant::now());
    while filled < filling {
        let told: Vec<Told> = history.by_ref().take(BLOCK.min(filling - filled)).collect();
        filled += writer.write(&parse(&told)?).await?;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("\n{filled} events written in blocks of {BLOCK}: {:.0} a second", filled as f64 / seconds);
    twin.copy(main).await?;
    third.copy(main).await?;
    let third = third.writer()?;
    twin.sql(&twin.name, "CREATE TABLE alone AS events").await?;

    let mut function = main.start("workers-ingest")?;
    let server = processes_with(&format!("CLICKHOUSE_PASSWORD={}", address(main.deployed, "CLICKHOUSE_PASSWORD")?));
    let [mut of_worker, mut of_core, mut of_bare, mut of_table] = [const { Vec::new() }; 4];
    let (mut worker_ticks, mut bare_ticks) = (0, 0);
    let batches: Vec<Batch> = (0..batches).map(|_| Batch::of(&mut history)).collect::<Result<_, _>>()?;
    // Each contender has half of the batches at a stretch, so that the merges it waits for are its own; then the
    // others, and at last the other half in the opposite order.
    let (first, second) = batches.split_at(batches.len() / 2);
    for (some, order) in [(first, [0, 1, 2, 3]), (second, [3, 2, 1, 0])] {
        for contender in order {
            main.settle().await?;
            for batch in some {
                match contender {
                    0 => {
                        let before = ticks(&server);
                        of_bare.push(twin.insert("events", batch.rows.clone()).await?);
                        bare_ticks += ticks(&server).saturating_sub(before);
                    }
                    1 => {
                        let started = Instant::now();
                        let records = delivery::records(batch.text.as_bytes())?;
                        let events = Events::read(&records, clock::millis(clock::now()));
                        if let Some((_, rejection)) = events.rejected.first() {
                            return Err(rejection.to_string().into());
                        }
                        third.write_rows(&events.rows).await?;
                        of_core.push(started.elapsed());
                    }
                    2 => {
                        let before = ticks(&[function.id()]);
                        let reply = function.invoke(&batch.delivery)?;
                        worker_ticks += ticks(&[function.id()]).saturating_sub(before);
                        if reply.payload["batchItemFailures"] != json!([]) {
                            return Err("the worker did not take a batch".into());
                        }
                        of_worker.push(reply.took);
                    }
                    _ => of_table.push(twin.insert("alone", batch.rows.clone()).await?),
                }
            }
        }
    }
    let batches = batches.len();
    println!(
        "\nOne ingest worker, {batches} batches of {BATCH} events (targets: 80 % of bare; bare 100000 a second)\n"
    );
    let rate = |samples: &[Duration]| samples.len() as f64 * BATCH as f64 / total(samples).as_secs_f64();
    let row = |name: &str, samples: &[Duration]| {
        let best = quantile(samples, 0.0);
        vec![
            name.to_owned(),
            format!("{:.0}", rate(samples)),
            format!("{:.0}", BATCH as f64 / best.as_secs_f64()),
            millis(median(samples)),
            format!("{:.2}", rate(samples) / rate(&of_bare)),
        ]
    };
    print(&[
        ["", "events/s", "best batch", "median ms", "of bare"].map(str::to_owned).to_vec(),
        row("an SQS event in memory to the insert's answer", &of_core),
        row("the whole invocation, from event to reply", &of_worker),
        row("bare insert, all views", &of_bare),
        row("bare insert, no views", &of_table),
    ]);
    let each = |ticks: u64| format!("{:.0}", ticks as f64 * 10.0 / batches as f64);
    println!(
        "\nProcessor time of a batch: {} ms in the worker, {} ms in ClickHouse for a bare insert, merges included",
        each(worker_ticks),
        each(bare_ticks)
    );
    let ask = "SELECT (SELECT count() FROM events), (SELECT sum(events) FROM request_totals)";
    let counted = main.sql(&main.name, ask).await?;
    if counted != format!("{events}\t{events}\n") && events >= BATCH {
        return Err(format!("{events} events were told, but counted: {counted}").into());
    }
    Ok(())
}

fn total(samples: &[Duration]) -> Duration {
    samples.iter().sum()
}

/// Every figure's function over the last 30 days of the history.
async fn figures(stack: &Stack, main: &Stores<'_>, events: usize) -> Result<(), Failure> {
    let admin = stack.sign_in(main.deployed).await?;
    let day = |before: i64| {
        let at = clock::rfc3339(clock::from_millis(clock::millis(clock::now()) - before * 86_400_000));
        at.get(..10).unwrap_or_default().to_owned()
    };
    let figures = main.deployed.names().filter(|name| name.starts_with("analytics-") && *name != "analytics-health");
    let mut ranges: Vec<(&str, &str, i64, i64)> = figures.map(|name| (name.as_str(), "", 30, 1)).collect();
    // Many users were there after this range as well, and are looked at once more.
    ranges.push(("analytics-users-count", ", 60 days ago", 90, 60));
    let mut rows = vec![["", "median ms", "p95 ms", "rows read", "of raw"].map(str::to_owned).to_vec()];
    for (name, when, first, last) in ranges {
        let (from, to) = (day(first), day(last));
        let counted = if TO_DATE.contains(&name) { "count()" } else { &format!("countIf(toDate(time) >= '{from}')") };
        let raw = format!("SELECT {counted} FROM events WHERE toDate(time) <= '{to}'");
        let raw: f64 = main.sql(&main.name, &raw).await?.trim().parse()?;
        let mut event = Deployed::event(name, &random_address(), None, Some(&admin))?;
        event["queryStringParameters"] = json!({ "startDate": from, "endDate": to });
        event["multiValueQueryStringParameters"] = json!({ "startDate": [from], "endDate": [to] });
        let mut function = main.start_relayed(name)?;
        let (mut samples, mut read) = (Vec::new(), 0);
        for turn in 0..WARM_UP + SAMPLES {
            let before = main.relay.rows_read();
            let reply = function.invoke(&event)?;
            if reply.payload["statusCode"] != 200 {
                return Err(format!("{name} answered {}", reply.payload).into());
            }
            read = main.relay.rows_read() - before;
            if turn >= WARM_UP {
                samples.push(reply.took);
            }
        }
        rows.push(vec![
            format!("{name}{when}"),
            millis(median(&samples)),
            millis(quantile(&samples, 0.95)),
            read.to_string(),
            format!("{:.5}", read as f64 / raw.max(1.0)),
        ]);
    }
    println!(
        "\nThe figures over 30 days of {events} events, {SAMPLES} times each (targets: p95 100 ms; 0.001 of the \
         raw rows of these days, or of those up to them where a figure is of all time)\n"
    );
    print(&rows);
    Ok(())
}

/// From `POST /api/auth/signup` until the figure has it, through the queue and the window as they are deployed.
async fn arrivals(stack: &Stack, deployed: &Deployed) -> Result<(), Failure> {
    let admin = stack.sign_in(deployed).await?;
    let mut event = Deployed::event("analytics-users-signups", &random_address(), None, Some(&admin))?;
    let today = clock::rfc3339(clock::now()).get(..10).unwrap_or_default().to_owned();
    event["queryStringParameters"] = json!({ "startDate": today });
    event["multiValueQueryStringParameters"] = json!({ "startDate": [today] });
    let mut function = deployed.start("analytics-users-signups")?;
    let mut signups = || -> Result<u64, Failure> {
        let reply = function.invoke(&event)?.payload;
        let body: BTreeMap<String, Value> = serde_json::from_str(reply["body"].as_str().unwrap_or_default())?;
        let days = body["data"].as_array().ok_or("no data")?;
        Ok(days.iter().filter_map(|day| day["signups"].as_u64()).sum())
    };
    let mut samples = Vec::new();
    for _ in 0..ARRIVALS {
        let before = signups()?;
        let started = Instant::now();
        stack.sign_up().await?;
        while signups()? <= before {
            if started.elapsed() > PATIENCE {
                return Err("a sign-up did not become visible in 30 seconds".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        samples.push(started.elapsed());
    }
    println!("\nFrom POST to the figure, {ARRIVALS} sign-ups (target: median 5000 ms)\n");
    print(&[
        vec!["median ms".to_owned(), millis(median(&samples))],
        vec!["p95 ms".to_owned(), millis(quantile(&samples, 0.95))],
    ]);
    Ok(())
}
