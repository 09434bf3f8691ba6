use serde_json::{Value, json};

use crate::support::*;

async fn say(api: &Api, person: &Person, body: Value) -> Reply {
    api.post("/api/chat").bearer(&person.jwt).json(&body).send().await
}

async fn nothing_is_left_behind(api: &Api, person: &Person) {
    let list = api.get("/api/chat/conversations").bearer(&person.jwt).send().await.expect_status(200);
    assert_eq!(list.body["conversations"], json!([]));
    let usage = api.get("/api/chat/usage").bearer(&person.jwt).send().await.expect_status(200);
    assert_eq!((&usage.body["tokens"]["used"], &usage.body["tokens"]["reserved"]), (&json!(0), &json!(0)));
}

through_both_doors! {
    async fn a_provider_that_refuses_is_an_error_and_leaves_nothing(api: Api) {
        let person = api.sign_up().await;
        for stream in [false, true] {
            let refused = say(&api, &person, json!({"message": "AIMOCK:429", "stream": stream})).await;
            let refused = refused.expect_problem(503, "provider_rate_limited");
            assert!(refused.header("retry-after").is_some(), "{:?}", refused.headers);
        }
        nothing_is_left_behind(&api, &person).await;
    }

    async fn what_a_provider_objects_to_is_told_by_its_cause(api: Api) {
        let person = api.sign_up().await;
        for (message, status, code) in [
            ("AIMOCK:too-long", 400, "context_length_exceeded"),
            ("AIMOCK:filtered", 422, "content_filtered"),
            ("AIMOCK:key-refused", 502, "provider_unavailable"),
            ("AIMOCK:rejected", 400, "provider_rejected"),
            ("AIMOCK:exhausted", 503, "provider_rate_limited"),
        ] {
            for stream in [false, true] {
                let refused = say(&api, &person, json!({"message": message, "stream": stream})).await;
                // A provider's own words are for the log.
                let words = ["Too long", "Not allowed", "Bad key", "Bad value", "No money"];
                assert!(!words.iter().any(|words| refused.text.contains(words)), "{}", refused.text);
                refused.expect_problem(status, code);
            }
        }
        nothing_is_left_behind(&api, &person).await;
    }

    async fn an_answer_that_breaks_off_whole_keeps_and_bills_what_came(api: Api) {
        let person = api.sign_up().await;
        let refused = say(&api, &person, json!({"message": "AIMOCK:disconnect"})).await;
        let refused = refused.expect_problem(502, "provider_unavailable");
        let path = format!("/api/chat/conversations/{}", refused.text_at("/conversationId"));
        let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(read.body["messages"][0]["content"], "AIMOCK:disconnect");
        let answer = &read.body["messages"][1];
        assert_eq!((&answer["id"], &answer["finishReason"]), (&refused.body["messageId"], &json!("error")));
        assert!(!answer["content"].as_str().unwrap().is_empty());
        let usage = api.get("/api/chat/usage").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(usage.body["tokens"]["used"], answer["usage"]["totalTokens"]);
        assert_eq!(usage.body["tokens"]["reserved"], 0);
    }

    async fn a_stream_that_breaks_off_keeps_and_bills_what_came(api: Api) {
        let person = api.sign_up().await;
        let reply = say(&api, &person, json!({"message": "AIMOCK:disconnect", "stream": true})).await.expect_status(200);
        assert!(reply.text.contains("event: error") && !reply.text.contains("event: done"), "{}", reply.text);
        let list = api.get("/api/chat/conversations").bearer(&person.jwt).send().await.expect_status(200);
        let path = format!("/api/chat/conversations/{}", list.text_at("/conversations/0/id"));
        let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
        let deltas = reply.text.lines().filter_map(|line| line.strip_prefix("data: {\"text\":"));
        let text: String = deltas.map(|data| serde_json::from_str::<String>(data.strip_suffix('}').unwrap()).unwrap()).collect();
        let answer = &read.body["messages"][1];
        assert_eq!((&answer["content"], &answer["finishReason"]), (&json!(text), &json!("error")));
        assert_eq!(answer["usage"]["estimated"], true);
        let usage = api.get("/api/chat/usage").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(usage.body["tokens"]["used"], answer["usage"]["totalTokens"]);
        assert_eq!(usage.body["tokens"]["reserved"], 0);
    }

    async fn what_does_not_fit_in_the_quota_is_refused(api: Api) {
        let person = api.sign_up().await;
        // Each character of this may be a token, and the free plan has fewer of them.
        let refused = say(&api, &person, json!({"message": "é".repeat(30_000)})).await.expect_problem(429, "quota_exceeded");
        assert_eq!((&refused.body["limit"], &refused.body["used"]), (&json!(50_000), &json!(0)));
        let usage = api.get("/api/chat/usage").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(refused.body["resetsAt"], usage.body["tokens"]["resetsAt"]);
        nothing_is_left_behind(&api, &person).await;
    }
}
