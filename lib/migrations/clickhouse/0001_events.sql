-- Every event once, as it came. Ids are numbers: UUIDv7 ids are then in the order of their making, so that the
-- ids of a batch lie together (the UUID type sorts by its second half). The ingest worker inserts no id twice: the
-- engine is a second net, in which the row that came first survives.
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
-- Rows are wide and no figure waits for them: they are written anew less often, for a few more parts.
SETTINGS merge_selector_base = 15, ${deduplication};

-- All events by type; requests also by route, and by the bucket of their duration: each took more than so many
-- milliseconds, and no more than the next bucket begins with.
CREATE TABLE IF NOT EXISTS request_totals ${on_cluster} (
    type        LowCardinality(String),
    route       LowCardinality(String),
    method      LowCardinality(String),
    status      Int64,
    over_ms     Int64,
    last_ingest SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    events      SimpleAggregateFunction(sum, UInt64),
    clamped     SimpleAggregateFunction(sum, UInt64),
    duration_ms SimpleAggregateFunction(sum, Int64)
)
ENGINE = ${replicated}AggregatingMergeTree
ORDER BY (type, route, method, status, over_ms)
SETTINGS ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS request_totals_view ${on_cluster} TO request_totals AS
SELECT
    type, route, if(type = 'http.request_completed', events.method, '') AS method, http_status AS status,
    roundDown(events.duration_ms - 1, [0, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000]) AS over_ms,
    max(ingested_at) AS last_ingest,
    count() AS events,
    countIf(events.clamped) AS clamped,
    sum(events.duration_ms) AS duration_ms
FROM events
GROUP BY type, route, method, status, over_ms;
