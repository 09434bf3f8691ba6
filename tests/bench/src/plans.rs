//! A user with very many conversations, and how Postgres answers what the API asks about them: the statements are
//! taken from the descriptions that they were compiled with.

use std::path::PathBuf;

use lib::chat::conversation::Effort;
use lib::http::page::ROOM;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor};
use uuid::Uuid;

use crate::deployed::root;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The first page of the conversations.
    List,
    /// The first page of the few that are pinned.
    Pinned,
    /// The first page of those with a word, if the newest ones fill it.
    Walk(&'static str),
    /// The same by the index of words, if it has few with that word.
    LookUp(&'static str),
    /// The first page of a conversation's messages.
    Messages,
    /// Its last messages.
    LastMessages,
}

/// Somebody who talks much.
#[derive(Debug, Clone, Copy)]
pub struct Talker {
    /// Their id.
    pub user: Uuid,
    /// A conversation with very many messages.
    pub long: Uuid,
}

impl Talker {
    /// Makes so many conversations of a question and an answer each, and one of so many messages.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn new(connection: &mut PgConnection, conversations: i32, messages: i32) -> Result<Self, sqlx::Error> {
        let (user, long) = (Uuid::now_v7(), Uuid::now_v7());
        sqlx::query("INSERT INTO users (id, email, password_hash) VALUES ($1, $2, 'none')")
            .bind(user)
            .bind(format!("{}@example.com", user.simple()))
            .execute(&mut *connection)
            .await?;
        sqlx::query(
            "INSERT INTO conversations (id, user_id, title, pinned, message_count, terms, created_at, last_message_at)
             SELECT CASE n WHEN 0 THEN $3 ELSE gen_random_uuid() END, $1, 'Talk ' || n, n % 1000 = 0, 2,
                 array_to_tsvector(ARRAY[$2 || 'talk', $2 || n]), now() - n * interval '1 minute',
                 now() - n * interval '1 minute'
             FROM generate_series(0, $4) n",
        )
        .bind(user)
        .bind(mark(user))
        .bind(long)
        .bind(conversations)
        .execute(&mut *connection)
        .await?;
        // One word in a thousand conversations, one in a hundred, one in each.
        sqlx::query(
            "INSERT INTO messages (conversation_id, position, id, role, content, terms, created_at)
             SELECT id, p, gen_random_uuid(), CASE p WHEN 0 THEN 'user' ELSE 'assistant' END, 'Some words ' || n,
                 array_to_tsvector(ARRAY[$2 || 'some', $2 || 'words'] || CASE WHEN n % 1000 = 0 AND p = 0
                     THEN ARRAY[$2 || 'seldom'] ELSE '{}' END || CASE WHEN n % 100 = 0 AND p = 0
                     THEN ARRAY[$2 || 'often'] ELSE '{}' END), now()
             FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM conversations WHERE user_id = $1 AND id <> $3) c,
                 generate_series(0, 1) p",
        )
        .bind(user)
        .bind(mark(user))
        .bind(long)
        .execute(&mut *connection)
        .await?;
        sqlx::query(
            "INSERT INTO messages (conversation_id, position, id, role, content, terms, created_at)
             SELECT $1, p, gen_random_uuid(), CASE p % 2 WHEN 0 THEN 'user' ELSE 'assistant' END, 'Words ' || p,
                 array_to_tsvector(ARRAY[$2 || 'words']), now()
             FROM generate_series(0, $3 - 1) p",
        )
        .bind(long)
        .bind(mark(user))
        .bind(messages)
        .execute(&mut *connection)
        .await?;
        // What was added at once waits outside the tree until somebody sorts it in.
        connection.execute("SELECT gin_clean_pending_list('conversations_terms')").await?;
        connection.execute("SELECT gin_clean_pending_list('messages_terms')").await?;
        connection.execute("ANALYZE conversations").await?;
        connection.execute("ANALYZE messages").await?;
        Ok(Self { user, long })
    }

    /// The plan that Postgres carries out for a question, with its times.
    ///
    /// # Errors
    /// When the database refuses, or no statement asks that.
    pub async fn plan(self, connection: &mut PgConnection, question: Question) -> Result<Vec<String>, String> {
        let page = format!("'{}', false, '9999-12-31', '{}', 21", self.user, Uuid::max());
        let (statement, values) = match question {
            Question::List => {
                let list = statement(&["FROM conversations", "pinned = $6", "ORDER BY active_at DESC"], "tsquery")?;
                (list, format!("{page}, NULL"))
            }
            Question::Pinned => {
                let pinned = statement(&["FROM conversations", "AND pinned", "ORDER BY active_at DESC"], "tsquery")?;
                (pinned, page)
            }
            Question::Walk(word) => {
                let walk = statement(&["ROWS UNBOUNDED PRECEDING", "tsquery"], "UPDATE")?;
                (walk, format!("{page}, '''{}{word}'':*', {}, NULL", mark(self.user), Effort::default().first_walk))
            }
            Question::LookUp(word) => {
                let look_up = statement(&["WITH hits AS", "tsquery"], "UPDATE")?;
                let Effort { few, hits, .. } = Effort::default();
                (look_up, format!("{page}, '''{}{word}'':*', {hits}, {few}, NULL", mark(self.user)))
            }
            Question::Messages | Question::LastMessages => {
                let messages = statement(&["FROM ((SELECT * FROM messages"], "UPDATE")?;
                let page = if question == Question::Messages { "-1, 21, true" } else { "2147483647, 21, false" };
                (messages, format!("'{}', {page}, {}", self.long, ROOM))
            }
        };
        let text = |error: sqlx::Error| error.to_string();
        connection.execute(AssertSqlSafe(format!("PREPARE asked AS {statement}"))).await.map_err(text)?;
        let explain = AssertSqlSafe(format!("EXPLAIN (ANALYZE, COSTS OFF) EXECUTE asked({values})"));
        let plan = sqlx::query_scalar(explain).fetch_all(&mut *connection).await;
        connection.execute("DEALLOCATE asked").await.map_err(text)?;
        plan.map_err(text)
    }
}

/// What stands before every word of a user in the index.
fn mark(user: Uuid) -> String {
    user.simple().to_string()[20..].to_owned()
}

/// The one compiled statement with these parts and without that one.
fn statement(with: &[&str], without: &str) -> Result<String, String> {
    let folder: PathBuf = root().join(".sqlx");
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        let text = std::fs::read_to_string(entry.path()).map_err(|error| error.to_string())?;
        let description: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let query = description["query"].as_str().unwrap_or_default();
        if with.iter().all(|part| query.contains(part)) && !query.contains(without) {
            found.push(query.to_owned());
        }
    }
    match <[String; 1]>::try_from(found) {
        Ok([statement]) => Ok(statement),
        Err(found) => Err(format!("{} statements have {with:?}", found.len())),
    }
}
