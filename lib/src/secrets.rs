//! Secrets Manager: each secret is a JSON object, read once, in the init of the function.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::OnceCell;

use crate::aws::{Failure, SECRETS_MANAGER};
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
    let text = text.get_or_try_init(|| fetch(&id, variable)).await?;
    // The parser's message may quote the value, so only the name goes on.
    serde_json::from_str(text.expose())
        .map_err(|_| Error::internal(format!("the secret named by {variable} has another shape")))
}

/// Reads a secret that another one names, as it is now.
///
/// # Errors
/// When it cannot be read, or does not have the expected members.
pub async fn read_by_id<T: DeserializeOwned>(id: &str) -> Result<T> {
    let text = fetch(id, id).await?;
    serde_json::from_str(text.expose()).map_err(|_| Error::internal(format!("the secret {id} has another shape")))
}

async fn fetch(id: &str, name: &str) -> Result<Secret> {
    let reply = get(id, None, None).await.map_err(|failure| failure.about(&format!("the secret named by {name}")))?;
    reply.secret_string.ok_or_else(|| Error::internal(format!("the secret named by {name} is empty")))
}

/// A version of a secret.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Version {
    /// The version's id.
    pub(crate) version_id: Option<String>,
    /// Its value.
    pub(crate) secret_string: Option<Secret>,
}

/// Reads a version, or the current one.
///
/// # Errors
/// When it cannot be read.
pub(crate) async fn get(id: &str, version: Option<&str>, stage: Option<&str>) -> Result<Version, Failure> {
    let mut input = json!({ "SecretId": id });
    for (name, value) in [("VersionId", version), ("VersionStage", stage)] {
        if let Some(value) = value {
            input[name] = value.into();
        }
    }
    SECRETS_MANAGER.call("GetSecretValue", &input).await
}

/// Reads the secret again, for health checks.
///
/// # Errors
/// When Secrets Manager does not answer.
pub async fn ping(variable: &str) -> Result<()> {
    fetch(&config::required(variable)?, variable).await.map(drop)
}
