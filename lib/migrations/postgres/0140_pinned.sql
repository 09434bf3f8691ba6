-- Pinned conversations are few: their list must not be looked for among all of a user's.
CREATE INDEX conversations_pinned ON conversations (user_id, archived, active_at DESC, id DESC) WHERE pinned;
