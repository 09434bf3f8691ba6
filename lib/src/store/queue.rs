//! SQS, sending side.

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use futures_util::future::try_join_all;
use uuid::Uuid;

use crate::config;
use crate::error::{Error, Result};

/// The most that SQS takes in one call.
const BATCH: usize = 10;

/// A message on its way to a queue.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The id of the outbox row, or of the event.
    pub id: Uuid,
    /// JSON text.
    pub body: String,
}

/// A queue that messages are sent to.
#[derive(Clone)]
pub struct Queue {
    client: Client,
    url: String,
}

impl Queue {
    /// The queue whose URL is in the environment variable.
    ///
    /// # Errors
    /// When the variable is missing.
    pub fn from_env(variable: &str) -> Result<Self> {
        Ok(Self { client: Client::new(crate::aws::sdk_config()?), url: config::required(variable)? })
    }

    /// The same, or `None` without the variable.
    ///
    /// # Errors
    /// When the AWS configuration is incomplete.
    pub fn optional(variable: &str) -> Result<Option<Self>> {
        config::optional(variable).map(|_| Self::from_env(variable)).transpose()
    }

    /// Sends all messages, ten a call; gives the ids of those that SQS took.
    ///
    /// # Errors
    /// When no call went through.
    pub async fn send(&self, messages: &[Outgoing]) -> Result<Vec<Uuid>> {
        let sent = try_join_all(messages.chunks(BATCH).map(|chunk| self.send_chunk(chunk))).await?;
        Ok(sent.into_iter().flatten().collect())
    }

    async fn send_chunk(&self, chunk: &[Outgoing]) -> Result<Vec<Uuid>> {
        let entries = chunk
            .iter()
            .enumerate()
            .map(|(index, message)| {
                SendMessageBatchRequestEntry::builder().id(index.to_string()).message_body(&message.body).build()
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::internal)?;
        let reply = self.client.send_message_batch().queue_url(&self.url).set_entries(Some(entries)).send().await?;
        if let Some(failure) = reply.failed.first() {
            tracing::warn!(
                error.code = failure.code,
                messages.failed = reply.failed.len(),
                "some messages were refused by the queue"
            );
        }
        Ok(reply
            .successful
            .iter()
            .filter_map(|entry| chunk.get(entry.id.parse::<usize>().ok()?).map(|message| message.id))
            .collect())
    }

    /// Asks for one attribute, for health checks.
    ///
    /// # Errors
    /// When the queue does not answer.
    pub async fn ping(&self) -> Result<()> {
        use aws_sdk_sqs::types::QueueAttributeName;
        self.client
            .get_queue_attributes()
            .queue_url(&self.url)
            .attribute_names(QueueAttributeName::ApproximateNumberOfMessages)
            .send()
            .await?;
        Ok(())
    }
}
