//! Accounts, sessions and the limits that protect them.

pub mod account;
pub mod email;
pub mod jwt;
pub mod limits;
pub mod one_time;
pub mod password;
pub mod refresh;
pub mod role;
pub mod rotation;
pub mod session;
pub mod sign_out;
