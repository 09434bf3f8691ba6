//! `Idempotency-Key`: a repeated request gets the reply of the first one, for 24 hours.
//!
//! A key belongs to a user, a method and a route. The first request claims it; a claim whose function died can
//! be taken over once that function must have ended. Successes and declined cards are kept, other failures
//! give the key back; where it is not known whether the work was done, the key is passed on, and the next request
//! with it looks for the work. A key that DynamoDB does not let go is tried again behind the reply.

use std::time::Duration as StdDuration;

use aws_sdk_dynamodb::operation::put_item::builders::PutItemFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};
use http::StatusCode;
use serde_json::Value;
use time::{Duration, OffsetDateTime};
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use crate::background;
use crate::clock;
use crate::config;
use crate::crypto;
use crate::error::{Code, Error, Result};
use crate::http::problem;
use crate::http::request::Request;
use crate::http::response::{Body, Response};
use crate::store::dynamo::{
    Item, Table, binary, epoch_seconds, found_instead, get_digest, get_id, get_number, get_text, number, text,
    unless_refused,
};

/// A reply is kept for so long.
const KEPT: Duration = Duration::hours(24);
/// Earlier versions kept three events of a stream, and no id.
const LAST_EVENT_BEFORE: i64 = 3;
/// Bytes of a reply in one item, of which DynamoDB takes 400 KiB.
const PART: usize = 300 << 10;

/// How long a sandbox is held by a key that DynamoDB does not let go.
const PATIENCE: StdDuration = StdDuration::from_secs(30);
/// The end of the function's time in which it is not: some of that time has passed when the key is claimed.
const TO_END: StdDuration = StdDuration::from_secs(10);
/// Between two tries to let a key go.
const PAUSE: StdDuration = StdDuration::from_secs(1);

/// The table of keys.
#[derive(Clone)]
pub struct Idempotency {
    table: Table,
    route: String,
}

/// A client's name for a request that it may repeat.
pub struct Key(String);

impl Key {
    /// The request's key, with or without the quotation marks of a structured field.
    ///
    /// # Errors
    /// 400 for a malformed key.
    #[track_caller]
    pub fn of(request: &Request) -> Result<Option<Self>> {
        let Some(value) = request.headers.get("idempotency-key") else { return Ok(None) };
        let value = value.to_str().unwrap_or_default().trim();
        let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        let key = quoted.filter(|key| !key.is_empty()).unwrap_or(value);
        if (1..=255).contains(&key.len()) {
            Ok(Some(Self(key.to_owned())))
        } else {
            Err(Error::invalid_field("Idempotency-Key", "malformed", "Must have 1 to 255 ASCII characters."))
        }
    }
}

/// What a request finds under its key.
pub enum Claim {
    /// Nothing: the work is to be done, and its reply kept under the ticket, if there is a key at all.
    Fresh(Option<Ticket>),
    /// The reply of the first request.
    Kept(Kept),
}

/// A reply as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The status.
    pub status: StatusCode,
    /// The document.
    pub body: String,
    /// Where the document is a stream's events rather than the reply itself: the id that the last one had.
    pub last_event: Option<u64>,
}

impl Idempotency {
    /// Reads `IDEMPOTENCY_TABLE` and `ROUTE`.
    ///
    /// # Errors
    /// When a variable is missing.
    pub fn from_env() -> Result<Self> {
        Ok(Self { table: Table::from_env("IDEMPOTENCY_TABLE")?, route: config::required("ROUTE")? })
    }

    /// Claims the request's key, if it has one. The body must have been found valid before.
    ///
    /// # Errors
    /// 409 `request_in_progress`, 422 `idempotency_key_reused`, 401 without a user.
    pub async fn claim(&self, request: &Request, key: Option<Key>) -> Result<Claim> {
        let Some(Key(key)) = key else { return Ok(Claim::Fresh(None)) };
        let now = clock::now();
        let ends = now + Duration::try_from(request.time_left).map_err(Error::internal)?;
        let ticket = Ticket {
            table: self.table.clone(),
            pk: format!("{}#{}#{}", request.user()?.user_id(), self.route, hex::encode(crypto::sha256(key.as_bytes()))),
            id: Uuid::now_v7(),
            digest: digest(request)?,
            takes_over: false,
            released_until: Instant::now() + request.time_left.saturating_sub(TO_END),
        };
        let put = ticket
            .item(now)
            .item("ends_at", epoch_seconds(ends))
            .condition_expression(
                // A call that is repeated after a lost answer finds its own item.
                "attribute_not_exists(pk) OR expires <= :now OR id = :id OR \
                 (attribute_not_exists(reply) AND digest = :digest AND ends_at <= :now)",
            )
            .expression_attribute_values(":now", epoch_seconds(now))
            .expression_attribute_values(":digest", binary(&ticket.digest))
            .return_values(ReturnValue::AllOld)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        let error = match put {
            Ok(old) => return Ok(Claim::Fresh(Some(Ticket { takes_over: old.attributes.is_some(), ..ticket }))),
            Err(error) => error,
        };
        let Some(item) = found_instead(&error) else {
            // It may be claimed all the same, and have been another's before, whose work is to be looked for.
            ticket.release_behind_reply(Release::PassOn);
            return Err(error.into());
        };
        if !crypto::equal(&get_digest(item, "digest")?, &ticket.digest) {
            return Err(Error::new(Code::IdempotencyKeyReused, "The key was used with another body."));
        }
        if item.contains_key("reply") {
            return Ok(Claim::Kept(self.kept(&ticket.pk, item).await?));
        }
        Err(Error::new(Code::RequestInProgress, "The first request with this key is not done yet."))
    }

    async fn kept(&self, pk: &str, item: &Item) -> Result<Kept> {
        let status = u16::try_from(get_number(item, "status")?).map_err(Error::internal)?;
        let mut body = get_text(item, "reply")?.to_owned();
        for part in 1..get_number(item, "parts")? {
            let key = part_key(pk, get_id(item, "id")?, part);
            let request = self.table.client().get_item().table_name(&self.table.name).key("pk", text(key));
            let reply = request.consistent_read(true).send().await?;
            body.push_str(get_text(&reply.item.unwrap_or_default(), "reply")?);
        }
        let streamed = item.get("streamed").and_then(|value| value.as_bool().ok()).copied().unwrap_or(false);
        let last_event =
            if item.contains_key("last_event") { get_number(item, "last_event")? } else { LAST_EVENT_BEFORE };
        let last_event = streamed.then(|| u64::try_from(last_event).map_err(Error::internal)).transpose()?;
        Ok(Kept { status: StatusCode::from_u16(status).map_err(Error::internal)?, body, last_event })
    }

    /// Does the work of a request once. The work gets an id that every try of the same request has in common,
    /// for passing on to a service that knows idempotency itself.
    ///
    /// # Errors
    /// Those of [`Self::claim`] and of the work.
    pub async fn once<F>(&self, request: &Request, key: Option<Key>, work: impl FnOnce(Uuid) -> F) -> Result<Response>
    where
        F: Future<Output = Result<Response>>,
    {
        let ticket = match self.claim(request, key).await? {
            Claim::Kept(kept) => return kept.response(&request.id),
            Claim::Fresh(ticket) => ticket,
        };
        let id = ticket.as_ref().map_or_else(Uuid::now_v7, Ticket::operation_id);
        let outcome = work(id).await;
        match ticket {
            Some(ticket) => ticket.keep(outcome, &request.id).await,
            None => outcome,
        }
    }
}

impl Kept {
    /// The reply, again; a problem names the request that it answers now.
    ///
    /// # Errors
    /// When what was kept is no JSON.
    pub fn response(self, request_id: &str) -> Result<Response> {
        if self.status.is_success() {
            return Ok(Response::json_text(self.status, self.body));
        }
        let mut document: Value = serde_json::from_str(&self.body)?;
        document["requestId"] = request_id.into();
        Ok(Response::text(self.status, problem::MEDIA_TYPE, document.to_string()).no_store())
    }
}

/// A claim on a key.
#[must_use]
pub struct Ticket {
    table: Table,
    pk: String,
    /// Names this claim among those that took the key over.
    id: Uuid,
    digest: [u8; 32],
    takes_over: bool,
    /// How long there is time to let the key go.
    released_until: Instant,
}

/// How a key is let go.
#[derive(Debug, Clone, Copy)]
enum Release {
    /// The next request with it takes it over.
    PassOn,
    /// The next request with it begins anew.
    GiveBack,
}

impl Ticket {
    /// Whether an earlier try of the request came to no reply: it may have done its work and died after it.
    #[must_use]
    pub fn takes_over(&self) -> bool {
        self.takes_over
    }

    /// What all tries of the same request have in common.
    #[must_use]
    pub fn operation_id(&self) -> Uuid {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&crypto::hmac(&self.digest, &[self.pk.as_bytes()])[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    /// Keeps the outcome of the work if it is one that is kept, or else gives the key back.
    ///
    /// # Errors
    /// The work's own.
    pub async fn keep(self, outcome: Result<Response>, request_id: &str) -> Result<Response> {
        match outcome {
            Ok(response) => {
                if let Body::Whole(bytes) = &response.body {
                    self.store(response.status, &String::from_utf8_lossy(bytes), None).await;
                }
                Ok(response)
            }
            Err(error) if error.code() == Code::CardDeclined => {
                let response = problem::response(&error, request_id);
                if let Body::Whole(bytes) = &response.body {
                    self.store(response.status, &String::from_utf8_lossy(bytes), None).await;
                }
                Err(error)
            }
            Err(error) => {
                self.give_back().await;
                Err(error)
            }
        }
    }

    /// Keeps a stream's events, with the id that the last one had.
    pub async fn keep_stream<T: serde::Serialize>(self, events: &[T], last_event: u64) {
        match serde_json::to_string(events) {
            Ok(events) => self.store(StatusCode::OK, &events, Some(last_event)).await,
            Err(error) => tracing::error!(error.cause = %error, "a stream could not be written as JSON"),
        }
    }

    /// What was done cannot be undone: if the reply cannot be kept, the next request with the key looks for the work.
    async fn store(self, status: StatusCode, body: &str, last_event: Option<u64>) {
        if let Err(error) = self.try_store(status, body, last_event).await {
            tracing::error!(error.cause = %error, "a reply could not be kept under its idempotency key");
            self.release_behind_reply(Release::PassOn);
        }
    }

    async fn try_store(&self, status: StatusCode, body: &str, last_event: Option<u64>) -> Result<()> {
        let parts = split(body);
        let now = clock::now();
        for (index, part) in parts.iter().enumerate().skip(1) {
            self.table
                .client()
                .put_item()
                .table_name(&self.table.name)
                .item("pk", text(part_key(&self.pk, self.id, i64::try_from(index).map_err(Error::internal)?)))
                .item("reply", text(*part))
                .item("expires", epoch_seconds(now + KEPT))
                .send()
                .await?;
        }
        let mut reply = self
            .item(now)
            .item("status", number(status.as_u16()))
            .item("reply", text(parts.first().copied().unwrap_or_default()))
            .item("parts", number(parts.len()))
            .item("streamed", AttributeValue::Bool(last_event.is_some()));
        if let Some(id) = last_event {
            reply = reply.item("last_event", number(id));
        }
        reply.condition_expression("id = :id").send().await?;
        Ok(())
    }

    /// The write of the key's own item, with `:id` for its condition.
    fn item(&self, now: OffsetDateTime) -> PutItemFluentBuilder {
        self.table
            .client()
            .put_item()
            .table_name(&self.table.name)
            .item("pk", text(&self.pk))
            .item("id", text(self.id))
            .item("digest", binary(&self.digest))
            .item("expires", epoch_seconds(now + KEPT))
            .expression_attribute_values(":id", text(self.id))
    }

    /// Lets the next request with the key take it over at once: it is not known whether the work was done.
    pub async fn pass_on(self) {
        self.release(Release::PassOn).await;
    }

    /// Lets the next request with the key begin anew.
    pub async fn give_back(self) {
        self.release(Release::GiveBack).await;
    }

    async fn release(self, how: Release) {
        if let Err(error) = self.try_release(how).await {
            tracing::warn!(error.cause = %error, "an idempotency key was not let go yet");
            self.release_behind_reply(how);
        }
    }

    fn release_behind_reply(self, how: Release) {
        background::spawn_behind_reply(async move {
            let end = self.released_until.min(Instant::now() + PATIENCE);
            let released = timeout_at(end, async {
                while self.try_release(how).await.is_err() {
                    sleep(PAUSE).await;
                }
            });
            if released.await.is_err() {
                tracing::warn!("an idempotency key was not let go: it is free once its function must have ended");
            }
        });
    }

    /// A key that another claim has by now is let go already.
    async fn try_release(&self, how: Release) -> Result<()> {
        match how {
            Release::PassOn => {
                let now = clock::now();
                let put = self.item(now).item("ends_at", epoch_seconds(now));
                // A reply that was kept stays, also where the answer to that was lost.
                let put = put.condition_expression("id = :id AND attribute_not_exists(reply)");
                unless_refused(put.send().await)?;
            }
            Release::GiveBack => {
                let delete = self.table.client().delete_item().table_name(&self.table.name).key("pk", text(&self.pk));
                let delete = delete.condition_expression("id = :id").expression_attribute_values(":id", text(self.id));
                unless_refused(delete.send().await)?;
            }
        }
        Ok(())
    }
}

fn part_key(pk: &str, id: Uuid, part: i64) -> String {
    format!("{pk}#{id}#{part}")
}

/// Bodies are the same if they are the same as JSON: members in any order, white space anywhere.
fn digest(request: &Request) -> Result<[u8; 32]> {
    let body = if request.body.is_empty() { Value::Null } else { Value::Object(request.json_object()?) };
    // Another object in the path is another request.
    let document = serde_json::to_vec(&(request.parameters(), body))?;
    Ok(crypto::sha256(&document))
}

/// Parts of at most so many bytes, cut between characters.
fn split(body: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = body;
    while rest.len() > PART {
        let (part, more) = rest.split_at(rest.floor_char_boundary(PART));
        parts.push(part);
        rest = more;
    }
    parts.push(rest);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_replies_are_cut_between_characters() {
        assert_eq!(split("short"), ["short"]);
        let long = "é".repeat(PART);
        let parts = split(&long);
        assert!(parts.len() > 1 && parts.iter().all(|part| part.len() <= PART));
        assert_eq!(parts.concat(), long);
    }
}
