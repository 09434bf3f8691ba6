//! What an answer through port 4000 costs beyond the provider's own: every figure next to a direct call to the
//! same stand-in, taken in turns. And how Postgres answers for somebody with very many conversations.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use lib::chat::conversation::{Conversations, Filter};
use lib::http::page::Limit;
use lib::store::postgres::Database;
use sandbox::deployed::{Deployed, random_address};
use sandbox::plans::{Question, Talker};
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};
use uuid::Uuid;

use crate::figures::{median, millis, print, quantile};

/// Six for each of the processes that are asked in turn.
const WARM_UP: usize = 48;
/// Streams of a moment, and streams of a third of a second.
const SAMPLES: [usize; 2] = [60, 25];
const AT_ONCE: usize = 8;
/// Readings of one page.
const READS: usize = 25;
const CONVERSATIONS: i32 = 100_000;
const MESSAGES: i32 = 2_000;
/// The emulator reads account and region here, and checks nothing.
const SIGNED: &str =
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0";
/// Requests over which processor time is taken; the kernel counts it in hundredths of a second.
const CPU_REQUESTS: u32 = 400;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Prints all of it.
pub(crate) fn measure(deployed: &Deployed) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(run(deployed)).map_err(|error| error.to_string())
}

async fn run(deployed: &Deployed) -> Result<(), Failure> {
    let stack = Stack::of(deployed)?;
    streams(&stack).await?;
    emulator(&stack).await?;
    processor_time(&stack).await?;
    conversations(&stack).await
}

/// The two doors and the database.
pub(crate) struct Stack {
    client: reqwest::Client,
    api: String,
    model: String,
    database: String,
    runtime: String,
    aws: String,
}

/// Times of one stream, since its request.
struct Stream {
    first: Duration,
    total: Duration,
}

impl Stack {
    pub(crate) fn of(deployed: &Deployed) -> Result<Self, Failure> {
        let address = |name: &str| deployed.address(name).ok_or(format!("{name} is unknown")).map(str::to_owned);
        // Refused only where one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().tcp_nodelay(true).build()?;
        Ok(Self {
            client,
            api: address("API_URL")?,
            model: address("LLM_URL")?,
            database: address("DATABASE_URL")?,
            runtime: address("RUNTIME_URL")?,
            aws: address("AWS_ENDPOINT_URL")?,
        })
    }

    pub(crate) async fn sign_up(&self) -> Result<String, Failure> {
        let email = format!("bench-{}@example.com", Uuid::now_v7().simple());
        let body = json!({ "email": email, "password": "correct horse battery", "transport": "bearer" });
        let call =
            self.client.post(format!("{}/api/auth/signup", self.api)).header("x-forwarded-for", random_address());
        let text = call.header("content-type", "application/json").body(body.to_string()).send().await?.text().await?;
        let reply: Value = serde_json::from_str(&text)?;
        Ok(reply["token"].as_str().ok_or(text)?.to_owned())
    }

    /// The session of the stack's administrator.
    pub(crate) async fn sign_in(&self, deployed: &Deployed) -> Result<String, Failure> {
        let [email, password] =
            ["ADMIN_EMAIL", "ADMIN_PASSWORD"].map(|name| deployed.address(name).unwrap_or_default());
        let body = json!({ "email": email, "password": password, "transport": "bearer" });
        let call =
            self.client.post(format!("{}/api/auth/signin", self.api)).header("x-forwarded-for", random_address());
        let text = call.header("content-type", "application/json").body(body.to_string()).send().await?.text().await?;
        let reply: Value = serde_json::from_str(&text)?;
        Ok(reply["sessionToken"].as_str().ok_or(text)?.to_owned())
    }

    async fn ask(&self, bearer: &str, message: &str) -> Result<Stream, Failure> {
        self.ask_traced(bearer, message, true).await
    }

    async fn ask_traced(&self, bearer: &str, message: &str, is_traced: bool) -> Result<Stream, Failure> {
        let body = json!({ "message": message, "stream": true, "maxTokens": 100, "model": "gpt-4o-mini" });
        let trace = Uuid::now_v7().simple().to_string();
        let call = self.client.post(format!("{}/api/chat", self.api)).bearer_auth(bearer);
        let call = call.header("traceparent", format!("00-{trace}-{}-0{}", &trace[16..], u8::from(is_traced)));
        timed(call.header("x-forwarded-for", random_address()), &body, "event: delta").await
    }

    async fn ask_model(&self, message: &str) -> Result<Stream, Failure> {
        let body = json!({
            "model": "gpt-4o-mini", "stream": true, "stream_options": { "include_usage": true }, "max_tokens": 100,
            "messages": [{ "role": "user", "content": message }],
        });
        let call = self.client.post(format!("{}/v1/chat/completions", self.model)).bearer_auth("bench");
        timed(call, &body, "\"content\":\"").await
    }
}

async fn timed(call: reqwest::RequestBuilder, body: &Value, mark: &str) -> Result<Stream, Failure> {
    let call = call.header("content-type", "application/json").body(body.to_string());
    let started = Instant::now();
    let mut response = call.send().await?;
    let (status, mut text, mut first) = (response.status(), String::new(), None);
    while let Some(chunk) = response.chunk().await? {
        text.push_str(&String::from_utf8_lossy(&chunk));
        // An empty first piece announces the speaker.
        if first.is_none() && text.replace("\"content\":\"\"", "").contains(mark) {
            first = Some(started.elapsed());
        }
    }
    let first = first.ok_or_else(|| format!("{status}: {text}"))?;
    Ok(Stream { first, total: started.elapsed() })
}

/// Streams through port 4000 and of the stand-in itself, in turns, by people who ask in the same moment and again
/// when the last of them has the answer.
async fn in_turns(stack: &Stack, message: &str, people: usize, samples: usize) -> Result<[Vec<Stream>; 2], Failure> {
    // Nobody may ask a hundred times a minute.
    let signed_up = || try_join_all((0..people).map(|_| stack.sign_up()));
    let (first, then) = (signed_up().await?, signed_up().await?);
    let mut found = [Vec::new(), Vec::new()];
    for round in 0..WARM_UP + samples {
        let people = if round < WARM_UP { &first } else { &then };
        let through = try_join_all(people.iter().map(|bearer| stack.ask(bearer, message))).await?;
        let direct = try_join_all(people.iter().map(|_| stack.ask_model(message))).await?;
        if round >= WARM_UP {
            found[0].extend(through);
            found[1].extend(direct);
        }
    }
    Ok(found)
}

async fn streams(stack: &Stack) -> Result<(), Failure> {
    let heads = ["", "at once", "through 4000 ms", "direct ms", "added ms", "added p95 ms"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for (name, message, groups, people) in [
        ("first delta", "Hello", 1, 1),
        ("first delta, asked in the same moment", "Hello", 1, AT_ONCE),
        ("first delta of 32 pieces", "AIMOCK:pieces", 1, 1),
        ("first delta of 32 pieces, each when it likes", "AIMOCK:pieces", AT_ONCE, 1),
        ("first delta of 32 pieces, asked in the same moment", "AIMOCK:pieces", 1, AT_ONCE),
    ] {
        let at_once = groups * people;
        let samples = SAMPLES[usize::from(message != "Hello")] / if at_once > 1 { 4 } else { 1 };
        let found = try_join_all((0..groups).map(|_| in_turns(stack, message, people, samples))).await?;
        let (mut through, mut direct) = (Vec::new(), Vec::new());
        for [of_api, of_model] in found {
            through.extend(of_api);
            direct.extend(of_model);
        }
        let mut row = |name: &str, of: fn(&Stream) -> Duration| {
            let (through, direct): (Vec<_>, Vec<_>) =
                (through.iter().map(of).collect(), direct.iter().map(of).collect());
            let added = |part: f64| millis(quantile(&through, part).saturating_sub(quantile(&direct, part)));
            let medians = [millis(median(&through)), millis(median(&direct))];
            rows.push(
                [vec![name.to_owned(), at_once.to_string()], medians.to_vec(), vec![added(0.5), added(0.95)]].concat(),
            );
        };
        row(name, |stream| stream.first);
        if message != "Hello" {
            row("the same to its end", |stream| stream.total);
        }
    }
    println!("\nPOST /api/chat streamed on port 4000, next to the provider's stand-in itself");
    println!("(targets: first delta 5 ms more at 1 and at {AT_ONCE} at once, 32 pieces 10 ms more)\n");
    print(&rows);
    Ok(())
}

/// What the emulated DynamoDB takes of the time before the provider is called: a session and a counter, side by
/// side, as any client of it would ask for them. In AWS it is DynamoDB itself.
async fn emulator(stack: &Stack) -> Result<(), Failure> {
    let get = json!({ "TableName": "none", "Key": { "pk": { "S": "bench" } } }).to_string();
    let call = || {
        let call = stack.client.post(&stack.aws).header("x-amz-target", "DynamoDB_20120810.GetItem");
        let call = call.header("content-type", "application/x-amz-json-1.0").header("authorization", SIGNED);
        let body = get.clone();
        async move { call.body(body).send().await?.bytes().await }
    };
    let mut rows = vec![["at once", "both ms", "p95 ms"].map(str::to_owned).to_vec()];
    for at_once in [1, AT_ONCE] {
        let mut times = Vec::new();
        for round in 0..WARM_UP + SAMPLES[0] {
            let each = (0..at_once).map(|_| async {
                let started = Instant::now();
                futures_util::try_join!(call(), call())?;
                Ok::<_, Failure>(started.elapsed())
            });
            let found = try_join_all(each).await?;
            if round >= WARM_UP {
                times.extend(found);
            }
        }
        rows.push(vec![at_once.to_string(), millis(median(&times)), millis(quantile(&times, 0.95))]);
    }
    println!("\nOf that, two bare calls of the emulated DynamoDB that come before the provider\n");
    print(&rows);
    Ok(())
}

/// Processor time of a request, in the function and in the database.
async fn processor_time(stack: &Stack) -> Result<(), Failure> {
    let mut database = PgConnection::connect(&stack.database).await?;
    // So many that none comes to the limit of a minute.
    let mut people = Vec::new();
    for _ in 0..10 {
        people.push(stack.sign_up().await?);
    }
    let functions = processes_with(&format!("AWS_LAMBDA_RUNTIME_API={}/.rt/chat-send", stack.runtime));
    let each = |ticks: u64| millis(Duration::from_millis(ticks * 10) / CPU_REQUESTS);
    let mut rows = vec![["traced", "chat-send ms", "Postgres ms", "together ms"].map(str::to_owned).to_vec()];
    for is_traced in [true, false] {
        let (function, postgres) = (ticks(&functions), ticks_of_each(&backends(&mut database).await?));
        for turn in 0..CPU_REQUESTS {
            stack.ask_traced(&people[turn as usize % people.len()], "Hello", is_traced).await?;
        }
        let function = ticks(&functions).saturating_sub(function);
        // A backend that has ended since takes its time along.
        let living = ticks_of_each(&backends(&mut database).await?).into_iter();
        let postgres = living.map(|(backend, ticks)| ticks.saturating_sub(*postgres.get(&backend).unwrap_or(&0))).sum();
        let traced = if is_traced { "all" } else { "none" };
        rows.push(vec![traced.to_owned(), each(function), each(postgres), each(function + postgres)]);
    }
    println!("\nProcessor time of a streamed request, over {CPU_REQUESTS} of them (target: 3 ms)\n");
    print(&rows);
    if functions.is_empty() {
        return Err("no process of chat-send was found".into());
    }
    Ok(())
}

/// Processes with this entry in their environment.
pub(crate) fn processes_with(entry: &str) -> Vec<i32> {
    let folders = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let has = |environment: Vec<u8>| environment.split(|byte| *byte == 0).any(|found| found == entry.as_bytes());
    folders
        .filter(|folder| std::fs::read(folder.path().join("environ")).is_ok_and(has))
        .filter_map(|folder| folder.file_name().to_string_lossy().parse().ok())
        .collect()
}

async fn backends(database: &mut PgConnection) -> Result<Vec<i32>, Failure> {
    let others = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()";
    Ok(sqlx::query_scalar(others).fetch_all(database).await?)
}

/// Hundredths of a second that the processes have run.
pub(crate) fn ticks(processes: &[i32]) -> u64 {
    ticks_of_each(processes).values().sum()
}

fn ticks_of_each(processes: &[i32]) -> HashMap<i32, u64> {
    let of = |process: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The fields after the name, which may have spaces: the 12th and 13th are user and system time.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some((*process, fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?))
    };
    processes.iter().filter_map(of).collect()
}

async fn conversations(stack: &Stack) -> Result<(), Failure> {
    let mut database = PgConnection::connect(&stack.database).await?;
    let talker = Talker::new(&mut database, CONVERSATIONS, MESSAGES).await?;
    database.execute("VACUUM ANALYZE conversations").await?;
    database.execute("VACUUM ANALYZE messages").await?;
    println!(
        "\nA page of {CONVERSATIONS} conversations of one user, as chat-list-conversations reads it (target: 10 ms)\n"
    );
    let conversations = Conversations::new(Database::connect_lazy(&stack.database)?);
    let words = [
        ("a word of one conversation in a thousand", "seldom"),
        ("a word of one in a hundred", "often"),
        ("a word of all", "words"),
        ("a word of none", "absent"),
    ];
    let mut rows = vec![["", "median ms", "p95 ms"].map(str::to_owned).to_vec()];
    for (name, q) in std::iter::once(("no word", None)).chain(words.map(|(name, word)| (name, Some(word.to_owned())))) {
        let filter = Filter { q, archived: false, pinned: None };
        let mut times = Vec::new();
        for _ in 0..READS {
            let started = Instant::now();
            conversations.list(talker.user, &filter, Limit(20), None).await?;
            times.push(started.elapsed());
        }
        rows.push(vec![name.to_owned(), millis(median(&times)), millis(quantile(&times, 0.95))]);
    }
    print(&rows);
    println!("\nThe plans of Postgres");
    for (name, question) in [
        ("the list", Question::List),
        ("the pinned ones of it", Question::Pinned),
        ("a word of all: the newest conversations have it", Question::Walk("words")),
        ("a word of one in a hundred: the newest conversations do not fill the page", Question::Walk("often")),
        ("  and the index has few", Question::LookUp("often")),
        ("a word of one in a thousand", Question::LookUp("seldom")),
        ("the first page of 2,000 messages", Question::Messages),
        ("the last page of them", Question::LastMessages),
    ] {
        let mut plan = Vec::new();
        for _ in 0..3 {
            plan = talker.plan(&mut database, question).await?;
        }
        println!("\n{name}\n  {}", plan.join("\n  "));
    }
    sqlx::query("DELETE FROM users WHERE id = $1").bind(talker.user).execute(&mut database).await?;
    Ok(())
}
