//! Every event is counted once, whatever is delivered again and wherever a writer dies.

use std::time::Duration;

use lib::analytics::writer_lock::WriterLock;
use sandbox::variable;
use serde_json::json;
use sqlx::{ConnectOptions, Connection};
use uuid::Uuid;

use crate::proxy::{Cut, Proxy};
use crate::stores::{PATIENCE, Stores, parse, signup, signups};

#[tokio::test]
async fn replays_in_other_slices_change_nothing() {
    let stores = Stores::fresh().await;
    let bodies = signups(300);
    let writer = stores.writer();
    assert_eq!(writer.write(&parse(&bodies[..200])).await.expect("first"), 200);
    assert_eq!(writer.write(&parse(&bodies[100..])).await.expect("overlapping"), 100);
    for size in [300, 1, 7, 150] {
        for slice in bodies.chunks(size) {
            assert_eq!(stores.writer().write(&parse(slice)).await.expect("again"), 0);
        }
    }
    assert_eq!(stores.counted().await, (300, 300));
    stores.drop().await;
}

#[tokio::test]
async fn the_first_of_an_id_counts() {
    let stores = Stores::fresh().await;
    let id = Uuid::from_u128(0xabcd_ef01_2345_4678_9abc_def0_1234_5678);
    let mut loud = signup(id, 2);
    loud["id"] = json!(id.to_string().to_uppercase());
    let bodies = [signup(id, 1).to_string(), loud.to_string()];
    assert_eq!(stores.writer().write(&parse(&bodies)).await.expect("written"), 1);
    assert_eq!(stores.writer().write(&parse(&bodies[1..])).await.expect("known"), 0);
    let query = stores.clickhouse.client().query("SELECT subject FROM events");
    assert_eq!(query.fetch_all::<String>().await.expect("rows"), ["user-1"]);
    stores.drop().await;
}

/// Ids that were not made in the order of their coming, as those of others may be.
#[tokio::test]
async fn known_ids_are_found_among_very_many() {
    let stores = Stores::fresh().await;
    let others = "INSERT INTO events (id, type, subject, time)
         SELECT number * 1000, 'user.signout', 'other', '2026-01-01 00:00:00' FROM numbers(1, 30000)";
    stores.clickhouse.client().query(others).execute().await.expect("others");
    let id = |n: usize| Uuid::from_u128(n as u128 * 7500);
    let bodies: Vec<String> = (1..=4200).map(|n| signup(id(n), n).to_string()).collect();
    // Every second of the first 4000 is one of theirs.
    let known = 2000;
    let writer = stores.writer();
    assert_eq!(writer.write(&parse(&bodies)).await.expect("written"), bodies.len() - known);
    assert_eq!(writer.write(&parse(&bodies)).await.expect("again"), 0);
    stores.drop().await;
}

#[tokio::test]
async fn concurrent_writers_of_the_same_events_take_turns() {
    let stores = Stores::fresh().await;
    let bodies = signups(100);
    let writers: Vec<_> = (0..4).map(|_| stores.writer()).collect();
    let writes = writers.iter().map(|writer| async { writer.write(&parse(&bodies)).await.expect("written") });
    assert_eq!(futures_util::future::join_all(writes).await.iter().sum::<usize>(), 100);
    assert_eq!(stores.counted().await, (100, 100));
    stores.drop().await;
}

#[tokio::test]
async fn a_writer_that_dies_before_or_after_its_insert_is_made_good() {
    for how in [Cut::Before, Cut::After] {
        let stores = Stores::fresh().await;
        let bodies = signups(50);
        let proxy = Proxy::start(&variable("CLICKHOUSE_URL"), how).await;
        let error = stores.writer_by(&proxy.url).write(&parse(&bodies[..30])).await.expect_err("the insert was cut");
        assert_eq!(error.code(), lib::error::Code::Unavailable, "{error}");
        assert_eq!(stores.left_batches().await, 1);
        // Redelivered together with others, as a queue would do.
        assert_eq!(stores.writer().write(&parse(&bodies[10..])).await.expect("made good"), 20);
        assert_eq!(stores.left_batches().await, 0);
        assert_eq!(stores.counted().await, (50, 50));
        stores.drop().await;
    }
}

#[tokio::test]
async fn a_writer_that_is_killed_at_its_insert_gives_up_its_turn() {
    let stores = Stores::fresh().await;
    let bodies = signups(40);
    let proxy = Proxy::start(&variable("CLICKHOUSE_URL"), Cut::Silent).await;
    let dying = stores.writer_by(&proxy.url);
    let events = parse(&bodies);
    tokio::select! {
        outcome = dying.write(&events) => panic!("the insert was never answered: {outcome:?}"),
        () = proxy.cut.notified() => {}
    }
    assert_eq!(stores.writer().write(&events).await.expect("made good"), 0);
    assert_eq!(stores.counted().await, (40, 40));
    stores.drop().await;
}

#[tokio::test]
async fn who_waits_in_vain_for_a_turn_may_try_again() {
    let stores = Stores::empty().await;
    let (first, second) = (WriterLock::new(&stores.database), WriterLock::new(&stores.database));
    let guard = first.acquire(1).await.expect("nobody else writes");
    let error = second.acquire(1).await.err().expect("somebody else writes");
    assert_eq!(error.code(), lib::error::Code::Unavailable, "{error}");
    first.release(guard).await.expect("the end");
    second.acquire(1).await.expect("nobody else writes any more");
    stores.drop().await;
}

#[tokio::test]
async fn a_migration_that_was_cut_short_runs_again() {
    let stores = Stores::empty().await;
    let first = stores.migrations().run(&json!({}), PATIENCE).await.expect("first");
    stores.writer().write(&parse(&signups(5))).await.expect("written");
    let client = stores.clickhouse.client();
    client.query("DROP VIEW mrr_metrics_view").execute().await.expect("dropped");
    let forget = "ALTER TABLE schema_migrations DELETE WHERE version = 4 SETTINGS mutations_sync = 1";
    client.query(forget).execute().await.expect("forgotten");
    let again = stores.migrations().run(&json!({}), PATIENCE).await.expect("again");
    assert_eq!(first.clickhouse, again.clickhouse);
    let third = stores.migrations().run(&json!({}), PATIENCE).await.expect("nothing to do");
    assert_eq!(third.postgres, first.postgres);
    stores.writer().write(&parse(&signups(5))).await.expect("written");
    assert_eq!(stores.counted().await, (10, 10));
    // A view that a later migration makes has the events of before it, once.
    for (table, expected) in
        [("daily_active_users", "sumIf(signups, grain = 'day') = 10"), ("user_retention", "count() = 5")]
    {
        let query = format!("SELECT {expected} FROM {table} FINAL");
        assert!(client.query_raw(&query).fetch_one::<bool>().await.expect(table), "{table}");
    }
    stores.drop().await;
}

#[tokio::test]
async fn a_migration_lets_go_of_a_table_that_others_use_and_tries_again() {
    let stores = Stores::fresh().await;
    let pool = stores.database.pool();
    for statement in [
        "ALTER TABLE messages DROP COLUMN client_id",
        "ALTER TABLE conversations DROP COLUMN untitled",
        "DELETE FROM _sqlx_migrations WHERE version = 240",
    ] {
        sqlx::query(statement).execute(pool).await.expect(statement);
    }
    let connect = || async { pool.connect_options().connect().await.expect("a connection") };
    let (mut first, mut second) = (connect().await, connect().await);
    let mut holder = first.begin().await.expect("a transaction");
    let count = "SELECT count(*) FROM messages";
    sqlx::query(count).execute(&mut *holder).await.expect("a long read");

    let migrations = stores.migrations();
    let payload = json!({});
    let others = async {
        let waiting = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'messages'::regclass AND NOT granted";
        while !sqlx::query_scalar::<_, bool>(waiting).fetch_one(&mut second).await.expect("locks") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let read = sqlx::query(count).execute(&mut second);
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("readers go on").expect("read");
        holder.rollback().await.expect("the long read ends");
    };
    let (migrated, ()) = tokio::join!(migrations.run(&payload, PATIENCE), others);
    migrated.expect("tried again");
    sqlx::query("SELECT m.client_id, c.untitled FROM messages m, conversations c")
        .execute(pool)
        .await
        .expect("both columns");

    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 240").execute(pool).await.expect("forgotten");
    let mut holder = first.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE messages").execute(&mut *holder).await.expect("a lock");
    let error = migrations.run(&payload, Duration::from_secs(4)).await.expect_err("nobody lets go");
    let text = error.to_string();
    for part in ["the schema of Postgres is not up to date", "again and again for 2 s", "lock timeout"] {
        assert!(text.contains(part), "{text}");
    }
    holder.rollback().await.expect("the lock ends");
    let error = migrations.run(&payload, PATIENCE).await.expect_err("what fails by itself is not tried again");
    assert!(error.to_string().contains("already exists"), "{error}");
    stores.drop().await;
}

#[tokio::test]
async fn words_are_in_their_index_once_they_are_stored() {
    let stores = Stores::fresh().await;
    let store =
        "WITH u AS (INSERT INTO users (id, email, password_hash) VALUES ($1, 'ada@example.com', '') RETURNING id),
             c AS (INSERT INTO conversations (id, user_id, title, terms) SELECT id, id, '', 'word' FROM u RETURNING id)
         INSERT INTO messages (conversation_id, position, id, role, content, terms, created_at)
         SELECT id, 0, id, 'user', '', 'word', now() FROM c";
    sqlx::query(store).bind(Uuid::now_v7()).execute(stores.database.pool()).await.expect("stored");
    for index in ["messages_terms", "conversations_terms"] {
        let pages = "SELECT gin_clean_pending_list($1::text::regclass)";
        let pages = sqlx::query_scalar::<_, i64>(pages).bind(index).fetch_one(stores.database.pool()).await;
        assert_eq!(pages.expect("pages of words that are not in the index"), 0, "{index}");
    }
    stores.drop().await;
}

#[tokio::test]
async fn the_requests_of_a_month_expire_together_after_ninety_days() {
    let stores = Stores::fresh().await;
    let client = stores.clickhouse.client();
    // A year whose February is short.
    let first_and_last = "INSERT INTO events (id, type, time, ingested_at)
         SELECT rowNumberInAllBlocks(), 'http.request_completed', moment AS time, moment AS ingested_at FROM (
             SELECT toDateTime64(toDate('2099-01-01') + INTERVAL number MONTH, 3, 'UTC') AS start,
                 arrayJoin([start, start + INTERVAL 1 MONTH - INTERVAL 1 MILLISECOND]) AS moment
             FROM numbers(12))";
    client.query(first_and_last).execute().await.expect("written");
    let expiries = "SELECT length(rows_where_ttl_info.expression) = 1
             AND rows_where_ttl_info.min[1] = rows_where_ttl_info.max[1]
             AND rows_where_ttl_info.min[1] >= addMonths(parseDateTime(partition, '%Y%m', 'UTC'), 1) + INTERVAL 90 DAY
         FROM system.parts WHERE database = ? AND table = 'events' AND active";
    let expiries = client.query(expiries).bind(&stores.name).fetch_all::<bool>().await.expect("parts");
    assert_eq!(expiries, [true; 12]);
    stores.drop().await;
}

#[tokio::test]
async fn a_writer_notices_that_its_turn_was_lost() {
    let stores = Stores::empty().await;
    let lock = WriterLock::new(&stores.database);
    let mut guard = lock.acquire(1).await.expect("nobody else writes");
    guard.assert_held().await.expect("held");
    let end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database =
               (SELECT oid FROM pg_database WHERE datname = current_database())";
    sqlx::query(end).execute(stores.database.pool()).await.expect("the server ends the writer's session");
    let error = guard.assert_held().await.expect_err("lost");
    assert_eq!(error.code(), lib::error::Code::Unavailable, "{error}");
    stores.drop().await;
}

#[tokio::test]
async fn a_failed_migration_names_the_store_that_is_behind() {
    let stores = Stores::empty().await;
    let error = stores.migrations_by("http://127.0.0.1:9").run(&json!({}), PATIENCE).await.expect_err("nobody listens");
    assert!(error.to_string().contains("the schema of ClickHouse is not up to date: unavailable at "), "{error}");
    assert_eq!(error.code(), lib::error::Code::Unavailable);
    let changed = "UPDATE _sqlx_migrations SET checksum = '\\x00'";
    sqlx::query(changed).execute(stores.database.pool()).await.expect("Postgres is migrated");
    let error = stores.migrations().run(&json!({}), PATIENCE).await.expect_err("another migration");
    assert!(error.to_string().contains("the schema of Postgres is not up to date: internal at "), "{error}");
    stores.drop().await;
}

#[tokio::test]
async fn a_migration_that_was_changed_after_it_was_applied_is_found() {
    let stores = Stores::empty().await;
    stores.migrations().run(&json!({}), PATIENCE).await.expect("first");
    let client = stores.clickhouse.client();
    let other = "INSERT INTO schema_migrations (version, name, checksum) VALUES (2, 'views', 'another')";
    client.query(other).execute().await.expect("another");
    let error = stores.migrations().run(&json!({}), PATIENCE).await.expect_err("refused");
    assert!(error.to_string().contains("migration 2 (views) of ClickHouse was changed"), "{error}");
    stores.drop().await;
}
