use crate::support::*;

through_both_doors! {
    async fn tells_what_this_is_and_no_internal_address(api: Api) {
        let reply = api.get("/").send().await.expect_status(200);
        assert!(reply.body["name"].is_string() && reply.body["version"].is_string());
        assert_eq!(reply.body["links"]["docs"], "/docs");
        assert_eq!(reply.body["links"]["health"], "/health");
        for leak in ["127.0.0.1", "localhost", "postgres", "arn:", "http://"] {
            assert!(!reply.text.contains(leak), "{}", reply.text);
        }
        assert!(reply.header("ratelimit").is_none(), "outside the rate limit");
    }
}
