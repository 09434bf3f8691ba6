mod docs;
mod fallback;
mod health;
mod logs;
mod metrics;
mod openapi;
mod root;
mod traces;
