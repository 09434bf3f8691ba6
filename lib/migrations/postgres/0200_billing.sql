-- A mirror of what Stripe has: Stripe is the truth, and every row is written from an object read there.

CREATE TABLE billing_customers (
    user_id       uuid PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    stripe_id     text NOT NULL UNIQUE,
    -- A customer has one trial, ever.
    trial_used_at timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE subscriptions (
    id                   uuid PRIMARY KEY,
    user_id              uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    stripe_id            text NOT NULL UNIQUE,
    plan                 text NOT NULL CHECK (plan IN ('pro', 'enterprise')),
    pending_plan         text CHECK (pending_plan IN ('pro', 'enterprise')),
    status               text NOT NULL,
    current_period_start timestamptz NOT NULL,
    current_period_end   timestamptz NOT NULL,
    cancel_at_period_end boolean NOT NULL,
    trial_end            timestamptz,
    -- Until then the plan is kept although a payment is due.
    grace_end            timestamptz,
    -- What analytics was told: whether the subscription runs, and what it adds to the monthly revenue.
    running              boolean NOT NULL,
    mrr_minor            bigint NOT NULL,
    currency             text NOT NULL,
    trial_mail_sent      boolean NOT NULL DEFAULT false,
    created_at           timestamptz NOT NULL,
    updated_at           timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX subscriptions_by_user ON subscriptions (user_id, created_at DESC, id DESC);
CREATE INDEX subscriptions_by_grace ON subscriptions (grace_end) WHERE status = 'past_due';

CREATE TABLE payments (
    id             uuid PRIMARY KEY,
    user_id        uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    stripe_id      text NOT NULL UNIQUE,
    amount         bigint NOT NULL,
    currency       text NOT NULL,
    status         text NOT NULL,
    description    text,
    decline_code   text,
    -- The charge whose failure was told.
    failed_charge  text,
    refunded       bigint NOT NULL DEFAULT 0,
    created_at     timestamptz NOT NULL
);

CREATE INDEX payments_by_user ON payments (user_id, created_at DESC, id DESC);

CREATE TABLE invoices (
    id              uuid PRIMARY KEY,
    user_id         uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    stripe_id       text NOT NULL UNIQUE,
    number          text,
    status          text NOT NULL,
    amount_due      bigint NOT NULL,
    amount_paid     bigint NOT NULL,
    currency        text NOT NULL,
    period_start    timestamptz NOT NULL,
    period_end      timestamptz NOT NULL,
    lines           jsonb NOT NULL,
    hosted_url      text,
    pdf_url         text,
    -- Failed attempts that were told.
    failed_attempts bigint NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL
);

CREATE INDEX invoices_by_user ON invoices (user_id, created_at DESC, id DESC);

-- Events of Stripe that were received, each once.
CREATE TABLE stripe_events (
    id           text PRIMARY KEY,
    kind         text NOT NULL,
    object_id    text NOT NULL,
    received_at  timestamptz NOT NULL DEFAULT now(),
    processed_at timestamptz
);

-- Up to here Stripe's events were compared with the received ones.
CREATE TABLE stripe_watermark (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    until timestamptz NOT NULL
);
