//! Secrets Manager: each secret is a JSON object, read once, in the init of the function.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use aws_sdk_secretsmanager::Client;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use crate::config::{self, Secret};
use crate::error::{Error, Result};

/// Texts by id: several parts of a function may need one secret, at the same time.
static TEXTS: Mutex<Option<HashMap<String, Arc<OnceCell<Secret>>>>> = Mutex::new(None);

/// Reads the secret whose ARN or name is in the environment variable.
///
/// # Errors
/// When the variable is missing, the secret cannot be read, or it does not have the expected members.
pub async fn read<T: DeserializeOwned>(variable: &str) -> Result<T> {
    let id = config::required(variable)?;
    let text = {
        let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        texts.get_or_insert_default().entry(id.clone()).or_default().clone()
    };
    let text = text.get_or_try_init(|| fetch(id, variable)).await?;
    // The parser's message may quote the value, so only the name goes on.
    serde_json::from_str(text.expose())
        .map_err(|_| Error::internal(format!("the secret named by {variable} has another shape")))
}

/// Reads the secret of this ARN or name afresh, past the cache.
///
/// # Errors
/// When it cannot be read, or does not have the expected members.
pub async fn read_by_id<T: DeserializeOwned>(id: &str) -> Result<T> {
    let text = fetch(id.to_owned(), id).await?;
    serde_json::from_str(text.expose()).map_err(|_| Error::internal(format!("the secret {id} has another shape")))
}

async fn fetch(id: String, variable: &str) -> Result<Secret> {
    let reply = client()?.get_secret_value().secret_id(id).send().await;
    let reply = reply.map_err(|error| {
        let error = Error::from(error);
        let cause = error.cause_chain().unwrap_or_default();
        Error::caused(error.code(), format!("the secret named by {variable}: {cause}"))
    })?;
    let text =
        reply.secret_string.ok_or_else(|| Error::internal(format!("the secret named by {variable} is empty")))?;
    Ok(Secret::new(text))
}

pub(crate) fn client() -> Result<&'static Client> {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    let config = crate::aws::sdk_config()?;
    Ok(CLIENT.get_or_init(|| Client::new(config)))
}

/// Reads the secret and forgets it, for health checks.
///
/// # Errors
/// When it does not answer.
pub async fn ping(variable: &str) -> Result<()> {
    fetch(config::required(variable)?, variable).await.map(drop)
}
