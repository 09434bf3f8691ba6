//! Secrets Manager: each secret is a JSON object, read once, in the init of the function.

use aws_sdk_secretsmanager::Client;
use serde::de::DeserializeOwned;

use crate::config;
use crate::error::{Error, Result};

/// Reads the secret whose ARN or name is in the environment variable.
///
/// # Errors
/// When the variable is missing, the secret cannot be read, or it does not have the expected members.
pub async fn read<T: DeserializeOwned>(variable: &str) -> Result<T> {
    let text = read_text(variable).await?;
    // The parser's message may quote the value, so only the name goes on.
    serde_json::from_str(&text)
        .map_err(|_| Error::internal(format!("the secret named by {variable} has another shape")))
}

async fn read_text(variable: &str) -> Result<String> {
    let id = config::required(variable)?;
    let reply = Client::new(crate::aws::sdk_config()?).get_secret_value().secret_id(id).send().await?;
    reply.secret_string.ok_or_else(|| Error::internal(format!("the secret named by {variable} is empty")))
}

/// Asks Secrets Manager for the secret's description, for health checks.
///
/// # Errors
/// When it does not answer.
pub async fn ping(variable: &str) -> Result<()> {
    read_text(variable).await.map(drop)
}
