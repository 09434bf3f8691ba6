-- The two views of users.

-- What each user did on each day in each conversation; the epoch where the user was not active. Users and
-- conversations are grouped by hashes of 64 bits, which are a fifth as long as their ids and met twice by no two.
-- A user's last event is one number: its milliseconds, its id, and its plan (1 free, 2 pro, 3 enterprise), so that
-- the latest is the greatest. Rows are in the order of users, since most questions gather those of one.
CREATE TABLE IF NOT EXISTS user_metrics ${on_cluster} (
    day          Date,
    user         UInt64,
    conversation UInt64,
    messages     SimpleAggregateFunction(sum, UInt64),
    tokens       SimpleAggregateFunction(sum, Int64),
    cost         SimpleAggregateFunction(sum, Int64),
    last_active  SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    last         SimpleAggregateFunction(max, UInt256)
)
ENGINE = ${replicated}AggregatingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (user, day, conversation)
SETTINGS ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS user_metrics_view ${on_cluster} TO user_metrics AS
SELECT
    toDate(time) AS day, sipHash64(subject) AS user,
    if(conversation_id = '', 0, sipHash64(conversation_id)) AS conversation,
    countIf(type = 'chat.message_sent') AS messages,
    sum(input_tokens + output_tokens) AS tokens,
    sum(ifNull(cost_micro_usd, 0)) AS cost,
    maxIf(time, type IN ('user.signup', 'user.signin', 'chat.conversation_created', 'chat.message_sent', 'chat.message_failed')) AS last_active,
    max(bitShiftLeft(toUInt256(toUnixTimestamp64Milli(time)), 136) + bitShiftLeft(toUInt256(id), 8)
        + multiIf(plan = 'free', 1, plan = 'pro', 2, 3)) AS last
FROM events
WHERE type != 'http.request_completed'
GROUP BY day, user, conversation;

-- When each user first signed up, which makes the cohort, and first verified an address; the year 2148 where that
-- did not happen. And the user's last event of all.
CREATE TABLE IF NOT EXISTS user_retention ${on_cluster} (
    user     UInt64,
    subject  SimpleAggregateFunction(any, String),
    signup   SimpleAggregateFunction(min, DateTime64(3, 'UTC')),
    verified SimpleAggregateFunction(min, DateTime64(3, 'UTC')),
    last     SimpleAggregateFunction(max, UInt256)
)
ENGINE = ${replicated}AggregatingMergeTree
ORDER BY user
SETTINGS ${deduplication};

CREATE MATERIALIZED VIEW IF NOT EXISTS user_retention_view ${on_cluster} TO user_retention AS
SELECT
    sipHash64(events.subject) AS user, any(events.subject) AS subject,
    min(if(type = 'user.signup', time, toDateTime64('2148-01-01', 3, 'UTC'))) AS signup,
    min(if(type = 'user.email_verified', time, toDateTime64('2148-01-01', 3, 'UTC'))) AS verified,
    max(bitShiftLeft(toUInt256(toUnixTimestamp64Milli(time)), 136) + bitShiftLeft(toUInt256(id), 8)
        + multiIf(plan = 'free', 1, plan = 'pro', 2, 3)) AS last
FROM events
WHERE type != 'http.request_completed'
GROUP BY user;
