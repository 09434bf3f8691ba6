//! Rotations of the signing key by the deployed function, step by step as Secrets Manager takes them, on a secret of
//! this test's own.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sandbox::Sandbox;
use sandbox::deployed::{Deployed, random_address};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::*;

/// The functions as they start after a rotation: each reads the secret once.
struct Sandboxes {
    sign_in: Sandbox,
    me: Sandbox,
    jwks: Sandbox,
}

impl Sandboxes {
    fn start(secret: &str) -> Self {
        let start = |function: &str| {
            let mut environment = deployed().environment(function);
            environment.insert("SIGNING_SECRET_ARN".to_owned(), secret.to_owned());
            Sandbox::start(&deployed().binary(function), &environment).unwrap()
        };
        Self { sign_in: start("auth-signin"), me: start("auth-me"), jwks: start("auth-jwks") }
    }

    fn token(&mut self, email: &str) -> String {
        let body = json!({"email": email, "password": PASSWORD});
        let event = Deployed::event("auth-signin", &random_address(), Some(&body), None).unwrap();
        let reply = self.sign_in.invoke(&event).unwrap().payload;
        assert_eq!(reply["statusCode"], 200, "{reply}");
        let reply: Value = serde_json::from_str(reply["body"].as_str().unwrap()).unwrap();
        reply["token"].as_str().unwrap().to_owned()
    }

    fn me(&mut self, token: &str) -> u64 {
        let event = Deployed::event("auth-me", &random_address(), None, Some(token)).unwrap();
        self.me.invoke(&event).unwrap().payload["statusCode"].as_u64().unwrap()
    }

    fn published(&mut self) -> Vec<String> {
        let event = Deployed::event("auth-jwks", &random_address(), None, None).unwrap();
        let reply = self.jwks.invoke(&event).unwrap().payload;
        let reply: Value = serde_json::from_str(reply["body"].as_str().unwrap()).unwrap();
        reply["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    }
}

fn kid(token: &str) -> String {
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    serde_json::from_slice::<Value>(&header).unwrap()["kid"].as_str().unwrap().to_owned()
}

async fn step(secret: &str, version: &str, step: &str) -> Value {
    let event = json!({"SecretId": secret, "ClientRequestToken": version, "Step": step});
    invoke("workers-rotate-signing-key", event.to_string()).await
}

/// One rotation. Secrets Manager repeats a step whose answer it has not got, so each is done twice.
async fn rotate(secret: &str) {
    let version = Uuid::now_v7().to_string();
    for name in ["createSecret", "setSecret", "testSecret", "finishSecret"] {
        for _ in 0..2 {
            assert_eq!(step(secret, &version, name).await, Value::Null);
        }
    }
}

#[tokio::test]
async fn a_rotated_key_signs_and_the_one_before_is_accepted_until_the_next() {
    let secret = &open_secret("signing", &json!({"current": Uuid::now_v7().to_string()})).await;
    let email = Api::of_router().sign_up().await.email;

    let mut before = Sandboxes::start(secret);
    let first = before.token(&email);
    assert_eq!(before.published(), [kid(&first)]);

    // The first rotation announces a key.
    rotate(secret).await;
    let mut announced = Sandboxes::start(secret);
    let keys = announced.published();
    assert_eq!((keys.len(), &keys[0]), (2, &kid(&first)));
    assert_eq!(kid(&announced.token(&email)), kid(&first));
    assert_eq!(announced.me(&first), 200);

    // The second one signs with it.
    rotate(secret).await;
    let mut rotated = Sandboxes::start(secret);
    let second = rotated.token(&email);
    assert_eq!(kid(&second), keys[1]);
    let published = rotated.published();
    assert!(published.contains(&kid(&first)) && published.contains(&kid(&second)), "{published:?}");
    assert_eq!(rotated.me(&first), 200, "a token from before the rotation");
    assert_eq!(announced.me(&second), 200, "by a sandbox that has lived through the rotation");
    assert_eq!(before.me(&second), 401, "by a key that was never announced to it");

    // By the third one its tokens have long expired.
    rotate(secret).await;
    let mut gone = Sandboxes::start(secret);
    assert!(!gone.published().contains(&kid(&first)));
    assert_eq!((gone.me(&first), gone.me(&second)), (401, 200));
    delete_secret(secret).await;
}
