//! The API as its users see it: over HTTP, through both doors of a running stack, in files that mirror the URLs.

mod support;

mod analytics;
mod auth;
mod billing;
mod chat;
mod events;
mod gateway;
mod lost_answers;
mod mails;
mod outbox;
