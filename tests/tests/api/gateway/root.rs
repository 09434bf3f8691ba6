use crate::support::*;

through_both_doors! {
    async fn tells_what_this_is_and_no_internal_address(api: Api) {
        let reply = api.get("/").send().await.expect_status(200);
        assert!(reply.body["name"].is_string() && reply.body["version"].is_string());
        // Before the stage, the emulator's addresses have more than API Gateway's.
        let stage = if api.base().contains("/execute-api/") { "/v1" } else { "" };
        for (name, path) in [("docs", "/docs"), ("openapi", "/openapi.json"), ("health", "/health")] {
            assert_eq!(reply.body["links"][name], format!("{stage}{path}"));
            api.get(path).send().await.expect_status(200);
        }
        for leak in ["127.0.0.1", "localhost", "postgres", "arn:", "http://"] {
            assert!(!reply.text.contains(leak), "{}", reply.text);
        }
        assert!(reply.header("ratelimit").is_none(), "outside the rate limit");
    }
}
