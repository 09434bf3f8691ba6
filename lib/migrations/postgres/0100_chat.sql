CREATE TABLE conversations (
    id              uuid PRIMARY KEY,
    user_id         uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- The name that a client library gave the conversation before it had an id.
    client_id       text,
    title           text NOT NULL,
    provider        text,
    model           text,
    system_prompt   text,
    pinned          boolean NOT NULL DEFAULT false,
    archived        boolean NOT NULL DEFAULT false,
    message_count   integer NOT NULL DEFAULT 0,
    terms           tsvector NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT date_trunc('milliseconds', now()),
    updated_at      timestamptz NOT NULL DEFAULT date_trunc('milliseconds', now()),
    last_message_at timestamptz,
    active_at       timestamptz NOT NULL GENERATED ALWAYS AS (coalesce(last_message_at, created_at)) STORED
);

CREATE UNIQUE INDEX conversations_client_id ON conversations (user_id, client_id) WHERE client_id IS NOT NULL;
CREATE INDEX conversations_by_activity ON conversations (user_id, archived, active_at DESC, id DESC);
CREATE INDEX conversations_terms ON conversations USING gin (terms);

CREATE TABLE messages (
    conversation_id     uuid NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    position            integer NOT NULL,
    id                  uuid NOT NULL UNIQUE,
    role                text NOT NULL CHECK (role IN ('user', 'assistant')),
    content             text NOT NULL,
    provider            text,
    model               text,
    finish_reason       text,
    input_tokens        bigint,
    cached_input_tokens bigint,
    output_tokens       bigint,
    reasoning_tokens    bigint,
    cost_micro_usd      bigint,
    estimated           boolean NOT NULL DEFAULT false,
    -- Words, each behind its owner's mark: one index serves all users, and nobody's search reads another's words.
    terms               tsvector NOT NULL,
    created_at          timestamptz NOT NULL,
    PRIMARY KEY (conversation_id, position)
);

CREATE INDEX messages_terms ON messages USING gin (terms);

-- Tokens of a user's calendar month: spent, and set aside for answers under way.
CREATE TABLE quota_periods (
    user_id  uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    period   date NOT NULL,
    used     bigint NOT NULL DEFAULT 0 CHECK (used >= 0),
    reserved bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    PRIMARY KEY (user_id, period)
);

CREATE TABLE quota_reservations (
    id          uuid PRIMARY KEY,
    user_id     uuid NOT NULL,
    period      date NOT NULL,
    tokens      bigint NOT NULL CHECK (tokens > 0),
    -- Moved on while the answer is under way; a reservation that stands still is abandoned.
    progress_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    FOREIGN KEY (user_id, period) REFERENCES quota_periods ON DELETE CASCADE
);

CREATE INDEX quota_reservations_by_user ON quota_reservations (user_id, progress_at);
CREATE INDEX quota_reservations_by_progress ON quota_reservations (progress_at);

-- Everything that was billed, whatever became of the message since.
CREATE TABLE usage_ledger (
    id                  uuid PRIMARY KEY,
    user_id             uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    period              date NOT NULL,
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

CREATE INDEX usage_ledger_by_period ON usage_ledger (user_id, period, provider, model);

-- Locks come in one order everywhere: a user's periods, then their reservations.
CREATE FUNCTION quota_release_abandoned(owner uuid) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    released bigint;
BEGIN
    PERFORM 1 FROM quota_periods WHERE user_id = owner ORDER BY period FOR UPDATE;
    WITH gone AS (
        DELETE FROM quota_reservations
        WHERE user_id = owner AND progress_at < clock_timestamp() - interval '60 seconds'
        RETURNING period, tokens
    ), freed AS (
        UPDATE quota_periods p SET reserved = p.reserved - g.tokens
        FROM (SELECT period, sum(tokens) AS tokens FROM gone GROUP BY period) g
        WHERE p.user_id = owner AND p.period = g.period
    )
    SELECT count(*) INTO released FROM gone;
    RETURN released;
END $$;

-- Sets aside `wanted` tokens, or what is left if that is at least `minimum`. `granted` is 0 if it is not.
CREATE FUNCTION quota_reserve(reservation uuid, owner uuid, wanted bigint, minimum bigint, allowed bigint)
RETURNS TABLE (period date, used bigint, reserved bigint, granted bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    month date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
    spent bigint;
    held  bigint;
    share bigint;
BEGIN
    INSERT INTO quota_periods (user_id, period) VALUES (owner, month) ON CONFLICT DO NOTHING;
    IF EXISTS (SELECT FROM quota_reservations
               WHERE user_id = owner AND progress_at < clock_timestamp() - interval '60 seconds') THEN
        PERFORM quota_release_abandoned(owner);
    END IF;
    SELECT q.used, q.reserved INTO spent, held
    FROM quota_periods q WHERE q.user_id = owner AND q.period = month FOR UPDATE;
    share := LEAST(wanted, allowed - spent - held);
    IF share < minimum OR share <= 0 THEN
        share := 0;
    ELSE
        INSERT INTO quota_reservations (id, user_id, period, tokens) VALUES (reservation, owner, month, share);
        UPDATE quota_periods q SET reserved = q.reserved + share WHERE q.user_id = owner AND q.period = month;
        held := held + share;
    END IF;
    RETURN QUERY SELECT month, spent, held, share;
END $$;

-- Turns a reservation into what was really spent; works alike if the reservation was released meanwhile.
CREATE FUNCTION quota_settle(reservation uuid, owner uuid, month date, spent bigint)
RETURNS TABLE (used bigint, reserved bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    held bigint;
BEGIN
    PERFORM 1 FROM quota_periods q WHERE q.user_id = owner AND q.period = month FOR UPDATE;
    DELETE FROM quota_reservations r WHERE r.id = reservation RETURNING r.tokens INTO held;
    RETURN QUERY UPDATE quota_periods q
        SET used = q.used + spent, reserved = q.reserved - coalesce(held, 0)
        WHERE q.user_id = owner AND q.period = month
        RETURNING q.used, q.reserved;
END $$;
