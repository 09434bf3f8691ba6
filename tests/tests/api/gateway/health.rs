use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};

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
}

/// Each at an address where nobody listens, of which a sandbox alone learns.
#[tokio::test]
async fn what_does_not_answer_is_down() {
    let database = json!({"url": "postgres://nobody:nothing@127.0.0.1:1/none"});
    let analytics = json!({"url": "http://127.0.0.1:1", "user": "nobody", "password": "nothing", "database": "none"});
    for (dependency, variable, secret) in
        [("postgres", "DATABASE_SECRET_ARN", database), ("clickhouse", "CLICKHOUSE_SECRET_ARN", analytics)]
    {
        let secret = open_secret("nowhere", &secret).await;
        let mut environment = deployed().environment("gateway-health");
        environment.insert(variable.to_owned(), secret.clone());
        let mut sandbox = Sandbox::start(&deployed().binary("gateway-health"), &environment).unwrap();
        let event = Deployed::event("gateway-health", &random_address(), None, None).unwrap();
        let reply = sandbox.invoke(&event).unwrap().payload;
        let report: Value = serde_json::from_str(reply["body"].as_str().unwrap()).unwrap();
        assert_eq!((&reply["statusCode"], &report["status"]), (&json!(503), &json!("down")), "{report}");
        for (name, found) in report["dependencies"].as_object().unwrap() {
            let status = if name == dependency { "down" } else { "up" };
            assert_eq!(found["status"], status, "{name} without {dependency}: {report}");
        }
        delete_secret(&secret).await;
    }
}
