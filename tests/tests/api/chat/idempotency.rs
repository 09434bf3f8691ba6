use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::support::*;

/// Leaves the key as a function does that dies between its commit and keeping the reply, once it must have ended.
async fn lose_the_reply(person: &Person, key: &str) {
    take_the_reply(person, key, 1).await;
}

/// What the table keeps under a key, by its place, once that is a reply.
async fn kept_reply(person: &Person, key: &str) -> (Value, Value) {
    let route = function_variable("chat-send", "ROUTE");
    let digest = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let pk = json!({"pk": {"S": format!("{}#{route}#{digest}", person.id)}});
    let ask = json!({"TableName": function_variable("chat-send", "IDEMPOTENCY_TABLE"), "Key": pk});
    let item = eventually("the kept reply", || async {
        let reply = aws("dynamodb", "DynamoDB_20120810.GetItem", &ask).await;
        reply["Item"]["status"].is_object().then(|| reply["Item"].clone())
    })
    .await;
    (pk, item)
}

/// Leaves the key as it is while a function works on its reply, which must have ended at a time in Unix seconds.
async fn take_the_reply(person: &Person, key: &str, ends_at: i64) {
    let (pk, _) = kept_reply(person, key).await;
    let change = json!({
        "TableName": function_variable("chat-send", "IDEMPOTENCY_TABLE"), "Key": pk, "UpdateExpression": "SET ends_at = :end REMOVE reply",
        "ExpressionAttributeValues": {":end": {"N": ends_at.to_string()}},
    });
    aws("dynamodb", "DynamoDB_20120810.UpdateItem", &change).await;
}

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
                // Its events keep their places: whoever goes on after one of them gets what is left, once.
                let ids = |reply: &Reply| -> Vec<String> {
                    reply.text.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect()
                };
                let (sent, kept) = (ids(&first), ids(&again));
                assert_eq!(kept[..], [&sent[0], &sent[sent.len() - 2], &sent[sent.len() - 1]].map(Clone::clone));
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

    async fn a_function_that_dies_before_it_keeps_its_reply_is_not_billed_twice(api: Api) {
        let person = api.sign_up().await;
        for stream in [false, true] {
            let key = format!("lost {stream}");
            let body = json!({"message": "Hello", "stream": stream});
            let send = || api.post("/api/chat").bearer(&person.jwt).header("idempotency-key", &key).json(&body).send();
            let spent = || async { api.get("/api/chat/usage").bearer(&person.jwt).send().await.body["tokens"]["used"].clone() };
            let first = send().await.expect_status(200);
            let used = spent().await;
            lose_the_reply(&person, &key).await;
            let again = send().await.expect_status(200);
            // What was found is kept, for all further tries.
            let third = send().await.expect_status(200);
            assert_eq!(third.text, again.text);
            if stream {
                let events = |reply: &Reply, name: &str| {
                    let mut lines = reply.text.lines().skip_while(|line| *line != format!("event: {name}")).skip(1);
                    serde_json::from_str::<Value>(lines.next().unwrap().strip_prefix("data: ").unwrap()).unwrap()
                };
                assert_eq!(events(&again, "start")["messageId"], events(&first, "start")["messageId"]);
                assert_eq!(events(&again, "done"), events(&first, "done"));
            } else {
                assert_eq!((&again.body["message"]["id"], &again.body["usage"]), (&first.body["message"]["id"], &first.body["usage"]));
                assert_eq!((&again.body["conversationId"], &again.body["quota"]), (&first.body["conversationId"], &first.body["quota"]));
            }
            assert_eq!(spent().await, used, "stream: {stream}");
        }
        let list = api.get("/api/chat/conversations").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(list.body["conversations"].as_array().unwrap().len(), 2);
    }

    async fn a_request_whose_first_try_is_under_way_waits_for_it(api: Api) {
        let person = api.sign_up().await;
        let send = |message: &str| {
            let call = api.post("/api/chat").bearer(&person.jwt).header("idempotency-key", "under way");
            call.json(&json!({"message": message})).send()
        };
        let first = send("Hello").await.expect_status(200);
        take_the_reply(&person, "under way", OffsetDateTime::now_utc().unix_timestamp() + 600).await;
        send("Hello").await.expect_problem(409, "request_in_progress");
        send("Other").await.expect_problem(422, "idempotency_key_reused");
        lose_the_reply(&person, "under way").await;
        assert_eq!(send("Hello").await.expect_status(200).body["message"]["id"], first.body["message"]["id"]);
    }

    async fn an_answer_that_is_deleted_before_its_reply_is_kept_is_gone_at_every_try(api: Api) {
        let person = api.sign_up().await;
        let body = json!({"message": "Hello"});
        let send = || api.post("/api/chat").bearer(&person.jwt).header("idempotency-key", "gone").json(&body).send();
        let path = format!("/api/chat/conversations/{}", send().await.expect_status(200).text_at("/conversationId"));
        lose_the_reply(&person, "gone").await;
        api.delete(&path).bearer(&person.jwt).send().await.expect_status(204);
        for _ in 0..2 {
            send().await.expect_problem(404, "not_found");
        }
    }

    async fn a_request_whose_answer_broke_off_is_answered_in_its_place(api: Api) {
        let person = api.sign_up().await;
        let try_it = async || {
            let call = api.post("/api/chat").bearer(&person.jwt).header("idempotency-key", "k");
            let refused = call.json(&json!({"message": "AIMOCK:disconnect"})).send().await;
            let refused = refused.expect_problem(502, "provider_unavailable");
            let path = format!("/api/chat/conversations/{}", refused.text_at("/conversationId"));
            let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200).body;
            let messages = read["messages"].as_array().unwrap();
            assert_eq!((messages.len(), &messages[1]["id"]), (2, &refused.body["messageId"]));
            (path, messages[1]["usage"]["totalTokens"].as_i64().unwrap())
        };
        let (first, second) = (try_it().await, try_it().await);
        assert_eq!(first.0, second.0, "one conversation");
        let usage = api.get("/api/chat/usage").bearer(&person.jwt).send().await.expect_status(200);
        let spent = first.1 + second.1;
        assert_eq!((&usage.body["tokens"]["used"], &usage.body["tokens"]["reserved"]), (&json!(spent), &json!(0)));
    }

    async fn a_try_that_is_refused_loses_nothing_of_the_one_before_it(api: Api) {
        let person = api.sign_up().await;
        let send = || {
            let call = api.post("/api/chat").bearer(&person.jwt).header("idempotency-key", "refused");
            call.json(&json!({"message": "AIMOCK:disconnect"})).send()
        };
        let broken = send().await.expect_problem(502, "provider_unavailable").text_at("/conversationId");
        // Another answer holds what is left of the month.
        let (mut database, held) = (PgConnection::connect(&variable("DATABASE_URL")).await.unwrap(), Uuid::now_v7());
        let reserve = "SELECT q.period::text FROM quota_reserve($1, $2::uuid, 50000, 10, 50000) q";
        let reserve = sqlx::query_scalar(reserve).bind(held).bind(&person.id);
        let month: String = reserve.fetch_one(&mut database).await.unwrap();
        for _ in 0..2 {
            send().await.expect_problem(429, "quota_exceeded");
        }
        let settle = sqlx::query("SELECT quota_settle($1, $2::uuid, $3::date, 0)").bind(held).bind(&person.id);
        settle.bind(month).execute(&mut database).await.unwrap();
        let again = send().await.expect_problem(502, "provider_unavailable");
        assert_eq!(again.text_at("/conversationId"), broken);
        let list = api.get("/api/chat/conversations").bearer(&person.jwt).send().await.expect_status(200);
        let list = list.body["conversations"].as_array().unwrap().clone();
        assert_eq!((list.len(), &list[0]["messageCount"]), (1, &json!(2)));
    }

    async fn an_answer_that_is_deleted_is_not_kept_for_anybody(api: Api) {
        let person = api.sign_up().await;
        for stream in [false, true] {
            let key = format!("deleted {stream}");
            let body = json!({"message": "Hello", "stream": stream});
            let send = || api.post("/api/chat").bearer(&person.jwt).header("idempotency-key", &key).json(&body).send();
            send().await.expect_status(200);
            // The reply is kept a moment after it was sent.
            eventually("the kept reply", || async { (send().await.status == 200).then_some(()) }).await;
            let list = api.get("/api/chat/conversations").bearer(&person.jwt).send().await.expect_status(200);
            let path = format!("/api/chat/conversations/{}", list.body["conversations"][0]["id"].as_str().unwrap());
            api.delete(&path).bearer(&person.jwt).send().await.expect_status(204);
            send().await.expect_problem(404, "not_found");
        }
        let list = api.get("/api/chat/conversations").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(list.body["conversations"], json!([]));
    }

    async fn a_reply_is_kept_for_a_day_under_its_route(api: Api) {
        let person = api.sign_up().await;
        let (key, card) = ("k".repeat(255), "pm_card_visa");
        let send = |path: &str, body: Value| {
            api.post(path).bearer(&person.jwt).header("idempotency-key", &key).json(&body).send()
        };
        let before = OffsetDateTime::now_utc().unix_timestamp();
        send("/api/chat", json!({"message": "Hello"})).await.expect_status(200);
        let payment = json!({"amount": 1999, "currency": "USD", "paymentMethodId": card});
        send("/api/billing/payments", payment).await.expect_status(201);
        send("/api/billing/subscriptions", json!({"plan": "pro", "paymentMethodId": card})).await.expect_status(201);
        let (_, kept) = kept_reply(&person, &key).await;
        let expires: i64 = kept["expires"]["N"].as_str().unwrap().parse().unwrap();
        let (day, after) = (24 * 3_600, OffsetDateTime::now_utc().unix_timestamp());
        assert!((before + day..=after + day).contains(&expires), "{before} {expires} {after}");
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
