-- The same as before with less work and without waiting for the disk. A reservation that a crash of the server takes
-- back was for an answer under way, which is counted when it is settled; whatever is settled is on the disk, and with
-- it every reservation made before.
CREATE OR REPLACE FUNCTION quota_reserve(reservation uuid, owner uuid, wanted bigint, minimum bigint, allowed bigint)
RETURNS TABLE (period date, used bigint, reserved bigint, granted bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    month date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
    spent bigint;
    held  bigint;
    share bigint;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    IF EXISTS (SELECT FROM quota_reservations
               WHERE user_id = owner AND progress_at < clock_timestamp() - interval '60 seconds') THEN
        PERFORM quota_release_abandoned(owner);
    END IF;
    LOOP
        SELECT q.used, q.reserved INTO spent, held
        FROM quota_periods q WHERE q.user_id = owner AND q.period = month FOR UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO quota_periods (user_id, period) VALUES (owner, month) ON CONFLICT DO NOTHING;
    END LOOP;
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

-- Works alike if the reservation was released meanwhile, or lost with its month's first row.
CREATE OR REPLACE FUNCTION quota_settle(reservation uuid, owner uuid, month date, spent bigint)
RETURNS TABLE (used bigint, reserved bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    held bigint;
BEGIN
    PERFORM 1 FROM quota_periods q WHERE q.user_id = owner AND q.period = month FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO quota_periods (user_id, period) VALUES (owner, month) ON CONFLICT DO NOTHING;
    END IF;
    DELETE FROM quota_reservations r WHERE r.id = reservation RETURNING r.tokens INTO held;
    RETURN QUERY UPDATE quota_periods q
        SET used = q.used + spent, reserved = q.reserved - coalesce(held, 0)
        WHERE q.user_id = owner AND q.period = month
        RETURNING q.used, q.reserved;
END $$;
