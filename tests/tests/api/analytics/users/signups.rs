use std::time::Duration;

use crate::support::*;

const PATH: &str = "/api/analytics/users/signups";

through_both_doors! {
    async fn is_for_admins(api: Api) {
        api.get(PATH).send().await.expect_problem(401, "unauthenticated");
        let person = api.sign_up().await;
        api.get(PATH).bearer(&person.jwt).send().await.expect_problem(403, "forbidden");
    }

    async fn counts_a_sign_up_within_seconds(api: Api) {
        let admin = api.new_admin().await;
        let total = || async {
            let reply = api.get(PATH).bearer(&admin.jwt).send().await.unless_limited()?.expect_status(200);
            assert_eq!(reply.body["success"], true);
            assert_eq!(reply.body["meta"]["timezone"], "UTC");
            assert_eq!(reply.body["meta"]["interval"], "day");
            let rows = reply.body["data"].as_array().unwrap().clone();
            assert_eq!(rows.len(), 30, "every day of the default range has its row");
            Some(rows.iter().map(|row| row["signups"].as_u64().unwrap()).sum::<u64>())
        };
        let person = api.elsewhere().sign_up().await;
        let told = format!("SELECT count() FROM events FINAL WHERE type = 'user.signup' AND subject = '{}'", person.id);
        eventually("the sign-up among the events", || async { (clickhouse(&told).await.trim() == "1").then_some(()) }).await;
        let events = || async {
            let sql = "SELECT count() FROM events FINAL WHERE type = 'user.signup' AND toDate(time) BETWEEN today() - 29 AND today()";
            clickhouse(sql).await.trim().parse::<u64>().unwrap()
        };
        eventually("as many sign-ups among the figures", || async {
            // The figure is there with the event, or a moment later; and others sign up meanwhile.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let (before, figure, after) = (events().await, total().await?, events().await);
            (before..=after).contains(&figure).then_some(())
        })
        .await;
    }

    async fn bad_parameters_are_named(api: Api) {
        let admin = api.admin().await;
        let get = |query: &str| api.get(&format!("{PATH}?{query}")).bearer(&admin.jwt).send();
        for (query, fields) in [
            ("startDate=yesterday", &["startDate"][..]),
            ("endDate=2026-02-30", &["endDate"]),
            ("startDate=2026-1-1&endDate=x&interval=year", &["endDate", "interval", "startDate"]),
            ("interval=day'%20or%201=1--", &["interval"]),
            ("startDate=2026-01-01';drop%20table%20events;--", &["startDate"]),
        ] {
            get(query).await.expect_invalid(fields);
        }
        get("startDate=2026-02-01&endDate=2026-01-01").await.expect_problem(400, "validation_failed");
        get("startDate=2024-01-01&endDate=2026-01-01").await.expect_problem(400, "validation_failed");
    }
}
