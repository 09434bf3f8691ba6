//! Billing as its users see it, over the local Stripe.

mod payments;
mod plans;
mod replica;
mod subscriptions;
mod webhook;
