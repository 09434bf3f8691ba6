//! The side that writes a stream: gathers its events, and writes them down beside the work of its function.

use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeValue, DeleteRequest, PutRequest, ReturnValue, WriteRequest};
use bytes::Bytes;
use time::OffsetDateTime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use crate::background;
use crate::chat::live::{KEPT, LONGEST, State, Streams, Wish, arrivals_are_known, name_key};
use crate::chat::stream::StreamEvent;
use crate::clock;
use crate::error::{Error, Result};
use crate::store::dynamo::{epoch_seconds, number, text};

/// Events are gathered so long before they are written.
const LINGER: Duration = Duration::from_millis(250);
/// The first ones are written sooner, since they make the stream known.
const FIRST_LINGER: Duration = Duration::from_millis(50);
/// Tries to write down how a stream ended.
const LAST_TRIES: u32 = 3;
/// A stream without events is made known after so long.
const SILENT_LINGER: Duration = Duration::from_millis(300);
/// How often the state is looked at while nothing happens.
const LOOK: Duration = Duration::from_secs(1);
/// It is known for so long that there was a stream, and whose.
const REMEMBERED: time::Duration = time::Duration::DAY;

/// What a stream is about.
#[derive(Debug, Clone)]
pub(crate) struct StreamIdentity {
    /// The stream.
    pub(crate) stream_id: Uuid,
    /// Whose it is.
    pub(crate) user_id: Uuid,
    /// The conversation that it is in, or that it makes.
    pub(crate) conversation_id: Uuid,
    /// The names under which its conversation is looked for.
    pub(crate) names: Vec<String>,
    /// What the client calls the question, if anything, and the answer's id.
    pub(crate) messages: Vec<String>,
    /// When the question came.
    pub(crate) asked_at: OffsetDateTime,
}

impl Streams {
    /// Begins to write a stream down, beside the work of its function. A stream that ends without an event is none.
    #[must_use]
    pub(crate) fn record(&self, identity: StreamIdentity) -> StreamWriter {
        let (events, receiver) = unbounded_channel();
        let (wishes, wish) = watch::channel(Wish::default());
        let streams = self.clone();
        background::spawn(async move { streams.write_down(identity, receiver, wishes).await });
        StreamWriter { events, wish }
    }

    async fn write_down(
        &self,
        identity: StreamIdentity,
        mut receiver: UnboundedReceiver<Recorded>,
        wishes: watch::Sender<Wish>,
    ) {
        let mut unwritten = Unwritten::default();
        let (mut begun, mut over, mut is_empty, mut last_tries) = (false, false, true, LAST_TRIES);
        while !over || (unwritten.is_any() && last_tries > 0) {
            if over {
                last_tries -= 1;
                sleep(LOOK).await;
            } else {
                let wait = if begun { LOOK } else { SILENT_LINGER };
                match timeout(wait, receiver.recv()).await {
                    Ok(Some(first)) => {
                        is_empty = false;
                        let linger = if begun { LINGER } else { FIRST_LINGER };
                        over = gather(first, &mut unwritten.batch, &mut receiver, linger).await;
                    }
                    Ok(None) if is_empty => {
                        if begun {
                            self.forget(&identity).await;
                        }
                        return;
                    }
                    Ok(None) => over = true,
                    Err(_) => {}
                }
            }
            let written = if begun {
                self.append(identity.stream_id, &mut unwritten).await
            } else {
                self.open(&identity, &unwritten.batch).await
            };
            match written {
                Ok(wish) => {
                    begun = true;
                    unwritten = Unwritten::default();
                    let _ = wishes.send(wish);
                }
                // The batch is kept: the next round writes it again.
                Err(error) => tracing::warn!(error.cause = %error, "events of a stream were not written down"),
            }
        }
    }

    /// Writes the state, the names that lead to it, and the first events: all there is of a short stream.
    async fn open(&self, identity: &StreamIdentity, batch: &[Recorded]) -> Result<Wish> {
        let now = clock::now();
        let progress = Progress::of(batch);
        let state = PutRequest::builder()
            .item("stream_id", text(identity.stream_id))
            .item("seq", number(0))
            .item("user_id", text(identity.user_id))
            .item("conversation_id", text(identity.conversation_id))
            .item("messages", AttributeValue::Ss(identity.messages.clone()))
            .item("asked_at", number(clock::millis(identity.asked_at)))
            .item("beat_at", number(clock::millis(now)))
            .item("read_at", number(0))
            .item("last_id", number(progress.last))
            .item("is_done", AttributeValue::Bool(progress.done))
            .item("is_delivered", AttributeValue::Bool(progress.delivered))
            .item("is_unread", AttributeValue::Bool(progress.unread))
            .item("expires", epoch_seconds(now + REMEMBERED));
        let names = identity.names.iter().map(|name| {
            PutRequest::builder()
                .item("stream_id", text(name_key(identity.user_id, name)))
                .item("seq", number(identity.stream_id.as_u128()))
                .item("leads_to", text(identity.stream_id))
                .item("expires", epoch_seconds(now + LONGEST))
        });
        let mut puts: Vec<_> = std::iter::once(state).chain(names).collect();
        if let Some(first) = batch.first() {
            puts.push(
                PutRequest::builder()
                    .item("stream_id", text(identity.stream_id))
                    .item("seq", number(first.id))
                    .item("events", text(events_json(batch)?))
                    .item("expires", epoch_seconds(now + LONGEST + KEPT)),
            );
        }
        let writes = puts
            .into_iter()
            .map(|put| Ok(WriteRequest::builder().put_request(put.build().map_err(Error::internal)?).build()))
            .collect::<Result<Vec<_>>>()?;
        self.write(writes).await?;
        Ok(Wish::default())
    }

    /// Deletes the state of a stream that came to nothing, and what leads to it.
    async fn forget(&self, identity: &StreamIdentity) {
        let names = identity.names.iter().map(|name| (name_key(identity.user_id, name), identity.stream_id.as_u128()));
        let items = names.chain([(identity.stream_id.to_string(), 0)]);
        let deletes = items.map(|(key, seq)| {
            let delete = DeleteRequest::builder().key("stream_id", text(key)).key("seq", number(seq)).build();
            Ok(WriteRequest::builder().delete_request(delete.map_err(Error::internal)?).build())
        });
        let deleted = async { self.write(deletes.collect::<Result<_>>()?).await };
        if let Err(error) = deleted.await {
            tracing::warn!(error.cause = %error, "a stream that came to nothing was not deleted");
        }
    }

    async fn write(&self, writes: Vec<WriteRequest>) -> Result<()> {
        let reply = self.table.client().batch_write_item().request_items(&self.table.name, writes).send().await?;
        match reply.unprocessed_items() {
            Some(left) if !left.is_empty() => Err(Error::internal("the table did not take all of a stream's items")),
            _ => Ok(()),
        }
    }

    /// Writes a batch, moves the state on, and reads what others have written into it.
    async fn append(&self, stream_id: Uuid, unwritten: &mut Unwritten) -> Result<Wish> {
        let now = clock::now();
        if let Some(first) = unwritten.batch.first() {
            self.table
                .client()
                .put_item()
                .table_name(&self.table.name)
                .item("stream_id", text(stream_id))
                .item("seq", number(first.id))
                .item("events", text(events_json(&unwritten.batch)?))
                .item("expires", epoch_seconds(now + LONGEST + KEPT))
                .send()
                .await?;
            // Readers may have it from now on: it is not written again with more in it.
            unwritten.progress = Progress::of(&unwritten.batch);
            unwritten.batch.clear();
        }
        let progress = &unwritten.progress;
        let mut update = self
            .change_state(stream_id)
            .expression_attribute_values(":beat", number(clock::millis(now)))
            .expression_attribute_values(":expires", epoch_seconds(now + REMEMBERED))
            .return_values(ReturnValue::AllNew);
        let mut change = "SET beat_at = :beat, expires = :expires".to_owned();
        if progress.last > 0 {
            change.push_str(", last_id = :last, is_done = :done, is_delivered = :delivered, is_unread = :unread");
            update = update
                .expression_attribute_values(":unread", AttributeValue::Bool(progress.unread))
                .expression_attribute_values(":last", number(progress.last))
                .expression_attribute_values(":done", AttributeValue::Bool(progress.done))
                .expression_attribute_values(":delivered", AttributeValue::Bool(progress.delivered));
        }
        let reply = update.update_expression(change).send().await?;
        Ok(State::of(&reply.attributes.unwrap_or_default())?.wish)
    }
}

/// An event with its id, and whether its reader was there for it.
struct Recorded {
    id: u64,
    event: StreamEvent,
    /// Whether the first reader was gone by then.
    unread: bool,
}

/// How far a batch brings its stream.
#[derive(Default)]
struct Progress {
    /// The last event; 0 where there is none.
    last: u64,
    done: bool,
    delivered: bool,
    /// Whether the first reader was gone by then.
    unread: bool,
}

/// What is to be written down next.
#[derive(Default)]
struct Unwritten {
    batch: Vec<Recorded>,
    /// How far batches have come that were written, while the state does not tell of them.
    progress: Progress,
}

impl Unwritten {
    fn is_any(&self) -> bool {
        !self.batch.is_empty() || self.progress.last > 0
    }
}

impl Progress {
    fn of(batch: &[Recorded]) -> Self {
        let last = batch.last();
        let done = last.is_some_and(|recorded| recorded.event.is_last());
        let unread = last.is_some_and(|recorded| recorded.unread);
        let delivered = done && !unread && arrivals_are_known();
        Self { last: last.map_or(0, |recorded| recorded.id), done, delivered, unread }
    }
}

fn events_json(batch: &[Recorded]) -> Result<String> {
    let events: Vec<&StreamEvent> = batch.iter().map(|recorded| &recorded.event).collect();
    Ok(serde_json::to_string(&events)?)
}

/// Takes events to be written down, and tells what others want.
pub(crate) struct StreamWriter {
    events: UnboundedSender<Recorded>,
    wish: watch::Receiver<Wish>,
}

impl StreamWriter {
    /// Has an event written down that went out to its first reader, if there was one.
    pub(crate) fn event(&self, id: u64, event: StreamEvent, sink: Option<&UnboundedSender<Bytes>>) {
        let unread = sink.is_none_or(UnboundedSender::is_closed);
        let _ = self.events.send(Recorded { id, event, unread });
    }

    /// What others want, as far as it is known.
    #[must_use]
    pub(crate) fn wish(&self) -> Wish {
        *self.wish.borrow()
    }

    /// Waits until somebody wants the answer to end.
    pub(crate) async fn stop_wished(&mut self) {
        while !self.wish().stop {
            self.wish_changed().await;
        }
    }

    /// Waits until others want something else.
    pub(crate) async fn wish_changed(&mut self) {
        if self.wish.changed().await.is_err() {
            // Nobody writes any more, so nobody can ask.
            std::future::pending::<()>().await;
        }
    }
}

/// Gathers what comes within a moment; tells whether the last event was among it.
async fn gather(
    first: Recorded,
    batch: &mut Vec<Recorded>,
    receiver: &mut UnboundedReceiver<Recorded>,
    linger: Duration,
) -> bool {
    let until = Instant::now() + linger;
    let mut next = Some(first);
    while let Some(recorded) = next {
        let last = recorded.event.is_last();
        batch.push(recorded);
        if last {
            return true;
        }
        next = timeout_at(until, receiver.recv()).await.unwrap_or(None);
    }
    false
}
