//! A view that lost or doubled rows is made right again, and one that did not is left alone.

use lib::analytics::reconcile::Reconciler;

use crate::history::{Random, history};
use crate::stores::{Stores, parse};

/// More than the years that events lie in.
const ALL: u32 = 100_000;

#[tokio::test]
async fn what_differs_is_rebuilt_and_nothing_else() {
    let stores = Stores::fresh().await;
    let messages = history(&mut Random::new(9), 600);
    let bodies: Vec<String> = messages.into_iter().filter(|m| m.event.is_some()).map(|m| m.body).collect();
    stores.writer().write(&parse(&bodies)).await.expect("written");
    let reconciler = Reconciler::new(stores.clickhouse.clone(), &stores.database);
    assert_eq!(reconciler.run(ALL).await.expect("first").days_rebuilt, []);

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
    let found = reconciler.run(ALL).await.expect("second").days_rebuilt;
    let days = |view: &str| found.iter().find(|(name, _)| *name == view).map_or(0, |(_, days)| days.len());
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(days("chat_statistics"), 1);
    assert!(days("user_metrics") > 20 && days("user_retention") > 5, "{found:?}");
    assert_eq!(sum().await, right);
    assert_eq!(reconciler.run(ALL).await.expect("third").days_rebuilt, []);

    // A month of which nothing is left, as after a user's data was erased.
    let erased = "ALTER TABLE events DELETE WHERE toYYYYMM(time) = 202512 SETTINGS mutations_sync = 2";
    client.query(erased).execute().await.expect(erased);
    let found = reconciler.run(ALL).await.expect("fourth").days_rebuilt;
    assert!(found.iter().any(|(name, days)| *name == "user_metrics" && days.len() > 20), "{found:?}");
    assert_eq!(reconciler.run(ALL).await.expect("fifth").days_rebuilt, []);
    let left = client.query("SELECT count() FROM user_metrics WHERE toYYYYMM(day) = 202512").fetch_one::<u64>();
    assert_eq!(left.await.expect("rows"), 0);
    stores.drop().await;
}
