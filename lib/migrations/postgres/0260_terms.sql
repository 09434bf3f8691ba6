-- Words went to a list first, and every few hundredth answer had to bring all of it into its index while it was stored.
-- Whoever uses the tables waits for the new setting, so the list goes before it; the little that comes in between is
-- searched like the rest, and the next vacuum takes it.
SELECT gin_clean_pending_list('messages_terms'), gin_clean_pending_list('conversations_terms');
ALTER INDEX messages_terms SET (fastupdate = off);
ALTER INDEX conversations_terms SET (fastupdate = off);
