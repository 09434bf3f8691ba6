use serde_json::json;

use crate::support::*;

const FOREIGN: [&str; 6] = [
    "https://evil.example",
    "null",
    "http://localhost:30000",
    "https://localhost:3000",
    "http://localhost:3000.evil.example",
    "",
];

through_both_doors! {
    async fn a_foreign_page_can_do_nothing_with_the_cookie(api: Api) {
        let person = api.sign_up().await;
        for origin in FOREIGN {
            let reply = api.post("/api/auth/signout").cookie(&person.session_token).header("origin", origin).send().await;
            let reply = reply.expect_problem(403, "origin_not_allowed");
            assert!(reply.header("access-control-allow-origin").is_none());
        }
        let unnamed = api.post("/api/auth/signout").cookie(&person.session_token).header("sec-fetch-site", "cross-site");
        unnamed.send().await.expect_problem(403, "origin_not_allowed");
        assert_eq!(api.me(&person.session_token).await, 200);
    }

    async fn no_route_that_changes_something_takes_the_cookie_from_a_foreign_page(api: Api) {
        let person = api.sign_up().await;
        let description = api.get("/openapi.json").send().await.expect_status(200).body;
        let items = description["paths"].as_object().unwrap().iter();
        let routes: Vec<_> = items
            .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path)))
            .filter(|(method, _)| ["POST", "PUT", "PATCH", "DELETE"].contains(&method.as_str()))
            .collect();
        assert!(routes.len() >= 30, "{routes:?}");
        for (method, path) in &routes {
            for (header, value) in [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")] {
                let path = path.replace("{id}", "00000000-0000-0000-0000-000000000000");
                let call = api.call(method, &path).cookie(&person.session_token).header(header, value);
                let reply = call.json(&json!({})).send().await;
                let expected = (403, &json!("origin_not_allowed"));
                assert_eq!((reply.status, &reply.body["code"]), expected, "{method} {path}, {header}: {}", reply.text);
            }
        }
    }

    async fn a_foreign_page_cannot_use_the_credential_routes_even_without_a_cookie(api: Api) {
        for path in ["signup", "signin", "verify-email", "resend-verification", "forgot-password", "reset-password", "refresh"] {
            let request = api.post(&format!("/api/auth/{path}")).header("origin", "https://evil.example");
            request.json(&json!({})).send().await.expect_problem(403, "origin_not_allowed");
        }
    }

    async fn the_origin_decides_and_fetch_metadata_only_where_there_is_none(api: Api) {
        let person = api.sign_up().await;
        let refresh = || api.post("/api/auth/refresh").cookie(&person.session_token);
        refresh().header("origin", ORIGIN).header("sec-fetch-site", "cross-site").send().await.expect_status(200);
        refresh().header("sec-fetch-site", "same-site").send().await.expect_status(200);
        refresh().header("sec-fetch-site", "none").send().await.expect_status(200);
        refresh().send().await.expect_status(200);
    }

    async fn reading_is_not_stopped(api: Api) {
        let person = api.sign_up().await;
        let reply = api.get("/api/auth/me").cookie(&person.session_token).header("origin", "https://evil.example").send().await;
        let reply = reply.expect_status(200);
        assert!(reply.header("access-control-allow-origin").is_none(), "the browser keeps it from the page");
    }
}
