//! All of `lib`, and what it depends on, in one dynamic file that is linked once.

pub use ::lib::*;
