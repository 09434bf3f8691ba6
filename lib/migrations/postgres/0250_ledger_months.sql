-- The nightly audit reads the ledger of two months. Rows come in the order of their months, so that a range of pages tells
-- which it has: kilobytes for a ledger of gigabytes, next to nothing to keep, and made in one reading of about a second
-- for each of them, for which answers wait to be stored. They wait for ten seconds at most: of a ledger beyond ten
-- gigabytes, make it first, with CONCURRENTLY and this name.
CREATE INDEX IF NOT EXISTS usage_ledger_by_month ON usage_ledger USING brin (period) WITH (autosummarize = on);
