use crate::support::*;

through_both_doors! {
    async fn lists_models_of_all_providers_to_anybody(api: Api) {
        let reply = api.get("/api/chat/models").send().await.expect_status(200);
        let models = reply.body["models"].as_array().unwrap();
        for provider in ["openai", "anthropic", "google"] {
            assert!(models.iter().any(|model| model["provider"] == provider), "{provider}");
        }
        assert!(models.iter().any(|model| model["id"] == "gpt-4"));
        for model in models {
            for name in ["id", "provider", "name", "contextWindow", "maxOutputTokens", "pricing", "available"] {
                assert!(model.get(name).is_some(), "{model} has no {name}");
            }
        }
    }
}
