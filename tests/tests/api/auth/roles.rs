//! Roles that an operator gives and takes, by the deployed worker.

use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn a_role_is_given_and_taken_in_sessions_that_are_open() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    let elsewhere = Person::of(&person.email, &api.sign_in(&person.email, PASSWORD).await.expect_status(200));
    let metrics = |jwt: String| async move { Api::of_router().get("/metrics").bearer(&jwt).send().await.status };
    for (role, status) in [("admin", 200), ("user", 403)] {
        let event = json!({"email": person.email.to_uppercase(), "role": role});
        assert_eq!(invoke("workers-set-role", event.to_string()).await, json!({"userId": person.id}));
        assert_eq!(metrics(person.jwt.clone()).await, status, "{role}");
        assert_eq!(metrics(elsewhere.jwt.clone()).await, status, "{role}");
        let reply = api.sign_in(&person.email, PASSWORD).await.expect_status(200);
        assert_eq!(reply.body["user"]["role"], role);
        assert_eq!(metrics(Person::of(&person.email, &reply).jwt).await, status, "{role}");
    }
}
