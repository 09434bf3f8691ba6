-- Every event once, as it came. Ids are numbers: UUIDv7 ids are then in the order of their making, so that the
-- ids of a batch lie together (the UUID type sorts by its second half). The ingest worker inserts no id twice;
-- the engine is a second net, in which the row that came first survives.
CREATE TABLE IF NOT EXISTS events ${on_cluster} (
    id                  UInt128,
    type                LowCardinality(String),
    subject             String,
    time                DateTime64(3, 'UTC') CODEC(Delta, ZSTD),
    source              LowCardinality(String),
    traceparent         String,
    ingested_at         DateTime64(3, 'UTC') CODEC(Delta, ZSTD),
    clamped             Bool,
    plan                LowCardinality(String),
    country             LowCardinality(String),
    method              LowCardinality(String),
    from_plan           LowCardinality(String),
    to_plan             LowCardinality(String),
    conversation_id     String,
    message_id          String,
    provider            LowCardinality(String),
    model               LowCardinality(String),
    requested_model     LowCardinality(String),
    input_tokens        Int64,
    cached_input_tokens Int64,
    output_tokens       Int64,
    reasoning_tokens    Int64,
    cost_micro_usd      Nullable(Int64),
    price_version       LowCardinality(String),
    ttft_ms             Nullable(Int64),
    latency_ms          Int64,
    finish_reason       LowCardinality(String),
    attempts            Int64,
    fallback_from       LowCardinality(String),
    streamed            Bool,
    regenerated         Bool,
    error_class         LowCardinality(String),
    payment_id          String,
    invoice_id          String,
    amount_minor        Int64,
    currency            LowCardinality(String),
    decline_code        LowCardinality(String),
    subscription_id     String,
    subscription_status LowCardinality(String),
    movement            LowCardinality(String),
    mrr_delta_minor     Int64,
    function            LowCardinality(String),
    route               LowCardinality(String),
    http_status         Int64,
    duration_ms         Int64,
    cold_start          Bool,
    precedence          UInt64 MATERIALIZED 18446744073709551615 - toUnixTimestamp64Milli(ingested_at),
    INDEX day time TYPE minmax GRANULARITY 1
)
ENGINE = ${replicated}ReplacingMergeTree(precedence)
PARTITION BY toYYYYMM(time)
ORDER BY id
-- Telemetry is kept as totals. No queue keeps a message for that long, so none comes back to be counted again.
TTL toDateTime(ingested_at) + INTERVAL 90 DAY DELETE WHERE type = 'http.request_completed'
SETTINGS ${deduplication};

-- All events by type; requests also by route, with the buckets of their durations in seconds.
CREATE TABLE IF NOT EXISTS request_totals ${on_cluster} (
    type        LowCardinality(String),
    route       LowCardinality(String),
    method      LowCardinality(String),
    status      Int64,
    last_ingest SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    events      SimpleAggregateFunction(sum, UInt64),
    duration_ms SimpleAggregateFunction(sum, Int64),
    le_5        SimpleAggregateFunction(sum, UInt64),
    le_10       SimpleAggregateFunction(sum, UInt64),
    le_25       SimpleAggregateFunction(sum, UInt64),
    le_50       SimpleAggregateFunction(sum, UInt64),
    le_100      SimpleAggregateFunction(sum, UInt64),
    le_250      SimpleAggregateFunction(sum, UInt64),
    le_500      SimpleAggregateFunction(sum, UInt64),
    le_1000     SimpleAggregateFunction(sum, UInt64),
    le_2500     SimpleAggregateFunction(sum, UInt64),
    le_5000     SimpleAggregateFunction(sum, UInt64),
    le_10000    SimpleAggregateFunction(sum, UInt64)
)
ENGINE = ${replicated}AggregatingMergeTree
ORDER BY (type, route, method, status)
SETTINGS ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS request_totals_view ${on_cluster} TO request_totals AS
SELECT
    type, route, if(type = 'http.request_completed', events.method, '') AS method, http_status AS status,
    max(ingested_at) AS last_ingest,
    count() AS events,
    sum(duration_ms) AS duration_ms,
    countIf(events.duration_ms <= 5) AS le_5,
    countIf(events.duration_ms <= 10) AS le_10,
    countIf(events.duration_ms <= 25) AS le_25,
    countIf(events.duration_ms <= 50) AS le_50,
    countIf(events.duration_ms <= 100) AS le_100,
    countIf(events.duration_ms <= 250) AS le_250,
    countIf(events.duration_ms <= 500) AS le_500,
    countIf(events.duration_ms <= 1000) AS le_1000,
    countIf(events.duration_ms <= 2500) AS le_2500,
    countIf(events.duration_ms <= 5000) AS le_5000,
    countIf(events.duration_ms <= 10000) AS le_10000
FROM events
GROUP BY type, route, method, status;
