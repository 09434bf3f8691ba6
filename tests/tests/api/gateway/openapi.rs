use crate::support::*;

through_both_doors! {
    async fn describes_the_api(api: Api) {
        let reply = api.get("/openapi.json").send().await.expect_status(200);
        assert_eq!(reply.body["openapi"], "3.1.0");
        assert_eq!(reply.body["paths"]["/api/auth/signin"]["post"]["operationId"], "auth-signin");
        assert!(reply.header("ratelimit").is_none(), "outside the rate limit");
    }
}
