-- What all tries of one request under an Idempotency-Key have in common: a try that comes after the death of a
-- function which had stored its answer finds that answer.
ALTER TABLE usage_ledger ADD COLUMN request_id uuid;
CREATE INDEX usage_ledger_by_request ON usage_ledger (request_id) WHERE request_id IS NOT NULL;
