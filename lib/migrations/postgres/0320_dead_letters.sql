-- How many messages have become dead letters, ever: the rows of old ones go. Counted by a trigger, so that code from
-- before counts as well.
CREATE TABLE dead_letter_total (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    messages bigint NOT NULL
);

CREATE FUNCTION dead_letters_count() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE dead_letter_total SET messages = messages + (SELECT count(*) FROM noted);
    RETURN NULL;
END $$;

-- From here on no other transaction adds a row before this one ends, so the total begins with all that there are.
CREATE TRIGGER dead_letters_count AFTER INSERT ON dead_letters
REFERENCING NEW TABLE AS noted FOR EACH STATEMENT EXECUTE FUNCTION dead_letters_count();

INSERT INTO dead_letter_total (messages) SELECT count(*) FROM dead_letters;
