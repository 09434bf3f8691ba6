use crate::support::*;

through_both_doors! {
    async fn answers_for_what_auth_depends_on(api: Api) {
        let reply = api.get("/api/auth/health").send().await.expect_status(200);
        assert_eq!(reply.body["status"], "up");
        let dependencies = reply.body["dependencies"].as_object().unwrap();
        for name in ["postgres", "dynamodb", "secrets", "sqs"] {
            assert_eq!(dependencies[name]["status"], "up", "{name}");
            assert!(dependencies[name]["latencyMs"].is_u64(), "{name}");
        }
        assert!(!dependencies.contains_key("clickhouse"), "auth works without analytics");
    }
}
