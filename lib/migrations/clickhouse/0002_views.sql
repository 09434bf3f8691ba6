-- Eight of the ten views; the two of users come next. Each writes aggregates into a table of its own; sums and
-- distinct users of any range are merged from them when they are read, never summed from averages or distinct counts.
-- A table by the hour or the day has few rows, of which a granule of the usual size would hold months.

-- Who was active in each hour, by the plan on the event, and what happened to accounts.
CREATE TABLE IF NOT EXISTS daily_active_users ${on_cluster} (
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
ORDER BY (hour, plan)
SETTINGS index_granularity = 256, ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS daily_active_users_view ${on_cluster} TO daily_active_users AS
SELECT
    toStartOfHour(time) AS hour, plan,
    uniqCombined64StateIf(subject, type IN ('user.signup', 'user.signin', 'chat.conversation_created', 'chat.message_sent', 'chat.message_failed')) AS users,
    countIf(type = 'user.signup') AS signups,
    countIf(type = 'user.email_verified') AS verifications,
    countIf(type = 'user.plan_upgraded') AS upgrades,
    countIf(type = 'user.plan_downgraded') AS downgrades
FROM events
WHERE type IN ('user.signup', 'user.signin', 'user.email_verified', 'user.plan_upgraded', 'user.plan_downgraded',
               'chat.conversation_created', 'chat.message_sent', 'chat.message_failed')
GROUP BY hour, plan;

-- Requests to models by day, provider, model and plan.
CREATE TABLE IF NOT EXISTS chat_statistics ${on_cluster} (
    day                 Date,
    provider            LowCardinality(String),
    model               LowCardinality(String),
    plan                LowCardinality(String),
    messages            SimpleAggregateFunction(sum, UInt64),
    errors              SimpleAggregateFunction(sum, UInt64),
    regenerated         SimpleAggregateFunction(sum, UInt64),
    priced              SimpleAggregateFunction(sum, UInt64),
    input_tokens        SimpleAggregateFunction(sum, Int64),
    cached_input_tokens SimpleAggregateFunction(sum, Int64),
    output_tokens       SimpleAggregateFunction(sum, Int64),
    reasoning_tokens    SimpleAggregateFunction(sum, Int64),
    cost                SimpleAggregateFunction(sum, Int64),
    streamed_tokens     SimpleAggregateFunction(sum, Int64),
    streamed_ms         SimpleAggregateFunction(sum, Int64),
    users               AggregateFunction(uniqCombined64, String),
    latency             AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), Int64),
    ttft                AggregateFunction(quantilesTDigest(0.5, 0.95), Int64)
)
ENGINE = ${replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (day, provider, model, plan)
SETTINGS index_granularity = 256, ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS chat_statistics_view ${on_cluster} TO chat_statistics AS
SELECT
    toDate(time) AS day, provider, model, plan,
    countIf(type = 'chat.message_sent') AS messages,
    countIf(type = 'chat.message_failed') AS errors,
    countIf(regenerated) AS regenerated,
    countIf(type = 'chat.message_sent' AND cost_micro_usd IS NOT NULL) AS priced,
    sum(events.input_tokens) AS input_tokens,
    sum(events.cached_input_tokens) AS cached_input_tokens,
    sum(events.output_tokens) AS output_tokens,
    sum(events.reasoning_tokens) AS reasoning_tokens,
    sum(ifNull(cost_micro_usd, 0)) AS cost,
    sumIf(events.output_tokens, streamed AND ttft_ms IS NOT NULL) AS streamed_tokens,
    sumIf(latency_ms - ifNull(ttft_ms, 0), streamed AND ttft_ms IS NOT NULL) AS streamed_ms,
    uniqCombined64State(subject) AS users,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(latency_ms, type = 'chat.message_sent') AS latency,
    quantilesTDigestStateIf(0.5, 0.95)(ifNull(ttft_ms, 0), ttft_ms IS NOT NULL) AS ttft
FROM events
WHERE type IN ('chat.message_sent', 'chat.message_failed')
GROUP BY day, provider, model, plan;

-- Chat by the hour; conversations have no provider.
CREATE TABLE IF NOT EXISTS chat_metrics_hourly ${on_cluster} (
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
ORDER BY (hour, provider)
SETTINGS index_granularity = 256, ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS chat_metrics_hourly_view ${on_cluster} TO chat_metrics_hourly AS
SELECT
    toStartOfHour(time) AS hour, provider,
    countIf(type IN ('chat.message_sent', 'chat.message_failed')) AS requests,
    countIf(type = 'chat.message_sent') AS messages,
    countIf(fallback_from != '') AS fallbacks,
    sum(input_tokens + output_tokens) AS tokens,
    sum(ifNull(cost_micro_usd, 0)) AS cost,
    countIf(type = 'chat.conversation_created') AS created,
    countIf(type = 'chat.conversation_deleted') AS deleted,
    uniqCombined64StateIf(subject, type = 'chat.message_sent') AS users
FROM events
WHERE type IN ('chat.conversation_created', 'chat.conversation_deleted', 'chat.message_sent', 'chat.message_failed')
GROUP BY hour, provider;

-- How requests to providers ended; a message has no error class.
CREATE TABLE IF NOT EXISTS provider_usage ${on_cluster} (
    day         Date,
    provider    LowCardinality(String),
    error_class LowCardinality(String),
    requests    SimpleAggregateFunction(sum, UInt64),
    fallbacks   SimpleAggregateFunction(sum, UInt64)
)
ENGINE = ${replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (day, provider, error_class)
SETTINGS index_granularity = 256, ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS provider_usage_view ${on_cluster} TO provider_usage AS
SELECT
    toDate(time) AS day, provider, error_class,
    count() AS requests,
    countIf(fallback_from != '') AS fallbacks
FROM events
WHERE type IN ('chat.message_sent', 'chat.message_failed')
GROUP BY day, provider, error_class;

-- Payments and refunds by the hour, currency and plan.
CREATE TABLE IF NOT EXISTS revenue_analytics ${on_cluster} (
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
ORDER BY (hour, currency, plan)
SETTINGS index_granularity = 256, ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS revenue_analytics_view ${on_cluster} TO revenue_analytics AS
SELECT
    toStartOfHour(time) AS hour, currency, plan,
    sumIf(amount_minor, type = 'billing.payment_succeeded') AS gross,
    sumIf(amount_minor, type = 'billing.payment_refunded') AS refunded,
    countIf(type = 'billing.payment_succeeded') AS payments,
    countIf(type = 'billing.payment_refunded') AS refunds
FROM events
WHERE type IN ('billing.payment_succeeded', 'billing.payment_refunded')
GROUP BY hour, currency, plan;

-- Changes of monthly recurring revenue: their sum up to a moment is the revenue at that moment.
CREATE TABLE IF NOT EXISTS mrr_metrics ${on_cluster} (
    hour          DateTime('UTC'),
    currency      LowCardinality(String),
    movement      LowCardinality(String),
    delta         SimpleAggregateFunction(sum, Int64),
    events        SimpleAggregateFunction(sum, UInt64)
)
ENGINE = ${replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(hour)
ORDER BY (hour, currency, movement)
SETTINGS index_granularity = 256, ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS mrr_metrics_view ${on_cluster} TO mrr_metrics AS
SELECT
    toStartOfHour(time) AS hour, currency, movement,
    sum(mrr_delta_minor) AS delta,
    count() AS events
FROM events
WHERE type IN ('billing.subscription_created', 'billing.subscription_updated', 'billing.subscription_canceled')
GROUP BY hour, currency, movement;

-- Payments by country, user and invoice: whose they were, and which failed ones were made good.
CREATE TABLE IF NOT EXISTS revenue_by_country ${on_cluster} (
    day           Date,
    country       LowCardinality(String),
    currency      LowCardinality(String),
    decline_code  LowCardinality(String),
    subject       String,
    invoice_id    String,
    gross         SimpleAggregateFunction(sum, Int64),
    refunded      SimpleAggregateFunction(sum, Int64),
    payments      SimpleAggregateFunction(sum, UInt64),
    refunds       SimpleAggregateFunction(sum, UInt64),
    failed        SimpleAggregateFunction(sum, UInt64),
    failed_amount SimpleAggregateFunction(sum, Int64),
    first_failure SimpleAggregateFunction(min, Tuple(time DateTime64(3, 'UTC'), id UInt128, amount Int64)),
    last_success  SimpleAggregateFunction(max, Tuple(time DateTime64(3, 'UTC'), id UInt128))
)
ENGINE = ${replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (day, country, currency, decline_code, subject, invoice_id)
SETTINGS ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS revenue_by_country_view ${on_cluster} TO revenue_by_country AS
SELECT
    toDate(time) AS day, country, currency,
    multiIf(type != 'billing.payment_failed', '', events.decline_code = '', 'unknown', events.decline_code) AS decline_code,
    subject, invoice_id,
    sumIf(amount_minor, type = 'billing.payment_succeeded') AS gross,
    sumIf(amount_minor, type = 'billing.payment_refunded') AS refunded,
    countIf(type = 'billing.payment_succeeded') AS payments,
    countIf(type = 'billing.payment_refunded') AS refunds,
    countIf(type = 'billing.payment_failed') AS failed,
    sumIf(amount_minor, type = 'billing.payment_failed') AS failed_amount,
    min(if(type = 'billing.payment_failed', (time, id, amount_minor), (toDateTime64('2299-01-01', 3, 'UTC'), toUInt128(0), toInt64(0)))) AS first_failure,
    max(if(type = 'billing.payment_succeeded', (time, id), (toDateTime64(0, 3, 'UTC'), toUInt128(0)))) AS last_success
FROM events
WHERE type IN ('billing.payment_succeeded', 'billing.payment_failed', 'billing.payment_refunded')
GROUP BY day, country, currency, decline_code, subject, invoice_id;

-- The state of each subscription after its last event of each day, and the cancels of the day.
CREATE TABLE IF NOT EXISTS churn_metrics ${on_cluster} (
    day             Date,
    subscription_id String,
    subject         String,
    cancels         SimpleAggregateFunction(sum, UInt64),
    last            SimpleAggregateFunction(max, Tuple(time DateTime64(3, 'UTC'), id UInt128, status String, plan String, currency String))
)
ENGINE = ${replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (subscription_id, subject, day)
SETTINGS ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS churn_metrics_view ${on_cluster} TO churn_metrics AS
SELECT
    toDate(time) AS day, subscription_id, subject,
    countIf(type = 'billing.subscription_canceled') AS cancels,
    max((time, id, if(type = 'billing.subscription_canceled', 'canceled', toString(subscription_status)), toString(plan), toString(currency))) AS last
FROM events
WHERE type IN ('billing.subscription_created', 'billing.subscription_updated', 'billing.subscription_canceled')
GROUP BY day, subscription_id, subject;
