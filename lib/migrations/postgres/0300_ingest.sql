-- Insert blocks on their way into ClickHouse: written before the insert, deleted after its answer. What is
-- found here was cut short and is inserted again, byte for byte and under the same token.
CREATE TABLE ingest_batches (
    id         uuid PRIMARY KEY,
    block      bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- A block lives for milliseconds: compressing it would cost more than it saves.
ALTER TABLE ingest_batches ALTER COLUMN block SET STORAGE EXTERNAL;

-- Messages that went to the dead-letter queue, each once, however often it was delivered before.
CREATE TABLE dead_letters (
    message_id text PRIMARY KEY,
    reason     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
