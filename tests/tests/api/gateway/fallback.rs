use crate::support::*;

through_both_doors! {
    async fn an_unknown_path_and_a_wrong_method_are_alike(api: Api) {
        for (method, path) in [
            ("GET", "/nope"), ("POST", "/api/auth/nope"), ("GET", "/api/auth/signin"), ("DELETE", "/api/auth/me"), ("PUT", "/"), ("POST", "/health"),
            ("GET", "/api"), ("GET", "/api/auth/sessions/x/y"), ("PATCH", "/api/chat"), ("GET", "/%00"), ("GET", "/a%2fb"), ("GET", "/..%2f..%2fetc/passwd"),
            ("GET", "/api/auth/me/../../x%20y"),
        ] {
            let reply = api.call(method, path).send().await;
            assert_eq!((reply.status, reply.body["code"].as_str()), (404, Some("route_not_found")), "{method} {path}: {}", reply.text);
        }
        let reply = api.post("/nope").header("origin", ORIGIN).body("application/json", "{").send().await;
        let reply = reply.expect_problem(404, "route_not_found");
        assert_eq!(reply.header("access-control-allow-origin"), Some(ORIGIN));
        let authorised = api.get("/nope").bearer("a.b.c").send().await;
        authorised.expect_problem(404, "route_not_found");
    }

    async fn answers_preflights_of_allowed_origins_on_every_path(api: Api) {
        for path in ["/", "/health", "/api/auth/signin", "/api/auth/sessions/x", "/api/chat", "/api/analytics/users/signups", "/.well-known/jwks.json"] {
            let preflight = |origin: &str| {
                api.call("OPTIONS", path)
                    .header("origin", origin)
                    .header("access-control-request-method", "POST")
                    .header("access-control-request-headers", "content-type, authorization, idempotency-key")
                    .send()
            };
            let reply = preflight(ORIGIN).await.expect_status(204);
            assert_eq!(reply.header("access-control-allow-origin"), Some(ORIGIN), "{path}");
            assert_eq!(reply.header("access-control-allow-credentials"), Some("true"), "{path}");
            let methods = reply.header("access-control-allow-methods").unwrap();
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
                assert!(methods.contains(method), "{path}: {methods}");
            }
            let headers = reply.header("access-control-allow-headers").unwrap().to_lowercase();
            for name in ["content-type", "authorization", "idempotency-key", "if-none-match", "last-event-id"] {
                assert!(headers.contains(name), "{path}: {headers}");
            }
            let foreign = preflight("https://evil.example").await;
            for name in ["access-control-allow-origin", "access-control-allow-methods", "access-control-allow-headers"] {
                assert!(foreign.header(name).is_none(), "{path}: {name}");
            }
        }
    }
}
