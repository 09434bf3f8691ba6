//! The totals are those of the events, each counted once.

use lib::analytics::metrics::Metrics;
use lib::config::Secret;
use lib::events::Event;
use serde_json::json;

use crate::stores::{Stores, parse, signups};

#[tokio::test]
async fn totals_are_over_all_functions() {
    let stores = Stores::fresh().await;
    let metrics = Metrics::new(stores.clickhouse.clone(), stores.database.clone(), Secret::new("token".to_owned()));
    assert!(metrics.render().await.expect("of nothing").contains("\nevents_ingested_total 0\n"));

    let request = |status: u16, duration_ms: u64| {
        let event = Event::request_completed(json!({
            "function": "auth-me", "route": "/api/auth/me", "method": "GET", "status": status,
            "durationMs": duration_ms, "coldStart": false,
        }));
        event.to_outgoing().body
    };
    let mut bodies = signups(5);
    bodies.extend([request(200, 3), request(200, 40), request(500, 6000), request(401, 1)]);
    for _ in 0..2 {
        stores.writer().write(&parse(&bodies)).await.expect("written");
    }
    // Clocks that are ahead: the event is set back to when it was sent, and counted on that day.
    let (now, ahead) = (signups(1), 1_700_000_000_000);
    let event = lib::analytics::event::Event::parse(&now[0], Some(ahead)).expect("a valid event");
    assert_eq!((event.clamped, event.time), (true, ahead));
    stores.writer().write(&[event]).await.expect("written");
    sqlx::query("INSERT INTO dead_letters (message_id, reason) VALUES ('one', 'no JSON'), ('two', 'no JSON')")
        .execute(stores.database.pool())
        .await
        .expect("dead letters");
    let text = metrics.render().await.expect("rendered");
    let labels = "route=\"/api/auth/me\",method=\"GET\",status=\"200\"";
    for line in [
        format!("http_requests_total{{{labels}}} 2"),
        format!("http_request_duration_seconds_bucket{{{labels},le=\"0.005\"}} 1"),
        format!("http_request_duration_seconds_bucket{{{labels},le=\"0.05\"}} 2"),
        format!("http_request_duration_seconds_sum{{{labels}}} 0.043"),
        // What the requests of the last minute took, of its 60 s.
        format!("http_requests_in_flight {}", 6.044 / 60.0),
        "http_error_ratio 0.25".to_owned(),
        "events_ingested_total 10".to_owned(),
        "events_clamped_total 1".to_owned(),
        "events_dead_letter_total 2".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in:\n{text}");
    }
    stores.drop().await;
}
