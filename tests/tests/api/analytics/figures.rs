use futures_util::future::join_all;

use crate::support::*;

/// All figures, as they are asked for.
const FIGURES: [&str; 26] = [
    "users/growth",
    "users/active",
    "users/signups",
    "users/top",
    "users/count",
    "users/retention",
    "chat/activity",
    "chat/tokens",
    "chat/by-provider",
    "chat/by-model",
    "chat/messages",
    "chat/conversations",
    "revenue/total",
    "revenue/mrr",
    "revenue/over-time",
    "revenue/by-plan",
    "revenue/ltv",
    "revenue/subscriptions",
    "revenue/failed-payments",
    "providers/usage",
    "providers/performance",
    "providers/cost",
    "providers/popular-models",
    "providers/openai/models",
    "providers/usage-over-time",
    "providers/usage-by-plan",
];

fn path(figure: &str) -> String {
    format!("/api/analytics/{figure}")
}

#[tokio::test]
async fn all_are_for_admins() {
    let api = Api::of_router();
    let person = api.sign_up().await;
    join_all(FIGURES.map(|figure| async {
        api.get(&path(figure)).send().await.expect_problem(401, "unauthenticated");
    }))
    .await;
    join_all(FIGURES.map(|figure| async {
        api.get(&path(figure)).bearer(&person.jwt).send().await.expect_problem(403, "forbidden");
    }))
    .await;
}

/// One request a figure: the admin's requests are limited too.
#[tokio::test]
async fn all_name_bad_parameters() {
    let api = Api::of_router();
    let admin = api.admin().await;
    join_all(FIGURES.map(|figure| async {
        let figure = path(figure);
        let query = "startDate=2026-01-01';DROP%20TABLE%20events;--&endDate=x&interval=day%20or%201=1&limit=1e3";
        let reply = api.get(&format!("{figure}?{query}")).bearer(&admin.jwt).send().await;
        reply.expect_invalid(&["endDate", "interval", "limit", "startDate"]);
    }))
    .await;
}

#[tokio::test]
async fn what_is_wrong_with_the_range_or_the_provider_is_named_with_all_else() {
    let api = Api::of_router();
    let admin = api.new_admin().await;
    let reversed = "startDate=2026-01-02&endDate=2026-01-01&limit=0";
    for (figure, bad) in [
        ("providers/acme/models".to_owned(), &["provider"][..]),
        ("providers/acme/models?limit=0".to_owned(), &["limit", "provider"]),
        (format!("providers/acme/models?{reversed}"), &["limit", "provider", "startDate"]),
        (format!("users/top?{reversed}"), &["limit", "startDate"]),
        (format!("users/retention?{reversed}&cohort=year"), &["cohort", "limit", "startDate"]),
    ] {
        api.get(&path(&figure)).bearer(&admin.jwt).send().await.expect_invalid(bad);
    }
    api.get(&path("providers/OpenAI/models")).bearer(&admin.jwt).send().await.expect_status(200);
}

#[tokio::test]
async fn only_figures_that_name_nobody_may_be_shown_again() {
    let api = Api::of_router();
    let admin = api.admin().await;
    for (figure, caching) in [("users/count", "private, max-age=60"), ("users/top", "no-store")] {
        let reply = api.get(&path(figure)).bearer(&admin.jwt).send().await.expect_status(200);
        assert_eq!(reply.header("cache-control"), Some(caching), "{figure}");
    }
}

through_both_doors! {
    async fn a_figure_that_is_still_the_same_is_not_sent_again(api: Api) {
        let admin = api.new_admin().await;
        // Nothing happened then, and nothing will have.
        let path = path("chat/activity") + "?startDate=2020-01-01&endDate=2020-01-31";
        let ask = |tags: &str| api.get(&path).bearer(&admin.jwt).header("if-none-match", tags).send();
        // The tag changes when a minute has passed without an event: this begins soon after one, the admin's sign-in.
        let first = eventually("a recent event", || async {
            let reply = api.get(&path).bearer(&admin.jwt).send().await.expect_status(200);
            reply.body["meta"]["freshnessSeconds"].as_u64().is_some_and(|seconds| seconds < 20).then_some(reply)
        })
        .await;
        let tag = first.header("etag").unwrap();
        let opaque = tag.strip_prefix("W/").expect("a weak tag");
        for tags in [tag.to_owned(), opaque.to_owned(), format!("\"other\", {tag}"), "*".to_owned()] {
            let same = ask(&tags).await.expect_status(304);
            assert_eq!((same.text.as_str(), same.header("etag")), ("", Some(tag)), "{tags}");
            assert_eq!(same.header("cache-control"), first.header("cache-control"), "{tags}");
        }
        assert_eq!(ask("\"other\"").await.expect_status(200).body["data"], first.body["data"]);
    }
}

#[tokio::test]
async fn the_dashboard_shows_itself_to_anybody() {
    let page = Api::of_router().get("/admin/analytics").open().await;
    assert_eq!(page.status(), 200);
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("http"), "{policy}");
    assert!(page.text().await.unwrap().contains("<title>Analytics</title>"));
}
