//! The side that reads a stream: follows what another function writes, to its end.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use uuid::Uuid;

use crate::background;
use crate::chat::live::{POLL, PRESENCE, State, Streams, arrivals_are_known};
use crate::chat::stream::{PING, PING_AFTER, Protocol, StreamError, StreamEvent};
use crate::clock;
use crate::error::{Code, Error, Result};
use crate::http::response::Chunks;
use crate::store::dynamo::{get_number, get_text, number, text};

/// A reader's reply ends once this many newer readers have joined: each holds a sandbox, even after its client left
/// unnoticed.
const MOST_READERS: i64 = 5;

impl Streams {
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
        let state = self.state(user_id, stream_id).await?.ok_or_else(|| Error::not_found("stream"))?;
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
        let state = self.streams.find_state(self.stream_id).await?;
        Ok(state.filter(|state| !state.is_dead()))
    }

    async fn delivered(&self) -> Result<()> {
        if self.sink.is_closed() || !arrivals_are_known() {
            return Ok(());
        }
        let yes = [(":yes", AttributeValue::Bool(true))];
        self.streams.update(self.stream_id, "SET is_delivered = :yes", yes).await.map(drop)
    }
}
