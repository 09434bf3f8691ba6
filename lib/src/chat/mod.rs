//! Chat: conversations, model providers, quotas and streams.

pub mod ai_sdk;
pub mod answer;
pub mod catalogue;
pub mod conversation;
pub mod exchange;
pub mod fields;
pub mod live;
pub mod prompt;
pub mod provider;
pub mod quota;
pub mod request;
pub mod search;
pub mod stream;
mod title;
pub mod usage;
