//! Billing as its users see it, over the local Stripe.

mod failures;
mod life;
pub mod orders;
mod payments;
mod plans;
mod reconcile;
mod replica;
pub mod stores;
mod subscriptions;
mod trial;
mod webhook;
