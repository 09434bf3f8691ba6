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
