//! Sessions in DynamoDB: one item each, found by the ids inside the token, proved by its secret.
//!
//! A session token is the user's id, the session's id, a generation and a 256-bit secret. The item holds the
//! secret's hash only. Refreshing moves the generation on by one; the secret of each generation is derived
//! from the item's random seed and a key in Secrets Manager, so that every tab that refreshes the same token
//! gets the same successor, and an old token can be told from a forged one, with no secret stored.

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::try_join_all;
use serde::Deserialize;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::auth::account::Visit;
use crate::auth::jwt::Claims;
use crate::auth::role::Role;
use crate::background;
use crate::clock;
use crate::config::Secret;
use crate::crypto;
use crate::error::{Code, Error, Result};
use crate::secrets;
use crate::store::dynamo::{
    Item, Table, binary, epoch_seconds, get_digest, get_id, get_number, get_text, number, text, unless_refused,
};

/// A session ends when it has not been used for so long.
pub const IDLE_LIFETIME: Duration = Duration::days(7);
/// A session ends at this age, however much it is used.
pub const ABSOLUTE_LIFETIME: Duration = Duration::days(30);
/// A replaced token is answered with its successor for so long, for tabs that refresh at the same time.
const GRACE: Duration = Duration::seconds(10);
/// The last use is written down when the one on record is older than this.
const SLIDE_AFTER: Duration = Duration::minutes(5);
/// Every session token begins with this.
pub const TOKEN_PREFIX: &str = "st_";
/// Sessions of a user that are ended side by side: one by one, thousands would take longer than a function may.
const ENDED_AT_ONCE: usize = 25;
/// Rotations that are remembered, newest first; more within the grace would be no browser.
const REMEMBERED_ROTATIONS: usize = 16;

/// A session token, taken apart.
#[derive(Clone)]
pub struct SessionToken {
    /// Whose session it is, if the secret proves it.
    pub user_id: Uuid,
    session_id: Uuid,
    generation: u32,
    secret: [u8; 32],
}

impl SessionToken {
    /// Takes a token apart; proves nothing yet.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 68] = crypto::from_base64url(text.strip_prefix(TOKEN_PREFIX)?)?.try_into().ok()?;
        let (ids, rest) = bytes.split_at(32);
        let (generation, secret) = rest.split_at(4);
        Some(Self {
            user_id: Uuid::from_slice(&ids[..16]).ok()?,
            session_id: Uuid::from_slice(&ids[16..]).ok()?,
            generation: u32::from_be_bytes(generation.try_into().ok()?),
            secret: secret.try_into().ok()?,
        })
    }

    /// The text that the client keeps.
    #[must_use]
    pub fn reveal(&self) -> String {
        let mut bytes = Vec::with_capacity(68);
        bytes.extend_from_slice(self.user_id.as_bytes());
        bytes.extend_from_slice(self.session_id.as_bytes());
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.extend_from_slice(&self.secret);
        format!("{TOKEN_PREFIX}{}", crypto::base64url(&bytes))
    }
}

/// A session as it is stored.
#[derive(Debug, Clone)]
pub struct Session {
    /// The session's id.
    pub id: Uuid,
    /// Whose session it is.
    pub user_id: Uuid,
    /// The user's role when the session began or the role last changed.
    pub role: Role,
    /// What the client called itself at sign-in.
    pub device: String,
    /// The client's address at sign-in.
    pub ip: String,
    /// When the session began.
    pub created_at: OffsetDateTime,
    /// When it was last seen in use, to a few minutes.
    pub last_seen_at: OffsetDateTime,
    generation: u32,
    hash: [u8; 32],
    seed: [u8; 32],
    /// Moments of the latest rotations, newest first, in milliseconds.
    rotated: Vec<i64>,
    successor_used: bool,
}

impl Session {
    /// When the session ends unless it is used.
    #[must_use]
    pub fn expires_at(&self) -> OffsetDateTime {
        ends(self.last_seen_at, self.created_at)
    }

    /// Whether an access token of this second was handed out together with the current session token.
    ///
    /// A second tells no order within itself. A token of the second of the rotation counts unless the session began or
    /// was rotated before in that second too: then it may be the older one, whose use does not prove that the successor
    /// arrived, and a client that lost it must not be taken for a thief.
    fn came_with_successor(&self, issued_at: i64) -> bool {
        let second = |millis: &i64| millis.div_euclid(1_000);
        let before = self.rotated.get(1).map_or(self.created_at.unix_timestamp(), second);
        self.rotated.first().map(second).is_some_and(|rotated| issued_at >= rotated && issued_at > before)
    }

    fn from_item(item: &Item) -> Result<Self> {
        let rotated = item
            .get("rotated")
            .and_then(|value| value.as_l().ok())
            .map(|list| list.iter().filter_map(|n| n.as_n().ok()?.parse().ok()).collect());
        Ok(Self {
            id: get_id(item, "session_id")?,
            user_id: get_id(item, "user_id")?,
            role: Role::stored(get_text(item, "role")?),
            device: get_text(item, "device")?.to_owned(),
            ip: get_text(item, "ip")?.to_owned(),
            created_at: clock::from_millis(get_number(item, "created_at")?),
            last_seen_at: clock::from_millis(get_number(item, "last_seen_at")?),
            generation: u32::try_from(get_number(item, "generation")?).map_err(Error::internal)?,
            hash: get_digest(item, "hash")?,
            seed: get_digest(item, "seed")?,
            rotated: rotated.unwrap_or_default(),
            successor_used: item.get("successor_used").and_then(|v| v.as_bool().ok()).copied().unwrap_or(true),
        })
    }
}

/// The sessions table, for checking and ending sessions.
#[derive(Clone)]
pub struct Sessions {
    table: Table,
}

impl Sessions {
    /// The table named by `SESSIONS_TABLE`.
    ///
    /// # Errors
    /// When the variable is missing.
    pub fn from_env() -> Result<Self> {
        Ok(Self { table: Table::from_env("SESSIONS_TABLE")? })
    }

    /// The same, as the `init` of a function.
    ///
    /// # Errors
    /// When the variable is missing.
    pub async fn init() -> Result<Self> {
        Self::from_env()
    }

    /// Ends the session of an id.
    ///
    /// # Errors
    /// 404 when the user has none of this id.
    pub async fn revoke(&self, user_id: Uuid, id: Uuid) -> Result<()> {
        // Not told by what is deleted: a deletion whose answer got lost is repeated, and finds nothing.
        self.find(user_id, id).await.map_err(|error| match error.code() {
            Code::SessionExpired => Error::not_found("session"),
            _ => error,
        })?;
        self.end(user_id, id).await
    }

    /// The session that the ids name, unless it has ended.
    ///
    /// # Errors
    /// 401 `session_expired` when there is none.
    pub async fn find(&self, user_id: Uuid, session_id: Uuid) -> Result<Session> {
        let reply = self
            .table
            .client()
            .get_item()
            .table_name(&self.table.name)
            .key("user_id", text(user_id))
            .key("session_id", text(session_id))
            .consistent_read(true)
            .send()
            .await?;
        let session = reply.item.as_ref().map(Session::from_item).transpose()?;
        // TTL deletes late, so what has expired may still be there.
        session.filter(|session| session.expires_at() > clock::now()).ok_or_else(ended)
    }

    /// The session of a token whose secret is the current one. The use is written down now and then.
    ///
    /// # Errors
    /// 401 for any other token.
    pub async fn authenticate(&self, token: &SessionToken) -> Result<Session> {
        let session = self.find(token.user_id, token.session_id).await?;
        let current =
            token.generation == session.generation && crypto::equal(&crypto::sha256(&token.secret), &session.hash);
        if !current {
            return Err(Error::unauthenticated());
        }
        if !session.successor_used {
            // From now on a replayed predecessor is theft, so this must be on record before the reply.
            self.touch(&session).await?;
        } else if clock::now() - session.last_seen_at > SLIDE_AFTER {
            let (sessions, session) = (self.clone(), session.clone());
            background::spawn(async move {
                if let Err(error) = sessions.touch(&session).await {
                    tracing::warn!(error.cause = %error, "the use of a session was not written down");
                }
            });
        }
        Ok(session)
    }

    /// The session of an access token. A refreshed client may use that alone, which uses the successor too.
    ///
    /// # Errors
    /// 401 `session_expired` when it has ended.
    pub async fn of_access_token(&self, claims: &Claims) -> Result<Session> {
        let session = self.find(claims.sub, claims.sid).await?;
        if !session.successor_used && session.came_with_successor(claims.iat) {
            self.touch(&session).await?;
        }
        Ok(session)
    }

    async fn touch(&self, session: &Session) -> Result<()> {
        let now = clock::now();
        let expires = ends(now, session.created_at);
        let result = self
            .table
            .client()
            .update_item()
            .table_name(&self.table.name)
            .key("user_id", text(session.user_id))
            .key("session_id", text(session.id))
            .update_expression("SET last_seen_at = :now, expires = :expires, successor_used = :yes")
            .condition_expression("generation = :generation")
            .expression_attribute_values(":now", number(clock::millis(now)))
            .expression_attribute_values(":expires", epoch_seconds(expires))
            .expression_attribute_values(":yes", AttributeValue::Bool(true))
            .expression_attribute_values(":generation", number(session.generation))
            .send()
            .await;
        // Rotated or ended in between: that write is newer than this one.
        unless_refused(result).map(drop)
    }

    /// All sessions of a user that have not ended, newest first.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn list(&self, user_id: Uuid) -> Result<Vec<Session>> {
        let mut sessions = Vec::new();
        let mut pages = self
            .table
            .client()
            .query()
            .table_name(&self.table.name)
            .key_condition_expression("user_id = :user")
            .expression_attribute_values(":user", text(user_id))
            .consistent_read(true)
            .scan_index_forward(false)
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            for item in page?.items() {
                sessions.push(Session::from_item(item)?);
            }
        }
        let now = clock::now();
        sessions.retain(|session| session.expires_at() > now);
        Ok(sessions)
    }

    /// Ends a session, if it has not ended.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn end(&self, user_id: Uuid, session_id: Uuid) -> Result<()> {
        self.table
            .client()
            .delete_item()
            .table_name(&self.table.name)
            .key("user_id", text(user_id))
            .key("session_id", text(session_id))
            .send()
            .await?;
        Ok(())
    }

    /// Ends all sessions of a user but one.
    ///
    /// # Errors
    /// When the table does not answer; then some may be left.
    pub async fn end_all(&self, user_id: Uuid, except: Option<Uuid>) -> Result<()> {
        let mut sessions = self.list(user_id).await?;
        sessions.retain(|session| Some(session.id) != except);
        for some in sessions.chunks(ENDED_AT_ONCE) {
            try_join_all(some.iter().map(|session| self.end(user_id, session.id))).await?;
        }
        Ok(())
    }

    /// Writes a changed role into the user's sessions.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn set_role(&self, user_id: Uuid, role: Role) -> Result<()> {
        for session in self.list(user_id).await? {
            let result = self
                .table
                .client()
                .update_item()
                .table_name(&self.table.name)
                .key("user_id", text(user_id))
                .key("session_id", text(session.id))
                .update_expression("SET #role = :role")
                .condition_expression("attribute_exists(session_id)")
                .expression_attribute_names("#role", "role")
                .expression_attribute_values(":role", text(role.as_str()))
                .send()
                .await;
            unless_refused(result)?;
        }
        Ok(())
    }

    /// Reads an item that does not exist, for health checks.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn ping(&self) -> Result<()> {
        self.table.ping(&["user_id", "session_id"]).await
    }
}

#[derive(Deserialize)]
struct TokensSecret {
    key: Secret,
}

/// The key that secrets of session tokens are derived with.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl TokenKey {
    /// Reads the secret named by `TOKENS_SECRET_ARN` and derives the key of one purpose.
    ///
    /// # Errors
    /// When the secret cannot be read.
    pub async fn init(purpose: &str) -> Result<Self> {
        let secret: TokensSecret = secrets::read("TOKENS_SECRET_ARN").await?;
        Ok(Self::derive(secret.key.expose(), purpose))
    }

    /// Derives the key from a secret.
    #[must_use]
    pub fn derive(secret: &str, purpose: &str) -> Self {
        Self(crypto::derive_key(secret, purpose))
    }

    /// The key itself.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Starts and refreshes sessions: the functions that hold the token key.
#[derive(Clone)]
pub struct SessionIssuer {
    /// The table.
    pub(crate) sessions: Sessions,
    key: TokenKey,
}

impl SessionIssuer {
    /// The table and the key of this environment.
    ///
    /// # Errors
    /// When a variable or the secret is missing.
    pub async fn init() -> Result<Self> {
        Ok(Self { sessions: Sessions::from_env()?, key: TokenKey::init("session").await? })
    }

    /// Starts a session.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn start(&self, user_id: Uuid, role: Role, visit: &Visit) -> Result<(Session, SessionToken)> {
        let now = clock::now();
        let seed = crypto::random()?;
        let id = Uuid::now_v7();
        let token = self.token(user_id, id, &seed, 0);
        let session = Session {
            id,
            user_id,
            role,
            device: visit.device.chars().take(200).collect(),
            ip: visit.ip.to_string(),
            created_at: now,
            last_seen_at: now,
            generation: 0,
            hash: crypto::sha256(&token.secret),
            seed,
            rotated: Vec::new(),
            successor_used: true,
        };
        let table = &self.sessions.table;
        // Without a condition: the id is new, and a call that is repeated after a lost answer must not fail.
        table
            .client()
            .put_item()
            .table_name(&table.name)
            .item("user_id", text(user_id))
            .item("session_id", text(id))
            .item("role", text(role.as_str()))
            .item("device", text(&session.device))
            .item("ip", text(&session.ip))
            .item("created_at", number(clock::millis(now)))
            .item("last_seen_at", number(clock::millis(now)))
            .item("generation", number(0))
            .item("hash", binary(&session.hash))
            .item("seed", binary(&seed))
            .item("rotated", AttributeValue::L(Vec::new()))
            .item("successor_used", AttributeValue::Bool(true))
            .item("expires", epoch_seconds(session.expires_at()))
            .send()
            .await?;
        Ok((session, token))
    }

    /// Replaces a token by its successor.
    ///
    /// The current token is rotated. One that was replaced less than 10 seconds ago, or whose successor nobody has used
    /// yet, gets the current one, which for the last one replaced is that successor: of several tabs, each ends up with a
    /// token that is good. Any older token is taken as stolen and ends the session.
    ///
    /// # Errors
    /// 401 for a token that is not or no longer valid.
    pub async fn refresh(&self, presented: &SessionToken) -> Result<(Session, SessionToken)> {
        // Each further round means that another refresh of the same token won the race.
        for _ in 0..4 {
            let session = self.sessions.find(presented.user_id, presented.session_id).await?;
            match self.judge(&session, presented, clock::now()) {
                Verdict::Current => {
                    let successor = self.token_of(&session, session.generation.wrapping_add(1));
                    if let Some(session) = self.rotate(&session, &successor).await? {
                        return Ok((session, successor));
                    }
                }
                Verdict::Grace => {
                    let current = self.token_of(&session, session.generation);
                    return Ok((session, current));
                }
                Verdict::Stolen => {
                    self.sessions.end(session.user_id, session.id).await?;
                    tracing::warn!(session.id = %session.id, "a replaced session token came back; the session was ended");
                    return Err(ended());
                }
                Verdict::Forged => return Err(Error::unauthenticated()),
            }
        }
        Err(Error::unavailable("a session token was rotated again and again while it was refreshed"))
    }

    fn judge(&self, session: &Session, presented: &SessionToken, now: OffsetDateTime) -> Verdict {
        if presented.generation > session.generation {
            return Verdict::Forged;
        }
        let genuine = self.token_of(session, presented.generation);
        if !crypto::equal(&genuine.secret, &presented.secret) {
            return Verdict::Forged;
        }
        let age = (session.generation - presented.generation) as usize;
        if age == 0 {
            return Verdict::Current;
        }
        let replaced_at = session.rotated.get(age - 1).map(|millis| clock::from_millis(*millis));
        let fresh = replaced_at.is_some_and(|at| now - at <= GRACE);
        if fresh || (age == 1 && !session.successor_used) { Verdict::Grace } else { Verdict::Stolen }
    }

    /// Moves the session on by one generation, unless another refresh did.
    async fn rotate(&self, session: &Session, successor: &SessionToken) -> Result<Option<Session>> {
        let now = clock::now();
        let mut next = session.clone();
        next.generation = successor.generation;
        next.hash = crypto::sha256(&successor.secret);
        next.last_seen_at = now;
        next.successor_used = false;
        next.rotated.insert(0, clock::millis(now));
        next.rotated.truncate(REMEMBERED_ROTATIONS);
        let table = &self.sessions.table;
        let result = table
            .client()
            .update_item()
            .table_name(&table.name)
            .key("user_id", text(session.user_id))
            .key("session_id", text(session.id))
            .update_expression(
                "SET generation = :next, #hash = :hash, rotated = :rotated, successor_used = :no, \
                 last_seen_at = :now, expires = :expires",
            )
            .condition_expression("generation = :generation")
            .expression_attribute_names("#hash", "hash")
            .expression_attribute_values(":next", number(next.generation))
            .expression_attribute_values(":hash", binary(&next.hash))
            .expression_attribute_values(":rotated", AttributeValue::L(next.rotated.iter().map(number).collect()))
            .expression_attribute_values(":no", AttributeValue::Bool(false))
            .expression_attribute_values(":now", number(clock::millis(now)))
            .expression_attribute_values(":expires", epoch_seconds(next.expires_at()))
            .expression_attribute_values(":generation", number(session.generation))
            .send()
            .await;
        Ok(unless_refused(result)?.map(|_| next))
    }

    fn token_of(&self, session: &Session, generation: u32) -> SessionToken {
        self.token(session.user_id, session.id, &session.seed, generation)
    }

    fn token(&self, user_id: Uuid, session_id: Uuid, seed: &[u8; 32], generation: u32) -> SessionToken {
        let secret = crypto::hmac(&self.key.0, &[seed, session_id.as_bytes(), &generation.to_be_bytes()]);
        SessionToken { user_id, session_id, generation, secret }
    }
}

/// What a token is that somebody wants refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Current,
    Grace,
    Stolen,
    Forged,
}

/// When a session ends that is not used any more.
fn ends(last_seen: OffsetDateTime, created: OffsetDateTime) -> OffsetDateTime {
    (last_seen + IDLE_LIFETIME).min(created + ABSOLUTE_LIFETIME)
}

fn ended() -> Error {
    Error::new(Code::SessionExpired, "The session has ended; sign in again.")
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Sessions {
        /// For what does not ask the table.
        pub(crate) fn never_asked() -> Self {
            let config = Box::leak(Box::new(aws_types::SdkConfig::builder().build()));
            Self { table: Table { name: "sessions".to_owned(), config } }
        }
    }

    fn issuer() -> SessionIssuer {
        SessionIssuer { sessions: Sessions::never_asked(), key: TokenKey::derive("secret", "session") }
    }

    fn session(generation: u32, rotated: &[OffsetDateTime], successor_used: bool) -> Session {
        let now = clock::now();
        Session {
            id: Uuid::now_v7(),
            user_id: Uuid::now_v7(),
            role: Role::User,
            device: String::new(),
            ip: String::new(),
            created_at: now,
            last_seen_at: now,
            generation,
            hash: [0; 32],
            seed: [9; 32],
            rotated: rotated.iter().map(|at| clock::millis(*at)).collect(),
            successor_used,
        }
    }

    #[test]
    fn a_token_survives_the_way_to_the_client_and_back() {
        let token = issuer().token(Uuid::now_v7(), Uuid::now_v7(), &[1; 32], 7);
        let parsed = SessionToken::parse(&token.reveal()).unwrap();
        assert_eq!((parsed.user_id, parsed.session_id, parsed.generation), (token.user_id, token.session_id, 7));
        assert_eq!(parsed.secret, token.secret);
        for text in ["", "st_", "st_AAAA", &token.reveal()[3..], "st_é"] {
            assert!(SessionToken::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn judges_tokens_by_generation_grace_and_use() {
        let issuer = issuer();
        let now = clock::now();
        let (recent, long_ago) = (now - Duration::seconds(9), now - Duration::seconds(11));
        let judge = |session: &Session, generation| {
            let token = issuer.token(session.user_id, session.id, &session.seed, generation);
            issuer.judge(session, &token, now)
        };
        assert_eq!(judge(&session(3, &[], true), 3), Verdict::Current);
        assert_eq!(judge(&session(3, &[recent], true), 2), Verdict::Grace);
        assert_eq!(judge(&session(3, &[long_ago], false), 2), Verdict::Grace);
        assert_eq!(judge(&session(3, &[long_ago], true), 2), Verdict::Stolen);
        assert_eq!(judge(&session(3, &[recent, recent], false), 1), Verdict::Grace);
        assert_eq!(judge(&session(3, &[recent, long_ago], false), 1), Verdict::Stolen);
        assert_eq!(judge(&session(3, &[recent], true), 4), Verdict::Forged);
    }

    #[test]
    fn an_access_token_uses_the_successor_that_it_came_with() {
        let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap() + Duration::milliseconds(700);
        let came = |rotated: &[i64], issued_at| {
            let rotated: Vec<_> = rotated.iter().map(|seconds| at(*seconds)).collect();
            let session = Session { created_at: at(1_000), ..session(1, &rotated, false) };
            session.came_with_successor(issued_at)
        };
        assert_eq!([1_899, 1_900, 1_901].map(|issued_at| came(&[1_900], issued_at)), [false, true, true]);
        // Of two in one second the older one might be meant.
        assert_eq!([1_000, 1_001].map(|issued_at| came(&[1_000], issued_at)), [false, true]);
        assert_eq!([1_900, 1_901].map(|issued_at| came(&[1_900, 1_900], issued_at)), [false, true]);
        assert!(came(&[2_800, 1_900], 2_800));
        assert!(!came(&[], 1_900));
    }

    #[test]
    fn a_guessed_secret_is_forged_and_ends_nothing() {
        let (issuer, session) = (issuer(), session(3, &[], true));
        let mut token = issuer.token(session.user_id, session.id, &session.seed, 0);
        token.secret[31] ^= 1;
        assert_eq!(issuer.judge(&session, &token, clock::now()), Verdict::Forged);
    }
}
