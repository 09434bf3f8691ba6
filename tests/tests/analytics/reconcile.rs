//! A view that lost or doubled rows is made right again, and one that did not is left alone.

use std::time::Duration;

use lib::analytics::metrics::Metrics;
use lib::analytics::reconcile::{Reconciler, Task};
use lib::config::Secret;

use sandbox::variable;

use crate::history::{Random, history};
use crate::proxy::Meter;
use crate::stores::{PATIENCE, Stores, parse, signups};

/// More than the years that events lie in.
fn all() -> Task {
    Task { days: 100_000, from: None }
}

#[tokio::test]
async fn what_differs_is_rebuilt_and_nothing_else() {
    let stores = Stores::fresh().await;
    let messages = history(&mut Random::new(9), 600);
    let bodies: Vec<String> = messages.into_iter().filter(|m| m.event.is_some()).map(|m| m.body).collect();
    stores.writer().write(&parse(&bodies)).await.expect("written");
    let reconciler = Reconciler::new(stores.clickhouse.clone(), &stores.database);
    assert_eq!(reconciler.run(&all(), PATIENCE).await.expect("first").days_rebuilt, []);

    let client = stores.clickhouse.client();
    let sum = || async {
        let messages = client.query("SELECT sum(messages) FROM chat_statistics").fetch_one::<u64>();
        let of_users = client.query("SELECT sum(messages) FROM user_metrics").fetch_one::<u64>();
        futures_util::try_join!(messages, of_users).expect("sums")
    };
    let right = sum().await;
    for damage in [
        "INSERT INTO chat_statistics SELECT * FROM chat_statistics WHERE day = '2026-01-15'",
        "ALTER TABLE user_metrics DROP PARTITION 202512",
        "TRUNCATE TABLE user_retention",
    ] {
        client.query(damage).execute().await.expect(damage);
    }
    assert_ne!(sum().await, right);
    // What a run left that was cut short, before a migration changed the view.
    let left = "CREATE TABLE user_metrics_anew (day Date) ENGINE = MergeTree ORDER BY day";
    client.query(left).execute().await.expect(left);
    let found = reconciler.run(&all(), PATIENCE).await.expect("second").days_rebuilt;
    let days = |view: &str| found.iter().find(|(name, _)| *name == view).map_or(0, |(_, days)| days.len());
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(days("chat_statistics"), 1);
    assert!(days("user_metrics") > 20 && days("user_retention") > 5, "{found:?}");
    assert_eq!(sum().await, right);
    assert_eq!(reconciler.run(&all(), PATIENCE).await.expect("third").days_rebuilt, []);

    // A month of which nothing is left, as after a user's data was erased.
    let erased = "ALTER TABLE events DELETE WHERE toYYYYMM(time) = 202512 SETTINGS mutations_sync = 2";
    client.query(erased).execute().await.expect(erased);
    let found = reconciler.run(&all(), PATIENCE).await.expect("fourth").days_rebuilt;
    assert!(found.iter().any(|(name, days)| *name == "user_metrics" && days.len() > 20), "{found:?}");
    assert_eq!(reconciler.run(&all(), PATIENCE).await.expect("fifth").days_rebuilt, []);
    let left = client.query("SELECT count() FROM user_metrics WHERE toYYYYMM(day) = 202512").fetch_one::<u64>();
    assert_eq!(left.await.expect("rows"), 0);
    stores.drop().await;
}

#[tokio::test]
async fn what_there_is_no_time_for_is_gone_on_with() {
    let stores = Stores::fresh().await;
    let messages = history(&mut Random::new(9), 60);
    let bodies: Vec<String> = messages.into_iter().filter(|m| m.event.is_some()).map(|m| m.body).collect();
    stores.writer().write(&parse(&bodies)).await.expect("written");
    let client = stores.clickhouse.client();
    // In the last view but one.
    let lost = "TRUNCATE TABLE churn_metrics";
    client.query(lost).execute().await.expect(lost);

    // However fast the machine is, all months take longer than a run has.
    let slow = Meter::start(&variable("CLICKHOUSE_URL"), Duration::from_millis(20)).await;
    let reconciler = stores.reconciler_by(&slow.url);
    let error = reconciler.run(&all(), Duration::ZERO).await.expect_err("no time at all");
    assert!(error.to_string().contains("takes too long"), "{error}");
    let (mut task, mut runs, mut compared, mut rebuilt) = (all(), 0, 0, Vec::new());
    loop {
        let found = reconciler.run(&task, Duration::from_millis(1500)).await.expect("a part");
        runs += 1;
        compared += found.months_compared;
        rebuilt.extend(found.days_rebuilt.into_iter().map(|(view, _)| view));
        assert_eq!(found.months_left > 0, found.next.is_some());
        assert_ne!(found.next.as_ref(), Some(&task), "no run ends where it began");
        let Some(next) = found.next else { break };
        task = next;
    }
    assert!(runs > 1, "one run had the time for all {compared} months");
    // A run may end between two of its months.
    rebuilt.dedup();
    assert_eq!(rebuilt, ["churn_metrics"]);
    let whole = reconciler.run(&all(), PATIENCE).await.expect("all");
    assert_eq!((whole.months_compared, whole.months_left, whole.next), (compared, 0, None));
    assert_eq!(whole.days_rebuilt, []);

    let nowhere = serde_json::from_str(r#"{"from": {"view": "churn", "month": 0}}"#).expect("a task");
    reconciler.run(&nowhere, PATIENCE).await.expect_err("there is no such view");
    stores.drop().await;
}

#[tokio::test]
async fn the_comparison_of_a_month_reads_that_month() {
    let stores = Stores::fresh().await;
    // As many in each month of a year.
    stores.writer().write(&parse(&signups(1200))).await.expect("written");
    let meter = Meter::start(&variable("CLICKHOUSE_URL"), Duration::ZERO).await;
    let found = stores.reconciler_by(&meter.url).run(&all(), PATIENCE).await.expect("compared");
    assert_eq!(found.days_rebuilt, []);
    for (view, rows) in [("user_metrics", 100), ("daily_active_users", 100), ("churn_metrics", 100)] {
        let recounted = meter.rows_read(&format!("INSERT INTO {view}_anew"));
        assert_eq!(recounted, [rows; 12], "{view}");
    }
    // The rows of a view and those beside it.
    let of_a_user_each = meter.rows_read("FROM user_metrics FINAL");
    assert_eq!(of_a_user_each, [200; 12]);
    stores.drop().await;
}

#[tokio::test]
async fn dead_letters_that_no_queue_has_any_more_are_forgotten_and_stay_counted() {
    let stores = Stores::fresh().await;
    let pool = stores.database.pool();
    let metrics = Metrics::new(stores.clickhouse.clone(), stores.database.clone(), Secret::new("token".to_owned()));
    let total = async || {
        let text = metrics.render().await.expect("rendered");
        text.lines().find_map(|line| line.strip_prefix("events_dead_letter_total ")).map(str::to_owned)
    };
    let note = |id: &'static str, days: i32| {
        let note = "INSERT INTO dead_letters (message_id, reason, created_at)
             VALUES ($1, 'no JSON', now() - make_interval(days => $2)) ON CONFLICT DO NOTHING";
        sqlx::query(note).bind(id).bind(days).execute(pool)
    };
    for (id, days) in [("today", 0), ("redriven", 14), ("gone", 16), ("long gone", 400)] {
        note(id, days).await.expect(id);
    }
    note("today", 0).await.expect("delivered again");
    assert_eq!(total().await.as_deref(), Some("4"));

    let reconciler = Reconciler::new(stores.clickhouse.clone(), &stores.database);
    let forgotten = reconciler.run(&all(), PATIENCE).await.expect("first").dead_letters_forgotten;
    assert_eq!(forgotten, 2);
    let left = sqlx::query_scalar::<_, String>("SELECT message_id FROM dead_letters ORDER BY message_id");
    assert_eq!(left.fetch_all(pool).await.expect("rows"), ["redriven", "today"]);
    assert_eq!(total().await.as_deref(), Some("4"));
    assert_eq!(reconciler.run(&all(), PATIENCE).await.expect("second").dead_letters_forgotten, 0);
    stores.drop().await;
}
