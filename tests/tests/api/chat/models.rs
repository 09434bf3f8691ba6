use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};

use crate::support::*;

through_both_doors! {
    async fn lists_models_of_all_providers_to_anybody(api: Api) {
        let reply = api.get("/api/chat/models").send().await.expect_status(200);
        let models = reply.body["models"].as_array().unwrap();
        for provider in ["openai", "anthropic", "google"] {
            assert!(models.iter().any(|model| model["provider"] == provider), "{provider}");
        }
        assert!(models.iter().any(|model| model["id"] == "gpt-4"));
        for model in models {
            for name in ["id", "provider", "name", "contextWindow", "maxOutputTokens", "pricing", "available"] {
                assert!(model.get(name).is_some(), "{model} has no {name}");
            }
            assert_eq!(model["available"], true, "{model}");
        }
    }
}

/// What a function answers where nobody has a key of two of the providers.
fn ask_without_keys(function: &str, secret: &str, body: Option<&Value>, person: &Person) -> (Value, Value) {
    let mut environment = deployed().environment(function);
    environment.insert("PROVIDERS_SECRET_ARN".to_owned(), secret.to_owned());
    let event = Deployed::event(function, &random_address(), body, Some(&person.jwt)).unwrap();
    let mut sandbox = Sandbox::start(&deployed().binary(function), &environment).unwrap();
    let reply = sandbox.invoke(&event).unwrap().payload;
    let body = reply["body"].as_str().map_or(Value::Null, |body| serde_json::from_str(body).unwrap());
    (reply["statusCode"].clone(), body)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_a_providers_models_are_not_available() {
    let person = Api::of_router().sign_up().await;
    let secret = open_secret("models", &json!({"openai": "key", "anthropic": "", "google": ""})).await;
    let (status, list) = ask_without_keys("chat-list-models", &secret, None, &person);
    assert_eq!(status, 200, "{list}");
    for model in list["models"].as_array().unwrap() {
        assert_eq!(model["available"], model["provider"] == "openai", "{model}");
    }
    for (asked, expected) in [
        (json!({"message": "Hello"}), 200),
        (json!({"message": "Hello", "provider": "google"}), 400),
        (json!({"message": "Hello", "model": "claude-haiku-4-5"}), 400),
    ] {
        let (status, reply) = ask_without_keys("chat-send", &secret, Some(&asked), &person);
        assert_eq!(status, expected, "{asked}: {reply}");
    }
    delete_secret(&secret).await;
}
