//! Plans and, over Stripe, what is paid for them.

pub mod plan;
