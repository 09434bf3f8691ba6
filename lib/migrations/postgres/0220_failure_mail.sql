-- Whether the mail of an unpaid invoice was sent: where the bank asks for the card's holder, no failed attempt tells.
ALTER TABLE invoices ADD COLUMN failure_mailed boolean NOT NULL DEFAULT false;

UPDATE invoices SET failure_mailed = true WHERE failed_attempts > 0;
