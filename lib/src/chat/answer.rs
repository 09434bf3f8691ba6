//! One question and its answer: reserve, ask, answer, settle.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use uuid::Uuid;

use crate::auth::account::Visit;
use crate::background;
use crate::chat::catalogue::{Choice, ProviderId};
use crate::chat::conversation::{Message, usage_json};
use crate::chat::exchange::{self, ConversationRef, Earlier, Exchange, Ongoing, Outcome, Question, Standing, Stored};
use crate::chat::live::writer::{StreamIdentity, StreamWriter};
use crate::chat::live::{Streams, UnderWay};
use crate::chat::prompt;
use crate::chat::provider::attempt::{Begun, Providers};
use crate::chat::provider::{Call, Cause, Failure, FinishReason, Piece, Pieces, Usage};
use crate::chat::quota::{self, Quota};
use crate::chat::stream::{self, Done, PING, PING_AFTER, Protocol, Start, StreamError, StreamEvent};
use crate::chat::title::{self, Untitled};
use crate::clock;
use crate::error::{Code, Error, Result};
use crate::http::idempotency::Ticket;
use crate::http::response::Chunks;
use crate::runtime;
use crate::store::postgres::Database;
use crate::telemetry::trace::TraceContext;

/// The longest answer, below what API Gateway allows.
const TOTAL: Duration = Duration::from_secs(280);
/// What comes before the provider's work takes no longer, and what follows its failure.
const LONGEST_PREPARATION: Duration = Duration::from_secs(12);
/// The longest silence within an answer.
const SILENCE: Duration = Duration::from_secs(60);
/// Kept back from the function's own time-out, for storing the answer.
const RESERVE: Duration = Duration::from_secs(15);
/// An answer that nobody reads goes on for so long, for a reader who comes back.
const UNREAD: Duration = Duration::from_secs(30);
/// A complete answer's connection is left open so long, for the usage that may follow it.
const AFTER_THE_END: Duration = Duration::from_secs(3);
/// How often to check whether anybody still reads.
const LOOK: Duration = Duration::from_secs(1);
/// Tries to store an answer that the database refuses.
const STORE_ATTEMPTS: u32 = 5;
/// A database that is away is waited for so long: Aurora's usually changes its server within half of it.
const LONGEST_STORE: Duration = Duration::from_secs(60);
/// Between two tries.
const LONGEST_STORE_PAUSE: Duration = Duration::from_secs(2);
/// An attempt that takes longer counts as hung.
const LONGEST_STORE_ATTEMPT: Duration = Duration::from_secs(10);
/// How much of `RESERVE` retries may use, so that a failure is still reported in time.
const LATEST_STORE: Duration = Duration::from_secs(13);

/// What the chat functions need.
pub struct Chat {
    /// The database.
    pub database: Database,
    providers: Providers,
    streams: Option<Streams>,
    title_model: Option<Choice>,
}

/// A question as the client asks it.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Who asks.
    pub user_id: Uuid,
    /// The question; none where the last one is asked again.
    pub message: Option<String>,
    /// Whether to answer the last question again, or the one that is named, replacing its answer. A `message` that
    /// differs from the one that is named is an edit of it; one that differs from the last is a new question, whose first
    /// answer never came.
    pub again: bool,
    /// Answers that the client keeps, in order: the question stands after the last of them.
    pub keeps: Vec<Uuid>,
    /// What the client calls the questions before it.
    pub follows: Vec<String>,
    /// What the client calls the question.
    pub name: Option<String>,
    /// The message that the client has replaced and dropped all that follows, by our id or its own: the question is an
    /// earlier one in other words, or is asked `again`.
    pub replaced: Option<String>,
    /// Where an earlier try of the same request has left the question.
    pub position: Option<i32>,
    /// The conversation.
    pub conversation: ConversationRef,
    /// The provider, if the client cares.
    pub provider: Option<ProviderId>,
    /// The model, if the client cares.
    pub model: Option<String>,
    /// Instructions to the model.
    pub system_prompt: Option<String>,
    /// How freely to choose words.
    pub temperature: Option<f64>,
    /// The longest answer.
    pub max_tokens: Option<i64>,
    /// Whether the answer will be streamed.
    pub streamed: bool,
    /// What all tries of the same request have in common, if the client can repeat it.
    pub request_id: Option<Uuid>,
}

impl Ask {
    /// Instructions to the model: the question's own, or the conversation's.
    fn system<'a>(&'a self, ongoing: Option<&'a Ongoing>) -> Option<&'a str> {
        let usual = ongoing.and_then(|ongoing| ongoing.system_prompt.as_deref());
        self.system_prompt.as_deref().or(usual).filter(|text| !text.is_empty())
    }

    /// Whether the question comes after a message of that name, as far as the client knows.
    fn comes_after(&self, name: &str) -> bool {
        self.follows.iter().any(|question| question == name) || self.keeps.iter().any(|kept| kept.to_string() == name)
    }

    /// Whether the question of that name is meant.
    fn means(&self, message: &str) -> bool {
        self.names().any(|name| name == message)
    }

    /// The names of the question that is meant: one that is asked again names itself, too.
    fn names(&self) -> impl Iterator<Item = &String> {
        [self.replaced.as_ref(), self.name.as_ref().filter(|_| self.again)].into_iter().flatten()
    }

    /// Whether a message of that name is meant, or comes before the question.
    fn knows(&self, message: &str) -> bool {
        self.means(message) || self.comes_after(message)
    }
}

/// An answer that was sent whole.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The conversation.
    pub conversation_id: Uuid,
    /// The answer.
    pub message: Message,
    /// Its tokens and cost.
    pub usage: Value,
    /// Who answered.
    pub provider: String,
    /// What answered.
    pub model: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What is left of the month.
    pub quota: Quota,
    /// Who should have answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback_from: Option<ProviderId>,
}

impl Reply {
    /// The same as a stream, in one piece.
    ///
    /// # Errors
    /// None in practice: when the quota cannot be written as JSON.
    pub fn events(&self) -> Result<Vec<StreamEvent>> {
        let start = StreamEvent::Start(Start {
            stream_id: Uuid::now_v7(),
            conversation_id: self.conversation_id,
            message_id: self.message.id,
            provider: self.provider.clone(),
            model: self.model.clone(),
            fallback_from: self.fallback_from.map(|provider| provider.to_string()),
        });
        let done = StreamEvent::Done(Done {
            message_id: self.message.id,
            usage: self.usage.clone(),
            finish_reason: self.finish_reason,
            quota: serde_json::to_value(self.quota)?,
        });
        Ok(stream::condensed(start, self.message.content.clone(), done))
    }
}

/// An answer that has begun.
pub struct Answer {
    chat: &'static Chat,
    exchange: Exchange,
    begun: Begun,
    prompt_tokens: i64,
    max_tokens: i64,
    trace: TraceContext,
    stream_id: Uuid,
    writer: Option<StreamWriter>,
    started: Instant,
    /// Milliseconds to the first token, if there is one.
    ttft_ms: Option<i64>,
    deadline: Instant,
}

impl Chat {
    /// Reads secrets; connects on first use.
    ///
    /// # Errors
    /// When a variable or a secret is missing.
    pub async fn init() -> Result<Self> {
        let (database, providers) = futures_util::try_join!(Database::init(), Providers::init())?;
        let title_model = title::model_from_env(&providers)?;
        Ok(Self { title_model, ..Self::new(database, providers, Some(Streams::from_env()?)) })
    }

    /// Chat over this database and these providers; without a table, streams cannot be resumed.
    #[must_use]
    pub fn new(database: Database, providers: Providers, streams: Option<Streams>) -> Self {
        Self { database, providers, streams, title_model: None }
    }

    /// The same with a model that writes titles.
    #[must_use]
    pub fn with_title_model(self, model: Choice) -> Self {
        Self { title_model: Some(model), ..self }
    }

    /// Asks, and waits until an answer begins.
    ///
    /// # Errors
    /// 404 for another's conversation, 400 `model_not_available`, 429 `quota_exceeded`, and the provider's
    /// failure by its cause; then nothing is stored and nothing spent.
    pub async fn ask(&'static self, ask: Ask, visit: &Visit, time_left: Duration) -> Result<Answer> {
        let streams = self.streams.as_ref().filter(|_| ask.streamed);
        let (exchange, call) = in_time(self.prepare(ask, visit)).await?;
        let (prompt_tokens, max_tokens) = (call.prompt_tokens(), call.max_tokens);
        let stream_id = Uuid::now_v7();
        // A thinking model may take its time: whoever reloads meanwhile finds the stream.
        let mut writer = streams.map(|streams| {
            let messages = exchange.question_name.iter().cloned().chain([exchange.answer_id.to_string()]).collect();
            streams.record(StreamIdentity {
                stream_id,
                user_id: exchange.subject.user_id,
                conversation_id: exchange.conversation_id,
                names: exchange.names(),
                messages,
                asked_at: exchange.asked_at,
            })
        });
        let started = Instant::now();
        let longest = TOTAL.min(time_left.saturating_sub(RESERVE));
        let choice = call.choice.clone();
        let begin = async {
            tokio::select! {
                begun = self.providers.begin(call, longest) => begun,
                () = stopped(writer.as_mut()) => Ok(Begun::stopped(choice, started.elapsed())),
            }
        };
        let begun = exchange.reservation.keep_alive(self.database.pool(), begin).await;
        let begun = match begun {
            Ok(begun) => begun,
            Err(none) => {
                let class = none.failure.class(false);
                self.give_up(&exchange, class, none.attempts, millis(started), &visit.trace).await;
                return Err(none.failure.into());
            }
        };
        let deadline = started + longest;
        let was_stopped = begun.first.contains(&Piece::Finish(FinishReason::Stopped));
        let ttft_ms = (!was_stopped).then(|| millis(started));
        let trace = visit.trace;
        Ok(Answer {
            chat: self,
            exchange,
            begun,
            prompt_tokens,
            max_tokens,
            trace,
            stream_id,
            writer,
            started,
            ttft_ms,
            deadline,
        })
    }

    /// What an earlier try of the same request has stored, if there is anything.
    ///
    /// # Errors
    /// 404 when it was deleted since.
    pub async fn answered(&self, user_id: Uuid, request_id: Uuid) -> Result<Option<Earlier>> {
        in_time(async {
            let mut connection = self.database.pool().acquire().await?;
            exchange::answered(&mut connection, user_id, request_id).await
        })
        .await
    }

    /// Refuses what is about a conversation that was deleted since, whoever still keeps a copy.
    ///
    /// # Errors
    /// 404 when it is not there any more.
    pub async fn refuse_deleted(&self, user_id: Uuid, conversation: Option<Uuid>) -> Result<()> {
        let Some(id) = conversation else { return Ok(()) };
        let is_there = in_time(exchange::exists(self.database.pool(), user_id, id)).await?;
        if is_there { Ok(()) } else { Err(Error::not_found("answer")) }
    }

    /// Everything before the provider is called: one statement for a new conversation.
    async fn prepare(&self, ask: Ask, visit: &Visit) -> Result<(Exchange, Call)> {
        let mut connection = self.database.pool().acquire().await?;
        let (ongoing, left) = match &ask.conversation {
            ConversationRef::New => (None, 0),
            existing => {
                let mut standing = exchange::standing(&mut connection, ask.user_id, existing).await?;
                if standing.is_answering {
                    let anew = self.foresee(&mut connection, &standing, &ask).await?;
                    // Whoever waits holds no connection.
                    drop(connection);
                    self.end_unwanted(&ask, &anew).await?;
                    connection = self.database.pool().acquire().await?;
                    standing = exchange::standing(&mut connection, ask.user_id, existing).await?;
                }
                if matches!(existing, ConversationRef::Id(_)) && standing.conversation.is_none() {
                    return Err(Error::not_found("conversation"));
                }
                (standing.conversation, standing.quota.remaining)
            }
        };
        let chosen = self.choose(&ask, ongoing.as_ref())?;
        let anew = Anew::find(&mut connection, ongoing.as_ref(), &ask).await?.unless_lost()?;
        let system = ask.system(ongoing.as_ref()).map(str::to_owned);
        let question = anew.question.or(ask.message).ok_or_else(|| Error::not_found("answer to make anew"))?;
        let bound = prompt::max_tokens_of_prompt(&question, system.as_deref());
        let longest = prompt::longest_answer(chosen.model, ask.max_tokens);
        let history = match &ongoing {
            Some(ongoing) => {
                let room = prompt::history_room(chosen.model, bound, longest, left);
                exchange::history(&mut connection, ongoing.id, anew.position, room).await?
            }
            None => Vec::new(),
        };
        let turns = prompt::turns(history, &question);
        let input: i64 = turns.iter().map(|turn| prompt::max_tokens_of(&turn.content)).sum::<i64>()
            + prompt::PER_MESSAGE
            + system.as_deref().map_or(0, prompt::max_tokens_of);
        let shortest = longest.min(prompt::SHORTEST_ANSWER);
        let reservation = quota::reserve(&mut connection, ask.user_id, input + longest, input + shortest).await?;
        let max_tokens = (reservation.tokens - input).clamp(1, longest);
        let exchange = Exchange {
            subject: visit.subject(ask.user_id, reservation.plan()),
            conversation_id: ongoing.as_ref().map_or_else(Uuid::now_v7, |ongoing| ongoing.id),
            is_new: ongoing.is_none(),
            titles: ongoing.as_ref().is_none_or(|ongoing| ongoing.is_untitled),
            client_id: match (ongoing, ask.conversation) {
                (Some(ongoing), _) => ongoing.client_id,
                (None, ConversationRef::ClientId(name)) => Some(name),
                (None, ConversationRef::New | ConversationRef::Id(_)) => None,
            },
            system_prompt: system.clone(),
            question,
            question_id: Uuid::now_v7(),
            question_name: ask.name,
            asked_at: visit.at,
            // In the order of the questions, whatever they wait for.
            answer_id: clock::uuid_at(visit.at),
            regenerates: anew.position,
            cuts: anew.edits.is_some() || ask.replaced.is_some() && ask.position.is_none() && anew.position.is_some(),
            edits: anew.edits,
            requested_model: ask.model.unwrap_or_else(|| chosen.model.id.clone()),
            chosen: chosen.clone(),
            streamed: ask.streamed,
            request_id: ask.request_id,
            reservation,
        };
        let call = Call { choice: chosen, system, turns, max_tokens, temperature: ask.temperature };
        Ok((exchange, call))
    }

    /// The model that the request wants, or the conversation's.
    fn choose(&self, ask: &Ask, ongoing: Option<&Ongoing>) -> Result<Choice> {
        // A provider that is named alone is asked for its default, whatever the conversation's model.
        let usual = ongoing.filter(|_| ask.provider.is_none()).and_then(|ongoing| ongoing.model.as_deref());
        // A conversation outlives its model.
        let usual = usual.filter(|model| self.providers.choose(None, Some(model)).is_ok());
        self.providers.choose(ask.provider, ask.model.as_deref().or(usual))
    }

    /// Refuses what would be refused however an answer under way ends. Tells what is made anew of what is stored.
    async fn foresee(&self, connection: &mut PgConnection, standing: &Standing, ask: &Ask) -> Result<Anew> {
        let ongoing = standing.conversation.as_ref();
        let chosen = self.choose(ask, ongoing)?;
        let anew = Anew::find(connection, ongoing, ask).await?;
        let question = anew.question.as_deref().or(ask.message.as_deref()).unwrap_or_default();
        let shortest = prompt::longest_answer(chosen.model, ask.max_tokens).min(prompt::SHORTEST_ANSWER);
        standing.quota.has_room(prompt::max_tokens_of_prompt(question, ask.system(ongoing)) + shortest)?;
        Ok(anew)
    }

    /// Has answers under way in the conversation end and stored that nobody wants any more: what is said now comes
    /// after them. What replaces a message that is neither stored nor being answered is refused, and ends nothing.
    async fn end_unwanted(&self, ask: &Ask, anew: &Anew) -> Result<()> {
        let name = match &ask.conversation {
            ConversationRef::New => return Ok(()),
            ConversationRef::Id(id) => id.to_string(),
            ConversationRef::ClientId(name) => name.clone(),
        };
        let Some(streams) = &self.streams else { return Ok(()) };
        let supersedes = ask.again || ask.replaced.is_some();
        let under_way = streams.under_way(ask.user_id, &name, supersedes).await?;
        if under_way.is_empty() {
            return Ok(());
        }
        let mut messages = under_way.iter().flat_map(|answer| &answer.messages);
        let is_known = anew.position.is_some() || messages.any(|message| ask.knows(message));
        if ask.replaced.is_some() && !is_known {
            return Err(Error::not_found("message to replace"));
        }
        let ends = under_way
            .iter()
            .map(|answer| streams.end_unwanted(ask.user_id, answer.stream_id, supersedes && anew.ends(ask, answer)));
        try_join_all(ends).await.map(drop)
    }

    /// Releases what was reserved. If that fails the sweep does it, and the client still learns what happened.
    async fn give_up(&self, exchange: &Exchange, class: &'static str, attempts: u32, ms: i64, trace: &TraceContext) {
        let given_up = async { exchange.give_up(self.database.begin(trace).await?, class, attempts, ms).await };
        if let Err(error) = in_time(given_up).await {
            tracing::error!(error.cause = %error, "a failed exchange could not be noted");
        }
    }

    /// Stores an answer that was produced, with patience: it was paid for and may have been read.
    async fn store(
        &self,
        exchange: &Exchange,
        outcome: &Outcome,
        deadline: Instant,
        trace: &TraceContext,
    ) -> Result<Stored> {
        let mut attempt = 1;
        let until = (deadline + LATEST_STORE).min(Instant::now() + LONGEST_STORE);
        loop {
            let longest = LONGEST_STORE_ATTEMPT.min(until.saturating_duration_since(Instant::now()));
            let stored = timeout(longest, exchange.store(&self.database, outcome, trace)).await;
            let stored = stored.unwrap_or_else(|_| Err(Error::unavailable("the statement did not end in time")));
            let pause =
                Duration::from_millis(100).saturating_mul(2_u32.saturating_pow(attempt)).min(LONGEST_STORE_PAUSE);
            let is_time_left = Instant::now() + pause < until;
            match stored {
                Err(error) if is_time_left && (attempt < STORE_ATTEMPTS || error.code() == Code::Unavailable) => {
                    tracing::warn!(error.cause = %error, attempt, "an answer could not be stored yet");
                    tokio::time::sleep(pause).await;
                    attempt += 1;
                }
                Err(error) if error.code() == Code::Internal => {
                    // It was produced and may have been read: it is paid for where it cannot be kept.
                    let billed = timeout(LONGEST_STORE_ATTEMPT, exchange.bill(&self.database, outcome, trace)).await;
                    if !matches!(billed, Ok(Ok(_))) {
                        tracing::error!("what could not be stored could not be billed");
                    }
                    return Err(error);
                }
                outcome => return outcome,
            }
        }
    }
}

/// Does what the database has no reason to take long for.
async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    runtime::until(Instant::now() + LONGEST_PREPARATION, work).await
}

/// Waits until somebody stops what is recorded, if it is.
async fn stopped(writer: Option<&mut StreamWriter>) {
    match writer {
        Some(writer) => writer.stop_wished().await,
        None => std::future::pending().await,
    }
}

/// The place of what is made anew, if anything is.
#[derive(Default)]
struct Anew {
    position: Option<i32>,
    /// The question that stands there.
    question: Option<String>,
    /// Its name where it is asked in other words.
    edits: Option<String>,
    /// Whether it was found by its name, and its answer alone is replaced.
    is_in_place: bool,
    /// Whether it would replace what is not there, where something else is now.
    is_lost: bool,
}

impl Anew {
    async fn find(connection: &mut PgConnection, ongoing: Option<&Ongoing>, ask: &Ask) -> Result<Self> {
        let Some(&Ongoing { id: conversation, .. }) = ongoing else { return Ok(Self::default()) };
        if let Some(position) = ask.position {
            let question = match ask.message {
                Some(_) => None,
                None => exchange::question_at(connection, conversation, position).await?.map(|found| found.content),
            };
            return Ok(Self { position: Some(position), question, ..Self::default() });
        }
        if let Some((name, found)) = Self::named(connection, conversation, ask).await? {
            let is_edit = !ask.again || ask.message.as_ref().is_some_and(|message| *message != found.content);
            let (question, edits) = if is_edit { (None, Some(name)) } else { (Some(found.content), None) };
            let is_in_place = !is_edit && ask.replaced.is_none();
            return Ok(Self { position: Some(found.position), question, edits, is_in_place, is_lost: false });
        }
        if let Some(found) = Self::unnamed(connection, conversation, ask).await? {
            return Ok(Self { position: Some(found.position), question: Some(found.content), ..Self::default() });
        }
        // What was never answered is not stored, and replaced all the same. Where it would stand, nothing else may.
        let last = match ask.replaced {
            Some(_) => exchange::last_names(connection, conversation).await?,
            None => Vec::new(),
        };
        Ok(Self { is_lost: !last.is_empty() && !last.iter().any(|name| ask.comes_after(name)), ..Self::default() })
    }

    /// The question that is meant by a name, with that name.
    async fn named(connection: &mut PgConnection, conversation: Uuid, ask: &Ask) -> Result<Option<(String, Question)>> {
        for name in ask.names() {
            let found = exchange::question_of(connection, conversation, name).await?;
            if let Some(found) = found.filter(|found| !ask.again || !ask.keeps.contains(&found.answer_id)) {
                return Ok(Some((name.clone(), found)));
            }
        }
        Ok(None)
    }

    /// The question that is asked again and has no name that is known.
    async fn unnamed(connection: &mut PgConnection, conversation: Uuid, ask: &Ask) -> Result<Option<Question>> {
        let found = match (ask.again, ask.keeps.last()) {
            (false, _) => None,
            (true, Some(kept)) if ask.replaced.is_some() => {
                exchange::question_after(connection, conversation, *kept).await?
            }
            (true, _) => exchange::last_question(connection, conversation).await?,
        };
        let is_meant = |found: &Question| {
            // The first answer to a question that is given along may never have come.
            ask.message.as_ref().is_none_or(|message| *message == found.content)
                && !ask.keeps.contains(&found.answer_id)
        };
        Ok(found.filter(is_meant))
    }

    /// Whether an answer under way ends for it: what is made anew in its place leaves the answers to other questions.
    fn ends(&self, ask: &Ask, under_way: &UnderWay) -> bool {
        !self.is_in_place || under_way.messages.iter().any(|message| ask.means(message))
    }

    fn unless_lost(self) -> Result<Self> {
        if self.is_lost { Err(Error::not_found("message to replace")) } else { Ok(self) }
    }
}

/// Has a title written for a conversation whose first question has become its title.
fn improve_title(chat: &'static Chat, exchange: &Exchange, stored: &Stored, answer: &str) {
    let Some(model) = chat.title_model.clone().filter(|_| stored.is_titled) else { return };
    let untitled = Untitled {
        id: stored.conversation_id,
        user_id: exchange.subject.user_id,
        question: exchange.question.clone(),
        answer: answer.to_owned(),
    };
    title::improve(&chat.providers, &chat.database, model, untitled);
}

/// What generation takes from the provider.
#[derive(Default)]
struct Produced {
    thinks: bool,
    text: String,
    usage: Option<Usage>,
    finish: Option<FinishReason>,
    failure: Option<Failure>,
}

impl Produced {
    fn take(&mut self, piece: Piece) -> Option<String> {
        match piece {
            Piece::Text(text) => {
                self.text.push_str(&text);
                return Some(text);
            }
            Piece::Thinking => self.thinks = true,
            Piece::Usage(usage) => self.usage = Some(usage),
            Piece::Finish(reason) => self.finish = Some(reason),
        }
        None
    }
}

impl Answer {
    /// The whole answer, stored.
    ///
    /// # Errors
    /// The provider's failure if the answer breaks off: what was produced is kept and billed then, like a stream's, and
    /// the problem says where it is. And when the answer could not be stored: whether it was is not known, since the
    /// database's reply may have been lost.
    pub async fn complete(mut self) -> Result<Reply> {
        let mut reader = Reader::default();
        let produced = self.generate(&mut reader).await;
        let failure = produced.failure.clone();
        let outcome = self.outcome(produced);
        let stored = self.chat.store(&self.exchange, &outcome, self.deadline, &self.trace).await?;
        improve_title(self.chat, &self.exchange, &stored, &outcome.text);
        match failure {
            None => Ok(self.reply(outcome, &stored)),
            Some(failure) => Err(Error::from(failure)
                .with("conversationId", stored.conversation_id.to_string().into())
                .with("messageId", self.exchange.answer_id.to_string().into())),
        }
    }

    /// The answer as it comes. It is produced and stored whether or not it is read to the end.
    pub fn stream(mut self, protocol: Protocol, ticket: Option<Ticket>) -> Chunks {
        let (sender, receiver) = unbounded_channel();
        let mut start = Start {
            stream_id: self.stream_id,
            conversation_id: self.exchange.conversation_id,
            message_id: self.exchange.answer_id,
            provider: self.begun.choice.model.provider.to_string(),
            model: self.begun.choice.model.id.clone(),
            fallback_from: self.begun.fallback_from.map(|provider| provider.to_string()),
        };
        let mut reader = Reader { sink: Some(sender), protocol, last_id: 0, writer: self.writer.take(), left: None };
        background::spawn(async move {
            reader.send(StreamEvent::Start(start.clone()));
            let produced = self.generate(&mut reader).await;
            let failure = produced.failure.clone();
            let outcome = self.outcome(produced);
            let store = self.chat.store(&self.exchange, &outcome, self.deadline, &self.trace);
            let stored = reader.keep_open(store).await;
            let is_stored = stored.is_ok();
            if let Ok(stored) = &stored {
                // Another first message of the same name may have made the conversation.
                start.conversation_id = stored.conversation_id;
                improve_title(self.chat, &self.exchange, stored, &outcome.text);
            }
            let last = self.last_event(&outcome, failure, stored);
            reader.send(last.clone());
            match ticket {
                Some(ticket) if is_stored => {
                    let events = stream::condensed(StreamEvent::Start(start), outcome.text, last);
                    ticket.keep_stream(&events, reader.last_id).await;
                }
                // It may be stored all the same: the next try looks for it.
                Some(ticket) => ticket.pass_on().await,
                None => {}
            }
        });
        Box::pin(UnboundedReceiverStream::new(receiver))
    }

    /// Reads the provider to its end, its failure or our patience's, and passes the text on.
    async fn generate(&mut self, reader: &mut Reader) -> Produced {
        let mut produced = Produced::default();
        for piece in std::mem::take(&mut self.begun.first) {
            if let Some(text) = produced.take(piece) {
                reader.send(StreamEvent::Delta(text));
            }
        }
        let pool = self.chat.database.pool();
        let reservation = self.exchange.reservation.clone();
        let read = read(&mut self.begun.rest, &mut produced, reader, self.deadline);
        let failure = reservation.keep_alive(pool, read).await.err();
        produced.failure = failure;
        produced
    }

    fn outcome(&self, produced: Produced) -> Outcome {
        let failure = produced.failure.as_ref().map(|failure| failure.class(true));
        let usage = match produced.usage {
            Some(usage) if failure.is_none() && produced.finish != Some(FinishReason::Stopped) && !usage.estimated => {
                usage
            }
            usage => {
                // More than was allowed was not produced.
                let room = (self.max_tokens - prompt::estimated_tokens(&produced.text)).max(0);
                let thought =
                    if produced.thinks { prompt::thought_in(self.begun.waited, self.prompt_tokens) } else { 0 };
                prompt::estimated_usage(usage, self.prompt_tokens, &produced.text, thought.min(room))
            }
        };
        let finish =
            if failure.is_some() { FinishReason::Error } else { produced.finish.unwrap_or(FinishReason::Stop) };
        Outcome {
            model: self.begun.choice.clone(),
            text: produced.text,
            usage,
            finish,
            failure,
            ttft_ms: self.ttft_ms,
            latency_ms: millis(self.started),
            attempts: self.begun.attempts,
            fallback_from: self.begun.fallback_from,
        }
    }

    fn reply(&self, outcome: Outcome, stored: &Stored) -> Reply {
        let usage = usage_json(&outcome.usage, stored.cost_micro_usd);
        let (provider, model) = (outcome.model.model.provider.to_string(), outcome.model.model.id.clone());
        let message = Message {
            id: self.exchange.answer_id,
            role: "assistant".to_owned(),
            content: outcome.text,
            provider: Some(provider.clone()),
            model: Some(model.clone()),
            usage: Some(usage.clone()),
            finish_reason: Some(outcome.finish.as_str().to_owned()),
            created_at: clock::now(),
        };
        Reply {
            conversation_id: stored.conversation_id,
            message,
            usage,
            provider,
            model,
            finish_reason: outcome.finish,
            quota: stored.quota,
            fallback_from: outcome.fallback_from,
        }
    }

    fn last_event(&self, outcome: &Outcome, failure: Option<Failure>, stored: Result<Stored>) -> StreamEvent {
        let broken = |code: Code, message: &str| {
            StreamEvent::Error(StreamError { code: code.as_str().to_owned(), message: message.to_owned() })
        };
        match (stored, failure) {
            (Err(error), _) => {
                tracing::error!(error.cause = %error, "an answer could not be stored");
                broken(error.code(), "The answer could not be stored.")
            }
            (Ok(_), Some(failure)) => {
                tracing::warn!(error.cause = %failure, "an answer broke off");
                broken(failure.code(), failure.message())
            }
            (Ok(stored), None) => StreamEvent::Done(Done {
                message_id: self.exchange.answer_id,
                usage: usage_json(&outcome.usage, stored.cost_micro_usd),
                finish_reason: outcome.finish,
                quota: serde_json::to_value(stored.quota).unwrap_or_default(),
            }),
        }
    }
}

/// Reads pieces until the provider closes the stream, or nobody wants more.
async fn read(
    pieces: &mut Pieces,
    produced: &mut Produced,
    reader: &mut Reader,
    deadline: Instant,
) -> Result<(), Failure> {
    let (mut heard, mut pinged) = (Instant::now(), Instant::now());
    loop {
        // Of an answer that is complete only the count is to come, which is better than an estimate.
        if produced.finish.is_none() && reader.is_unwanted() {
            produced.finish = Some(FinishReason::Stopped);
            return Ok(());
        }
        let wake = deadline.min(heard + SILENCE).min(pinged + PING_AFTER).min(Instant::now() + LOOK);
        let next = tokio::select! {
            next = tokio::time::timeout_at(wake, pieces.next()) => next,
            () = reader.wish_changed() => continue,
        };
        match next {
            Ok(None) => return Ok(()),
            Ok(Some(Err(failure))) => return Err(failure),
            Ok(Some(Ok(piece))) => {
                heard = Instant::now();
                if let Some(text) = produced.take(piece) {
                    pinged = heard;
                    reader.send(StreamEvent::Delta(text));
                }
            }
            // What is complete but for the closing of the connection is complete.
            Err(_) if produced.finish.is_some() && heard.elapsed() >= AFTER_THE_END => return Ok(()),
            Err(_) if Instant::now() >= deadline || heard.elapsed() >= SILENCE => {
                return Err(Failure::new(Cause::TimedOut, "the answer took too long"));
            }
            Err(_) if pinged.elapsed() >= PING_AFTER => {
                pinged = Instant::now();
                reader.ping();
            }
            Err(_) => {}
        }
    }
}

/// Whoever reads the answer as it comes, if anybody does.
#[derive(Default)]
struct Reader {
    sink: Option<UnboundedSender<Bytes>>,
    protocol: Protocol,
    last_id: u64,
    writer: Option<StreamWriter>,
    /// When the first reader was found gone.
    left: Option<Instant>,
}

impl Reader {
    fn send(&mut self, event: StreamEvent) {
        self.last_id += 1;
        self.write(self.protocol.encode(self.last_id, &event));
        if let Some(writer) = &self.writer {
            writer.event(self.last_id, event, self.sink.as_ref());
        }
    }

    fn ping(&self) {
        self.write(PING);
    }

    /// Does some work while the connection is kept open.
    async fn keep_open<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            match timeout(PING_AFTER, &mut work).await {
                Ok(done) => return done,
                Err(_) => self.ping(),
            }
        }
    }

    fn write(&self, bytes: Bytes) {
        if let Some(sink) = &self.sink {
            // A reader who has left is not waited for.
            let _ = sink.send(bytes);
        }
    }

    /// Whether somebody asked for the end, or nobody has read for a while.
    fn is_unwanted(&mut self) -> bool {
        let wish = self.writer.as_ref().map(StreamWriter::wish).unwrap_or_default();
        if wish.stop {
            return true;
        }
        if self.sink.as_ref().is_none_or(|sink| !sink.is_closed()) {
            return false;
        }
        let left = *self.left.get_or_insert_with(Instant::now);
        let read = clock::now() - clock::from_millis(wish.read_at) < UNREAD;
        left.elapsed() >= UNREAD && !read
    }

    async fn wish_changed(&mut self) {
        match &mut self.writer {
            Some(writer) => writer.wish_changed().await,
            None => std::future::pending().await,
        }
    }
}

/// Milliseconds since then.
fn millis(since: Instant) -> i64 {
    i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of an answer whose reader was found gone so many seconds ago.
    async fn left_for(seconds: u64) -> Option<FinishReason> {
        let left = Instant::now() - Duration::from_secs(seconds);
        let mut reader = Reader { sink: Some(unbounded_channel().0), left: Some(left), ..Reader::default() };
        let (mut produced, deadline) = (Produced::default(), Instant::now() + TOTAL);
        let mut rest: Pieces = Box::pin(futures_util::stream::iter([Ok(Piece::Text("More".to_owned()))]));
        read(&mut rest, &mut produced, &mut reader, deadline).await.unwrap();
        produced.finish
    }

    #[tokio::test]
    async fn an_answer_that_nobody_reads_goes_on_for_half_a_minute() {
        assert_eq!((left_for(29).await, left_for(31).await), (None, Some(FinishReason::Stopped)));
    }

    #[tokio::test]
    async fn a_complete_answer_is_counted_though_nobody_reads_on() {
        let left = Some(Instant::now() - Duration::from_secs(31));
        let mut reader = Reader { sink: Some(unbounded_channel().0), left, ..Reader::default() };
        let mut produced = Produced { finish: Some(FinishReason::Stop), ..Produced::default() };
        let counted = Usage { output_tokens: 7, ..Usage::default() };
        let mut rest: Pieces = Box::pin(futures_util::stream::iter([Ok(Piece::Usage(counted))]));
        read(&mut rest, &mut produced, &mut reader, Instant::now() + TOTAL).await.unwrap();
        assert_eq!(produced.finish, Some(FinishReason::Stop));
        assert_eq!(produced.usage.map(|usage| usage.output_tokens), Some(7));
    }

    #[tokio::test]
    async fn an_answer_that_is_sent_whole_has_no_reader_to_lose() {
        let mut reader = Reader { left: Some(Instant::now() - Duration::from_secs(31)), ..Reader::default() };
        assert!(!reader.is_unwanted());
    }
}
