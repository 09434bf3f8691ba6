//! Streams that outlive their reader: the function that generates writes events down in batches, other
//! functions read them from there, ask for an end, or say that somebody still reads.
//!
//! Of the table's items, the one with `seq` 0 is the stream's state, written by all; the others are batches of
//! events under the id of their first, written once. Under a conversation's name stand its streams, each with its id
//! for `seq`, which is in the order of time.

mod follower;
pub(super) mod writer;

use std::time::Duration;

use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use futures_util::future::try_join_all;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::background;
use crate::chat::ai_sdk::ChatId;
use crate::clock;
use crate::error::{Error, Result};
use crate::store::dynamo::{Item, Table, get_id, get_number, get_text, number, text, unless_refused};

/// One that has begun is written down by then, silent or not: what an edit waits for.
const KNOWN_AFTER: Duration = Duration::from_millis(400);
/// Requests so close together may overtake each other on their way.
const OVERTAKING: Duration = Duration::from_millis(100);
/// One that has begun is known by then, whatever delays its function.
const LONGEST_BEGINNING: Duration = Duration::from_secs(1);
/// How often a reader looks for more.
const POLL: Duration = Duration::from_millis(150);
/// How often a reader says that it is there.
const PRESENCE: Duration = Duration::from_secs(5);
/// How long to wait for an answer that was asked to end.
const LONGEST_ENDING: Duration = Duration::from_secs(5);
/// So many streams of a conversation are looked at, from the newest on: several may run at once.
const MOST_STREAMS: i32 = 5;
/// A running stream whose function has not written for so long is dead.
const DEAD_AFTER: time::Duration = time::Duration::seconds(30);
/// A finished stream can be replayed for so long.
const KEPT: time::Duration = time::Duration::minutes(10);
/// No stream runs longer.
const LONGEST: time::Duration = time::Duration::minutes(20);
/// The state of a stream this young may not have been written yet.
const YOUNG: time::Duration = time::Duration::seconds(2);

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
                && let Some(state) = self.find_state(stream_id).await?
            {
                if state.user_id != user_id {
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

    /// Has an answer end, if somebody has stopped it, nobody reads it, or it is superseded by what the caller does, and
    /// waits a moment until it is stored.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn end_unwanted(&self, user_id: Uuid, stream_id: Uuid, superseded: bool) -> Result<()> {
        let until = Instant::now() + LONGEST_ENDING;
        while Instant::now() < until {
            let Some(state) = self.state(user_id, stream_id).await? else { return Ok(()) };
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
        Ok(self.state(user_id, stream_id).await?.map(|state| (stream_id, state)))
    }

    /// The state of a user's stream, if there is one; waits a moment for one that has only just begun.
    async fn state(&self, user_id: Uuid, stream_id: Uuid) -> Result<Option<State>> {
        loop {
            if let Some(state) = self.find_state(stream_id).await? {
                return Ok(Some(state).filter(|state| state.user_id == user_id));
            }
            if !is_young(stream_id) {
                return Ok(None);
            }
            sleep(POLL).await;
        }
    }

    /// The state of a stream, whoever's it is, if it is written by now.
    async fn find_state(&self, stream_id: Uuid) -> Result<Option<State>> {
        let reply = self
            .table
            .client()
            .get_item()
            .table_name(&self.table.name)
            .key("stream_id", text(stream_id))
            .key("seq", number(0))
            .consistent_read(true)
            .send()
            .await?;
        reply.item.filter(is_kept).as_ref().map(State::of).transpose()
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
            .change_state(stream_id)
            .update_expression(change)
            .set_expression_attribute_values(Some(values.into()))
            .return_values(ReturnValue::UpdatedNew)
            .send()
            .await;
        Ok(unless_refused(result)?.and_then(|reply| reply.attributes).unwrap_or_default())
    }

    /// A change to the state of a stream, refused where there is none.
    fn change_state(&self, stream_id: Uuid) -> UpdateItemFluentBuilder {
        let update = self.table.client().update_item().table_name(&self.table.name);
        let update = update.key("stream_id", text(stream_id)).key("seq", number(0));
        update.condition_expression("attribute_exists(stream_id)")
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
