//! SQS, sending side.

use std::sync::OnceLock;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchOutput;
use aws_sdk_sqs::types::{MessageAttributeValue, SendMessageBatchRequestEntry};
use aws_types::SdkConfig;
use futures_util::future::join_all;
use tokio::time::timeout;
use uuid::Uuid;

use crate::config;
use crate::error::{Error, Result};

/// The most that SQS takes in one call.
const BATCH: usize = 10;
/// Bytes of a call, well below the 1 MiB that SQS takes.
const BATCH_BYTES: usize = 200 * 1024;

/// A message on its way to a queue.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The id of the outbox row, or of the event.
    pub id: Uuid,
    /// JSON text.
    pub body: String,
}

/// A message that no consumer can handle.
#[derive(Debug, Clone)]
pub struct DeadLetter<'a> {
    /// SQS's id of the message.
    pub message_id: &'a str,
    /// The text, as it came.
    pub body: &'a str,
    /// Why; it becomes the attribute `reason`.
    pub reason: String,
}

/// A queue that messages are sent to.
#[derive(Clone)]
pub struct Queue {
    config: &'static SdkConfig,
    url: String,
}

impl Queue {
    /// The queue whose URL is in the environment variable.
    ///
    /// # Errors
    /// When the variable is missing.
    pub fn from_env(variable: &str) -> Result<Self> {
        Ok(Self { config: crate::aws::sdk_config()?, url: config::required(variable)? })
    }

    /// The same, or `None` without the variable.
    ///
    /// # Errors
    /// When the AWS configuration is incomplete.
    pub fn optional(variable: &str) -> Result<Option<Self>> {
        config::optional(variable).map(|_| Self::from_env(variable)).transpose()
    }

    /// One client for all queues, built when the first message is sent: by then the reply is on its way.
    fn client(&self) -> &'static Client {
        static CLIENT: OnceLock<Client> = OnceLock::new();
        CLIENT.get_or_init(|| Client::new(self.config))
    }

    /// Sends all messages, ten a call; gives the ids of those that SQS took.
    ///
    /// # Errors
    /// When no call went through.
    pub async fn send(&self, messages: &[Outgoing]) -> Result<Vec<Uuid>> {
        all_but_failed(join_all(messages.chunks(BATCH).map(|chunk| self.send_chunk(chunk))).await)
    }

    /// The same for what may be given up: a queue that does not answer holds nobody for longer than this.
    ///
    /// # Errors
    /// When no call went through, or not in time.
    pub(crate) async fn send_within(&self, time: Duration, messages: &[Outgoing]) -> Result<Vec<Uuid>> {
        let sent = timeout(time, self.send(messages)).await;
        sent.unwrap_or_else(|_| Err(Error::unavailable("the queue did not answer in time")))
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
        let reply = self.send_batch(entries).await?;
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

    async fn send_batch(&self, entries: Vec<SendMessageBatchRequestEntry>) -> Result<SendMessageBatchOutput> {
        Ok(self.client().send_message_batch().queue_url(&self.url).set_entries(Some(entries)).send().await?)
    }

    /// Sends messages to this dead-letter queue; gives the ids of those that it did not take.
    pub async fn send_dead_letters<'a>(&self, letters: &[DeadLetter<'a>]) -> Vec<&'a str> {
        let mut unsent = Vec::new();
        for chunk in by_size(letters) {
            match self.send_dead_chunk(chunk).await {
                Ok(refused) => unsent.extend(refused),
                Err(error) => {
                    tracing::error!(error.cause = %error, messages = chunk.len(), "dead letters were not sent");
                    unsent.extend(chunk.iter().map(|letter| letter.message_id));
                }
            }
        }
        unsent
    }

    async fn send_dead_chunk<'a>(&self, chunk: &[DeadLetter<'a>]) -> Result<Vec<&'a str>> {
        let entries = chunk
            .iter()
            .enumerate()
            .map(|(index, letter)| {
                let reason =
                    MessageAttributeValue::builder().data_type("String").string_value(&letter.reason).build()?;
                SendMessageBatchRequestEntry::builder()
                    .id(index.to_string())
                    .message_body(letter.body)
                    .message_attributes("reason", reason)
                    .build()
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::internal)?;
        let reply = self.send_batch(entries).await?;
        for failure in &reply.failed {
            tracing::error!(error.code = failure.code, "a dead letter was refused by its queue");
        }
        let refused = reply.failed.iter().filter_map(|failure| chunk.get(failure.id.parse::<usize>().ok()?));
        Ok(refused.map(|letter| letter.message_id).collect())
    }

    /// Asks for one attribute, for health checks.
    ///
    /// # Errors
    /// When the queue does not answer.
    pub async fn ping(&self) -> Result<()> {
        use aws_sdk_sqs::types::QueueAttributeName;
        self.client()
            .get_queue_attributes()
            .queue_url(&self.url)
            .attribute_names(QueueAttributeName::ApproximateNumberOfMessages)
            .send()
            .await?;
        Ok(())
    }
}

/// Cuts into calls that SQS takes: ten messages, and not many bytes unless a single message has them.
fn by_size<'l, 'a>(letters: &'l [DeadLetter<'a>]) -> Vec<&'l [DeadLetter<'a>]> {
    let (mut chunks, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (index, letter) in letters.iter().enumerate() {
        let size = letter.body.len() + letter.reason.len();
        if index > from && (index - from == BATCH || bytes + size > BATCH_BYTES) {
            chunks.push(&letters[from..index]);
            (from, bytes) = (index, 0);
        }
        bytes += size;
    }
    if from < letters.len() {
        chunks.push(&letters[from..]);
    }
    chunks
}

/// The ids of the calls that went through. What a failed one had is offered again; what the others had must not be.
fn all_but_failed(calls: Vec<Result<Vec<Uuid>>>) -> Result<Vec<Uuid>> {
    let (went_through, failed): (Vec<_>, Vec<_>) = calls.into_iter().partition(Result::is_ok);
    if let Some(Err(error)) = failed.into_iter().next() {
        if went_through.is_empty() {
            return Err(error);
        }
        tracing::warn!(error.cause = %error, "some calls of a queue failed");
    }
    Ok(went_through.into_iter().flatten().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_takes_nothing_from_the_others() {
        let (failed, ids) = (|| Err(Error::unavailable("no answer")), [Uuid::from_u128(1), Uuid::from_u128(2)]);
        let calls = vec![Ok(vec![ids[0]]), failed(), Ok(vec![]), Ok(vec![ids[1]])];
        assert_eq!(all_but_failed(calls).unwrap(), ids);
        assert!(all_but_failed(vec![failed(), failed()]).is_err());
        assert!(all_but_failed(vec![]).unwrap().is_empty());
    }

    #[test]
    fn calls_are_bounded_by_number_and_size() {
        let letter = |size: usize| DeadLetter { message_id: "m", body: &"xxxxxxxxxx"[..size], reason: String::new() };
        let small: Vec<_> = (0..23).map(|_| letter(1)).collect();
        assert_eq!(by_size(&small).iter().map(|chunk| chunk.len()).collect::<Vec<_>>(), [10, 10, 3]);
        let long = "x".repeat(BATCH_BYTES);
        let large = DeadLetter { message_id: "m", body: &long, reason: "why".to_owned() };
        let mixed = [letter(1), large, letter(1)];
        assert_eq!(by_size(&mixed).iter().map(|chunk| chunk.len()).collect::<Vec<_>>(), [1, 1, 1]);
        assert!(by_size(&[]).is_empty());
    }
}
