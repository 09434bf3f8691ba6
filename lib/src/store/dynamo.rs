//! DynamoDB: one table per kind of short-lived state, each with a TTL in the attribute `expires`.

use std::collections::HashMap;
use std::sync::OnceLock;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_types::SdkConfig;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::config;
use crate::error::{Error, Result};

/// An item as DynamoDB gives it.
pub type Item = HashMap<String, AttributeValue>;

/// A table.
#[derive(Clone)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// What the client is built of.
    pub(crate) config: &'static SdkConfig,
}

/// Building a client costs more than a call: all tables share one.
fn client(config: &SdkConfig) -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| Client::new(config))
}

/// Builds the client, so that no request does.
///
/// # Errors
/// When the AWS configuration is incomplete.
pub(crate) fn prepare() -> Result<()> {
    client(crate::aws::sdk_config()?);
    Ok(())
}

impl Table {
    /// The table whose name is in the environment variable.
    ///
    /// # Errors
    /// When the variable is missing.
    pub fn from_env(variable: &str) -> Result<Self> {
        Ok(Self { name: config::required(variable)?, config: crate::aws::sdk_config()? })
    }

    /// The client that reaches it.
    #[must_use]
    pub fn client(&self) -> &'static Client {
        client(self.config)
    }

    /// Reads an item that cannot exist, for health checks.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn ping(&self, keys: &[&str]) -> Result<()> {
        let mut request = self.client().get_item().table_name(&self.name);
        for key in keys {
            request = request.key(*key, text("health"));
        }
        request.send().await?;
        Ok(())
    }
}

/// What a write gives; `None` where its condition does not hold.
///
/// # Errors
/// When it failed for another reason.
#[track_caller]
pub fn unless_refused<T, E, R>(outcome: Result<T, SdkError<E, R>>) -> Result<Option<T>>
where
    E: ProvideErrorMetadata,
    Error: From<SdkError<E, R>>,
{
    match outcome {
        Ok(reply) => Ok(Some(reply)),
        Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The item that a put found where its condition does not hold, if it asked for that.
pub fn found_instead<R>(error: &SdkError<PutItemError, R>) -> Option<&Item> {
    match error.as_service_error() {
        Some(PutItemError::ConditionalCheckFailedException(refused)) => refused.item(),
        _ => None,
    }
}

/// A string attribute.
pub fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

/// A number attribute.
pub fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// A binary attribute.
#[must_use]
pub fn binary(value: &[u8]) -> AttributeValue {
    AttributeValue::B(aws_smithy_types::Blob::new(value))
}

/// Seconds since the epoch, as TTL wants them.
#[must_use]
pub fn epoch_seconds(at: OffsetDateTime) -> AttributeValue {
    number(at.unix_timestamp())
}

/// Reads a string attribute.
///
/// # Errors
/// When the item lacks it: items are written by this crate alone.
#[track_caller]
pub fn get_text<'a>(item: &'a Item, name: &str) -> Result<&'a str> {
    item.get(name)
        .and_then(|value| value.as_s().ok())
        .map(String::as_str)
        .ok_or_else(|| Error::internal(format!("the item has no text attribute {name}")))
}

/// Reads a number attribute.
///
/// # Errors
/// When the item lacks it.
#[track_caller]
pub fn get_number(item: &Item, name: &str) -> Result<i64> {
    item.get(name)
        .and_then(|value| value.as_n().ok())
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::internal(format!("the item has no number attribute {name}")))
}

/// Reads a 256-bit binary attribute.
///
/// # Errors
/// When the item lacks it.
#[track_caller]
pub fn get_digest(item: &Item, name: &str) -> Result<[u8; 32]> {
    item.get(name)
        .and_then(|value| value.as_b().ok())
        .and_then(|blob| blob.as_ref().try_into().ok())
        .ok_or_else(|| Error::internal(format!("the item has no digest attribute {name}")))
}

/// Reads an id.
///
/// # Errors
/// When the item lacks it.
#[track_caller]
pub fn get_id(item: &Item, name: &str) -> Result<Uuid> {
    Uuid::parse_str(get_text(item, name)?).map_err(Error::internal)
}
