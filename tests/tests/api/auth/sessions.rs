use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::support::*;

pub async fn list(api: &Api, bearer: &str) -> Vec<Value> {
    let reply = api.get("/api/auth/sessions").bearer(bearer).send().await.expect_status(200);
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    reply.body["sessions"].as_array().unwrap().clone()
}

/// The sessions of a person as they are stored.
pub async fn stored(person: &Person) -> Vec<Value> {
    let query = json!({
        "TableName": function_variable("auth-me", "SESSIONS_TABLE"), "ConsistentRead": true,
        "KeyConditionExpression": "user_id = :user", "ExpressionAttributeValues": {":user": {"S": person.id}},
    });
    aws("dynamodb", "DynamoDB_20120810.Query", &query).await["Items"].as_array().unwrap().clone()
}

/// Has a person's one session have begun, and have been seen last, so many hours ago.
async fn set_back(person: &Person, created: i64, seen: i64) {
    let session = &stored(person).await[0];
    let ago = |hours| {
        let moment = OffsetDateTime::now_utc() - Duration::hours(hours);
        json!({"N": (moment.unix_timestamp() * 1_000).to_string()})
    };
    let change = json!({
        "TableName": function_variable("auth-me", "SESSIONS_TABLE"),
        "Key": {"user_id": session["user_id"], "session_id": session["session_id"]},
        "UpdateExpression": "SET created_at = :created, last_seen_at = :seen",
        "ExpressionAttributeValues": {":created": ago(created), ":seen": ago(seen)},
    });
    aws("dynamodb", "DynamoDB_20120810.UpdateItem", &change).await;
}

through_both_doors! {
    async fn end_a_week_after_the_last_use_and_thirty_days_after_they_began(api: Api) {
        // In hours: a week has 168, and thirty days have 720.
        for (created, seen, lives) in [(166, 166, true), (170, 170, false), (718, 1, true), (722, 1, false)] {
            let person = api.sign_up().await;
            for (call, token) in [
                (api.get("/api/auth/me"), &person.jwt),
                (api.get("/api/auth/me"), &person.session_token),
                (api.post("/api/auth/refresh"), &person.session_token),
            ] {
                set_back(&person, created, seen).await;
                let reply = call.bearer(token).send().await;
                if lives {
                    reply.expect_status(200);
                } else {
                    reply.expect_problem(401, "session_expired");
                }
            }
        }
    }

    async fn last_longer_with_every_use_within_their_thirty_days(api: Api) {
        for (created, left) in [(166, 168), (718, 2)] {
            for (method, path) in [("GET", "/api/auth/me"), ("POST", "/api/auth/refresh")] {
                let person = api.sign_up().await;
                set_back(&person, created, 166).await;
                api.call(method, path).bearer(&person.session_token).send().await.expect_status(200);
                let expected = (OffsetDateTime::now_utc() + Duration::hours(left)).unix_timestamp();
                // It is written down behind the reply.
                eventually("the use of the session", || async {
                    let expires: i64 = stored(&person).await[0]["expires"]["N"].as_str().unwrap().parse().unwrap();
                    ((expected - 60)..=expected).contains(&expires).then_some(())
                })
                .await;
            }
        }
    }

    async fn lists_where_the_user_is_signed_in(api: Api) {
        let person = api.sign_up().await;
        let body = json!({"email": person.email, "password": PASSWORD, "transport": "bearer"});
        let elsewhere = api.elsewhere();
        let phone = elsewhere.post("/api/auth/signin").header("user-agent", "Phone/1.0").json(&body).send().await;
        let phone = Person::of(&person.email, &phone.expect_status(200));
        let sessions = list(&api, &phone.jwt).await;
        assert_eq!(sessions.len(), 2);
        for session in &sessions {
            let keys: Vec<_> = session.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(keys, ["createdAt", "current", "device", "id", "ip", "lastSeenAt"]);
        }
        let current: Vec<_> = sessions.iter().filter(|session| session["current"] == true).collect();
        assert_eq!(current.len(), 1);
        assert_eq!(current[0]["device"], "Phone/1.0");
        let addresses: Vec<_> = sessions.iter().map(|session| session["ip"].as_str().unwrap()).collect();
        assert_ne!(addresses[0], addresses[1]);
        assert!(addresses.iter().all(|address| address.starts_with("fd")), "{addresses:?}");
        assert_eq!(list(&api, &person.session_token).await.len(), 2);
    }

    async fn page_by_cursor(api: Api) {
        let person = api.sign_up().await;
        for _ in 0..2 {
            api.sign_in(&person.email, PASSWORD).await.expect_status(200);
        }
        let sessions = list(&api, &person.jwt).await;
        let ids: Vec<_> = sessions.iter().map(|session| session["id"].as_str().unwrap()).collect();
        assert_eq!((ids.len(), &sessions[2]["current"]), (3, &json!(true)), "newest first");
        for limit in [1, 2, 3] {
            assert_eq!(api.ids_by_pages(&person, "/api/auth/sessions", "sessions", limit).await, ids);
        }
    }

    async fn revoking_ends_a_session_at_once(api: Api) {
        let person = api.sign_up().await;
        let other = Person::of(&person.email, &api.sign_in(&person.email, PASSWORD).await);
        let sessions = list(&api, &person.jwt).await;
        let id = sessions.iter().find(|session| session["current"] == false).unwrap()["id"].as_str().unwrap();
        let revoke = || api.delete(&format!("/api/auth/sessions/{id}")).bearer(&person.jwt).send();
        let reply = revoke().await.expect_status(204);
        assert!(reply.session_cookie().is_none());
        assert_eq!((api.me(&other.jwt).await, api.me(&other.session_token).await), (401, 401));
        assert_eq!(api.me(&person.jwt).await, 200);
        revoke().await.expect_problem(404, "not_found");
        assert_eq!(list(&api, &person.jwt).await.len(), 1);
    }

    async fn revoking_the_own_session_signs_out(api: Api) {
        let person = api.sign_up().await;
        let sessions = list(&api, &person.jwt).await;
        let path = format!("/api/auth/sessions/{}", sessions[0]["id"].as_str().unwrap());
        let reply = api.delete(&path).cookie(&person.session_token).header("origin", ORIGIN).send().await.expect_status(204);
        assert_eq!(reply.session_cookie().unwrap().0, "");
        assert_eq!(api.me(&person.jwt).await, 401);
    }

    async fn somebody_elses_session_is_not_found(api: Api) {
        let (ada, bob) = (api.sign_up().await, api.sign_up().await);
        let sessions = list(&api, &ada.jwt).await;
        let path = format!("/api/auth/sessions/{}", sessions[0]["id"].as_str().unwrap());
        api.delete(&path).bearer(&bob.jwt).send().await.expect_problem(404, "not_found");
        assert_eq!(api.me(&ada.jwt).await, 200);
        for nonsense in ["x", "%00", "%ff", "'%20or%201=1", "00000000-0000-0000-0000-000000000000"] {
            let reply = api.delete(&format!("/api/auth/sessions/{nonsense}")).bearer(&ada.jwt).send().await;
            reply.expect_problem(404, "not_found");
        }
    }

    async fn needs_a_session(api: Api) {
        api.get("/api/auth/sessions").send().await.expect_problem(401, "unauthenticated");
        let path = "/api/auth/sessions/00000000-0000-0000-0000-000000000000";
        api.delete(path).send().await.expect_problem(401, "unauthenticated");
    }
}
