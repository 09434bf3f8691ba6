mod docs;
mod fallback;
mod health;
mod metrics;
mod openapi;
mod root;
mod traces;
