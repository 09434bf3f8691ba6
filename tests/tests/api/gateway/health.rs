use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};

use crate::lost_answers::{LOST, Loss, Lossy, lossy_database, start_by, start_on, way_to_aws};
use crate::support::*;

through_both_doors! {
    async fn names_every_dependency(api: Api) {
        let reply = api.get("/health").send().await.expect_status(200);
        assert_eq!(reply.body["status"], "up");
        assert!(reply.body["version"].is_string() && reply.body["uptimeSeconds"].is_u64());
        let dependencies = reply.body["dependencies"].as_object().unwrap();
        let names: Vec<_> = dependencies.keys().map(String::as_str).collect();
        assert_eq!(names, ["clickhouse", "dynamodb", "postgres", "secrets", "sqs"]);
        assert!(dependencies.values().all(|d| d["status"] == "up" && d["latencyMs"].is_u64()), "{}", reply.text);
        assert!(reply.header("ratelimit").is_none(), "outside the rate limit");
    }

    async fn of_an_area_names_what_the_area_depends_on(api: Api) {
        // Only the figures need ClickHouse, and they need nothing of Postgres.
        for (area, store) in [("auth", "postgres"), ("chat", "postgres"), ("billing", "postgres"), ("analytics", "clickhouse")] {
            let reply = api.get(&format!("/api/{area}/health")).send().await.expect_status(200);
            assert_eq!(reply.body["status"], "up");
            let mut expected = [store, "dynamodb", "secrets", "sqs"];
            expected.sort_unstable();
            let dependencies = reply.body["dependencies"].as_object().unwrap();
            assert_eq!(dependencies.keys().collect::<Vec<_>>(), expected, "{area}");
            assert!(dependencies.values().all(|d| d["status"] == "up" && d["latencyMs"].is_u64()), "{}", reply.text);
        }
    }
}

/// Of which a sandbox alone learns.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_answer_is_down() {
    let database = json!({"url": "postgres://nobody:nothing@127.0.0.1:1/none"});
    let analytics = json!({"url": "http://127.0.0.1:1", "user": "nobody", "password": "nothing", "database": "none"});
    let (database, analytics) = (open_secret("nowhere", &database).await, open_secret("nowhere", &analytics).await);
    let event = Deployed::event("gateway-health", &random_address(), None, None).unwrap();
    for (dependency, variable, elsewhere) in [
        ("postgres", "DATABASE_SECRET_ARN", database.clone()),
        ("clickhouse", "CLICKHOUSE_SECRET_ARN", analytics.clone()),
    ] {
        let mut environment = deployed().environment("gateway-health");
        environment.insert(variable.to_owned(), elsewhere);
        let mut sandbox = Sandbox::start(&deployed().binary("gateway-health"), &environment).unwrap();
        assert_down(dependency, &sandbox.invoke(&event).unwrap().payload);
    }
    for (dependency, calls) in [("dynamodb", "DynamoDB_20120810."), ("sqs", "AmazonSQS.")] {
        assert_down(dependency, &Lossy::refusing(calls).ask("gateway-health", &event));
    }
    for area in ["auth", "chat", "billing", "analytics"] {
        let function = format!("{area}-health");
        let event = Deployed::event(&function, &random_address(), None, None).unwrap();
        assert_down("dynamodb", &Lossy::refusing("DynamoDB_20120810.").ask(&function, &event));
    }
    for secret in [database, analytics] {
        delete_secret(&secret).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_falls_silent_is_down() {
    let way = way_to_aws(|call, pass_on| {
        if !call.contains("DynamoDB_20120810.") {
            return pass_on();
        }
        std::thread::sleep(Duration::from_secs(20));
        LOST.to_vec()
    });
    let event = Deployed::event("auth-health", &random_address(), None, None).unwrap();
    let reply = start_by(&way, "auth-health").invoke_unfinished(&event, Duration::from_secs(15)).unwrap();
    assert_eq!(report(&reply.payload)["dependencies"]["dynamodb"]["status"], "down", "{}", reply.payload);
    assert!(reply.took < Duration::from_secs(7), "{:?}", reply.took);

    let is_first = AtomicBool::new(true);
    let is_lost =
        move |statement: &str| statement.contains("SELECT 1 AS one") && is_first.swap(false, Ordering::SeqCst);
    let (mut sandbox, secret) = start_on(lossy_database(is_lost, Loss::Silence), "gateway-health").await;
    let event = Deployed::event("gateway-health", &random_address(), None, None).unwrap();
    let reply = sandbox.invoke(&event).unwrap().payload;
    assert_eq!(report(&reply)["dependencies"]["postgres"]["status"], "down", "{reply}");
    // The connection that hangs is given up.
    let deadline = Instant::now() + Duration::from_secs(20);
    while sandbox.invoke(&event).unwrap().payload["statusCode"] != 200 {
        assert!(Instant::now() < deadline, "it stays down");
    }
    delete_secret(&secret).await;
}

fn report(reply: &Value) -> Value {
    serde_json::from_str(reply["body"].as_str().unwrap()).unwrap()
}

#[track_caller]
fn assert_down(dependency: &str, reply: &Value) {
    let report = report(reply);
    assert_eq!((&reply["statusCode"], &report["status"]), (&json!(503), &json!("down")), "{report}");
    for (name, found) in report["dependencies"].as_object().unwrap() {
        let status = if name == dependency { "down" } else { "up" };
        assert_eq!(found["status"], status, "{name} without {dependency}: {report}");
    }
}
