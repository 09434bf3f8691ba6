-- What was counted by the hour is counted by the day as well, so that a figure by days reads one row where it read
-- 24. The outer level of a view adds the hours of one insert up: tens of rows, whatever the events.

DROP TABLE IF EXISTS daily_active_users_view ${on_cluster} SYNC;
DROP TABLE IF EXISTS daily_active_users ${on_cluster} SYNC;

-- Who was active in each hour and on each day, by the plan on the event, and what happened to accounts.
CREATE TABLE IF NOT EXISTS daily_active_users ${on_cluster} (
    grain         LowCardinality(String),
    hour          DateTime('UTC'),
    plan          LowCardinality(String),
    users         AggregateFunction(uniqCombined64, String),
    signups       SimpleAggregateFunction(sum, UInt64),
    verifications SimpleAggregateFunction(sum, UInt64),
    upgrades      SimpleAggregateFunction(sum, UInt64),
    downgrades    SimpleAggregateFunction(sum, UInt64)
)
ENGINE = ${replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(hour)
ORDER BY (grain, hour, plan)
SETTINGS index_granularity = 256, ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS daily_active_users_view ${on_cluster} TO daily_active_users AS
SELECT
    grain, if(grain = 'day', toStartOfDay(of_hour), of_hour) AS hour, plan,
    uniqCombined64MergeState(of_users) AS users,
    sum(of_signups) AS signups,
    sum(of_verifications) AS verifications,
    sum(of_upgrades) AS upgrades,
    sum(of_downgrades) AS downgrades
FROM (
    SELECT
        toStartOfHour(time) AS of_hour, plan,
        uniqCombined64StateIf(subject, type IN ('user.signup', 'user.signin', 'chat.conversation_created', 'chat.message_sent', 'chat.message_failed')) AS of_users,
        countIf(type = 'user.signup') AS of_signups,
        countIf(type = 'user.email_verified') AS of_verifications,
        countIf(type = 'user.plan_upgraded') AS of_upgrades,
        countIf(type = 'user.plan_downgraded') AS of_downgrades
    FROM events
    WHERE type IN ('user.signup', 'user.signin', 'user.email_verified', 'user.plan_upgraded', 'user.plan_downgraded',
                   'chat.conversation_created', 'chat.message_sent', 'chat.message_failed')
    GROUP BY of_hour, plan
)
ARRAY JOIN ['hour', 'day'] AS grain
GROUP BY grain, hour, plan;

DROP TABLE IF EXISTS chat_metrics_hourly_view ${on_cluster} SYNC;
DROP TABLE IF EXISTS chat_metrics_hourly ${on_cluster} SYNC;

-- Chat by the hour and the day; conversations have no provider.
CREATE TABLE IF NOT EXISTS chat_metrics_hourly ${on_cluster} (
    grain     LowCardinality(String),
    hour      DateTime('UTC'),
    provider  LowCardinality(String),
    requests  SimpleAggregateFunction(sum, UInt64),
    messages  SimpleAggregateFunction(sum, UInt64),
    fallbacks SimpleAggregateFunction(sum, UInt64),
    tokens    SimpleAggregateFunction(sum, Int64),
    cost      SimpleAggregateFunction(sum, Int64),
    created   SimpleAggregateFunction(sum, UInt64),
    deleted   SimpleAggregateFunction(sum, UInt64),
    users     AggregateFunction(uniqCombined64, String)
)
ENGINE = ${replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(hour)
ORDER BY (grain, hour, provider)
SETTINGS index_granularity = 256, ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS chat_metrics_hourly_view ${on_cluster} TO chat_metrics_hourly AS
SELECT
    grain, if(grain = 'day', toStartOfDay(of_hour), of_hour) AS hour, provider,
    sum(of_requests) AS requests,
    sum(of_messages) AS messages,
    sum(of_fallbacks) AS fallbacks,
    sum(of_tokens) AS tokens,
    sum(of_cost) AS cost,
    sum(of_created) AS created,
    sum(of_deleted) AS deleted,
    uniqCombined64MergeState(of_users) AS users
FROM (
    SELECT
        toStartOfHour(time) AS of_hour, provider,
        countIf(type IN ('chat.message_sent', 'chat.message_failed')) AS of_requests,
        countIf(type = 'chat.message_sent') AS of_messages,
        countIf(fallback_from != '') AS of_fallbacks,
        sum(input_tokens + output_tokens) AS of_tokens,
        sum(ifNull(cost_micro_usd, 0)) AS of_cost,
        countIf(type = 'chat.conversation_created') AS of_created,
        countIf(type = 'chat.conversation_deleted') AS of_deleted,
        uniqCombined64StateIf(subject, type = 'chat.message_sent') AS of_users
    FROM events
    WHERE type IN ('chat.conversation_created', 'chat.conversation_deleted', 'chat.message_sent', 'chat.message_failed')
    GROUP BY of_hour, provider
)
ARRAY JOIN ['hour', 'day'] AS grain
GROUP BY grain, hour, provider;

DROP TABLE IF EXISTS revenue_analytics_view ${on_cluster} SYNC;
DROP TABLE IF EXISTS revenue_analytics ${on_cluster} SYNC;

-- Payments and refunds by the hour and the day, currency and plan.
CREATE TABLE IF NOT EXISTS revenue_analytics ${on_cluster} (
    grain    LowCardinality(String),
    hour     DateTime('UTC'),
    currency LowCardinality(String),
    plan     LowCardinality(String),
    gross    SimpleAggregateFunction(sum, Int64),
    refunded SimpleAggregateFunction(sum, Int64),
    payments SimpleAggregateFunction(sum, UInt64),
    refunds  SimpleAggregateFunction(sum, UInt64)
)
ENGINE = ${replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(hour)
ORDER BY (grain, hour, currency, plan)
SETTINGS index_granularity = 256, ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS revenue_analytics_view ${on_cluster} TO revenue_analytics AS
SELECT
    grain, if(grain = 'day', toStartOfDay(of_hour), of_hour) AS hour, currency, plan,
    sum(of_gross) AS gross,
    sum(of_refunded) AS refunded,
    sum(of_payments) AS payments,
    sum(of_refunds) AS refunds
FROM (
    SELECT
        toStartOfHour(time) AS of_hour, currency, plan,
        sumIf(amount_minor, type = 'billing.payment_succeeded') AS of_gross,
        sumIf(amount_minor, type = 'billing.payment_refunded') AS of_refunded,
        countIf(type = 'billing.payment_succeeded') AS of_payments,
        countIf(type = 'billing.payment_refunded') AS of_refunds
    FROM events
    WHERE type IN ('billing.payment_succeeded', 'billing.payment_refunded')
    GROUP BY of_hour, currency, plan
)
ARRAY JOIN ['hour', 'day'] AS grain
GROUP BY grain, hour, currency, plan;

DROP TABLE IF EXISTS mrr_metrics_view ${on_cluster} SYNC;
DROP TABLE IF EXISTS mrr_metrics ${on_cluster} SYNC;

-- Changes of monthly recurring revenue by the hour and the day: their sum up to a moment is the revenue at that moment.
CREATE TABLE IF NOT EXISTS mrr_metrics ${on_cluster} (
    grain         LowCardinality(String),
    hour          DateTime('UTC'),
    currency      LowCardinality(String),
    movement      LowCardinality(String),
    delta         SimpleAggregateFunction(sum, Int64),
    events        SimpleAggregateFunction(sum, UInt64)
)
ENGINE = ${replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(hour)
ORDER BY (grain, hour, currency, movement)
SETTINGS index_granularity = 256, ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS mrr_metrics_view ${on_cluster} TO mrr_metrics AS
SELECT
    grain, if(grain = 'day', toStartOfDay(of_hour), of_hour) AS hour, currency, movement,
    sum(of_delta) AS delta,
    sum(of_events) AS events
FROM (
    SELECT
        toStartOfHour(time) AS of_hour, currency, movement,
        sum(mrr_delta_minor) AS of_delta,
        count() AS of_events
    FROM events
    WHERE type IN ('billing.subscription_created', 'billing.subscription_updated', 'billing.subscription_canceled')
    GROUP BY of_hour, currency, movement
)
ARRAY JOIN ['hour', 'day'] AS grain
GROUP BY grain, hour, currency, movement;
