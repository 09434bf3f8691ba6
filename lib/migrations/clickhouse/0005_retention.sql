-- A part is written anew whenever some of its rows expire: where each has a moment of its own, every few hours for a
-- whole month. So the rows that came in one month expire at once, none of them before its 90 days. Nothing is written
-- anew for this: a part learns its new moment when it is merged, or when the old one comes.
ALTER TABLE events ${on_cluster}
MODIFY TTL toDateTime(toStartOfMonth(ingested_at), 'UTC') + INTERVAL 4 MONTH + INTERVAL 1 DAY
    DELETE WHERE type = 'http.request_completed'
SETTINGS materialize_ttl_after_modify = 0;
