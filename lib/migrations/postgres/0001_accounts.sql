CREATE TABLE users (
    id                uuid PRIMARY KEY,
    email             text NOT NULL UNIQUE,
    name              text,
    role              text NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'admin')),
    plan              text NOT NULL DEFAULT 'free' CHECK (plan IN ('free', 'pro', 'enterprise')),
    password_hash     text NOT NULL,
    -- Counts password changes: a sign-in that checked an older password is void.
    password_version  integer NOT NULL DEFAULT 1,
    email_verified_at timestamptz,
    created_at        timestamptz NOT NULL DEFAULT date_trunc('milliseconds', now()),
    updated_at        timestamptz NOT NULL DEFAULT now()
);
