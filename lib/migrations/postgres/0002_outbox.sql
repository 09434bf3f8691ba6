-- Messages that were committed with the state they tell of and have not been taken by their queue yet.
CREATE TABLE outbox (
    id         uuid PRIMARY KEY,
    queue      text NOT NULL,
    body       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX outbox_created_at ON outbox (created_at);
