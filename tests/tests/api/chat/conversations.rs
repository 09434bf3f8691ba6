use serde_json::{Value, json};

use crate::support::*;

async fn say(api: &Api, person: &Person, body: Value) -> Reply {
    api.post("/api/chat").bearer(&person.jwt).json(&body).send().await
}

async fn titles(api: &Api, person: &Person, query: &str) -> Vec<String> {
    let path = format!("/api/chat/conversations{query}");
    let reply = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
    let list = reply.body["conversations"].as_array().unwrap();
    list.iter().map(|conversation| conversation["title"].as_str().unwrap().to_owned()).collect()
}

/// What Lambda lets a function reply with, in octets.
const LONGEST_REPLY: usize = 6_291_556;

/// Octets of a body within the reply of its function.
fn length_in_reply(reply: &Reply) -> usize {
    serde_json::to_string(&reply.text).unwrap().len()
}

through_both_doors! {
    async fn are_made_listed_changed_and_deleted(api: Api) {
        let person = api.sign_up().await;
        let body = json!({"title": "<b>Quantum</b> \u{7} plans", "model": "gpt-4", "systemPrompt": "Be brief."});
        let made = api.post("/api/conversations").bearer(&person.jwt).json(&body).send().await.expect_status(201);
        let id = made.text_at("/conversation/id");
        assert_eq!(made.body["conversation"]["title"], body["title"]);
        assert_eq!(made.body["conversation"]["provider"], "openai");
        assert_eq!(made.body["conversation"]["messageCount"], 0);

        let said = say(&api, &person, json!({"message": "Tell me of zebras", "conversationId": id})).await;
        assert_eq!(said.expect_status(200).body["model"], "gpt-4");
        let path = format!("/api/chat/conversations/{id}");
        let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
        let messages = read.body["messages"].as_array().unwrap();
        assert_eq!(messages.len(), 2);
        assert_eq!((&messages[0]["role"], &messages[0]["content"]), (&json!("user"), &json!("Tell me of zebras")));
        assert!(messages[1]["usage"]["totalTokens"].as_i64().unwrap() > 0);
        assert_eq!(read.body["conversation"]["messageCount"], 2);

        // Words in titles and in messages, begun or whole.
        assert_eq!(titles(&api, &person, "?q=QUANT").await.len(), 1);
        assert_eq!(titles(&api, &person, "?q=zebra").await.len(), 1);
        assert_eq!(titles(&api, &person, "?q=giraffe").await.len(), 0);
        say(&api, &person, json!({"message": "我想去北京旅游，有什么好吃的？"})).await.expect_status(200);
        assert_eq!(titles(&api, &person, "?q=%E5%8C%97%E4%BA%AC").await.len(), 1, "words without spaces are found within");

        let change = json!({"title": "Other", "archived": true, "pinned": true});
        let changed = api.call("PATCH", &path).bearer(&person.jwt).json(&change).send().await.expect_status(200);
        assert_eq!((&changed.body["conversation"]["title"], &changed.body["conversation"]["pinned"]), (&json!("Other"), &json!(true)));
        assert_eq!(titles(&api, &person, "").await.len(), 1);
        assert_eq!(titles(&api, &person, "?archived=true").await, ["Other"]);

        api.delete(&path).bearer(&person.jwt).send().await.expect_status(204);
        api.get(&path).bearer(&person.jwt).send().await.expect_problem(404, "not_found");
        // What it cost stays counted.
        let usage = api.get("/api/chat/usage").bearer(&person.jwt).send().await.expect_status(200);
        assert!(usage.body["tokens"]["used"].as_i64().unwrap() > 0);
        assert_eq!(usage.body["byModel"][0]["messages"], 1);
    }

    async fn that_nobody_has_named_are_named_by_their_first_question(api: Api) {
        let person = api.sign_up().await;
        let change = json!({"title": "New conversation"});
        for (made, changed, expected) in [
            (json!({}), None, "First words"),
            (json!({"title": "Mine"}), None, "Mine"),
            (json!({}), Some(change), "New conversation"),
        ] {
            let made = api.post("/api/chat/conversations").bearer(&person.jwt).json(&made).send().await;
            let id = made.expect_status(201).text_at("/conversation/id");
            let path = format!("/api/chat/conversations/{id}");
            if let Some(change) = changed {
                api.call("PATCH", &path).bearer(&person.jwt).json(&change).send().await.expect_status(200);
            }
            for message in ["First words", "Then others"] {
                say(&api, &person, json!({"message": message, "conversationId": id})).await.expect_status(200);
            }
            let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
            assert_eq!(read.text_at("/conversation/title"), expected);
        }
        assert_eq!(titles(&api, &person, "?q=words").await, ["New conversation", "Mine", "First words"]);
    }

    async fn are_found_by_words_in_any_unicode_form(api: Api) {
        let person = api.sign_up().await;
        let body = json!({"title": "Phở in Việt Nam, or İstanbul"});
        api.post("/api/chat/conversations").bearer(&person.jwt).json(&body).send().await.expect_status(201);
        // As it is, decomposed, and without the dot.
        for word in ["Vi%E1%BB%87t", "vie%CC%A3%CC%82t", "pho%CC%9B%CC%89", "istanbul"] {
            assert_eq!(titles(&api, &person, &format!("?q={word}")).await.len(), 1, "{word}");
        }
    }

    async fn of_others_are_not_there(api: Api) {
        let (owner, other) = (api.sign_up().await, api.sign_up().await);
        let said = say(&api, &owner, json!({"message": "A secret of mine"})).await.expect_status(200);
        let id = said.text_at("/conversationId");
        let path = format!("/api/chat/conversations/{id}");
        api.get(&path).bearer(&other.jwt).send().await.expect_problem(404, "not_found");
        api.delete(&path).bearer(&other.jwt).send().await.expect_problem(404, "not_found");
        let patch = api.call("PATCH", &path).bearer(&other.jwt).json(&json!({"title": "x"}));
        patch.send().await.expect_problem(404, "not_found");
        say(&api, &other, json!({"message": "Hi", "conversationId": id})).await.expect_problem(404, "not_found");
        let again = api.post(&format!("{path}/regenerate")).bearer(&other.jwt).json(&json!({}));
        again.send().await.expect_problem(404, "not_found");
        assert!(titles(&api, &other, "?q=secret").await.is_empty());
        api.get("/api/chat/conversations/nonsense").bearer(&owner.jwt).send().await.expect_problem(404, "not_found");
    }

    async fn page_by_cursor(api: Api) {
        let person = api.sign_up().await;
        for n in 0..3 {
            let body = json!({"title": format!("Number {n}")});
            api.post("/api/chat/conversations").bearer(&person.jwt).json(&body).send().await.expect_status(201);
        }
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/api/chat/conversations?limit=2{cursor}");
            let page = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
            seen.extend(page.body["conversations"].as_array().unwrap().iter().map(|c| c["title"].as_str().unwrap().to_owned()));
            let Some(next) = page.body["nextCursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen, ["Number 2", "Number 1", "Number 0"]);
        let bad = api.get("/api/chat/conversations?limit=0&cursor=x&archived=maybe&pinned=maybe").bearer(&person.jwt);
        bad.send().await.expect_invalid(&["archived", "cursor", "limit", "pinned"]);
    }

    async fn of_the_newest_message_come_first(api: Api) {
        let person = api.sign_up().await;
        let mut ids = Vec::new();
        for title in ["Older", "Newer"] {
            let body = json!({"title": title});
            let made = api.post("/api/chat/conversations").bearer(&person.jwt).json(&body).send().await;
            ids.push(made.expect_status(201).text_at("/conversation/id"));
        }
        assert_eq!(titles(&api, &person, "").await, ["Newer", "Older"]);
        say(&api, &person, json!({"message": "Hello", "conversationId": ids[0]})).await.expect_status(200);
        assert_eq!(titles(&api, &person, "").await, ["Older", "Newer"]);
        // What is no message changes nothing of it.
        let patch = api.call("PATCH", &format!("/api/chat/conversations/{}", ids[1])).bearer(&person.jwt);
        patch.json(&json!({"title": "Changed"})).send().await.expect_status(200);
        assert_eq!(titles(&api, &person, "").await, ["Older", "Changed"]);
        let path = format!("/api/chat/conversations/{}/regenerate", ids[0]);
        say(&api, &person, json!({"message": "Hello", "conversationId": ids[1]})).await.expect_status(200);
        api.post(&path).bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(titles(&api, &person, "").await, ["Older", "Changed"]);
    }

    async fn are_listed_by_whether_they_are_pinned(api: Api) {
        let person = api.sign_up().await;
        for n in 0..4 {
            let body = json!({"title": format!("Number {n}")});
            let made = api.post("/api/chat/conversations").bearer(&person.jwt).json(&body).send().await.expect_status(201);
            let path = format!("/api/chat/conversations/{}", made.text_at("/conversation/id"));
            let change = json!({"pinned": n < 3, "archived": n == 0});
            api.call("PATCH", &path).bearer(&person.jwt).json(&change).send().await.expect_status(200);
        }
        assert_eq!(titles(&api, &person, "").await, ["Number 3", "Number 2", "Number 1"]);
        assert_eq!(titles(&api, &person, "?pinned=true").await, ["Number 2", "Number 1"]);
        assert_eq!(titles(&api, &person, "?pinned=false").await, ["Number 3"]);
        assert_eq!(titles(&api, &person, "?pinned=true&archived=true").await, ["Number 0"]);
        assert_eq!(titles(&api, &person, "?pinned=true&q=number").await, ["Number 2", "Number 1"]);
        assert_eq!(titles(&api, &person, "?pinned=false&q=number").await, ["Number 3"]);
        let path = "/api/chat/conversations?pinned=true";
        let whole = api.get(path).bearer(&person.jwt).send().await.expect_status(200);
        let ids: Vec<_> = whole.body["conversations"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect();
        assert_eq!(api.ids_by_pages(&person, path, "conversations", 1).await, ids);
    }

    async fn messages_page_by_cursor(api: Api) {
        let person = api.sign_up().await;
        let id = say(&api, &person, json!({"message": "First"})).await.expect_status(200).text_at("/conversationId");
        say(&api, &person, json!({"message": "Second", "conversationId": id})).await.expect_status(200);
        let path = format!("/api/chat/conversations/{id}");
        let whole = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(whole.body["nextCursor"], Value::Null);
        let messages = whole.body["messages"].as_array().unwrap();
        let said = |n: usize| (messages[n]["role"].as_str().unwrap(), messages[n]["content"].as_str().unwrap());
        assert_eq!((said(0), said(2)), (("user", "First"), ("user", "Second")), "oldest first");
        let ids: Vec<_> = messages.iter().map(|message| message["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), 4);
        for limit in [1, 3, 4] {
            assert_eq!(api.ids_by_pages(&person, &path, "messages", limit).await, ids);
        }
        // From its end on, as a long one is opened.
        let ids: Vec<_> = ids.into_iter().rev().collect();
        for limit in [1, 3, 4] {
            assert_eq!(api.ids_by_pages(&person, &format!("{path}?order=desc"), "messages", limit).await, ids);
        }
        let bad = api.get(&format!("{path}?order=newest&cursor=x")).bearer(&person.jwt);
        bad.send().await.expect_invalid(&["cursor", "order"]);
    }

    async fn long_messages_come_in_shorter_pages(api: Api) {
        let person = api.sign_up().await;
        let plan = json!({"plan": "enterprise", "paymentMethodId": "pm_card_visa"});
        api.post("/api/billing/subscriptions").bearer(&person.jwt).json(&plan).send().await.expect_status(201);
        let (message, mut conversation) = ("\u{1}".repeat(100_000), Value::Null);
        for _ in 0..10 {
            let said = say(&api, &person, json!({"message": message, "conversationId": conversation})).await;
            conversation = said.expect_status(200).body["conversationId"].take();
        }
        for order in ["asc", "desc"] {
            let path = format!("/api/chat/conversations/{}?order={order}&limit=100", conversation.as_str().unwrap());
            let first = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
            assert!(length_in_reply(&first) <= LONGEST_REPLY);
            let path = format!("{path}&cursor={}", first.text_at("/nextCursor"));
            let second = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
            assert_eq!(second.body["nextCursor"], Value::Null);
            let count = |page: &Reply| page.body["messages"].as_array().unwrap().len();
            assert_eq!(count(&first) + count(&second), 20);
        }
    }

    async fn an_answer_is_made_anew_in_its_place(api: Api) {
        let person = api.sign_up().await;
        let first = say(&api, &person, json!({"message": "Hello"})).await.expect_status(200);
        let path = format!("/api/chat/conversations/{}", first.text_at("/conversationId"));
        // Nothing has to be said: a body is not needed.
        let again = api.post(&format!("{path}/regenerate")).bearer(&person.jwt).send().await.expect_status(200);
        assert_ne!(again.body["message"]["id"], first.body["message"]["id"]);
        let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
        let messages = read.body["messages"].as_array().unwrap();
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[1]["id"], again.body["message"]["id"]);
        // By another one, if that is wanted.
        for (wanted, provider, model) in [
            (json!({"provider": "anthropic"}), "anthropic", None),
            (json!({"model": "gpt-4"}), "openai", Some("gpt-4")),
        ] {
            let again = api.post(&format!("{path}/regenerate")).bearer(&person.jwt).json(&wanted).send().await.expect_status(200);
            assert_eq!(again.text_at("/provider"), provider);
            assert!(model.is_none_or(|model| again.body["model"] == model), "{}", again.text);
            let read = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
            let told = |answer: &Value| [answer["id"].clone(), answer["provider"].clone(), answer["model"].clone()];
            assert_eq!(told(&read.body["messages"][1]), told(&again.body["message"]));
        }
        let empty = api.post("/api/chat/conversations").bearer(&person.jwt).json(&json!({})).send().await.expect_status(201);
        let path = format!("/api/chat/conversations/{}/regenerate", empty.text_at("/conversation/id"));
        api.post(&path).bearer(&person.jwt).json(&json!({})).send().await.expect_problem(404, "not_found");
    }
}

#[tokio::test]
async fn long_instructions_come_in_shorter_pages() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let body = json!({"title": "\u{1}".repeat(200), "systemPrompt": "\u{1}".repeat(10_000)});
    for _ in 0..90 {
        api.post("/api/chat/conversations").bearer(&person.jwt).json(&body).send().await.expect_status(201);
    }
    let path = "/api/chat/conversations?limit=100";
    let first = api.get(path).bearer(&person.jwt).send().await.expect_status(200);
    assert!(length_in_reply(&first) <= LONGEST_REPLY);
    let path = format!("{path}&cursor={}", first.text_at("/nextCursor"));
    let second = api.get(&path).bearer(&person.jwt).send().await.expect_status(200);
    let count = |page: &Reply| page.body["conversations"].as_array().unwrap().len();
    assert_eq!(count(&first) + count(&second), 90);
}
