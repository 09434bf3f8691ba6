-- Events of Stripe that wait to be handled: of all that were received, few.
CREATE INDEX stripe_events_unhandled ON stripe_events (received_at) WHERE processed_at IS NULL;
