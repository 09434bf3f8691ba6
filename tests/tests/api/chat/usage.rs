use serde_json::json;
use time::OffsetDateTime;

use crate::support::*;

/// The beginning of a month.
fn first_of(year: i32, month: time::Month) -> String {
    format!("{year}-{:02}-01T00:00:00.000Z", u8::from(month))
}

through_both_doors! {
    async fn tells_what_the_month_has_cost_and_when_it_ends(api: Api) {
        let person = api.sign_up().await;
        let said = api.post("/api/chat").bearer(&person.jwt).json(&json!({"message": "Hello"})).send().await.expect_status(200);
        let now = OffsetDateTime::now_utc();
        let next = if now.month() == time::Month::December { now.year() + 1 } else { now.year() };
        let (start, end) = (first_of(now.year(), now.month()), first_of(next, now.month().next()));
        let tokens = json!({"limit": 50_000, "used": 23, "reserved": 0, "remaining": 49_977, "resetsAt": end});
        assert_eq!(said.body["quota"], tokens);
        let cost = &said.body["usage"]["costMicroUsd"];
        let mut expected = json!({
            "plan": "free", "period": {"start": start, "end": end}, "tokens": tokens, "costMicroUsd": cost,
        });
        let billing = api.get("/api/billing/usage").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(billing.body, expected);
        expected["byModel"] = json!([{
            "provider": said.body["provider"], "model": said.body["model"], "messages": 1, "totalTokens": 23,
            "costMicroUsd": cost,
        }]);
        let usage = api.get("/api/chat/usage").bearer(&person.jwt).send().await.expect_status(200);
        assert_eq!(usage.body, expected);
    }
}
