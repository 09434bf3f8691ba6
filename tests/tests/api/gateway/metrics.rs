use crate::support::*;

through_both_doors! {
    async fn is_for_admins_and_scrapers(api: Api) {
        api.get("/metrics").send().await.expect_problem(401, "unauthenticated");
        api.get("/metrics").bearer("guess").send().await.expect_problem(401, "unauthenticated");
        let person = api.sign_up().await;
        api.get("/metrics").bearer(&person.jwt).send().await.expect_problem(403, "forbidden");
        let admin = api.admin().await;
        let reply = api.get("/metrics").bearer(&admin.jwt).send().await.expect_status(200);
        assert!(reply.header("content-type").unwrap().starts_with("text/plain"), "{:?}", reply.headers);
        assert!(reply.text.contains("# TYPE http_request_duration_seconds histogram"), "{}", reply.text);
        assert!(reply.header("ratelimit").is_none(), "outside the rate limit");
    }

    async fn counts_requests_by_their_route(api: Api) {
        let admin = api.admin().await;
        api.delete("/api/auth/sessions/x").bearer(&admin.jwt).send().await.expect_status(404);
        let wanted = "http_requests_total{route=\"/api/auth/sessions/{id}\",method=\"DELETE\",status=\"404\"}";
        eventually(wanted, || async {
            let text = api.get("/metrics").bearer(&admin.jwt).send().await.expect_status(200).text;
            text.contains(wanted).then_some(())
        })
        .await;
    }
}
