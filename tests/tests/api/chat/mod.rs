mod ai_sdk;
mod chaos;
mod conversations;
mod failures;
mod idempotency;
mod models;
mod send;
mod streams;
