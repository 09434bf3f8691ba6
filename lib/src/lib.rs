//! What every function of the AI-chat backend shares: domains below, HTTP and workers above.

pub mod analytics;
pub mod auth;
pub mod aws;
pub mod background;
pub mod billing;
pub mod chat;
pub mod clock;
pub mod config;
pub mod crypto;
pub mod error;
pub mod events;
pub mod health;
pub mod http;
pub mod mail;
pub mod migrate;
mod outbound;
mod recent;
mod runtime;
pub mod secrets;
pub mod store;
pub mod telemetry;
pub mod worker;
