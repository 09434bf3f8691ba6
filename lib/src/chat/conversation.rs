//! Conversations and messages as they are stored and shown.

use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::auth::account::Visit;
use crate::billing::plan::Plan;
use crate::chat::catalogue::{Catalogue, ProviderId};
use crate::chat::live::{Streams, UnderWay};
use crate::chat::provider::Usage;
use crate::chat::search;
use crate::clock;
use crate::crypto;
use crate::error::{Code, Error, Result};
use crate::events::Event;
use crate::http::page::{self, Cursor, Limit};
use crate::http::validate::{Field, Invalid, Raw};
use crate::store::postgres::{Database, Transaction};

/// Characters of a title that is made from a message.
const TITLE_LENGTH: usize = 60;

/// A conversation as the API shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conversation {
    /// The conversation's id.
    pub id: Uuid,
    /// Its title.
    pub title: String,
    /// The provider that goes on answering, if one was chosen.
    pub provider: Option<String>,
    /// The model that goes on answering, if one was chosen.
    pub model: Option<String>,
    /// Instructions to the model.
    pub system_prompt: Option<String>,
    /// Whether the client shows it first.
    pub pinned: bool,
    /// Whether the client hides it.
    pub archived: bool,
    /// Messages in it.
    pub message_count: i32,
    /// When it was made.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub created_at: OffsetDateTime,
    /// When it last changed.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub updated_at: OffsetDateTime,
    /// When something was last said in it.
    #[serde(serialize_with = "crate::clock::text::option::serialize")]
    pub last_message_at: Option<OffsetDateTime>,
}

/// What a new conversation is made of.
#[derive(Debug)]
pub struct NewConversation {
    /// A title, or one for the time being.
    pub title: Option<String>,
    /// The provider, if the client cares.
    pub provider: Option<ProviderId>,
    /// The model, if the client cares.
    pub model: Option<String>,
    /// Instructions to the model.
    pub system_prompt: Option<String>,
}

/// What a client may change.
#[derive(Debug)]
pub struct Change {
    /// Another title.
    pub title: Option<String>,
    /// Whether to show it first.
    pub pinned: Option<bool>,
    /// Whether to hide it.
    pub archived: Option<bool>,
}

/// Which conversations to list.
#[derive(Debug)]
pub struct Filter {
    /// Words in title or messages.
    pub q: Option<String>,
    /// Hidden ones, or shown ones.
    pub archived: bool,
    /// Pinned ones, or the others; both by default.
    pub pinned: Option<bool>,
}

/// How much is spent on either way to search before the other one is taken.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Conversations that are looked through at first.
    pub first_walk: i64,
    /// Hits that are looked up one by one.
    pub few: i64,
    /// Hits of the index that are looked at.
    pub hits: i64,
    /// Conversations that are looked through when there are more hits.
    pub second_walk: i64,
}

impl Default for Effort {
    fn default() -> Self {
        Self { first_walk: 100, few: 300, hits: 3_000, second_walk: 5_000 }
    }
}

/// A part of somebody's conversations, newest activity first.
struct Shelf {
    user_id: Uuid,
    archived: bool,
    pinned: Option<bool>,
    at: OffsetDateTime,
    id: Uuid,
    limit: i64,
}

/// In which order messages come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The oldest first.
    Ascending,
    /// The newest first.
    Descending,
}

impl Field for Order {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        match raw.text()? {
            "asc" => Ok(Self::Ascending),
            "desc" => Ok(Self::Descending),
            _ => Err(Invalid::new("unknown_value", "Must be asc or desc.")),
        }
    }

    fn missing() -> Result<Self, Invalid> {
        Ok(Self::Ascending)
    }
}

/// Where a page of messages begins: after the message of this position, in the order of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(i32);

impl Place {
    fn encode(self) -> String {
        crypto::base64url(&self.0.to_be_bytes())
    }
}

impl Field for Place {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let bytes = crypto::from_base64url(raw.text()?).and_then(|bytes| bytes.try_into().ok());
        let place = bytes.map(i32::from_be_bytes).filter(|position| *position >= 0);
        place.map(Self).ok_or_else(page::malformed_cursor)
    }
}

/// The conversations, for reading and changing.
pub struct Conversations {
    database: Database,
    effort: Effort,
}

impl Conversations {
    /// Connects lazily.
    ///
    /// # Errors
    /// When the database secret cannot be read.
    pub async fn init() -> Result<Self> {
        Ok(Self::new(Database::init().await?))
    }

    /// The conversations of a database.
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database, effort: Effort::default() }
    }

    /// The same with another effort at searching, which must not change what is found.
    #[must_use]
    pub fn with_effort(self, effort: Effort) -> Self {
        Self { effort, ..self }
    }

    /// Makes an empty conversation.
    ///
    /// # Errors
    /// 400 `model_not_available` for a model that is not in the catalogue, or not the provider's.
    pub async fn create(&self, user_id: Uuid, new: NewConversation, visit: &Visit) -> Result<Conversation> {
        let catalogue = Catalogue::get()?;
        let choice = new.model.as_deref().map(|id| {
            let found = catalogue.find(id);
            found
                .filter(|choice| new.provider.is_none_or(|provider| provider == choice.model.provider))
                .ok_or_else(|| Error::new(Code::ModelNotAvailable, "`GET /api/chat/models` lists the models."))
        });
        let choice = choice.transpose()?.or_else(|| new.provider.and_then(|provider| catalogue.default_of(provider)));
        let is_untitled = new.title.is_none();
        let title = new.title.unwrap_or_else(|| "New conversation".to_owned());
        let mut transaction = self.database.begin(&visit.trace).await?;
        let plan = plan_of(&mut transaction, user_id).await?;
        let now = clock::now();
        let conversation = sqlx::query_as!(
            Conversation,
            "INSERT INTO conversations (id, user_id, title, provider, model, system_prompt, terms, created_at, updated_at,
                 untitled)
             VALUES ($1, $2, $3, $4, $5, $6, array_to_tsvector($7::text[]), $8, $8, $9)
             RETURNING id, title, provider, model, system_prompt, pinned, archived, message_count, created_at,
                 updated_at, last_message_at",
            Uuid::now_v7(),
            user_id,
            title,
            choice.as_ref().map(|choice| choice.model.provider.as_str()),
            choice.as_ref().map(|choice| choice.model.id.as_str()),
            new.system_prompt.filter(|text| !text.is_empty()),
            &search::terms(user_id, &title),
            now,
            is_untitled,
        )
        .fetch_one(transaction.connection())
        .await?;
        let event = Event::about(&visit.subject(user_id, plan), "chat.conversation_created");
        transaction.publish(event.with("conversationId", conversation.id.to_string()));
        transaction.commit().await?;
        Ok(conversation)
    }

    /// A user's conversations, newest activity first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(
        &self,
        user_id: Uuid,
        filter: &Filter,
        limit: Limit,
        after: Option<Cursor>,
    ) -> Result<(Vec<Conversation>, Option<String>)> {
        let (at, id) = page::place(after);
        let shelf = Shelf { user_id, archived: filter.archived, pinned: filter.pinned, at, id, limit: limit.0 + 1 };
        let words = match filter.q.as_deref().map(|q| search::query(user_id, q)) {
            None => None,
            Some(Some(words)) => Some(words),
            // Something was asked for that has no words in it: nothing has it.
            Some(None) => return Ok((Vec::new(), None)),
        };
        let rows = match words {
            None if filter.pinned == Some(true) => self.pinned(&shelf).await?,
            None => {
                sqlx::query_as!(
                    Conversation,
                    "SELECT id, title, provider, model, system_prompt, pinned, archived, message_count, created_at,
                         updated_at, last_message_at
                     FROM conversations
                     WHERE user_id = $1 AND archived = $2
                         AND (active_at, id) < ($3, $4)
                         AND ($6::boolean IS NULL OR pinned = $6)
                     ORDER BY active_at DESC, id DESC LIMIT $5",
                    user_id,
                    filter.archived,
                    at,
                    id,
                    shelf.limit,
                    filter.pinned,
                )
                .fetch_all(self.database.pool())
                .await?
            }
            Some(words) => self.search(&words, &shelf).await?,
        };
        let cursor = |row: &Conversation| Cursor { at: row.last_message_at.unwrap_or(row.created_at), id: row.id };
        let limit = limit.fitting(&rows)?;
        Ok(page::split(rows, limit, cursor))
    }

    /// The next pinned conversations, which have an index of their own.
    async fn pinned(&self, shelf: &Shelf) -> Result<Vec<Conversation>> {
        let rows = sqlx::query_as!(
            Conversation,
            "SELECT id, title, provider, model, system_prompt, pinned, archived, message_count, created_at,
                 updated_at, last_message_at
             FROM conversations
             WHERE user_id = $1 AND archived = $2 AND pinned
                 AND (active_at, id) < ($3, $4)
             ORDER BY active_at DESC, id DESC LIMIT $5",
            shelf.user_id,
            shelf.archived,
            shelf.at,
            shelf.id,
            shelf.limit,
        );
        Ok(rows.fetch_all(self.database.pool()).await?)
    }

    /// The next conversations in which something has all of the words.
    ///
    /// Two ways lead to the same page. Walking along the shelf is quick for words that many conversations have,
    /// asking the index for all that have them is quick for rare ones; so both are tried with little effort
    /// before more is spent, and the last way always comes to an end.
    async fn search(&self, words: &str, shelf: &Shelf) -> Result<Vec<Conversation>> {
        let full = usize::try_from(shelf.limit).unwrap_or(usize::MAX);
        let found = self.walk(words, shelf, self.effort.first_walk).await?;
        if found.len() >= full {
            return Ok(found);
        }
        if let Some(found) = self.look_up(words, shelf, self.effort.hits).await? {
            return Ok(found);
        }
        let found = self.walk(words, shelf, self.effort.second_walk).await?;
        if found.len() >= full {
            return Ok(found);
        }
        Ok(self.look_up(words, shelf, i64::from(i32::MAX)).await?.unwrap_or_default())
    }

    /// Looks through so many of the next conversations, and through a few times as many messages at most. A full
    /// page is the right one; another says nothing.
    async fn walk(&self, words: &str, shelf: &Shelf, conversations: i64) -> Result<Vec<Conversation>> {
        // What stands behind OFFSET 0 and CASE is meant to be read one by one, not by the index of words.
        let rows = sqlx::query_as!(
            Conversation,
            "SELECT id, title, provider, model, system_prompt, pinned, archived, message_count, created_at,
                 updated_at, last_message_at
             FROM (SELECT *, sum(message_count) OVER (ORDER BY active_at DESC, id DESC ROWS UNBOUNDED PRECEDING) AS read
                   FROM conversations
                   WHERE user_id = $1 AND archived = $2 AND (active_at, id) < ($3, $4)
                   ORDER BY active_at DESC, id DESC LIMIT $7) next
             WHERE read <= $7 * 10
                 AND ($8::boolean IS NULL OR pinned = $8)
                 AND (terms @@ $6::text::tsquery
                      OR EXISTS (SELECT FROM messages m
                                 WHERE m.conversation_id = next.id
                                     AND CASE WHEN m.terms @@ $6::text::tsquery THEN true END OFFSET 0))
             ORDER BY active_at DESC, id DESC LIMIT $5",
            shelf.user_id,
            shelf.archived,
            shelf.at,
            shelf.id,
            shelf.limit,
            words,
            conversations,
            shelf.pinned,
        );
        Ok(rows.fetch_all(self.database.pool()).await?)
    }

    /// Asks the index for what has the words; `None` if that is more than so many.
    async fn look_up(&self, words: &str, shelf: &Shelf, hits: i64) -> Result<Option<Vec<Conversation>>> {
        // OFFSET 0 and CASE keep to these two ways whatever the planner expects: a few hits are looked up one by
        // one, more are what the index of the shelf is compared with, from its newest end to the full page.
        let rows = sqlx::query!(
            r#"WITH hits AS MATERIALIZED (
                   SELECT id FROM conversations WHERE terms @@ $6::text::tsquery
                   UNION ALL
                   SELECT conversation_id FROM messages WHERE terms @@ $6::text::tsquery
                   LIMIT $7::bigint + 1
               ), number AS MATERIALIZED (
                   SELECT count(*) AS of_hits FROM hits
               ), page AS MATERIALIZED (
                   (SELECT c.id
                    FROM (SELECT DISTINCT id FROM hits WHERE (SELECT of_hits FROM number) <= least($7, $8)) few
                    CROSS JOIN LATERAL (SELECT * FROM conversations WHERE conversations.id = few.id OFFSET 0) c
                    WHERE c.user_id = $1 AND c.archived = $2 AND (c.active_at, c.id) < ($3, $4)
                        AND ($9::boolean IS NULL OR c.pinned = $9)
                    ORDER BY c.active_at DESC, c.id DESC LIMIT $5)
                   UNION ALL
                   (SELECT id FROM conversations
                    WHERE user_id = $1 AND archived = $2 AND (active_at, id) < ($3, $4)
                        AND ($9::boolean IS NULL OR pinned = $9)
                        AND (SELECT of_hits FROM number) BETWEEN $8 + 1 AND $7
                        AND CASE WHEN id IN (SELECT id FROM hits) THEN true END
                    ORDER BY active_at DESC, id DESC LIMIT $5)
               )
               SELECT of_hits AS "hits!", c.id AS "id?", title AS "title?", provider, model, system_prompt,
                   pinned AS "pinned?", archived AS "archived?", message_count AS "message_count?",
                   created_at AS "created_at?", updated_at AS "updated_at?", last_message_at
               FROM number LEFT JOIN (page JOIN conversations c ON c.id = page.id) ON true
               ORDER BY active_at DESC, c.id DESC"#,
            shelf.user_id,
            shelf.archived,
            shelf.at,
            shelf.id,
            shelf.limit,
            words,
            hits,
            self.effort.few,
            shelf.pinned,
        );
        let rows = rows.fetch_all(self.database.pool()).await?;
        if rows.first().is_some_and(|row| row.hits > hits) {
            return Ok(None);
        }
        let found = rows.into_iter().filter_map(|row| {
            Some(Conversation {
                id: row.id?,
                title: row.title?,
                provider: row.provider,
                model: row.model,
                system_prompt: row.system_prompt,
                pinned: row.pinned?,
                archived: row.archived?,
                message_count: row.message_count?,
                created_at: row.created_at?,
                updated_at: row.updated_at?,
                last_message_at: row.last_message_at,
            })
        });
        Ok(Some(found.collect()))
    }

    /// A conversation.
    ///
    /// # Errors
    /// 404 when it is not the user's.
    pub async fn get(&self, user_id: Uuid, id: Uuid) -> Result<Conversation> {
        sqlx::query_as!(
            Conversation,
            "SELECT id, title, provider, model, system_prompt, pinned, archived, message_count, created_at,
                 updated_at, last_message_at
             FROM conversations WHERE id = $1 AND user_id = $2",
            id,
            user_id,
        )
        .fetch_optional(self.database.pool())
        .await?
        .ok_or_else(|| Error::not_found("conversation"))
    }

    /// The messages of a conversation that the caller has proved to be theirs.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn messages(
        &self,
        conversation: Uuid,
        order: Order,
        limit: Limit,
        after: Option<Place>,
    ) -> Result<(Vec<Message>, Option<String>)> {
        let is_ascending = order == Order::Ascending;
        let end = if is_ascending { -1 } else { i32::MAX };
        // The order says which of the two is read, along the index in either direction. What certainly does not fit in
        // the reply stays where it is, but for the one message that tells of a next page.
        let rows = sqlx::query!(
            r#"SELECT position AS "position!", id AS "id!", role AS "role!", content AS "content!", provider, model,
                   finish_reason, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, cost_micro_usd,
                   estimated AS "estimated!", created_at AS "created_at!"
               FROM (SELECT *, sum(octet_length(content)) OVER (ORDER BY CASE WHEN $4 THEN position ELSE -position END
                         ROWS BETWEEN UNBOUNDED PRECEDING AND 2 PRECEDING) AS before
                     FROM ((SELECT * FROM messages
                            WHERE $4 AND conversation_id = $1 AND position > $2 ORDER BY position LIMIT $3)
                           UNION ALL
                           (SELECT * FROM messages
                            WHERE NOT $4 AND conversation_id = $1 AND position < $2 ORDER BY position DESC LIMIT $3)
                     ) page) sized
               WHERE coalesce(before, 0) < $5
               ORDER BY CASE WHEN $4 THEN position ELSE -position END"#,
            conversation,
            after.map_or(end, |place| place.0),
            limit.0 + 1,
            is_ascending,
            i64::try_from(page::ROOM).unwrap_or(i64::MAX),
        )
        .fetch_all(self.database.pool())
        .await?;
        let places: Vec<_> = rows.iter().map(|row| Place(row.position)).collect();
        let messages = rows.into_iter().map(|row| Message {
            id: row.id,
            role: row.role,
            content: row.content,
            provider: row.provider,
            model: row.model,
            usage: row.input_tokens.map(|input_tokens| {
                let usage = Usage {
                    input_tokens,
                    cached_input_tokens: row.cached_input_tokens.unwrap_or_default(),
                    output_tokens: row.output_tokens.unwrap_or_default(),
                    reasoning_tokens: row.reasoning_tokens.unwrap_or_default(),
                    estimated: row.estimated,
                    ..Usage::default()
                };
                usage_json(&usage, row.cost_micro_usd)
            }),
            finish_reason: row.finish_reason,
            created_at: row.created_at,
        });
        let mut messages: Vec<_> = messages.collect();
        let size = usize::try_from(limit.fitting(&messages)?.0).unwrap_or(usize::MAX);
        let next = places.get(size).and_then(|_| places.get(size - 1)).map(|last| last.encode());
        messages.truncate(size);
        Ok((messages, next))
    }

    /// Renames, pins or hides a conversation.
    ///
    /// # Errors
    /// 404 when it is not the user's.
    pub async fn change(&self, user_id: Uuid, id: Uuid, change: Change) -> Result<Conversation> {
        let terms = change.title.as_deref().map(|title| search::terms(user_id, title));
        sqlx::query_as!(
            Conversation,
            "UPDATE conversations SET title = coalesce($3, title), untitled = untitled AND $3::text IS NULL,
                 pinned = coalesce($4, pinned),
                 archived = coalesce($5, archived), terms = coalesce(array_to_tsvector($6::text[]), terms),
                 updated_at = $7
             WHERE id = $1 AND user_id = $2
             RETURNING id, title, provider, model, system_prompt, pinned, archived, message_count, created_at,
                 updated_at, last_message_at",
            id,
            user_id,
            change.title,
            change.pinned,
            change.archived,
            terms.as_deref(),
            clock::now(),
        )
        .fetch_optional(self.database.pool())
        .await?
        .ok_or_else(|| Error::not_found("conversation"))
    }

    /// Deletes a conversation, also one whose first answer is under way, and ends the answer under way in it.
    ///
    /// # Errors
    /// 404 for another's conversation.
    pub async fn delete_with_stream(&self, streams: &Streams, user_id: Uuid, id: Uuid, visit: &Visit) -> Result<()> {
        match self.delete(user_id, id, visit).await {
            Ok(()) => {
                if let Err(error) = Self::end_answers(streams, user_id, id).await {
                    tracing::warn!(error.cause = %error, "an answer in a deleted conversation could not be ended");
                }
                Ok(())
            }
            // It is stored with its first answer, maybe just now.
            Err(error) if error.code() == Code::NotFound => {
                for first in Self::answers_in(streams, user_id, id, true).await? {
                    streams.end_unwanted(user_id, first.stream_id, true).await?;
                }
                self.delete(user_id, id, visit).await
            }
            deleted => deleted,
        }
    }

    /// Ends what nobody can read any more.
    async fn end_answers(streams: &Streams, user_id: Uuid, conversation: Uuid) -> Result<()> {
        for answer in Self::answers_in(streams, user_id, conversation, false).await? {
            streams.wish_end(answer.stream_id).await?;
        }
        Ok(())
    }

    /// The answers under way in a conversation. Another one may be called by its id: a client's own name is any text.
    async fn answers_in(
        streams: &Streams,
        user_id: Uuid,
        conversation: Uuid,
        must_know: bool,
    ) -> Result<Vec<UnderWay>> {
        let mut found = streams.under_way(user_id, &conversation.to_string(), must_know).await?;
        found.retain(|answer| answer.conversation_id.is_none_or(|id| id == conversation));
        Ok(found)
    }

    /// Deletes a conversation with its messages; what they cost stays on the ledger.
    ///
    /// # Errors
    /// 404 when it is not the user's.
    pub async fn delete(&self, user_id: Uuid, id: Uuid, visit: &Visit) -> Result<()> {
        let mut transaction = self.database.begin(&visit.trace).await?;
        let deleted = sqlx::query!("DELETE FROM conversations WHERE id = $1 AND user_id = $2", id, user_id)
            .execute(transaction.connection())
            .await?;
        if deleted.rows_affected() == 0 {
            return Err(Error::not_found("conversation"));
        }
        let plan = plan_of(&mut transaction, user_id).await?;
        let event = Event::about(&visit.subject(user_id, plan), "chat.conversation_deleted");
        transaction.publish(event.with("conversationId", id.to_string()));
        transaction.commit().await
    }
}

async fn plan_of(transaction: &mut Transaction, user_id: Uuid) -> Result<Plan> {
    let plan = sqlx::query_scalar!("SELECT plan FROM users WHERE id = $1", user_id);
    let plan = plan.fetch_optional(transaction.connection()).await?;
    Plan::stored(&plan.ok_or_else(Error::unauthenticated)?)
}

/// A message as the API shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// The message's id.
    pub id: Uuid,
    /// Who said it.
    pub role: String,
    /// What was said.
    pub content: String,
    /// Who answered.
    pub provider: Option<String>,
    /// What answered.
    pub model: Option<String>,
    /// The tokens of the exchange, on its answer.
    pub usage: Option<Value>,
    /// Why the answer ended.
    pub finish_reason: Option<String>,
    /// When it was said.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub created_at: OffsetDateTime,
}

/// Tokens and cost as the API shows them.
#[must_use]
pub fn usage_json(usage: &Usage, cost_micro_usd: Option<i64>) -> Value {
    let mut value = json!({
        "inputTokens": usage.input_tokens,
        "cachedInputTokens": usage.cached_input_tokens,
        "outputTokens": usage.output_tokens,
        "reasoningTokens": usage.reasoning_tokens,
        "totalTokens": usage.total(),
        "costMicroUsd": cost_micro_usd,
    });
    if usage.estimated {
        value["estimated"] = true.into();
    }
    value
}

/// The title of a conversation that begins with a message: its beginning, on one line.
#[must_use]
pub fn title_of(message: &str) -> String {
    let mut title = String::new();
    let mut length = 0;
    for word in message.split_whitespace() {
        let word_length = word.chars().count();
        if length > 0 && length + 1 + word_length > TITLE_LENGTH {
            title.push('…');
            break;
        }
        if length > 0 {
            title.push(' ');
            length += 1;
        }
        if word_length > TITLE_LENGTH {
            title.extend(word.chars().take(TITLE_LENGTH));
            title.push('…');
            break;
        }
        title.push_str(word);
        length += word_length;
    }
    title
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_one_short_line() {
        assert_eq!(title_of("  Hello,\n\tworld \r\n"), "Hello, world");
        assert_eq!(title_of(&"word ".repeat(20)), format!("{}word…", "word ".repeat(11)));
        assert_eq!(title_of(&"x".repeat(100)), format!("{}…", "x".repeat(60)));
    }
}
