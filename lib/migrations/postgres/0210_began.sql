-- Whether a subscription has ever run: one whose first payment was given up is canceled, too.
ALTER TABLE subscriptions ADD COLUMN began boolean NOT NULL DEFAULT false;

-- Of one that is canceled already, a trial or whatever its user has paid for tells.
UPDATE subscriptions s SET began = true
WHERE running OR trial_end IS NOT NULL OR status NOT IN ('incomplete', 'incomplete_expired', 'canceled')
   OR (status = 'canceled' AND EXISTS (SELECT FROM invoices i WHERE i.user_id = s.user_id AND i.status = 'paid'));
