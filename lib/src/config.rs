//! The environment is read here and nowhere else; a missing or malformed variable fails the init of the
//! function with a message that names it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A value that does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret value.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value itself, to be handed to the client that needs it and to nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

/// The variable's value, if it is set and not empty.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one home of environment access")]
pub fn optional(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The variable's value.
///
/// # Errors
/// Names the variable when it is missing or empty.
#[track_caller]
pub fn required(name: &str) -> Result<String> {
    optional(name).ok_or_else(|| Error::internal(format!("environment variable {name} is not set")))
}

/// The variable's value as a number, a boolean or another type that is read from text.
///
/// # Errors
/// Names the variable when it is set and malformed.
#[track_caller]
pub fn parsed<T: FromStr>(name: &str, default: T) -> Result<T> {
    match optional(name) {
        None => Ok(default),
        Some(text) => parse(name, &text),
    }
}

/// The same for a variable without a default.
///
/// # Errors
/// Names the variable when it is missing, empty or malformed.
#[track_caller]
pub fn required_parsed<T: FromStr>(name: &str) -> Result<T> {
    parse(name, &required(name)?)
}

#[track_caller]
fn parse<T: FromStr>(name: &str, text: &str) -> Result<T> {
    text.trim().parse().map_err(|_| Error::internal(format!("environment variable {name} is malformed")))
}

/// The variable's comma-separated values, trimmed, without empty ones.
#[must_use]
pub fn list(name: &str) -> Vec<String> {
    optional(name)
        .iter()
        .flat_map(|text| text.split(','))
        .map(|item| item.trim().to_owned())
        .filter(|item| !item.is_empty())
        .collect()
}

/// Where the pages are that mails and Stripe lead to: `APP_URL`, without a slash at its end.
///
/// # Errors
/// When it is missing.
#[track_caller]
pub fn app_url() -> Result<String> {
    Ok(required("APP_URL")?.trim_end_matches('/').to_owned())
}

/// Where the function is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A developer's machine.
    Local,
    /// A shared test environment.
    Dev,
    /// Production.
    Prod,
}

impl Stage {
    /// Reads `STAGE`.
    ///
    /// # Errors
    /// When it is missing or not one of `local`, `dev`, `prod`.
    pub fn from_env() -> Result<Self> {
        match required("STAGE")?.as_str() {
            "local" => Ok(Self::Local),
            "dev" => Ok(Self::Dev),
            "prod" => Ok(Self::Prod),
            _ => Err(Error::internal("environment variable STAGE is not local, dev or prod")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), "[secret]");
        assert_eq!(secret.expose(), "hunter2");
    }
}
