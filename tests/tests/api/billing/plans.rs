use serde_json::json;

use crate::support::*;

through_both_doors! {
    async fn lists_what_there_is_to_anybody(api: Api) {
        let reply = api.get("/api/billing/plans").send().await.expect_status(200);
        let plan = |id: &str, name: &str, amount: u32, tokens: u32| {
            json!({"id": id, "name": name, "amount": amount, "currency": "USD", "interval": "month", "tokensPerMonth": tokens})
        };
        let expected = json!([
            plan("free", "Free", 0, 50_000),
            plan("pro", "Pro", 2_999, 2_000_000),
            plan("enterprise", "Enterprise", 9_999, 20_000_000),
        ]);
        assert_eq!(reply.body["plans"], expected);
    }
}
