//! The `http.request_completed` events: made after the reply, sent in batches, never waited for.
//!
//! They are telemetry: they go to the events queue directly, not through the outbox, and what a dying
//! sandbox has not sent yet is lost. The rules for a slow or dead queue are those of a [`Reporter`]'s receiver.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::background;
use crate::error::Result;
use crate::events::Event;
use crate::outbound::{Reporter, Rest};
use crate::store::queue::{Outgoing, Queue};

/// How long an unfrozen process gathers records before it sends them.
const LINGER: Duration = Duration::from_secs(1);
/// Records that wait at most; beyond that new ones are dropped, each with a line in the log.
const CAPACITY: usize = 4096;

/// Takes a request's record and sends it when the client no longer waits.
#[derive(Clone)]
pub struct Recorder {
    sender: Option<mpsc::Sender<Outgoing>>,
    receiver: Option<Arc<Receiver>>,
}

struct Receiver {
    queue: Queue,
    rest: Rest,
}

impl Recorder {
    /// Starts the sender for the queue named by `EVENTS_QUEUE_URL`; without that variable nothing is recorded.
    ///
    /// # Errors
    /// When the AWS configuration is incomplete.
    pub fn start() -> Result<Self> {
        let Some(queue) = Queue::optional("EVENTS_QUEUE_URL")? else {
            return Ok(Self { sender: None, receiver: None });
        };
        let receiver = Receiver { queue, rest: Rest::default() };
        if background::sandbox_freezes() {
            return Ok(Self { sender: None, receiver: Some(Arc::new(receiver)) });
        }
        let (sender, records) = mpsc::channel(CAPACITY);
        background::spawn_untracked(send_batches(receiver, records));
        Ok(Self { sender: Some(sender), receiver: None })
    }

    /// Hands the record over without waiting.
    pub fn record(&self, event: &Event) {
        let message = event.to_outgoing();
        if let Some(sender) = &self.sender {
            if sender.try_send(message).is_err() {
                tracing::warn!("a telemetry record was dropped because too many wait");
            }
        } else if let Some(receiver) = self.receiver.clone() {
            background::spawn(async move { receiver.send(&[message]).await });
        }
    }
}

async fn send_batches(receiver: Receiver, mut records: mpsc::Receiver<Outgoing>) {
    let mut batch = Vec::new();
    while let Some(first) = records.recv().await {
        batch.push(first);
        let deadline = tokio::time::sleep(LINGER);
        tokio::pin!(deadline);
        while batch.len() < 100 {
            tokio::select! {
                more = records.recv() => match more {
                    Some(message) => batch.push(message),
                    None => break,
                },
                () = &mut deadline => break,
            }
        }
        receiver.send(&batch).await;
        batch.clear();
    }
}

impl Receiver {
    async fn send(&self, batch: &[Outgoing]) {
        if self.rest.is_on() {
            return;
        }
        if let Err(error) = self.queue.send_within(Reporter::TIMEOUT, batch).await {
            self.rest.begin();
            tracing::warn!(error.cause = %error, records = batch.len(), "telemetry records were not sent");
        }
    }
}
