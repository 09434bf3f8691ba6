//! The `http.request_completed` events: made after the reply, sent in batches, never waited for.
//!
//! They are telemetry: they go to the events queue directly, not through the outbox, and what a dying
//! sandbox has not sent yet is lost.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::background;
use crate::error::Result;
use crate::events::Event;
use crate::store::queue::{Outgoing, Queue};

/// How long an unfrozen process gathers records before it sends them.
const LINGER: Duration = Duration::from_secs(1);
/// Records that wait at most; beyond that new ones are dropped, each with a line in the log.
const CAPACITY: usize = 4096;

/// Takes a request's record and sends it when the client no longer waits.
#[derive(Clone)]
pub struct Recorder {
    sender: Option<mpsc::Sender<Outgoing>>,
    queue: Option<Queue>,
}

impl Recorder {
    /// Starts the sender for the queue named by `EVENTS_QUEUE_URL`; without that variable nothing is recorded.
    ///
    /// # Errors
    /// When the AWS configuration is incomplete.
    pub fn start() -> Result<Self> {
        let Some(queue) = Queue::optional("EVENTS_QUEUE_URL")? else {
            return Ok(Self { sender: None, queue: None });
        };
        if background::sandbox_freezes() {
            return Ok(Self { sender: None, queue: Some(queue) });
        }
        let (sender, receiver) = mpsc::channel(CAPACITY);
        background::spawn_untracked(send_batches(queue, receiver));
        Ok(Self { sender: Some(sender), queue: None })
    }

    /// Hands the record over without waiting.
    pub fn record(&self, event: &Event) {
        let message = event.to_outgoing();
        if let Some(sender) = &self.sender {
            if sender.try_send(message).is_err() {
                tracing::warn!("a telemetry record was dropped because too many wait");
            }
        } else if let Some(queue) = self.queue.clone() {
            background::spawn(async move { send(&queue, &[message]).await });
        }
    }
}

async fn send_batches(queue: Queue, mut receiver: mpsc::Receiver<Outgoing>) {
    let mut batch = Vec::new();
    while let Some(first) = receiver.recv().await {
        batch.push(first);
        let deadline = tokio::time::sleep(LINGER);
        tokio::pin!(deadline);
        while batch.len() < 100 {
            tokio::select! {
                more = receiver.recv() => match more {
                    Some(message) => batch.push(message),
                    None => break,
                },
                () = &mut deadline => break,
            }
        }
        send(&queue, &batch).await;
        batch.clear();
    }
}

async fn send(queue: &Queue, batch: &[Outgoing]) {
    if let Err(error) = queue.send(batch).await {
        tracing::warn!(error.cause = %error, records = batch.len(), "telemetry records were not sent");
    }
}
