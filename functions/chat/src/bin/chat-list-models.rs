//! `GET /api/chat/models`: the models that a request may name.

use std::process::ExitCode;

use lib::chat::catalogue::{Catalogue, Model, Pricing, ProviderId};
use lib::chat::provider;
use lib::error::Result;
use lib::http::{Policy, Request, Response, serve};
use serde::Serialize;

#[derive(Serialize)]
struct ListModelsResponse {
    models: Vec<ModelItem>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelItem {
    id: &'static str,
    provider: ProviderId,
    name: &'static str,
    context_window: i64,
    max_output_tokens: i64,
    pricing: Option<&'static Pricing>,
    available: bool,
}

fn main() -> ExitCode {
    serve(env!("CARGO_BIN_NAME"), Policy::API, provider::configured, |configured, request| {
        Box::pin(handle(configured, request))
    })
}

async fn handle(configured: &[ProviderId], _request: Request) -> Result<Response> {
    let item = |model: &'static Model| ModelItem {
        id: &model.id,
        provider: model.provider,
        name: &model.name,
        context_window: model.context_window,
        max_output_tokens: model.max_output_tokens,
        pricing: model.pricing.as_ref(),
        available: configured.contains(&model.provider),
    };
    Response::ok(&ListModelsResponse { models: Catalogue::get()?.models().iter().map(item).collect() })
}
