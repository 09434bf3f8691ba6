//! Plans and, over Stripe, what is paid for them.
//!
//! Stripe is the truth. [`sync`] reads an object there and writes the mirror, the plan and the events in one
//! transaction; routes and webhooks go through it alike, so that neither order nor number of the calls matters.

pub mod checkout;
pub mod duplicate;
pub mod invoice;
pub mod payment;
pub mod plan;
pub mod reconcile;
pub mod service;
pub mod signature;
pub mod stripe;
pub mod stripe_object;
pub mod subscription;
pub mod sync;
pub mod transition;
pub mod usage;
pub mod webhook;
