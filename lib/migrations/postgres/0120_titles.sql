-- What titles cost that a model wrote: tokens that are nobody's usage and count against nobody's plan. The rows
-- outlive their conversations, as the ledger's do, and name no person.
CREATE TABLE title_ledger (
    id                  uuid PRIMARY KEY,
    conversation_id     uuid NOT NULL,
    provider            text NOT NULL,
    model               text NOT NULL,
    input_tokens        bigint NOT NULL,
    cached_input_tokens bigint NOT NULL,
    output_tokens       bigint NOT NULL,
    reasoning_tokens    bigint NOT NULL,
    cost_micro_usd      bigint,
    price_version       text,
    estimated           boolean NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX title_ledger_by_time ON title_ledger (created_at);
