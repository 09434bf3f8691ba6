//! What is not a good body is a 4xx, on every route that takes one.

use crate::support::*;

const ROUTES: [&str; 7] =
    ["signup", "signin", "verify-email", "resend-verification", "forgot-password", "reset-password", "change-password"];

/// `change-password` asks for a session first.
async fn bearer(api: &Api) -> String {
    api.sign_up().await.jwt
}

through_both_doors! {
    async fn no_json_is_400(api: Api) {
        let bearer = bearer(&api).await;
        let bodies: [&[u8]; 10] = [
            b"{", b"}", b"nonsense", b"[]", b"null", b"\"text\"", b"1", b"{\"email\":\"a@b.de\",}", b"\xef\xbb\xbf{}",
            b"{\"email\":\"\\ud800\"}",
        ];
        for route in ROUTES {
            for body in bodies {
                let call = api.elsewhere().post(&format!("/api/auth/{route}")).bearer(&bearer);
                let reply = call.body("application/json", body).send().await;
                assert_eq!((reply.status, reply.body["code"].as_str()), (400, Some("invalid_json")), "{route} {body:?}: {}", reply.text);
            }
        }
    }

    async fn no_body_has_no_fields(api: Api) {
        let bearer = bearer(&api).await;
        for route in ROUTES {
            for media_type in ["application/json", "text/plain"] {
                let call = api.elsewhere().post(&format!("/api/auth/{route}")).bearer(&bearer).body(media_type, "");
                let reply = call.send().await;
                assert_eq!((reply.status, reply.body["code"].as_str()), (400, Some("validation_failed")), "{route}");
            }
        }
    }

    async fn what_is_no_utf_8_is_400(api: Api) {
        let bearer = bearer(&api).await;
        for route in ROUTES {
            for body in [&b"\xff"[..], b"{\"email\":\"\xff\xfe@b.de\"}", b"{\"email\":\"\xc3\"}", b"{\"email\":\"\xed\xa0\x80\"}"] {
                let call = api.elsewhere().post(&format!("/api/auth/{route}")).bearer(&bearer);
                call.body("application/json", body).send().await.expect_problem(400, "invalid_json");
            }
        }
    }

    async fn deep_nesting_is_400(api: Api) {
        let body = "[".repeat(100_000);
        api.post("/api/auth/signin").body("application/json", body).send().await.expect_problem(400, "invalid_json");
        let body = format!("{{\"email\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        api.post("/api/auth/signin").body("application/json", body).send().await.expect_problem(400, "invalid_json");
    }

    async fn another_media_type_is_415(api: Api) {
        let bearer = bearer(&api).await;
        let body = r#"{"email":"a@example.com","password":"correct horse battery"}"#;
        for route in ROUTES {
            for media_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", "application/jsonp", "x"] {
                let call = api.elsewhere().post(&format!("/api/auth/{route}")).bearer(&bearer);
                let reply = call.body(media_type, body).send().await;
                assert_eq!((reply.status, reply.body["code"].as_str()), (415, Some("unsupported_media_type")), "{route} {media_type}");
            }
        }
        let with_charset = api.post("/api/auth/signin").body("Application/JSON; charset=utf-8", body);
        with_charset.send().await.expect_problem(401, "invalid_credentials");
    }

    async fn a_large_body_is_413(api: Api) {
        let bearer = bearer(&api).await;
        for route in ROUTES {
            for size in [(1 << 20) + 1, 5_000_000] {
                let body = format!("{{\"email\":\"{}\"}}", "x".repeat(size));
                let reply = api.post(&format!("/api/auth/{route}")).bearer(&bearer).body("application/json", body).send().await;
                assert_eq!((reply.status, reply.body["code"].as_str()), (413, Some("payload_too_large")), "{route} {size}");
            }
        }
        let fits = format!("{{\"email\":\"{}\"}}", "x".repeat((1 << 20) - 20));
        api.post("/api/auth/signin").body("application/json", fits).send().await.expect_invalid(&["email", "password"]);
    }
}
