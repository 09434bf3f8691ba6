//! Streams that outlive their reader: the function that generates writes events down in batches, other
//! functions read them from there, ask for an end, or say that somebody still reads.
//!
//! Of the table's items, the one with `seq` 0 is the stream's state, written by all; the others are batches of
//! events under the id of their first, written once. Under a conversation's name stand its streams, each with its id
//! for `seq`, which is in the order of time.

use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeValue, DeleteRequest, PutRequest, ReturnValue, WriteRequest};
use bytes::Bytes;
use futures_util::future::try_join_all;
use time::OffsetDateTime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_stream::wrappers::UnboundedReceiverStream;
use uuid::Uuid;

use crate::background;
use crate::chat::ai_sdk::ChatId;
use crate::chat::stream::{PING, PING_AFTER, Protocol, StreamError, StreamEvent};
use crate::clock;
use crate::error::{Code, Error, Result};
use crate::http::response::Chunks;
use crate::store::dynamo::{Item, Table, epoch_seconds, get_id, get_number, get_text, number, text, unless_refused};

/// Events are gathered so long before they are written.
const LINGER: Duration = Duration::from_millis(250);
/// The first ones are written sooner, since they make the stream known.
const FIRST_LINGER: Duration = Duration::from_millis(50);
/// Tries to write down how a stream ended.
const LAST_TRIES: u32 = 3;
/// A stream without events is made known after so long.
const SILENT_LINGER: Duration = Duration::from_millis(300);
/// One that has begun is written down by then, silent or not: what an edit waits for.
const KNOWN_AFTER: Duration = Duration::from_millis(400);
/// Requests so close together may overtake each other on their way.
const OVERTAKING: Duration = Duration::from_millis(100);
/// One that has begun is known by then, whatever delays its function.
const LONGEST_BEGINNING: Duration = Duration::from_secs(1);
/// How often the state is looked at while nothing happens.
const LOOK: Duration = Duration::from_secs(1);
/// How often a reader looks for more.
const POLL: Duration = Duration::from_millis(150);
/// How often a reader says that it is there.
const PRESENCE: Duration = Duration::from_secs(5);
/// How long to wait for an answer that was asked to end.
const LONGEST_ENDING: Duration = Duration::from_secs(5);
/// A reader's reply ends once this many newer readers have joined: each holds a sandbox, even after its client left
/// unnoticed.
const MOST_READERS: i64 = 5;
/// So many streams of a conversation are looked at, from the newest on: several may run at once.
const MOST_STREAMS: i32 = 5;
/// A running stream whose function has not written for so long is dead.
const DEAD_AFTER: time::Duration = time::Duration::seconds(30);
/// A finished stream can be replayed for so long.
const KEPT: time::Duration = time::Duration::minutes(10);
/// It is known for so long that there was a stream, and whose.
const REMEMBERED: time::Duration = time::Duration::DAY;
/// No stream runs longer.
const LONGEST: time::Duration = time::Duration::minutes(20);
/// The state of a stream this young may not have been written yet.
const YOUNG: time::Duration = time::Duration::seconds(2);

/// What a stream is about.
#[derive(Debug, Clone)]
pub struct StreamIdentity {
    /// The stream.
    pub stream_id: Uuid,
    /// Whose it is.
    pub user_id: Uuid,
    /// The conversation that it is in, or that it makes.
    pub conversation_id: Uuid,
    /// The names under which its conversation is looked for.
    pub names: Vec<String>,
    /// What the client calls the question, if anything, and the answer's id.
    pub messages: Vec<String>,
    /// When the question came.
    pub asked_at: OffsetDateTime,
}

/// A stream that may go on.
#[derive(Debug)]
pub struct UnderWay {
    /// The stream.
    pub stream_id: Uuid,
    /// The conversation that it is in, or that it makes, if that is known.
    pub conversation_id: Option<Uuid>,
    /// What the client calls the question, if anything, and the answer's id.
    pub messages: Vec<String>,
}

/// What others want of a stream.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish {
    /// That it ends.
    pub stop: bool,
    /// When somebody else last read it, in milliseconds.
    pub read_at: i64,
}

/// A stream's state.
#[derive(Debug, Clone)]
struct State {
    user_id: Uuid,
    /// Not there before the release that writes it.
    conversation_id: Option<Uuid>,
    messages: Vec<String>,
    asked_at: i64,
    wish: Wish,
    beat: i64,
    last: u64,
    done: bool,
    delivered: bool,
    is_unread: bool,
    /// How many have come to read it so far.
    readers: i64,
}

impl State {
    fn of(item: &Item) -> Result<Self> {
        let flag = |name: &str| item.get(name).and_then(|value| value.as_bool().ok()).copied().unwrap_or(false);
        Ok(Self {
            user_id: get_id(item, "user_id")?,
            conversation_id: get_id(item, "conversation_id").ok(),
            messages: item.get("messages").and_then(|names| names.as_ss().ok()).cloned().unwrap_or_default(),
            asked_at: get_number(item, "asked_at").unwrap_or(0),
            wish: Wish { stop: flag("stop_wished"), read_at: get_number(item, "read_at")? },
            beat: get_number(item, "beat_at")?,
            last: u64::try_from(get_number(item, "last_id")?).map_err(Error::internal)?,
            done: flag("is_done"),
            delivered: flag("is_delivered"),
            is_unread: flag("is_unread"),
            // Not there before the first.
            readers: get_number(item, "readers").unwrap_or(0),
        })
    }

    /// Whether it has come to its end, or never will.
    fn has_ended(&self) -> bool {
        self.done || self.is_dead()
    }

    fn is_dead(&self) -> bool {
        !self.done && clock::now() - clock::from_millis(self.beat) > DEAD_AFTER
    }

    /// Whether nothing of it is left to be replayed.
    fn is_gone(&self) -> bool {
        let kept = if self.done { KEPT } else { LONGEST };
        clock::now() - clock::from_millis(self.beat) > kept
    }
}

/// The streams table.
#[derive(Clone)]
pub struct Streams {
    table: Table,
}

impl Streams {
    /// The table named by `STREAMS_TABLE`.
    ///
    /// # Errors
    /// When the variable is missing.
    pub fn from_env() -> Result<Self> {
        Ok(Self { table: Table::from_env("STREAMS_TABLE")? })
    }

    /// The same, as the `init` of a function.
    ///
    /// # Errors
    /// When the variable is missing.
    pub async fn init() -> Result<Self> {
        Self::from_env()
    }

    /// Begins to write a stream down, beside the work of its function. A stream that ends without an event is none.
    #[must_use]
    pub fn record(&self, identity: StreamIdentity) -> StreamWriter {
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
            .table
            .client()
            .update_item()
            .table_name(&self.table.name)
            .key("stream_id", text(stream_id))
            .key("seq", number(0))
            .condition_expression("attribute_exists(stream_id)")
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

    /// Asks a stream to end, by its id or a name of its conversation, and tells which; one that has ended takes no
    /// notice. Waits a moment for one that has only just begun.
    ///
    /// # Errors
    /// 404 when there is none, or it is another's.
    pub async fn stop(&self, user_id: Uuid, name: &str, at: OffsetDateTime) -> Result<Uuid> {
        // What is asked for later is not meant.
        let meant = clock::millis(at + OVERTAKING);
        let latest = Instant::now() + LONGEST_ENDING + LONGEST_BEGINNING;
        let (mut until, mut ended) = (Instant::now() + LONGEST_BEGINNING, None);
        while Instant::now() < until {
            let named = self.latest(user_id, name).await?;
            if named.is_empty()
                && let Ok(stream_id) = Uuid::try_parse(name)
                && let Some(item) = self.item(&stream_id.to_string()).await?
            {
                if State::of(&item)?.user_id != user_id {
                    break;
                }
                self.wish_end(stream_id).await?;
                return Ok(stream_id);
            }
            let mut meant = named.iter().filter(|(_, state)| state.asked_at <= meant);
            let newest = meant.clone().next();
            // The next one of the conversation may be about to begin: it waits for the end of one that was stopped.
            match meant.find(|(_, state)| !state.has_ended()) {
                Some((stream_id, state)) if !state.wish.stop => {
                    self.wish_end(*stream_id).await?;
                    return Ok(*stream_id);
                }
                Some((stream_id, _)) => {
                    ended = Some(*stream_id);
                    until = latest.min(Instant::now() + LONGEST_BEGINNING);
                }
                None => ended = newest.map(|(stream_id, _)| *stream_id),
            }
            sleep(POLL).await;
        }
        ended.ok_or_else(|| Error::not_found("stream"))
    }

    /// The same as [`Self::state`] for a stream that need not be there.
    async fn state_if_any(&self, user_id: Uuid, stream_id: Uuid) -> Result<Option<State>> {
        match self.state(user_id, stream_id).await {
            Err(error) if error.code() == Code::NotFound => Ok(None),
            state => state.map(Some),
        }
    }

    /// The state of a user's stream; waits a moment for one that has only just begun.
    async fn state(&self, user_id: Uuid, stream_id: Uuid) -> Result<State> {
        loop {
            let item = self.item(&stream_id.to_string()).await?;
            if let Some(state) = item.as_ref().map(State::of).transpose()? {
                return if state.user_id == user_id { Ok(state) } else { Err(Error::not_found("stream")) };
            }
            if !is_young(stream_id) {
                return Err(Error::not_found("stream"));
            }
            sleep(POLL).await;
        }
    }

    async fn item(&self, key: &str) -> Result<Option<Item>> {
        let reply = self
            .table
            .client()
            .get_item()
            .table_name(&self.table.name)
            .key("stream_id", text(key))
            .key("seq", number(0))
            .consistent_read(true)
            .send()
            .await?;
        Ok(reply.item.filter(is_kept))
    }

    /// Changes the state of a stream, and gives what was changed: nothing of one that expired in between.
    async fn update<const N: usize>(
        &self,
        stream_id: Uuid,
        change: &str,
        values: [(&str, AttributeValue); N],
    ) -> Result<Item> {
        let values = values.map(|(name, value)| (name.to_owned(), value));
        let result = self
            .table
            .client()
            .update_item()
            .table_name(&self.table.name)
            .key("stream_id", text(stream_id))
            .key("seq", number(0))
            .update_expression(change)
            .condition_expression("attribute_exists(stream_id)")
            .set_expression_attribute_values(Some(values.into()))
            .return_values(ReturnValue::UpdatedNew)
            .send()
            .await;
        Ok(unless_refused(result)?.and_then(|reply| reply.attributes).unwrap_or_default())
    }

    /// The latest answers in a conversation that have not ended. One that began a moment ago may not have been written
    /// yet: it is waited for if the caller `must_know`.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn under_way(&self, user_id: Uuid, name: &str, must_know: bool) -> Result<Vec<UnderWay>> {
        let running = |streams: Vec<(Uuid, State)>| {
            let running = streams.into_iter().filter(|(_, state)| !state.has_ended());
            let running = running.map(|(stream_id, State { conversation_id, messages, .. })| UnderWay {
                stream_id,
                conversation_id,
                messages,
            });
            Some(running.collect::<Vec<_>>()).filter(|running| !running.is_empty())
        };
        let patience = if must_know { KNOWN_AFTER } else { Duration::ZERO };
        Ok(self.find(user_id, name, patience, running).await?.unwrap_or_default())
    }

    /// What is found among the latest streams of a conversation, before patience ends.
    async fn find<T>(
        &self,
        user_id: Uuid,
        name: &str,
        patience: Duration,
        find: impl Fn(Vec<(Uuid, State)>) -> Option<T>,
    ) -> Result<Option<T>> {
        let until = Instant::now() + patience;
        loop {
            let is_last = Instant::now() >= until;
            let found = find(self.latest(user_id, name).await?);
            if is_last || found.is_some() {
                return Ok(found);
            }
            sleep_until(until.min(Instant::now() + POLL)).await;
        }
    }

    /// Has an answer end, if somebody has stopped it, nobody reads it, or it is superseded by what the caller does, and
    /// waits a moment until it is stored.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn end_unwanted(&self, user_id: Uuid, stream_id: Uuid, superseded: bool) -> Result<()> {
        let until = Instant::now() + LONGEST_ENDING;
        while Instant::now() < until {
            let Some(state) = self.state_if_any(user_id, stream_id).await? else { return Ok(()) };
            let is_unread = state.is_unread && clock::now() - clock::from_millis(state.wish.read_at) > PRESENCE * 2;
            if state.has_ended() || !(superseded || state.wish.stop || is_unread) {
                return Ok(());
            }
            if !state.wish.stop {
                self.wish_end(stream_id).await?;
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Asks an answer to end, and does not wait for that.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn wish_end(&self, stream_id: Uuid) -> Result<()> {
        self.update(stream_id, "SET stop_wished = :yes", [(":yes", AttributeValue::Bool(true))]).await.map(drop)
    }

    /// The latest streams of a conversation, by any of its names, from the newest on.
    async fn latest(&self, user_id: Uuid, name: &str) -> Result<Vec<(Uuid, State)>> {
        // Longer names are not taken, and keys cannot be.
        if name.chars().count() > ChatId::LONGEST {
            return Ok(Vec::new());
        }
        let query = self.table.client().query().table_name(&self.table.name);
        let query = query.key_condition_expression("stream_id = :name");
        let query = query.expression_attribute_values(":name", text(name_key(user_id, name)));
        let reply = query.scan_index_forward(false).limit(MOST_STREAMS).consistent_read(true).send().await?;
        let named = reply.items().iter().filter(|item| is_kept(item));
        let streams = try_join_all(named.map(|item| self.named(user_id, item))).await?;
        Ok(streams.into_iter().flatten().collect())
    }

    /// What an item under a name leads to.
    async fn named(&self, user_id: Uuid, item: &Item) -> Result<Option<(Uuid, State)>> {
        let stream_id = Uuid::parse_str(get_text(item, "leads_to")?).map_err(Error::internal)?;
        Ok(self.state_if_any(user_id, stream_id).await?.map(|state| (stream_id, state)))
    }

    /// The events after an id, those to come included; `None` when none are left.
    ///
    /// # Errors
    /// 404 when there is no such stream, or it is another's.
    pub async fn resume(
        &self,
        user_id: Uuid,
        stream_id: Uuid,
        after: Option<u64>,
        protocol: Protocol,
        time_left: Duration,
    ) -> Result<Option<Chunks>> {
        let state = self.state(user_id, stream_id).await?;
        if state.is_gone() || state.has_ended() && after.is_some_and(|after| after >= state.last) {
            return Ok(None);
        }
        Ok(Some(self.follow(stream_id, after.unwrap_or(0), protocol, time_left)))
    }

    /// The same by a conversation's name, for the AI SDK, which remembers nothing: the newest that goes on, or else the
    /// last one, unless it is known to be delivered.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn resume_latest(&self, user_id: Uuid, name: &str, time_left: Duration) -> Result<Option<Chunks>> {
        let left = |streams: Vec<(Uuid, State)>| {
            let running = streams.iter().find(|(_, state)| !state.has_ended());
            let is_left = |state: &State| !state.delivered && !state.is_dead() && !state.is_gone();
            running.or(streams.first().filter(|(_, state)| is_left(state))).map(|(stream_id, _)| *stream_id)
        };
        // A page is not loaded anew as fast as a question is asked.
        let found = self.find(user_id, name, POLL, left).await?;
        Ok(found.map(|stream_id| self.follow(stream_id, 0, Protocol::AiSdk, time_left)))
    }

    fn follow(&self, stream_id: Uuid, after: u64, protocol: Protocol, time_left: Duration) -> Chunks {
        let (sink, receiver) = unbounded_channel();
        let reader = Follower { streams: self.clone(), stream_id, after, batch: 1, next: 1, protocol, sink };
        background::spawn(async move {
            let outcome = timeout(time_left.saturating_sub(Duration::from_secs(5)), reader.run()).await;
            if let Ok(Err(error)) = outcome {
                tracing::warn!(error.cause = %error, "a stream could not be read to its end");
            }
        });
        Box::pin(UnboundedReceiverStream::new(receiver))
    }

    /// The batches from an id on, each with the id of its first event.
    async fn batches(&self, stream_id: Uuid, from: u64) -> Result<Vec<(u64, Vec<StreamEvent>)>> {
        let mut batches = Vec::new();
        let mut pages = self
            .table
            .client()
            .query()
            .table_name(&self.table.name)
            .key_condition_expression("stream_id = :id AND seq >= :from")
            .expression_attribute_values(":id", text(stream_id))
            .expression_attribute_values(":from", number(from))
            .consistent_read(true)
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            for item in page?.items() {
                let first = u64::try_from(get_number(item, "seq")?).map_err(Error::internal)?;
                batches.push((first, serde_json::from_str(get_text(item, "events")?)?));
            }
        }
        Ok(batches)
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
pub struct StreamWriter {
    events: UnboundedSender<Recorded>,
    wish: watch::Receiver<Wish>,
}

impl StreamWriter {
    /// Has an event written down that went out to its first reader, if there was one.
    pub fn event(&self, id: u64, event: StreamEvent, sink: Option<&UnboundedSender<Bytes>>) {
        let unread = sink.is_none_or(UnboundedSender::is_closed);
        let _ = self.events.send(Recorded { id, event, unread });
    }

    /// What others want, as far as it is known.
    #[must_use]
    pub fn wish(&self) -> Wish {
        *self.wish.borrow()
    }

    /// Waits until somebody wants the answer to end.
    pub async fn stop_wished(&mut self) {
        while !self.wish().stop {
            self.wish_changed().await;
        }
    }

    /// Waits until others want something else.
    pub async fn wish_changed(&mut self) {
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

/// Reads a stream that another function writes.
struct Follower {
    streams: Streams,
    stream_id: Uuid,
    after: u64,
    /// The first event of the newest batch that was read. Its writer may not know that it is written, and write it again
    /// with more events in it.
    batch: u64,
    next: u64,
    protocol: Protocol,
    sink: UnboundedSender<Bytes>,
}

impl Follower {
    async fn run(mut self) -> Result<()> {
        let now = || (":now", number(clock::millis(clock::now())));
        let come = "SET read_at = :now ADD readers :one";
        let come = self.streams.update(self.stream_id, come, [now(), (":one", number(1))]).await?;
        let place = get_number(&come, "readers").unwrap_or(0);
        let mut present = Instant::now();
        let mut heard = Instant::now();
        while !self.sink.is_closed() {
            if present.elapsed() >= PRESENCE {
                present = Instant::now();
                self.streams.update(self.stream_id, "SET read_at = :now", [now()]).await?;
            }
            let events = self.news().await?;
            if !events.is_empty() {
                heard = Instant::now();
            }
            for (id, event) in events {
                self.next = id + 1;
                if id > self.after {
                    let _ = self.sink.send(self.protocol.encode(id, &event));
                }
                if event.is_last() {
                    return self.delivered().await;
                }
            }
            if heard.elapsed() >= PING_AFTER {
                heard = Instant::now();
                let _ = self.sink.send(PING);
            }
            let Some(state) = self.living_state().await? else {
                self.give_up(Code::Internal, "The answer was interrupted.");
                return Ok(());
            };
            // The newest stay. It is said to the others, or they would come back at once and end each other in turns.
            if state.readers >= place + MOST_READERS {
                self.give_up(Code::RateLimited, "The answer is read in too many other places.");
                return Ok(());
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// The events that were not read yet.
    async fn news(&mut self) -> Result<Vec<(u64, StreamEvent)>> {
        let batches = self.streams.batches(self.stream_id, self.batch).await?;
        self.batch = batches.last().map_or(self.batch, |(first, _)| *first);
        let events = batches.into_iter().flat_map(|(first, batch)| (first..).zip(batch));
        Ok(events.filter(|(id, _)| *id >= self.next).collect())
    }

    fn give_up(&self, code: Code, message: &str) {
        let event = StreamEvent::Error(StreamError { code: code.as_str().to_owned(), message: message.to_owned() });
        // It is none of the stream's own: whoever goes on after it misses nothing.
        let last = (self.next - 1).max(self.after);
        let _ = self.sink.send(self.protocol.encode(last, &event));
    }

    /// The state, unless the stream is dead.
    async fn living_state(&self) -> Result<Option<State>> {
        let item = self.streams.item(&self.stream_id.to_string()).await?;
        Ok(item.as_ref().map(State::of).transpose()?.filter(|state| !state.is_dead()))
    }

    async fn delivered(&self) -> Result<()> {
        if self.sink.is_closed() || !arrivals_are_known() {
            return Ok(());
        }
        let yes = [(":yes", AttributeValue::Bool(true))];
        self.streams.update(self.stream_id, "SET is_delivered = :yes", yes).await.map(drop)
    }
}

/// Whether what is sent to an open connection is known to arrive. Where the sandbox freezes, nobody tells that a reader
/// has left, and a connection that is open says nothing.
#[must_use]
fn arrivals_are_known() -> bool {
    !background::sandbox_freezes()
}

/// The table deletes what has expired when it gets round to it.
fn is_kept(item: &Item) -> bool {
    get_number(item, "expires").is_ok_and(|expires| expires > clock::now().unix_timestamp())
}

fn name_key(user_id: Uuid, name: &str) -> String {
    format!("conversation#{user_id}#{name}")
}

/// Whether the id was made a moment ago, by the time within it.
fn is_young(stream_id: Uuid) -> bool {
    clock::of_uuid(stream_id).is_some_and(|made| {
        let age = clock::now() - made;
        // The time within the id is cut to the second here.
        age >= time::Duration::ZERO && age < YOUNG + time::Duration::SECOND
    })
}
