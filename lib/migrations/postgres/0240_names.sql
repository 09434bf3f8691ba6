-- A client's own name of its question, by which it says what is edited or asked again.
ALTER TABLE messages ADD COLUMN client_id text;
-- Whether nobody has named the conversation yet: its first question does.
ALTER TABLE conversations ADD COLUMN untitled boolean NOT NULL DEFAULT false;
