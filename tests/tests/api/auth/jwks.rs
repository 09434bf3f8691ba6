use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::support::*;

fn part(token: &str, index: usize) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(index).unwrap()).unwrap()).unwrap()
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

through_both_doors! {
    async fn the_published_key_verifies_an_access_token(api: Api) {
        let person = api.sign_up().await;
        let reply = api.get("/.well-known/jwks.json").send().await.expect_status(200);
        let header = part(&person.jwt, 0);
        assert_eq!(header["alg"], "EdDSA");
        let key = reply.body["keys"].as_array().unwrap().iter().find(|key| key["kid"] == header["kid"]).unwrap();
        assert_eq!((&key["kty"], &key["crv"], &key["use"], &key["alg"]), (&json!("OKP"), &json!("Ed25519"), &json!("sig"), &json!("EdDSA")));
        assert!(key.get("d").is_none(), "a private key is public");
        let (message, signature) = person.jwt.rsplit_once('.').unwrap();
        let public = UnparsedPublicKey::new(&ED25519, URL_SAFE_NO_PAD.decode(key["x"].as_str().unwrap()).unwrap());
        public.verify(message.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();

        let claims = part(&person.jwt, 1);
        let names: Vec<_> = claims.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["aud", "exp", "iat", "iss", "sid", "sub"]);
        assert_eq!(claims["sub"], person.id);
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 15 * 60);
        let sessions = api.get("/api/auth/sessions").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(claims["sid"], sessions.body["sessions"][0]["id"]);
    }

    async fn a_changed_token_is_refused_whatever_it_claims(api: Api) {
        let (ada, bob) = (api.sign_up().await, api.sign_up().await);
        let (header, claims) = (part(&ada.jwt, 0), part(&ada.jwt, 1));
        let signature = ada.jwt.rsplit_once('.').unwrap().1;
        let mut for_bob = claims.clone();
        for_bob["sub"] = json!(bob.id);
        let mut for_ever = claims.clone();
        for_ever["exp"] = json!(4_102_444_800_i64);
        let with = |header: &Value, claims: &Value, signature: &str| format!("{}.{}.{signature}", encode(header), encode(claims));
        let algorithm = |name: &str| json!({"alg": name, "typ": "JWT", "kid": header["kid"]});
        let public = api.get("/.well-known/jwks.json").send().await.body["keys"][0]["x"].as_str().unwrap().to_owned();
        let hmac = {
            let message = format!("{}.{}", encode(&algorithm("HS256")), encode(&claims));
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &URL_SAFE_NO_PAD.decode(public).unwrap());
            let tag = ring::hmac::sign(&key, message.as_bytes());
            format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
        };
        let unknown_key = json!({"alg": "EdDSA", "typ": "JWT", "kid": "other"});
        for token in [
            with(&header, &for_bob, signature),
            with(&header, &for_ever, signature),
            with(&algorithm("none"), &claims, ""),
            with(&algorithm("HS256"), &claims, signature),
            with(&unknown_key, &claims, signature),
            with(&json!({"alg": "EdDSA", "jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}}), &claims, signature),
            hmac,
            ada.jwt[..ada.jwt.len() - 1].to_owned(),
            format!("{}.", ada.jwt),
            "..".to_owned(),
        ] {
            api.get("/api/auth/me").bearer(&token).send().await.expect_problem(401, "unauthenticated");
        }
        assert_eq!(api.me(&ada.jwt).await, 200);
    }
}
