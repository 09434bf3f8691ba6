mod models;
mod send;
