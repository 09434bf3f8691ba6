-- Blocks are compressed before they come here; those that an earlier release left are not.
ALTER TABLE ingest_batches ADD COLUMN is_compressed boolean NOT NULL DEFAULT false;
