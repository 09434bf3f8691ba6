//! Figures about chat: what is sent, how many tokens it takes, and how long conversations get.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::analytics::report::{Query, Reports, bucket, grain, in_range, ratio};
use crate::error::Result;

/// Chat of a bucket.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Activity {
    date: String,
    messages: u64,
    conversations: u64,
    active_users: u64,
    errors: u64,
}

/// Tokens of a plan.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanTokens {
    plan: String,
    input_tokens: i64,
    cached_input_tokens: i64,
    output_tokens: i64,
    reasoning_tokens: i64,
    total_tokens: i64,
    tokens_per_user: Option<f64>,
}

/// Chat with a provider.
#[derive(Debug, clickhouse::Row, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub struct ProviderChat {
    provider: String,
    messages: u64,
    tokens: i64,
    cost_micro_usd: i64,
    users: u64,
}

/// Chat with a model.
#[derive(Debug, clickhouse::Row, Deserialize, Serialize)]
#[serde(rename_all(serialize = "camelCase"))]
pub struct ModelChat {
    provider: String,
    model: String,
    messages: u64,
    tokens: i64,
    cost_micro_usd: i64,
    users: u64,
}

/// Messages of the range and of the present.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Messages {
    total: u64,
    today: u64,
    last7_days: u64,
    last30_days: u64,
    this_month: u64,
    by_role: ByRole,
    failed: u64,
}

/// Messages by who wrote them.
#[derive(Debug, Serialize)]
pub struct ByRole {
    user: u64,
    assistant: u64,
}

/// Conversations and their length in messages.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conversations {
    total: i64,
    active: u64,
    new: u64,
    avg_messages: Option<f64>,
    p50_messages: Option<f64>,
    p95_messages: Option<f64>,
    series: Vec<ConversationBucket>,
}

/// Conversations begun in a bucket.
#[derive(Debug, Serialize)]
pub struct ConversationBucket {
    date: String,
    conversations: u64,
}

impl Reports {
    /// `GET /api/analytics/chat/activity`: chat per bucket.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn chat_activity(&self, query: &Query) -> Result<Vec<Activity>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            bucket: i64,
            requests: u64,
            messages: u64,
            created: u64,
            users: u64,
        }
        let sql = concat!(
            "SELECT ",
            bucket!("hour"),
            " AS bucket, sum(requests) AS requests, sum(messages) AS messages, sum(created) AS created,
                uniqCombined64Merge(users) AS users
             FROM chat_metrics_hourly WHERE ",
            in_range!(),
            " GROUP BY bucket",
        );
        let rows: Vec<Row> = self.rows(sql, query).await?;
        let rows: HashMap<i64, Row> = rows.into_iter().map(|row| (row.bucket, row)).collect();
        Ok(query
            .buckets()
            .iter()
            .map(|bucket| {
                let row = rows.get(&bucket.key());
                Activity {
                    date: bucket.name(),
                    messages: row.map_or(0, |row| row.messages),
                    conversations: row.map_or(0, |row| row.created),
                    active_users: row.map_or(0, |row| row.users),
                    errors: row.map_or(0, |row| row.requests - row.messages),
                }
            })
            .collect())
    }

    /// `GET /api/analytics/chat/tokens`: tokens by plan.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn chat_tokens(&self, query: &Query) -> Result<Vec<PlanTokens>> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            plan: String,
            input: i64,
            cached: i64,
            output: i64,
            reasoning: i64,
            users: u64,
        }
        let sql = "SELECT toString(plan) AS plan, sum(input_tokens) AS input, sum(cached_input_tokens) AS cached,
                sum(output_tokens) AS output, sum(reasoning_tokens) AS reasoning, uniqCombined64Merge(users) AS users
             FROM chat_statistics WHERE day BETWEEN {from:Date} AND {to:Date}
             GROUP BY plan ORDER BY input + output DESC, plan";
        let rows: Vec<Row> = self.rows(sql, query).await?;
        let tokens = rows.into_iter().map(|row| PlanTokens {
            plan: row.plan,
            input_tokens: row.input,
            cached_input_tokens: row.cached,
            output_tokens: row.output,
            reasoning_tokens: row.reasoning,
            total_tokens: row.input + row.output,
            tokens_per_user: ratio((row.input + row.output) as f64, row.users as f64),
        });
        Ok(tokens.collect())
    }

    /// `GET /api/analytics/chat/by-provider`: chat by provider.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn chat_by_provider(&self, query: &Query) -> Result<Vec<ProviderChat>> {
        let sql = "SELECT toString(provider) AS provider, sum(messages) AS messages,
                sum(input_tokens) + sum(output_tokens) AS tokens, sum(cost) AS cost_micro_usd,
                uniqCombined64Merge(users) AS users
             FROM chat_statistics WHERE day BETWEEN {from:Date} AND {to:Date}
             GROUP BY provider ORDER BY messages DESC, lower(provider), provider";
        self.rows(sql, query).await
    }

    /// `GET /api/analytics/chat/by-model`: chat by model.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn chat_by_model(&self, query: &Query) -> Result<Vec<ModelChat>> {
        let sql = "SELECT toString(provider) AS provider, toString(model) AS model, sum(messages) AS messages,
                sum(input_tokens) + sum(output_tokens) AS tokens, sum(cost) AS cost_micro_usd,
                uniqCombined64Merge(users) AS users
             FROM chat_statistics WHERE day BETWEEN {from:Date} AND {to:Date}
             GROUP BY provider, model ORDER BY messages DESC, lower(provider), lower(model), provider, model";
        self.rows(sql, query).await
    }

    /// `GET /api/analytics/chat/messages`: messages of the range and of the present.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn chat_messages(&self, query: &Query) -> Result<Messages> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            total: u64,
            failed: u64,
            regenerated: u64,
            today: u64,
            week: u64,
            thirty: u64,
            month: u64,
        }
        let sql = "SELECT
                sumIf(messages, day BETWEEN {from:Date} AND {to:Date}) AS total,
                sumIf(errors, day BETWEEN {from:Date} AND {to:Date}) AS failed,
                sumIf(regenerated, day BETWEEN {from:Date} AND {to:Date}) AS regenerated,
                sumIf(messages, day = {today:Date}) AS today,
                sumIf(messages, day > {today:Date} - 7 AND day <= {today:Date}) AS week,
                sumIf(messages, day > {today:Date} - 30 AND day <= {today:Date}) AS thirty,
                sumIf(messages, day >= toStartOfMonth({today:Date}) AND day <= toLastDayOfMonth({today:Date})) AS month
             FROM chat_statistics
             WHERE day BETWEEN {from:Date} AND {to:Date}
                OR day BETWEEN least({today:Date} - 30, toStartOfMonth({today:Date})) AND toLastDayOfMonth({today:Date})";
        let row: Row = self.row(sql, query).await?;
        Ok(Messages {
            total: row.total,
            today: row.today,
            last7_days: row.week,
            last30_days: row.thirty,
            this_month: row.month,
            by_role: ByRole { user: row.total - row.regenerated + row.failed, assistant: row.total },
            failed: row.failed,
        })
    }

    /// `GET /api/analytics/chat/conversations`: conversations and their length in messages.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn chat_conversations(&self, query: &Query) -> Result<Conversations> {
        #[derive(clickhouse::Row, Deserialize)]
        struct Lengths {
            active: u64,
            sent: u64,
            quantiles: Vec<f64>,
        }
        #[derive(clickhouse::Row, Deserialize)]
        struct Row {
            bucket: i64,
            created: u64,
            deleted: u64,
        }
        let lengths =
            "SELECT count() AS active, sum(length) AS sent, quantilesExactInclusive(0.5, 0.95)(length) AS quantiles
             FROM (
                SELECT conversation, sum(messages) AS length FROM user_metrics
                WHERE day BETWEEN {from:Date} AND {to:Date} AND messages > 0 GROUP BY conversation
             )";
        let series = concat!(
            "SELECT if(toDate(hour) < {from:Date}, -1, ",
            bucket!("hour"),
            ") AS bucket, sum(created) AS created, sum(deleted) AS deleted
             FROM chat_metrics_hourly WHERE ",
            grain!(),
            " AND toDate(hour) <= {to:Date} GROUP BY bucket",
        );
        let (lengths, series) =
            futures_util::try_join!(self.row::<Lengths>(lengths, query), self.rows::<Row>(series, query))?;
        let total = series.iter().map(|row| row.created.cast_signed() - row.deleted.cast_signed()).sum();
        let created: HashMap<i64, u64> = series.into_iter().map(|row| (row.bucket, row.created)).collect();
        let series: Vec<ConversationBucket> = query
            .buckets()
            .iter()
            .map(|bucket| ConversationBucket {
                date: bucket.name(),
                conversations: created.get(&bucket.key()).copied().unwrap_or_default(),
            })
            .collect();
        let quantile = |index: usize| lengths.quantiles.get(index).copied().filter(|value| value.is_finite());
        Ok(Conversations {
            total,
            active: lengths.active,
            new: series.iter().map(|bucket| bucket.conversations).sum(),
            avg_messages: ratio(lengths.sent as f64, lengths.active as f64),
            p50_messages: quantile(0),
            p95_messages: quantile(1),
            series,
        })
    }
}
