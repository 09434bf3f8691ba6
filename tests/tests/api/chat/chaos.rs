//! Providers at their worst and readers who leave: what was stored, what was billed, what the provider says that
//! it produced, and what analytics counts are the same, to the last token.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::support::*;

/// `CHAOS_REQUESTS` asks for more of them.
const REQUESTS: usize = 240;
const WORKERS: usize = 8;
/// Requests of one person, below what is allowed in a minute.
const EACH: usize = 75;
/// Tokens of the mock's whole answers: the usual one, and the slow one.
const USUAL: i64 = 23;
const SLOW: i64 = 37;

/// What one request was answered.
struct Answered {
    message: String,
    status: u16,
    text: String,
}

fn requests() -> usize {
    optional_variable("CHAOS_REQUESTS").map_or(REQUESTS, |number| number.parse().unwrap())
}

fn message(run: Uuid, worker: usize, number: usize) -> String {
    let kind = match number % 50 {
        3 => "AIMOCK:slow",
        23 => "AIMOCK:down",
        n if n % 10 == 7 => "AIMOCK:disconnect",
        _ => "AIMOCK:chaos",
    };
    format!("{kind} {run} {worker}-{number}.")
}

/// The mock's calls of this run, by question, in their order.
async fn journal(run: Uuid) -> BTreeMap<String, Vec<Value>> {
    let url = format!("{}/__aimock/journal", variable("LLM_URL").trim_end_matches('/'));
    let entries: Vec<Value> = serde_json::from_str(&plain_get(&url).await).unwrap();
    let mut calls: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for entry in entries {
        let said =
            entry["body"]["messages"].as_array().and_then(|turns| turns.last()).map(|turn| turn["content"].to_string());
        if let Some(at) = said.as_ref().and_then(|said| said.find(&run.to_string()).map(|at| &said[at..])) {
            let question = at.split_once('.').unwrap().0.to_owned();
            calls.entry(question).or_default().push(entry);
        }
    }
    calls
}

/// What the API must have answered, by what the provider did: the status, and whole answers of so many tokens.
fn expected(calls: &[Value], question: &str, streamed: bool) -> (u16, i64) {
    if question.contains("disconnect") {
        return (if streamed { 200 } else { 502 }, 0);
    }
    let good =
        calls.iter().filter(|call| call["response"]["chaosAction"].is_null() && call["response"]["status"] == 200);
    match good.count() {
        0 => {
            // The provider that was asked first gives the reason, by its last word.
            let first = calls.iter().rfind(|call| call["path"] == calls[0]["path"]).unwrap();
            (if first["response"]["chaosAction"] == "ratelimit" { 503 } else { 502 }, 0)
        }
        1 => (200, if question.contains("slow") { SLOW } else { USUAL }),
        more => panic!("{question}: {more} whole answers for one question: {calls:?}"),
    }
}

async fn numbers(database: &mut PgConnection, users: &[Uuid], statement: &'static str) -> (i64, i64) {
    sqlx::query_as(statement).bind(users).fetch_one(database).await.unwrap()
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_whatever_providers_do() {
    let (api, run) = (Api::of_router(), Uuid::now_v7());
    let turns = requests().div_ceil(WORKERS);
    let people = join_all((0..WORKERS * turns.div_ceil(EACH)).map(|_| api.sign_up())).await;
    let answered: Vec<Answered> = join_all((0..WORKERS).map(|worker| {
        let (api, people) = (&api, &people);
        async move {
            let mut answered = Vec::new();
            for number in 0..turns {
                let person = &people[worker + WORKERS * (number / EACH)];
                let message = message(run, worker, number);
                let body = json!({"message": message, "stream": number % 2 == 1, "maxTokens": 500});
                let reply = api.post("/api/chat").bearer(&person.jwt).json(&body).send().await;
                answered.push(Answered { message, status: reply.status, text: reply.text });
            }
            answered
        }
    }))
    .await
    .into_iter()
    .flatten()
    .collect();

    let journal = journal(run).await;
    let (mut whole, mut broken, mut refused, mut produced) = (0, 0, 0, 0);
    for Answered { message, status, text } in &answered {
        let at = message.find(&run.to_string()).unwrap();
        let calls = &journal[message[at..].trim_end_matches('.')];
        let number: usize = message.rsplit_once('-').unwrap().1.trim_end_matches('.').parse().unwrap();
        let streamed = number % 2 == 1;
        let (expected_status, tokens) = expected(calls, message, streamed);
        assert_eq!(*status, expected_status, "{message}: {text}\n{calls:?}");
        produced += tokens;
        if message.contains("disconnect") {
            assert!(!streamed || text.contains("event: error") && !text.contains("event: done"), "{text}");
            broken += 1;
        } else if *status == 200 {
            assert!(!streamed || text.contains("event: done") && !text.contains("event: error"), "{text}");
            whole += 1;
        } else {
            refused += 1;
        }
    }
    assert!(
        broken > 0 && refused > 0 && whole > answered.len() / 2,
        "{whole} whole, {broken} broken, {refused} refused"
    );

    let users: Vec<Uuid> = people.iter().map(|person| person.id.parse().unwrap()).collect();
    let mut database = PgConnection::connect(&variable("DATABASE_URL")).await.unwrap();
    let kept = i64::try_from(whole + broken).unwrap();
    // The last stream's end is seen a moment before its transaction is: all else is settled.
    let ledger = "SELECT count(*), coalesce(sum(input_tokens + output_tokens), 0)::bigint FROM usage_ledger
                  WHERE user_id = ANY($1)";
    let (rows, tokens) = numbers(&mut database, &users, ledger).await;
    assert_eq!(rows, kept, "as many rows on the ledger as answers");
    let reported = "SELECT count(*), coalesce(sum(l.input_tokens + l.output_tokens), 0)::bigint FROM usage_ledger l
                    JOIN messages m ON m.id = l.id WHERE l.user_id = ANY($1) AND m.finish_reason = 'stop'";
    let reported = numbers(&mut database, &users, reported).await;
    assert_eq!(reported, (i64::try_from(whole).unwrap(), produced), "the mock's own count");
    let month = "SELECT sum(used)::bigint, sum(reserved)::bigint FROM quota_periods WHERE user_id = ANY($1)";
    assert_eq!(numbers(&mut database, &users, month).await, (tokens, 0));
    let left = "SELECT count(*), 0::bigint FROM quota_reservations WHERE user_id = ANY($1)";
    assert_eq!(numbers(&mut database, &users, left).await, (0, 0));
    let sides = "SELECT count(*) FILTER (WHERE m.role = 'user'), count(*) FILTER (WHERE m.role = 'assistant')
                 FROM messages m JOIN conversations c ON c.id = m.conversation_id WHERE c.user_id = ANY($1)";
    assert_eq!(numbers(&mut database, &users, sides).await, (kept, kept), "questions and answers");
    let conversations =
        "SELECT count(*), coalesce(sum(message_count), 0)::bigint FROM conversations WHERE user_id = ANY($1)";
    assert_eq!(numbers(&mut database, &users, conversations).await, (kept, 2 * kept));

    let names: Vec<String> = users.iter().map(|user| format!("'{user}'")).collect();
    let statement = format!(
        "SELECT countIf(type = 'chat.message_sent'), countIf(type = 'chat.message_failed'), sum(input_tokens + output_tokens)
         FROM events WHERE type LIKE 'chat.message%' AND subject IN ({}) FORMAT TSV",
        names.join(",")
    );
    let expected = format!("{whole}\t{}\t{tokens}", broken + refused);
    eventually("the same in ClickHouse", || async { (clickhouse(&statement).await.trim() == expected).then_some(()) })
        .await;
    println!(
        "{} requests: {whole} whole, {broken} broken off, {refused} refused; {} calls of the provider; {tokens} tokens",
        answered.len(),
        journal.values().map(Vec::len).sum::<usize>(),
    );
}

/// API Gateway of the emulator gathers a stream before it passes it on; the router does not.
#[tokio::test]
async fn whoever_leaves_at_any_point_is_billed_for_what_is_stored() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let points: Vec<usize> = (0..50).map(|_| usize::from(Uuid::now_v7().as_bytes()[15]) % 34).collect();
    for group in points.chunks(5) {
        join_all(group.iter().map(|pieces| async {
            let body = json!({"message": "AIMOCK:pieces", "stream": true, "maxTokens": 100});
            let mut response = api.post("/api/chat").bearer(&person.jwt).json(&body).open().await;
            assert_eq!(response.status(), 200);
            for _ in 0..*pieces {
                if response.chunk().await.unwrap().is_none() {
                    break;
                }
            }
        }))
        .await;
    }
    let user: Uuid = person.id.parse().unwrap();
    let (answers, tokens) = eventually("fifty answers", || async {
        let mut database = PgConnection::connect(&variable("DATABASE_URL")).await.unwrap();
        let ledger = "SELECT count(*), coalesce(sum(l.input_tokens + l.output_tokens), 0)::bigint FROM usage_ledger l
                      JOIN messages m ON m.id = l.id AND m.output_tokens = l.output_tokens WHERE l.user_id = ANY($1)";
        Some(numbers(&mut database, &[user], ledger).await).filter(|(answers, _)| *answers >= 50)
    })
    .await;
    assert_eq!(answers, 50, "{points:?}");
    let mut database = PgConnection::connect(&variable("DATABASE_URL")).await.unwrap();
    let month = "SELECT sum(used)::bigint, sum(reserved)::bigint FROM quota_periods WHERE user_id = ANY($1)";
    assert_eq!(numbers(&mut database, &[user], month).await, (tokens, 0), "{points:?}");
    let empty = "SELECT count(*), 0::bigint FROM messages m JOIN conversations c ON c.id = m.conversation_id
                 WHERE c.user_id = ANY($1) AND m.role = 'assistant' AND m.content NOT LIKE 'One two three%'";
    assert_eq!(numbers(&mut database, &[user], empty).await, (0, 0), "{points:?}");
}
