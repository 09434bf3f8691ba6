//! What all credential routes have in common.

use serde_json::json;

use crate::support::*;

const POSTS: [&str; 9] = [
    "signup",
    "signin",
    "signout",
    "verify-email",
    "resend-verification",
    "forgot-password",
    "reset-password",
    "refresh",
    "change-password",
];

through_both_doors! {
    async fn an_allowed_origin_may_read_every_reply(api: Api) {
        for path in POSTS {
            let reply = api.post(&format!("/api/auth/{path}")).header("origin", ORIGIN).json(&json!({})).send().await;
            assert!((400..500).contains(&reply.status), "{path}: {}", reply.status);
            assert_eq!(reply.header("access-control-allow-origin"), Some(ORIGIN), "{path}");
            assert_eq!(reply.header("access-control-allow-credentials"), Some("true"), "{path}");
            let exposed = reply.header("access-control-expose-headers").unwrap().to_lowercase();
            for name in ["x-request-id", "retry-after", "ratelimit", "ratelimit-policy", "etag"] {
                assert!(exposed.split(',').any(|exposed| exposed.trim() == name), "{path}: {exposed}");
            }
        }
    }

    async fn every_reply_tells_what_is_left(api: Api) {
        // Signing out is not counted.
        for path in POSTS.iter().filter(|path| **path != "signout") {
            let reply = api.post(&format!("/api/auth/{path}")).json(&json!({})).send().await;
            assert!(reply.header("ratelimit").is_some() && reply.header("ratelimit-policy").is_some(), "{path}: {:?}", reply.headers);
        }
    }

    async fn a_request_keeps_its_id_and_its_trace(api: Api) {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let reply = api.get("/api/auth/me").header("x-request-id", "mine-0123456789").header("traceparent", trace).send().await;
        assert_eq!(reply.header("x-request-id"), Some("mine-0123456789"));
        assert_eq!(reply.body["requestId"], "mine-0123456789");
        let hostile = api.get("/api/auth/me").header("x-request-id", "{\"a\": 1} injected").send().await;
        assert_ne!(hostile.header("x-request-id"), Some("{\"a\": 1} injected"));
        api.get("/api/auth/me").header("traceparent", "nonsense").send().await.expect_status(401);
    }
}
