//! Figures about providers and their models: use, speed, errors and cost.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::analytics::report::{Query, Reports, bucket, finite, in_range, ratio};
use crate::chat::catalogue::ProviderId;
use crate::error::Result;
use crate::http::validate::{Field, Invalid, Raw};

/// The provider that figures are asked for, without regard to case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provider(pub ProviderId);

impl Field for Provider {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        ProviderId::parse(Raw::Text(&raw.text()?.to_lowercase())).map(Self)
    }
}

/// Use of a provider.
#[derive(Debug, clickhouse::Row, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub struct Usage {
    provider: String,
    requests: u64,
    tokens: i64,
    cost_micro_usd: i64,
    users: u64,
}

/// Speed and errors of a provider.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Performance {
    provider: String,
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
    ttft_p50: Option<f64>,
    ttft_p95: Option<f64>,
    tokens_per_second: Option<f64>,
    error_rate: Option<f64>,
    by_error_class: BTreeMap<String, u64>,
    fallback_rate: Option<f64>,
}

/// Cost of a provider, and how much of its use has a price.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    provider: String,
    cost_micro_usd: i64,
    priced_share: Option<f64>,
    unpriced_requests: u64,
}

/// A model with much use.
#[derive(Debug, clickhouse::Row, Deserialize, Serialize)]
pub struct PopularModel {
    provider: String,
    model: String,
    requests: u64,
    users: u64,
    tokens: i64,
}

/// Use and speed of a model.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    model: String,
    requests: u64,
    tokens: i64,
    cost_micro_usd: i64,
    p50: Option<f64>,
    p95: Option<f64>,
    ttft_p95: Option<f64>,
    error_rate: Option<f64>,
}

/// Use of a provider in a bucket.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageBucket {
    bucket: String,
    provider: String,
    requests: u64,
    tokens: i64,
    cost_micro_usd: i64,
    errors: u64,
    fallbacks: u64,
}

/// Use of a provider by a plan.
#[derive(Debug, clickhouse::Row, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub struct PlanUsage {
    provider: String,
    plan: String,
    requests: u64,
    tokens: i64,
    cost_micro_usd: i64,
}

impl Reports {
    /// `GET /api/analytics/providers/usage`: use by provider.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn providers_usage(&self, query: &Query) -> Result<Vec<Usage>> {
        let sql = "SELECT toString(provider) AS provider, sum(messages) + sum(errors) AS requests,
                sum(input_tokens) + sum(output_tokens) AS tokens, sum(cost) AS cost_micro_usd,
                uniqCombined64Merge(users) AS users
             FROM chat_statistics WHERE day BETWEEN {from:Date} AND {to:Date}
             GROUP BY provider ORDER BY requests DESC, lower(provider), provider";
        self.rows(sql, query).await
    }

    /// `GET /api/analytics/providers/performance`: speed and errors by provider.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn providers_performance(&self, query: &Query) -> Result<Vec<Performance>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            provider: String,
            messages: u64,
            failures: u64,
            latency: Vec<f32>,
            ttft: Vec<f32>,
            streamed_tokens: i64,
            streamed_ms: i64,
        }
        #[derive(clickhouse::Row, Deserialize)]
        struct Class {
            provider: String,
            error_class: String,
            requests: u64,
            fallbacks: u64,
        }
        let speed = "SELECT toString(provider) AS provider, sum(chat_statistics.messages) AS messages,
                sum(errors) AS failures,
                quantilesTDigestMerge(0.5, 0.95, 0.99)(chat_statistics.latency) AS latency,
                quantilesTDigestMerge(0.5, 0.95)(chat_statistics.ttft) AS ttft,
                sum(chat_statistics.streamed_tokens) AS streamed_tokens,
                sum(chat_statistics.streamed_ms) AS streamed_ms
             FROM chat_statistics WHERE day BETWEEN {from:Date} AND {to:Date}
             GROUP BY provider ORDER BY messages + failures DESC, lower(provider), provider";
        let classes = "SELECT toString(provider) AS provider, toString(error_class) AS error_class,
                sum(provider_usage.requests) AS requests, sum(provider_usage.fallbacks) AS fallbacks
             FROM provider_usage WHERE day BETWEEN {from:Date} AND {to:Date} GROUP BY provider, error_class";
        let (speed, classes) =
            futures_util::try_join!(self.rows::<Row>(speed, query), self.rows::<Class>(classes, query))?;
        let performance = speed.into_iter().map(|row| {
            let own = || classes.iter().filter(|class| class.provider == row.provider);
            let requests = (row.messages + row.failures) as f64;
            let fallbacks: u64 = own().map(|class| class.fallbacks).sum();
            let quantile = |values: &[f32], index: usize| values.get(index).copied().and_then(finite);
            Performance {
                p50: quantile(&row.latency, 0),
                p95: quantile(&row.latency, 1),
                p99: quantile(&row.latency, 2),
                ttft_p50: quantile(&row.ttft, 0),
                ttft_p95: quantile(&row.ttft, 1),
                tokens_per_second: ratio(row.streamed_tokens as f64 * 1000.0, row.streamed_ms as f64),
                error_rate: ratio(row.failures as f64, requests),
                by_error_class: own()
                    .filter(|class| !class.error_class.is_empty())
                    .map(|class| (class.error_class.clone(), class.requests))
                    .collect(),
                fallback_rate: ratio(fallbacks as f64, requests),
                provider: row.provider,
            }
        });
        Ok(performance.collect())
    }

    /// `GET /api/analytics/providers/cost`: cost by provider.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn providers_cost(&self, query: &Query) -> Result<Vec<Cost>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            provider: String,
            cost: i64,
            messages: u64,
            priced: u64,
        }
        let sql = "SELECT toString(provider) AS provider, sum(chat_statistics.cost) AS cost,
                sum(chat_statistics.messages) AS messages, sum(chat_statistics.priced) AS priced
             FROM chat_statistics WHERE day BETWEEN {from:Date} AND {to:Date}
             GROUP BY provider ORDER BY cost DESC, lower(provider), provider";
        let rows: Vec<Row> = self.rows(sql, query).await?;
        let costs = rows.into_iter().map(|row| Cost {
            provider: row.provider,
            cost_micro_usd: row.cost,
            priced_share: ratio(row.priced as f64, row.messages as f64),
            unpriced_requests: row.messages - row.priced,
        });
        Ok(costs.collect())
    }

    /// `GET /api/analytics/providers/popular-models`: the models with most requests.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn providers_popular_models(&self, query: &Query) -> Result<Vec<PopularModel>> {
        let sql = "SELECT toString(provider) AS provider, toString(model) AS model,
                sum(messages) + sum(errors) AS requests, uniqCombined64Merge(chat_statistics.users) AS users,
                sum(input_tokens) + sum(output_tokens) AS tokens
             FROM chat_statistics WHERE day BETWEEN {from:Date} AND {to:Date}
             GROUP BY provider, model ORDER BY requests DESC, lower(provider), lower(model), provider, model
             LIMIT {limit:UInt64}";
        self.rows(sql, query).await
    }

    /// `GET /api/analytics/providers/{provider}/models`: the models of a provider.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn providers_models(&self, query: &Query, provider: ProviderId) -> Result<Vec<Model>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            model: String,
            messages: u64,
            failures: u64,
            tokens: i64,
            cost: i64,
            latency: Vec<f32>,
            ttft: Vec<f32>,
        }
        let sql = "SELECT toString(model) AS model, sum(chat_statistics.messages) AS messages, sum(errors) AS failures,
                sum(input_tokens) + sum(output_tokens) AS tokens, sum(chat_statistics.cost) AS cost,
                quantilesTDigestMerge(0.5, 0.95, 0.99)(chat_statistics.latency) AS latency,
                quantilesTDigestMerge(0.5, 0.95)(chat_statistics.ttft) AS ttft
             FROM chat_statistics WHERE day BETWEEN {from:Date} AND {to:Date} AND lower(provider) = {provider:String}
             GROUP BY model ORDER BY messages + failures DESC, lower(model), model";
        let rows: Vec<Row> = self.query(sql, query).param("provider", provider.as_str()).fetch_all().await?;
        let models = rows.into_iter().map(|row| {
            let requests = row.messages + row.failures;
            let quantile = |values: &[f32], index: usize| values.get(index).copied().and_then(finite);
            Model {
                requests,
                tokens: row.tokens,
                cost_micro_usd: row.cost,
                p50: quantile(&row.latency, 0),
                p95: quantile(&row.latency, 1),
                ttft_p95: quantile(&row.ttft, 1),
                error_rate: ratio(row.failures as f64, requests as f64),
                model: row.model,
            }
        });
        Ok(models.collect())
    }

    /// `GET /api/analytics/providers/usage-over-time`: use per bucket and provider.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn providers_usage_over_time(&self, query: &Query) -> Result<Vec<UsageBucket>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            bucket: i64,
            provider: String,
            requests: u64,
            messages: u64,
            tokens: i64,
            cost: i64,
            fallbacks: u64,
        }
        let sql = concat!(
            "SELECT ",
            bucket!("hour"),
            " AS bucket, toString(provider) AS provider, sum(chat_metrics_hourly.requests) AS requests,
                sum(chat_metrics_hourly.messages) AS messages, sum(chat_metrics_hourly.tokens) AS tokens,
                sum(chat_metrics_hourly.cost) AS cost, sum(chat_metrics_hourly.fallbacks) AS fallbacks
             FROM chat_metrics_hourly WHERE ",
            in_range!(),
            " GROUP BY bucket, provider HAVING requests > 0",
        );
        let rows: Vec<Row> = self.rows(sql, query).await?;
        let providers: BTreeSet<(String, String)> =
            rows.iter().map(|row| (row.provider.to_lowercase(), row.provider.clone())).collect();
        let rows: HashMap<(i64, String), Row> =
            rows.into_iter().map(|row| ((row.bucket, row.provider.clone()), row)).collect();
        let mut series = Vec::new();
        for bucket in query.buckets() {
            for (_, provider) in &providers {
                let row = rows.get(&(bucket.key(), provider.clone()));
                series.push(UsageBucket {
                    bucket: bucket.name(),
                    provider: provider.clone(),
                    requests: row.map_or(0, |row| row.requests),
                    tokens: row.map_or(0, |row| row.tokens),
                    cost_micro_usd: row.map_or(0, |row| row.cost),
                    errors: row.map_or(0, |row| row.requests - row.messages),
                    fallbacks: row.map_or(0, |row| row.fallbacks),
                });
            }
        }
        Ok(series)
    }

    /// `GET /api/analytics/providers/usage-by-plan`: use by provider and plan.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn providers_usage_by_plan(&self, query: &Query) -> Result<Vec<PlanUsage>> {
        let sql = "SELECT toString(provider) AS provider, toString(plan) AS plan,
                sum(messages) + sum(errors) AS requests, sum(input_tokens) + sum(output_tokens) AS tokens,
                sum(cost) AS cost_micro_usd
             FROM chat_statistics WHERE day BETWEEN {from:Date} AND {to:Date}
             GROUP BY provider, plan ORDER BY requests DESC, lower(provider), plan, provider";
        self.rows(sql, query).await
    }
}
