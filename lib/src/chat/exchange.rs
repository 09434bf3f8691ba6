//! What an exchange reads before it begins and writes when it ends.

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::billing::plan::Plan;
use crate::chat::answer::Reply;
use crate::chat::catalogue::{Catalogue, Choice, ProviderId};
use crate::chat::conversation::{Message, title_of, usage_json};
use crate::chat::provider::{FinishReason, Role, Turn, Usage};
use crate::chat::quota::{Quota, Reservation};
use crate::chat::search;
use crate::error::{Error, Result};
use crate::events::outbox::Messages;
use crate::events::{Event, Subject};
use crate::store::postgres::{Database, LentConnection, Transaction};
use crate::telemetry::trace::TraceContext;

/// Messages of a conversation that are ever sent along.
const HISTORY: i64 = 400;
/// The index by which a user has one conversation of a client id.
const ONE_OF_A_NAME: &str = "conversations_client_id";

/// How a request names its conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConversationRef {
    /// Not at all: a new one is made.
    New,
    /// By its id: it must exist.
    Id(Uuid),
    /// By a client library's own name: it is found again by it, or made.
    ClientId(String),
}

/// A conversation that goes on.
#[derive(Debug)]
pub struct Ongoing {
    /// Its id.
    pub id: Uuid,
    /// A client library's own name for it.
    pub client_id: Option<String>,
    /// Its model, if one was chosen.
    pub model: Option<String>,
    /// Its instructions.
    pub system_prompt: Option<String>,
    /// Whether nobody has named it yet.
    pub is_untitled: bool,
}

/// Whether a user has a conversation.
///
/// # Errors
/// When the database does not answer.
pub async fn exists(database: &PgPool, user_id: Uuid, conversation: Uuid) -> Result<bool> {
    let found = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM conversations WHERE id = $1 AND user_id = $2) AS "exists!""#,
        conversation,
        user_id,
    );
    Ok(found.fetch_one(database).await?)
}

/// What is known before an exchange.
#[derive(Debug)]
pub struct Standing {
    /// The month, abandoned reservations counted as taken.
    pub quota: Quota,
    /// Whether an answer to the user is under way, in whatever conversation.
    pub is_answering: bool,
    /// The conversation, if there is one.
    pub conversation: Option<Ongoing>,
}

/// Reads quota and conversation at once.
///
/// # Errors
/// 401 when the user is gone.
pub async fn standing(
    connection: &mut PgConnection,
    user_id: Uuid,
    conversation: &ConversationRef,
) -> Result<Standing> {
    let (id, client_id) = match conversation {
        ConversationRef::New => (None, None),
        ConversationRef::Id(id) => (Some(*id), None),
        // A library may well use our own id once it knows it.
        ConversationRef::ClientId(name) => (Uuid::try_parse(name).ok(), Some(name.as_str())),
    };
    let row = sqlx::query!(
        r#"SELECT u.plan, date_trunc('month', now() AT TIME ZONE 'UTC')::date AS "month!",
               coalesce(q.used, 0) AS "used!", coalesce(q.reserved, 0) AS "reserved!",
               c.id AS "id?", c.client_id, c.model, c.system_prompt, c.untitled AS "untitled?",
               EXISTS (SELECT FROM quota_reservations r WHERE r.user_id = u.id) AS "is_answering!"
           FROM users u
           LEFT JOIN quota_periods q
                ON q.user_id = u.id AND q.period = date_trunc('month', now() AT TIME ZONE 'UTC')::date
           LEFT JOIN conversations c ON c.user_id = u.id AND (c.id = $2 OR c.client_id = $3)
           WHERE u.id = $1
           ORDER BY (c.id = $2) DESC NULLS LAST LIMIT 1"#,
        user_id,
        id,
        client_id,
    )
    .fetch_optional(connection)
    .await?
    .ok_or_else(Error::unauthenticated)?;
    let is_untitled = row.untitled.unwrap_or_default();
    let conversation = row.id.map(|id| Ongoing {
        id,
        client_id: row.client_id,
        model: row.model,
        system_prompt: row.system_prompt,
        is_untitled,
    });
    let quota = Quota::new(Plan::stored(&row.plan)?, row.month, row.used, row.reserved);
    Ok(Standing { quota, is_answering: row.is_answering, conversation })
}

/// The newest messages of a conversation that fit in so many bytes, oldest first. What was refused is left out, question
/// and answer: some models refuse all that follows it.
///
/// # Errors
/// When the database does not answer.
pub async fn history(
    connection: &mut PgConnection,
    conversation: Uuid,
    before: Option<i32>,
    bytes: i64,
) -> Result<Vec<Turn>> {
    let rows = sqlx::query!(
        r#"SELECT role, content FROM (
               SELECT position, role, content, sum(octet_length(content) + 16) OVER (ORDER BY position DESC) AS total
               FROM (SELECT position, role, content,
                         coalesce(finish_reason, lag(finish_reason) OVER (ORDER BY position DESC)) AS finish
                     FROM (SELECT position, role, content, finish_reason FROM messages
                           WHERE conversation_id = $1 AND position < $2 ORDER BY position DESC LIMIT $3) newest) exchanges
               WHERE finish IS DISTINCT FROM 'content_filter'
           ) fitting
           WHERE total <= $4 ORDER BY position"#,
        conversation,
        before.unwrap_or(i32::MAX),
        HISTORY,
        bytes,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| Turn { role: Role::stored(&row.role), content: row.content }).collect())
}

/// A question of a conversation. Its answer has the next place.
#[derive(Debug)]
pub struct Question {
    /// What was asked.
    pub content: String,
    /// Where it stands.
    pub position: i32,
    /// The answer's id.
    pub answer_id: Uuid,
}

/// The question that follows an answer.
///
/// # Errors
/// When the database does not answer.
pub async fn question_after(
    connection: &mut PgConnection,
    conversation: Uuid,
    answer: Uuid,
) -> Result<Option<Question>> {
    let row = sqlx::query_as!(
        Question,
        "SELECT q.content, q.position, a.id AS answer_id
         FROM messages q JOIN messages a ON a.conversation_id = $1 AND a.position = q.position + 1
         WHERE q.conversation_id = $1 AND q.role = 'user'
             AND q.position = (SELECT position + 1 FROM messages WHERE conversation_id = $1 AND id = $2)",
        conversation,
        answer,
    );
    Ok(row.fetch_optional(connection).await?)
}

/// The question of a place.
///
/// # Errors
/// When the database does not answer.
pub async fn question_at(connection: &mut PgConnection, conversation: Uuid, position: i32) -> Result<Option<Question>> {
    let row = sqlx::query_as!(
        Question,
        "SELECT q.content, q.position, a.id AS answer_id
         FROM messages q JOIN messages a ON a.conversation_id = $1 AND a.position = q.position + 1
         WHERE q.conversation_id = $1 AND q.role = 'user' AND q.position = $2",
        conversation,
        position,
    );
    Ok(row.fetch_optional(connection).await?)
}

/// The question that is called so, or whose answer is, by our id or the client's own.
///
/// # Errors
/// When the database does not answer.
pub async fn question_of(connection: &mut PgConnection, conversation: Uuid, name: &str) -> Result<Option<Question>> {
    let row = sqlx::query_as!(
        Question,
        "SELECT q.content, q.position, a.id AS answer_id
         FROM messages q JOIN messages a ON a.conversation_id = $1 AND a.position = q.position + 1
         WHERE q.conversation_id = $1 AND q.role = 'user' AND ($2 IN (q.id, a.id) OR q.client_id = $3)
         ORDER BY q.position DESC LIMIT 1",
        conversation,
        Uuid::try_parse(name).ok(),
        name,
    );
    Ok(row.fetch_optional(connection).await?)
}

/// What the last question of a conversation and its answer are called, by us and by the client.
///
/// # Errors
/// When the database does not answer.
pub async fn last_names(connection: &mut PgConnection, conversation: Uuid) -> Result<Vec<String>> {
    let rows = sqlx::query!(
        "SELECT id, client_id FROM messages WHERE conversation_id = $1 ORDER BY position DESC LIMIT 2",
        conversation,
    );
    let rows = rows.fetch_all(connection).await?;
    Ok(rows.into_iter().flat_map(|row| [Some(row.id.to_string()), row.client_id]).flatten().collect())
}

/// The question that the conversation's last answer is about, if there is one.
///
/// # Errors
/// When the database does not answer.
pub async fn last_question(connection: &mut PgConnection, conversation: Uuid) -> Result<Option<Question>> {
    let rows = sqlx::query!(
        "SELECT id, position, role, content FROM messages WHERE conversation_id = $1 ORDER BY position DESC LIMIT 2",
        conversation,
    )
    .fetch_all(connection)
    .await?;
    let mut rows = rows.into_iter();
    Ok(match (rows.next(), rows.next()) {
        (Some(answer), Some(question)) if answer.role == "assistant" && question.role == "user" => {
            Some(Question { content: question.content, position: question.position, answer_id: answer.id })
        }
        _ => None,
    })
}

/// What an earlier try of a request has stored.
#[derive(Debug)]
pub enum Earlier {
    /// The answer.
    Answer(Box<Reply>),
    /// An answer that broke off: where its question stands.
    Broken {
        /// The conversation.
        conversation_id: Uuid,
        /// The question's position.
        position: i32,
    },
}

/// What was stored for a request in the last 24 hours.
///
/// # Errors
/// 404 when it was billed and deleted since.
pub async fn answered(connection: &mut PgConnection, user_id: Uuid, request_id: Uuid) -> Result<Option<Earlier>> {
    let row = sqlx::query!(
        r#"SELECT l.id, l.provider, l.model, l.input_tokens, l.cached_input_tokens, l.output_tokens,
               l.reasoning_tokens, l.cost_micro_usd, l.estimated, m.conversation_id AS "conversation_id?",
               m.content AS "content?", m.position AS "position?", m.finish_reason, m.created_at AS "created_at?", u.plan,
               date_trunc('month', now() AT TIME ZONE 'UTC')::date AS "month!",
               coalesce(q.used, 0) AS "used!", coalesce(q.reserved, 0) AS "reserved!"
           FROM usage_ledger l
           JOIN users u ON u.id = l.user_id
           LEFT JOIN messages m ON m.id = l.id
           LEFT JOIN quota_periods q
                ON q.user_id = l.user_id AND q.period = date_trunc('month', now() AT TIME ZONE 'UTC')::date
           WHERE l.request_id = $1 AND l.user_id = $2 AND l.created_at > now() - interval '24 hours'
           ORDER BY l.created_at DESC LIMIT 1"#,
        request_id,
        user_id,
    )
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let (Some(conversation_id), Some(content), Some(position), Some(created_at)) =
        (row.conversation_id, row.content, row.position, row.created_at)
    else {
        return Err(Error::not_found("answer"));
    };
    if row.finish_reason.as_deref() == Some(FinishReason::Error.as_str()) {
        return Ok(Some(Earlier::Broken { conversation_id, position: position - 1 }));
    }
    let usage = Usage {
        input_tokens: row.input_tokens,
        cached_input_tokens: row.cached_input_tokens,
        output_tokens: row.output_tokens,
        reasoning_tokens: row.reasoning_tokens,
        estimated: row.estimated,
        ..Usage::default()
    };
    let usage = usage_json(&usage, row.cost_micro_usd);
    Ok(Some(Earlier::Answer(Box::new(Reply {
        conversation_id,
        finish_reason: row.finish_reason.as_deref().and_then(FinishReason::stored).unwrap_or(FinishReason::Stop),
        message: Message {
            id: row.id,
            role: "assistant".to_owned(),
            content,
            provider: Some(row.provider.clone()),
            model: Some(row.model.clone()),
            usage: Some(usage.clone()),
            finish_reason: row.finish_reason,
            created_at,
        },
        usage,
        provider: row.provider,
        model: row.model,
        quota: Quota::new(Plan::stored(&row.plan)?, row.month, row.used, row.reserved),
        fallback_from: None,
    }))))
}

/// What an exchange is about, fixed before it begins.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// Who asks.
    pub subject: Subject,
    /// The conversation, which may not exist yet.
    pub conversation_id: Uuid,
    /// Whether it is to be made.
    pub is_new: bool,
    /// Whether the question becomes its title.
    pub titles: bool,
    /// A client library's name for it.
    pub client_id: Option<String>,
    /// Instructions of a new conversation.
    pub system_prompt: Option<String>,
    /// The question.
    pub question: String,
    /// The question's id.
    pub question_id: Uuid,
    /// What the client calls it.
    pub question_name: Option<String>,
    /// When it was asked.
    pub asked_at: OffsetDateTime,
    /// The answer's id.
    pub answer_id: Uuid,
    /// Position of the question that is answered anew: the answer overwrites the message after it.
    pub regenerates: Option<i32>,
    /// The name of that question where it is overwritten, too.
    pub edits: Option<String>,
    /// Whether what follows them is deleted.
    pub cuts: bool,
    /// The model that was chosen.
    pub chosen: Choice,
    /// What the client called it.
    pub requested_model: String,
    /// Whether the answer is streamed.
    pub streamed: bool,
    /// What all tries of the same request have in common.
    pub request_id: Option<Uuid>,
    /// The tokens set aside.
    pub reservation: Reservation,
}

/// How an exchange went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The model that answered.
    pub model: Choice,
    /// The text.
    pub text: String,
    /// Its tokens.
    pub usage: Usage,
    /// Why it ended.
    pub finish: FinishReason,
    /// The class of the failure that ended it, in the words of the analytics contract.
    pub failure: Option<&'static str>,
    /// Milliseconds to the first token.
    pub ttft_ms: Option<i64>,
    /// Milliseconds to the end.
    pub latency_ms: i64,
    /// Tries.
    pub attempts: u32,
    /// Who should have answered.
    pub fallback_from: Option<ProviderId>,
}

/// What was stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The month after it.
    pub quota: Quota,
    /// The conversation that the messages are in.
    pub conversation_id: Uuid,
    /// Whether the question has become its title.
    pub is_titled: bool,
    /// The cost.
    pub cost_micro_usd: Option<i64>,
}

impl Exchange {
    /// The names of the conversation: its id, and the client's own name unless that is the id.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let id = self.conversation_id.to_string();
        let other = self.client_id.clone().filter(|name| *name != id);
        std::iter::once(id).chain(other).collect()
    }

    /// Stores messages, tokens, cost and events, and settles the reservation, all in one statement. A second try after
    /// one whose answer was lost changes nothing. What was stopped before its first word takes no answer's place, and
    /// nothing takes that of what was asked later.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn store(&self, database: &Database, outcome: &Outcome, trace: &TraceContext) -> Result<Stored> {
        let is_regenerated = self.regenerates.is_some() && self.edits.is_none();
        let is_nothing = outcome.finish == FinishReason::Stopped && outcome.text.is_empty();
        self.write(database, outcome, trace, !(is_regenerated && is_nothing)).await
    }

    /// The same without the messages, for what cannot be stored but was delivered. The next try of its request asks anew.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn bill(&self, database: &Database, outcome: &Outcome, trace: &TraceContext) -> Result<()> {
        self.write(database, outcome, trace, false).await.map(drop)
    }

    async fn write(
        &self,
        database: &Database,
        outcome: &Outcome,
        trace: &TraceContext,
        with_messages: bool,
    ) -> Result<Stored> {
        let (cost, usage) = (outcome.model.model.cost(&outcome.usage), &outcome.usage);
        let (provider, owner) = (outcome.model.model.provider.as_str(), self.subject.user_id);
        let title = if self.titles { title_of(&self.question) } else { String::new() };
        let mut messages = Messages::of(trace);
        if self.is_new && with_messages {
            let event = Event::about(&self.subject, "chat.conversation_created");
            messages.event(event.with("conversationId", self.conversation_id.to_string()));
        }
        let mut connection = LentConnection::of(database.pool()).await?;
        let there = match self.regenerates {
            Some(position) => self.hold_still(&mut connection, position).await?,
            None => None,
        };
        // What was asked later has the last word.
        let with_messages = with_messages && there.as_ref().is_none_or(|there| there.answer_id <= self.answer_id);
        let place = there.map(|there| there.position);
        messages.event(self.event(outcome, cost, place.is_some() && self.edits.is_none())?);
        let rows = messages.rows();
        // In the order of the locks: the ledger, the user's month, the conversation. A conversation that was deleted
        // meanwhile takes no messages.
        let row = sqlx::query!(
            r#"WITH noted AS (
                   INSERT INTO usage_ledger (id, user_id, period, conversation_id, provider, model, input_tokens,
                       cached_input_tokens, output_tokens, reasoning_tokens, cost_micro_usd, price_version, estimated,
                       request_id)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT DO NOTHING
                   RETURNING input_tokens + output_tokens AS spent
               ), settled AS (
                   SELECT * FROM quota_settle($15, $2, $3, coalesce((SELECT spent FROM noted), 0))
               ), made AS (
                   INSERT INTO conversations (id, user_id, client_id, title, provider, model, system_prompt, terms,
                       created_at, message_count, last_message_at, updated_at)
                   SELECT $4, $2, $16, $17, $18, $19, $20, array_to_tsvector($21::text[]), $22, 2,
                       date_trunc('milliseconds', clock_timestamp()), date_trunc('milliseconds', clock_timestamp())
                   FROM noted WHERE $23::boolean AND $38::boolean
                   RETURNING id, message_count, created_at AS asked_at, last_message_at AS answered_at
               ), continued AS (
                   UPDATE conversations
                   SET message_count = CASE WHEN $24::integer IS NULL THEN message_count + 2
                           WHEN $35::boolean THEN $24 + 2 ELSE message_count END,
                       title = CASE WHEN untitled AND $37::boolean THEN $17 ELSE title END,
                       terms = CASE WHEN untitled AND $37 THEN array_to_tsvector($21) ELSE terms END,
                       untitled = untitled AND NOT $37,
                       provider = $18, model = $19, last_message_at = date_trunc('milliseconds', clock_timestamp()),
                       updated_at = date_trunc('milliseconds', clock_timestamp())
                   -- As it is once nobody else changes it: what waited for it is said after what it holds by then.
                   FROM (SELECT last_message_at AS before FROM conversations WHERE id = $4 FOR NO KEY UPDATE) locked
                   WHERE id = $4 AND user_id = $2 AND NOT $23 AND $38 AND EXISTS (SELECT FROM noted)
                   RETURNING id, message_count, greatest($22, before), last_message_at
               ), cut AS (
                   DELETE FROM messages
                   WHERE $35 AND conversation_id = (SELECT id FROM continued) AND position > $24 + 1
               ), place AS (
                   SELECT * FROM made UNION ALL SELECT * FROM continued
               ), written AS (
                   INSERT INTO messages (conversation_id, position, id, role, content, provider, model, finish_reason,
                       input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, cost_micro_usd, estimated,
                       terms, created_at, client_id)
                   SELECT id, coalesce($24, message_count - 2), $25::uuid, 'user', $26::text, NULL, NULL, NULL,
                       NULL, NULL, NULL, NULL, NULL, false, array_to_tsvector($27::text[]), asked_at, $36
                   FROM place WHERE $24 IS NULL OR $34::boolean
                   UNION ALL
                   SELECT id, coalesce($24 + 1, message_count - 1), $1, 'assistant', $28::text, $5, $6, $29::text,
                       $7, $8, $9, $10, $11, $13, array_to_tsvector($30::text[]), answered_at, NULL
                   FROM place
                   -- What is made anew is there; any other place that is taken fails the statement.
                   ON CONFLICT (conversation_id, position) DO UPDATE
                       SET id = CASE WHEN $24 IS NOT NULL THEN excluded.id END, content = excluded.content,
                           provider = excluded.provider, model = excluded.model, finish_reason = excluded.finish_reason,
                           input_tokens = excluded.input_tokens, cached_input_tokens = excluded.cached_input_tokens,
                           output_tokens = excluded.output_tokens, reasoning_tokens = excluded.reasoning_tokens,
                           cost_micro_usd = excluded.cost_micro_usd, estimated = excluded.estimated,
                           terms = excluded.terms, created_at = excluded.created_at,
                           client_id = excluded.client_id
               ), told AS (
                   INSERT INTO outbox (id, queue, body)
                   SELECT * FROM unnest($31::uuid[], $32::text[], $33::text[]) WHERE EXISTS (SELECT FROM noted)
               )
               SELECT s.used AS "used!", s.reserved AS "reserved!", p.id IS NOT NULL AS "placed!",
                   EXISTS (SELECT FROM noted) AS "noted!"
               FROM settled s LEFT JOIN place p ON true"#,
            self.answer_id,
            owner,
            self.reservation.month(),
            self.conversation_id,
            provider,
            outcome.model.model.id,
            usage.input_tokens,
            usage.cached_input_tokens,
            usage.output_tokens,
            usage.reasoning_tokens,
            cost,
            cost.map(|_| Catalogue::get().map(Catalogue::price_version)).transpose()?,
            usage.estimated,
            self.request_id.filter(|_| with_messages),
            self.reservation.id(),
            self.client_id,
            title,
            self.chosen.model.provider.as_str(),
            self.chosen.model.id,
            self.system_prompt,
            &search::terms(owner, &title),
            self.asked_at,
            self.is_new,
            place,
            self.question_id,
            self.question,
            &search::terms(owner, &self.question),
            outcome.text,
            outcome.finish.as_str(),
            &search::terms(owner, &outcome.text),
            &rows.ids,
            &rows.queues,
            &rows.bodies,
            self.edits.is_some(),
            self.cuts && place.is_some(),
            self.question_name,
            self.titles,
            with_messages,
        )
        .fetch_one(&mut *connection)
        .await;
        if self.regenerates.is_some() {
            let end = if row.is_ok() { "COMMIT" } else { "ROLLBACK" };
            sqlx::raw_sql(end).execute(&mut *connection).await?;
        }
        connection.give_back();
        let row = match row {
            Err(sqlx::Error::Database(refused)) if self.is_new && refused.constraint() == Some(ONE_OF_A_NAME) => {
                return Box::pin(self.joining(database).await?.store(database, outcome, trace)).await;
            }
            row => row?,
        };
        // An earlier try whose answer was lost may have joined another conversation.
        let conversation_id = if row.noted { self.conversation_id } else { self.noted_in(database).await? };
        if row.noted {
            database.dispatch(messages);
        }
        Ok(Stored {
            quota: Quota::new(self.reservation.plan(), self.reservation.month(), row.used, row.reserved),
            conversation_id,
            is_titled: self.titles && row.placed,
            cost_micro_usd: cost,
        })
    }

    /// Begins a transaction in which nothing is added to the conversation, so that all that follows is seen and deleted.
    /// Returns the question unless that has gone meanwhile: then it is asked at the end.
    async fn hold_still(&self, connection: &mut PgConnection, position: i32) -> Result<Option<Question>> {
        sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
        // In the order of the locks.
        sqlx::query!(
            "SELECT FROM quota_periods WHERE user_id = $1 AND period = $2 FOR UPDATE",
            self.subject.user_id,
            self.reservation.month(),
        )
        .execute(&mut *connection)
        .await?;
        sqlx::query!("SELECT FROM conversations WHERE id = $1 FOR UPDATE", self.conversation_id)
            .execute(&mut *connection)
            .await?;
        match &self.edits {
            Some(name) => question_of(connection, self.conversation_id, name).await,
            None => {
                let there = question_at(connection, self.conversation_id, position).await?;
                Ok(there.filter(|there| there.content == self.question))
            }
        }
    }

    /// The same exchange in the conversation that another one has just made under the same client id.
    async fn joining(&self, database: &Database) -> Result<Self> {
        let id = sqlx::query_scalar!(
            "SELECT id FROM conversations WHERE user_id = $1 AND client_id = $2",
            self.subject.user_id,
            self.client_id,
        )
        .fetch_one(database.pool())
        .await?;
        Ok(Self { conversation_id: id, is_new: false, ..self.clone() })
    }

    /// The conversation that the ledger tells of the answer.
    async fn noted_in(&self, database: &Database) -> Result<Uuid> {
        let id = sqlx::query_scalar!("SELECT conversation_id FROM usage_ledger WHERE id = $1", self.answer_id);
        Ok(id.fetch_one(database.pool()).await?)
    }

    fn event(&self, outcome: &Outcome, cost: Option<i64>, regenerated: bool) -> Result<Event> {
        let usage = &outcome.usage;
        let event = match outcome.failure {
            None => Event::about(&self.subject, "chat.message_sent")
                .with("messageId", self.answer_id.to_string())
                .with("ttftMs", outcome.ttft_ms)
                .with("priceVersion", cost.map(|_| Catalogue::get().map(Catalogue::price_version)).transpose()?)
                .with("finishReason", outcome.finish.as_str())
                .with("streamed", self.streamed)
                .with("regenerated", regenerated),
            Some(class) => Event::about(&self.subject, "chat.message_failed").with("errorClass", class),
        };
        Ok(event
            .with("conversationId", self.conversation_id.to_string())
            .with("provider", outcome.model.model.provider.as_str())
            .with("model", outcome.model.model.id.as_str())
            .with("requestedModel", self.requested_model.as_str())
            .with("inputTokens", usage.input_tokens)
            .with("cachedInputTokens", usage.cached_input_tokens)
            .with("outputTokens", usage.output_tokens)
            .with("reasoningTokens", usage.reasoning_tokens)
            .with("costMicroUsd", cost)
            .with("latencyMs", outcome.latency_ms)
            .with("attempts", outcome.attempts)
            .with("fallbackFrom", outcome.fallback_from.map(ProviderId::as_str)))
    }

    /// Releases the reservation and tells of the failure: nothing was produced, or nothing that anybody saw.
    ///
    /// # Errors
    /// When the database does not answer; then the sweep releases the reservation.
    pub async fn give_up(
        &self,
        mut transaction: Transaction,
        class: &'static str,
        attempts: u32,
        latency_ms: i64,
    ) -> Result<()> {
        self.reservation.settle(transaction.connection(), 0).await?;
        let outcome = Outcome {
            model: self.chosen.clone(),
            text: String::new(),
            usage: Usage::default(),
            finish: FinishReason::Error,
            failure: Some(class),
            ttft_ms: None,
            latency_ms,
            attempts,
            fallback_from: None,
        };
        let mut event = self.event(&outcome, None, false)?;
        if self.is_new {
            // The conversation was never made.
            event = event.with("conversationId", serde_json::Value::Null);
        }
        transaction.publish(event);
        transaction.commit().await
    }
}
