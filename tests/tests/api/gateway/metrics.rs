use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};

use crate::support::*;

/// Where no token is set, an empty one is none.
#[tokio::test]
async fn an_empty_token_scrapes_nothing() {
    let secret = open_secret("no-scraper", &json!({"token": ""})).await;
    let mut environment = deployed().environment("gateway-metrics");
    environment.insert("METRICS_TOKEN_SECRET_ARN".to_owned(), secret.clone());
    let mut metrics = Sandbox::start(&deployed().binary("gateway-metrics"), &environment).unwrap();
    let event = Deployed::event("gateway-metrics", &random_address(), None, Some("")).unwrap();
    let reply = metrics.invoke(&event).unwrap().payload;
    assert_eq!(reply["statusCode"], 401);
    delete_secret(&secret).await;
}

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

    async fn is_scraped_with_the_token_of_the_stack_and_no_other(api: Api) {
        let secret = json!({"SecretId": function_variable("gateway-metrics", "METRICS_TOKEN_SECRET_ARN")});
        let secret = aws("secretsmanager", "secretsmanager.GetSecretValue", &secret).await;
        let secret: Value = serde_json::from_str(secret["SecretString"].as_str().unwrap()).unwrap();
        let token = secret["token"].as_str().unwrap();
        let reply = api.get("/metrics").bearer(token).send().await.expect_status(200);
        assert!(reply.text.contains("http_requests_total{"), "{}", reply.text);
        for other in ["", &token[1..], &format!("{token}x")] {
            api.get("/metrics").bearer(other).send().await.expect_problem(401, "unauthenticated");
        }
        api.get("/api/auth/me").bearer(token).send().await.expect_problem(401, "unauthenticated");
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
