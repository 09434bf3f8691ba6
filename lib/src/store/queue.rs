//! SQS, sending side.

use futures_util::future::try_join_all;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::aws::SQS;
use crate::config;
use crate::error::Result;

/// The most that SQS takes in one call.
const BATCH: usize = 10;
/// Bytes of a call, with room for what surrounds the text; the limit is 256 KiB.
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
    url: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Batch<'a> {
    queue_url: &'a str,
    entries: Vec<Entry<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    /// The position in the batch.
    id: String,
    message_body: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_attributes: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Sent {
    #[serde(default)]
    successful: Vec<Taken>,
    #[serde(default)]
    failed: Vec<Refused>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Taken {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Refused {
    id: String,
    code: String,
}

impl Queue {
    /// The queue whose URL is in the environment variable.
    ///
    /// # Errors
    /// When the variable is missing, or the AWS configuration is incomplete.
    pub fn from_env(variable: &str) -> Result<Self> {
        crate::aws::check()?;
        Ok(Self { url: config::required(variable)? })
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
        let reply = self.send_batch(chunk.iter().map(|message| (message.body.as_str(), None))).await?;
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

    async fn send_batch<'a>(&self, messages: impl Iterator<Item = (&'a str, Option<Value>)>) -> Result<Sent> {
        let entries = messages
            .enumerate()
            .map(|(index, (message_body, message_attributes))| Entry {
                id: index.to_string(),
                message_body,
                message_attributes,
            })
            .collect();
        Ok(SQS.call("SendMessageBatch", &Batch { queue_url: &self.url, entries }).await?)
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
        let entry = |letter: &DeadLetter<'a>| {
            let reason = json!({ "reason": { "DataType": "String", "StringValue": letter.reason } });
            (letter.body, Some(reason))
        };
        let reply = self.send_batch(chunk.iter().map(entry)).await?;
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
        let input = json!({ "QueueUrl": self.url, "AttributeNames": ["ApproximateNumberOfMessages"] });
        SQS.call::<IgnoredAny>("GetQueueAttributes", &input).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

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
