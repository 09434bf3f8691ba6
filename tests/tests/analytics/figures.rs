//! Every figure equals what brute force over the distinct events comes to.

use lib::analytics::event::Event;
use lib::analytics::report::{Interval, Query, Range, Reports};
use lib::analytics::users::CohortBy;
use lib::chat::catalogue::ProviderId;
use serde_json::{Value, json};
use time::{Date, Duration};
use uuid::Uuid;

use crate::history::{self, Message, Random};
use crate::oracle::Oracle;
use crate::stores::{Stores, parse, signups};

async fn ingest(stores: &Stores, messages: &[Message], random: &mut Random) {
    let mut rest = messages;
    while !rest.is_empty() {
        let size = usize::try_from(1 + random.below(400)).unwrap().min(rest.len());
        let (slice, later) = rest.split_at(size);
        let events: Vec<Event<'_>> =
            slice.iter().filter_map(|message| Event::parse(&message.body, None).ok()).collect();
        let valid = slice.iter().filter(|message| message.event.is_some()).count();
        assert_eq!(events.len(), valid, "the malformed messages, and no others, are refused");
        stores.writer().write(&events).await.expect("written");
        rest = later;
    }
}

fn queries(random: &mut Random) -> Vec<Query> {
    let first = Date::from_calendar_date(2025, time::Month::November, 1).unwrap();
    let today = Date::from_calendar_date(2026, time::Month::February, 10).unwrap();
    let query = |from: i64, days: i64, interval| Query {
        range: Range { from: first + Duration::days(from), to: first + Duration::days(from + days - 1) },
        interval,
        limit: 20,
        today,
    };
    let mut queries = vec![
        query(-10, 150, Interval::Month),
        query(72, 30, Interval::Day),
        query(300, 10, Interval::Week),
        Query { limit: 3, ..query(30, 40, Interval::Week) },
    ];
    for _ in 0..4 {
        let from = i64::try_from(random.below(100)).unwrap();
        queries.push(query(from, 1 + i64::try_from(random.below(4)).unwrap(), Interval::Hour));
        let interval = random.of(&[Interval::Day, Interval::Week, Interval::Month]);
        queries.push(query(from, 1 + i64::try_from(random.below(60)).unwrap(), interval));
    }
    queries
}

/// Where the two differ, if they do: integers and words exactly, fractions to the last digits, quantiles by rank.
fn difference(path: &str, actual: &Value, expected: &Value) -> Option<String> {
    let differ = || Some(format!("{path}: {actual} is not {expected}"));
    match (actual, expected) {
        (_, Value::Object(quantile)) if quantile.contains_key("quantile") => {
            let values: Vec<i64> = serde_json::from_value(quantile["of"].clone()).unwrap();
            let Some(last) = values.len().checked_sub(1) else { return if actual.is_null() { None } else { differ() } };
            let level = quantile["quantile"].as_f64().unwrap();
            let rank = |level: f64| (level.clamp(0.0, 1.0) * last as f64).max(0.0);
            let low = values[rank(level - 0.01).floor() as usize] as f64;
            let high = values[rank(level + 0.01).ceil() as usize] as f64;
            let good = actual.as_f64().is_some_and(|value| (low - 1e-3..=high + 1e-3).contains(&value));
            if good { None } else { differ() }
        }
        (Value::Object(a), Value::Object(b)) => {
            if a.keys().collect::<std::collections::BTreeSet<_>>() != b.keys().collect() {
                return differ();
            }
            a.iter().find_map(|(name, value)| difference(&format!("{path}.{name}"), value, &b[name]))
        }
        (Value::Array(a), Value::Array(b)) => {
            if a.len() != b.len() {
                return differ();
            }
            a.iter().zip(b).enumerate().find_map(|(n, (a, b))| difference(&format!("{path}[{n}]"), a, b))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            if (a - b).abs() <= 1e-9 * b.abs().max(1.0) { None } else { differ() }
        }
        (a, b) => {
            if a == b {
                None
            } else {
                differ()
            }
        }
    }
}

macro_rules! compare {
    ($reports:expr, $oracle:expr, $query:expr, $($figure:ident),* $(,)?) => {
        [$((
            stringify!($figure),
            match $reports.$figure($query).await {
                Ok(figure) => json!(figure),
                Err(error) => json!(error.to_string()),
            },
            $oracle.$figure($query),
        ),)*]
    };
}

async fn check(stores: &Stores, oracle: &Oracle, query: &Query) {
    let reports = Reports::new(stores.clickhouse.clone());
    let mut figures = Vec::from(compare!(
        reports,
        oracle,
        query,
        users_growth,
        users_active,
        users_signups,
        users_top,
        users_count,
        chat_activity,
        chat_tokens,
        chat_by_provider,
        chat_by_model,
        chat_messages,
        chat_conversations,
        revenue_total,
        revenue_mrr,
        revenue_over_time,
        revenue_by_plan,
        revenue_ltv,
        revenue_subscriptions,
        revenue_failed_payments,
        providers_usage,
        providers_performance,
        providers_cost,
        providers_popular_models,
        providers_usage_over_time,
        providers_usage_by_plan,
    ));
    for by in [CohortBy::Week, CohortBy::Month] {
        let retention = reports.users_retention(query, by).await.expect("retention");
        figures.push(("users_retention", json!(retention), oracle.users_retention(query, by)));
    }
    for provider in [ProviderId::Openai, ProviderId::Google] {
        let models = reports.providers_models(query, provider).await.expect("models");
        figures.push(("providers_models", json!(models), oracle.providers_models(query, provider.as_str())));
    }
    let wrong: Vec<String> =
        figures.iter().filter_map(|(name, actual, expected)| difference(name, actual, expected)).collect();
    assert!(wrong.is_empty(), "{query:?}\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn every_figure_equals_the_oracle() {
    for seed in 1..=3 {
        let mut random = Random::new(seed);
        let stores = Stores::fresh().await;
        let messages = history::history(&mut random, 1500);
        let oracle = Oracle::new(&messages);
        ingest(&stores, &messages, &mut random).await;
        assert_eq!(stores.counted().await.0, oracle.len() as u64, "seed {seed}");
        let queries = queries(&mut random);
        for query in &queries {
            check(&stores, &oracle, query).await;
        }
        // Everything again in another order and other slices.
        let mut again = messages.clone();
        random.shuffle(&mut again);
        ingest(&stores, &again, &mut random).await;
        check(&stores, &oracle, &queries[0]).await;
        stores.drop().await;
    }
}

#[tokio::test]
async fn freshness_is_the_time_since_something_was_counted() {
    let stores = Stores::fresh().await;
    let reports = Reports::new(stores.clickhouse.clone());
    assert_eq!(reports.freshness().await.expect("of nothing"), None);
    stores.writer().write(&parse(&signups(1))).await.expect("written");
    let seconds = reports.freshness().await.expect("of an old event").expect("something was counted");
    assert!(seconds < 60, "{seconds}");
    stores.drop().await;
}

/// Distinct counts may be estimates where there are many.
#[tokio::test]
async fn many_users_are_counted_within_one_percent() {
    const USERS: usize = 5_000;
    let stores = Stores::fresh().await;
    let sent = |n: usize| {
        json!({
            "specversion": "1.0", "id": Uuid::now_v7(), "source": "/test", "type": "chat.message_sent",
            "subject": format!("user-{}", n % USERS), "time": "2026-01-15T12:00:00Z",
            "data": {
                "schemaVersion": 1, "plan": "free", "country": null, "conversationId": Uuid::now_v7(),
                "messageId": Uuid::now_v7(), "provider": "openai", "model": "gpt-4", "requestedModel": "gpt-4",
                "inputTokens": 11, "cachedInputTokens": 0, "outputTokens": 12, "reasoningTokens": 0,
                "costMicroUsd": 1050, "priceVersion": "2026-11-01", "ttftMs": 310, "latencyMs": 900,
                "finishReason": "stop", "attempts": 1, "fallbackFrom": null, "streamed": true, "regenerated": false,
            },
        })
        .to_string()
    };
    // Each comes again in another block.
    let bodies: Vec<String> = (0..2 * USERS).map(sent).collect();
    for bodies in bodies.chunks(3_000) {
        stores.writer().write(&parse(bodies)).await.expect("written");
    }
    let day = Date::from_calendar_date(2026, time::Month::January, 15).unwrap();
    let query = Query { range: Range { from: day, to: day }, interval: Interval::Day, limit: 20, today: day };
    let reports = Reports::new(stores.clickhouse.clone());
    let active = json!(reports.users_active(&query).await.expect("active"));
    let tokens = json!(reports.chat_tokens(&query).await.expect("tokens"));
    let usage = json!(reports.providers_usage(&query).await.expect("usage"));
    let users_by_tokens = 23.0 * 2.0 * USERS as f64 / tokens[0]["tokensPerUser"].as_f64().unwrap();
    for (what, users) in [
        ("dau", active["dau"].as_f64().unwrap()),
        ("mau", active["mau"].as_f64().unwrap()),
        ("tokens per user", users_by_tokens),
        ("users of a provider", usage[0]["users"].as_f64().unwrap()),
    ] {
        assert!((users / USERS as f64 - 1.0).abs() <= 0.01, "{what}: {users} users");
    }
    stores.drop().await;
}
