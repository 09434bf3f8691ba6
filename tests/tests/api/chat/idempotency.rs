use serde_json::json;

use crate::support::*;

through_both_doors! {
    async fn a_repeated_request_gets_the_first_reply(api: Api) {
        let person = api.sign_up().await;
        for stream in [false, true] {
            let key = format!("\"key {stream}\"");
            let body = json!({"message": "Hello", "stream": stream});
            let send = |body| api.post("/api/chat").bearer(&person.jwt).header("idempotency-key", &key).json(body).send();
            let first = send(&body).await.expect_status(200);
            // The reply is kept a moment after it was sent.
            let again = eventually("the kept reply", || async {
                let reply = send(&body).await;
                (reply.status != 409).then_some(reply)
            })
            .await
            .expect_status(200);
            if stream {
                let last = |reply: &Reply| reply.text.lines().rfind(|line| line.starts_with("data:")).unwrap().to_owned();
                assert_eq!(last(&again), last(&first));
                assert!(again.text.starts_with("id: 1\nevent: start\n"), "{}", again.text);
            } else {
                assert_eq!(again.body, first.body);
            }
            let reordered = format!("{{\"stream\": {stream}, \"message\": \"Hello\"}}");
            let call = api.post("/api/chat").bearer(&person.jwt).header("idempotency-key", key.trim_matches('"'));
            call.body("application/json", reordered).send().await.expect_status(200);
            let other = json!({"message": "Other", "stream": stream});
            send(&other).await.expect_problem(422, "idempotency_key_reused");
        }
        let list = api.get("/api/chat/conversations").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(list.body["conversations"].as_array().unwrap().len(), 2);
    }

    async fn a_failed_request_gives_its_key_back(api: Api) {
        let person = api.sign_up().await;
        let body = json!({"message": "AIMOCK:429"});
        for _ in 0..2 {
            let call = api.post("/api/chat").bearer(&person.jwt).header("idempotency-key", "k").json(&body);
            call.send().await.expect_problem(503, "provider_rate_limited");
        }
        let call = api.post("/api/chat").bearer(&person.jwt).header("idempotency-key", &"k".repeat(256)).json(&body);
        call.send().await.expect_invalid(&["Idempotency-Key"]);
    }
}
