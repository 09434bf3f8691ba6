//! Requests for an answer: from HTTP to a question, and from an answer back to HTTP.

use futures_util::stream;
use serde_json::Value;
use uuid::Uuid;

use crate::chat::ai_sdk::{ChatId, LastQuestion, MessageName, Trigger};
use crate::chat::answer::{Ask, Chat, Reply};
use crate::chat::catalogue::ProviderId;
use crate::chat::exchange::{ConversationRef, Earlier};
use crate::chat::fields::{MaxTokens, MessageText, ModelId, SystemPrompt, Temperature};
use crate::chat::stream::{Protocol, StreamEvent, condensed_ids};
use crate::error::Result;
use crate::http::idempotency::{Claim, Idempotency, Kept, Key, Ticket};
use crate::http::response::Chunks;
use crate::http::validate::{Field, Fields, FromFields, Invalid, Raw};
use crate::http::{Request, Response};

/// What the functions that answer need.
pub struct Answers {
    chat: Chat,
    idempotency: Idempotency,
}

impl Answers {
    /// Reads secrets; connects on first use.
    ///
    /// # Errors
    /// When a variable or a secret is missing.
    pub async fn init() -> Result<Self> {
        Ok(Self { chat: Chat::init().await?, idempotency: Idempotency::from_env()? })
    }

    /// Asks, and answers whole or piece by piece; a repeated request gets the first one's answer.
    ///
    /// # Errors
    /// Those of the idempotency key and of [`Chat::ask`].
    pub async fn answer(
        &'static self,
        request: &Request,
        key: Option<Key>,
        mut ask: Ask,
        protocol: Protocol,
    ) -> Result<Response> {
        let ticket = match self.idempotency.claim(request, key).await? {
            Claim::Kept(kept) => {
                self.chat.refuse_deleted(ask.user_id, conversation_of(&kept)?).await?;
                return replay(kept, &request.id, protocol);
            }
            Claim::Fresh(ticket) => ticket,
        };
        let streamed = ask.streamed;
        if let Some(ticket) = &ticket {
            ask.request_id = Some(ticket.operation_id());
        }
        let ticket = match ticket {
            Some(ticket) if ticket.takes_over() => match self.chat.answered(ask.user_id, ticket.operation_id()).await {
                Ok(Some(Earlier::Answer(reply))) => {
                    return repeat(&reply, ticket, &request.id, protocol, streamed).await;
                }
                Ok(Some(Earlier::Broken { conversation_id, position })) => {
                    ask.conversation = ConversationRef::Id(conversation_id);
                    ask.position = Some(position);
                    Some(ticket)
                }
                Ok(None) => Some(ticket),
                // The next try looks for it, too: under a key that was given back it would be billed anew.
                Err(error) => {
                    ticket.pass_on().await;
                    return Err(error);
                }
            },
            ticket => ticket,
        };
        let (outcome, may_be_stored) = match self.chat.ask(ask, &request.visit(), request.time_left).await {
            Ok(answer) if streamed => return Ok(respond(protocol, answer.stream(protocol, ticket))),
            Ok(answer) => (answer.complete().await.and_then(|reply| Response::ok(&reply)), true),
            // This try has stored nothing; the one before it may have.
            Err(error) => (Err(error), ticket.as_ref().is_some_and(Ticket::takes_over)),
        };
        match (ticket, outcome) {
            // The next try finds what was stored.
            (Some(ticket), Err(error)) if may_be_stored => {
                ticket.pass_on().await;
                Err(error)
            }
            (Some(ticket), outcome) => ticket.keep(outcome, &request.id).await,
            (None, outcome) => outcome,
        }
    }
}

/// The reply that a stream is sent in.
#[must_use]
pub fn respond(protocol: Protocol, chunks: Chunks) -> Response {
    let response = Response::streamed("text/event-stream", chunks);
    match protocol {
        Protocol::Native => response,
        Protocol::AiSdk => response.with("x-vercel-ai-ui-message-stream", "v1"),
    }
}

/// An answer that was stored by a function which died before it could keep its reply. It is kept now.
async fn repeat(
    reply: &Reply,
    ticket: Ticket,
    request_id: &str,
    protocol: Protocol,
    streamed: bool,
) -> Result<Response> {
    if !streamed {
        return ticket.keep(Response::ok(reply), request_id).await;
    }
    let events = reply.events()?;
    let last_event = events.len() as u64;
    ticket.keep_stream(&events, last_event).await;
    Ok(respond(protocol, all(events, last_event, protocol)))
}

/// The conversation that a kept answer is in; an error is in none.
fn conversation_of(kept: &Kept) -> Result<Option<Uuid>> {
    let body: Value = serde_json::from_str(&kept.body)?;
    let answer = if kept.last_event.is_some() { &body[0]["start"] } else { &body };
    Ok(answer["conversationId"].as_str().and_then(|id| Uuid::try_parse(id).ok()))
}

/// A kept answer, in the form that it had.
fn replay(kept: Kept, request_id: &str, protocol: Protocol) -> Result<Response> {
    match kept.last_event {
        Some(last) => Ok(respond(protocol, all(serde_json::from_str(&kept.body)?, last, protocol))),
        None => kept.response(request_id),
    }
}

fn all(events: Vec<StreamEvent>, last_event: u64, protocol: Protocol) -> Chunks {
    let ids = condensed_ids(events.len(), last_event);
    let encoded: Vec<_> = ids.zip(events).map(|(id, event)| protocol.encode(id, &event)).collect();
    Box::pin(stream::iter(encoded))
}

impl Field for Protocol {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        match raw.text()? {
            "ai-sdk" => Ok(Self::AiSdk),
            "native" => Ok(Self::Native),
            _ => Err(Invalid::new("unknown_value", "Must be ai-sdk or native.")),
        }
    }

    fn missing() -> Result<Self, Invalid> {
        Ok(Self::Native)
    }
}

crate::request! {
    /// The parameters of a request for an answer.
    pub struct AnswerQuery {
        /// How a stream is written.
        protocol: Protocol,
    }
}

impl AnswerQuery {
    /// How a stream is written.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }
}

/// The body of `POST /api/chat`: this API's own, or the AI SDK's.
pub struct SendRequest {
    message: MessageText,
    conversation: ConversationRef,
    again: bool,
    answers: Vec<Uuid>,
    questions: Vec<String>,
    name: Option<MessageName>,
    replaced: Option<MessageName>,
    sdk: bool,
    stream: Option<bool>,
    options: Options,
}

crate::request! {
    /// What may stand beside a question of either kind.
    pub struct Options {
        provider: Option<ProviderId>,
        model: Option<ModelId>,
        system_prompt: Option<SystemPrompt>,
        temperature: Option<Temperature>,
        max_tokens: Option<MaxTokens>,
    }
}

impl FromFields for SendRequest {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let message: Option<Option<MessageText>> = fields.read("message");
        let messages: Option<Option<LastQuestion>> = fields.read("messages");
        let conversation_id: Option<Option<Uuid>> = fields.read("conversation_id");
        let stream = fields.read("stream");
        let options = Options::from_fields(fields);
        match (message, messages) {
            (Some(None), Some(None)) => {
                fields.refuse("message", Invalid::required());
                None
            }
            (Some(None), messages) => {
                let (id, trigger): (Option<ChatId>, _) = (fields.read("id"), fields.read::<Trigger>("trigger"));
                let replaced: Option<Option<MessageName>> = fields.read("message_id");
                let LastQuestion { message, name, answers, questions } = messages??;
                Some(Self {
                    message,
                    conversation: ConversationRef::ClientId(id?.0),
                    again: trigger? == Trigger::Regenerate,
                    answers,
                    questions,
                    name,
                    replaced: replaced?,
                    sdk: true,
                    stream: stream?,
                    options: options?,
                })
            }
            // A message of our own kind counts before whatever else the body holds.
            (message, messages) => {
                messages?;
                Some(Self {
                    message: message??,
                    conversation: conversation_id?.map_or(ConversationRef::New, ConversationRef::Id),
                    again: false,
                    answers: Vec::new(),
                    questions: Vec::new(),
                    name: None,
                    replaced: None,
                    sdk: false,
                    stream: stream?,
                    options: options?,
                })
            }
        }
    }
}

impl SendRequest {
    /// The question, and how its answer is written.
    #[must_use]
    pub fn into_ask(self, user_id: Uuid, query: &AnswerQuery, accept: Option<&str>) -> (Ask, Protocol) {
        let protocol = if self.sdk { Protocol::AiSdk } else { query.protocol };
        let streamed = self.sdk || is_stream_wanted(self.stream, accept, protocol);
        let ask = self.options.into_ask(user_id, Some(self.message.0), self.conversation, self.again, streamed);
        let text = |name: Option<MessageName>| name.map(|name| name.0);
        let (name, replaced) = (text(self.name), text(self.replaced));
        (Ask { keeps: self.answers, follows: self.questions, name, replaced, ..ask }, protocol)
    }
}

impl Options {
    fn into_ask(
        self,
        user_id: Uuid,
        message: Option<String>,
        conversation: ConversationRef,
        again: bool,
        streamed: bool,
    ) -> Ask {
        Ask {
            user_id,
            message,
            again,
            keeps: Vec::new(),
            follows: Vec::new(),
            name: None,
            replaced: None,
            position: None,
            conversation,
            provider: self.provider,
            model: self.model.map(|model| model.0),
            system_prompt: self.system_prompt.map(|prompt| prompt.0),
            temperature: self.temperature.map(|temperature| temperature.0),
            max_tokens: self.max_tokens.map(|tokens| tokens.0),
            streamed,
            request_id: None,
        }
    }
}

/// The body of a request to make the last answer anew.
pub struct RegenerateRequest {
    stream: Option<bool>,
    options: Options,
}

impl FromFields for RegenerateRequest {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let (stream, options) = (fields.read("stream"), Options::from_fields(fields));
        Some(Self { stream: stream?, options: options? })
    }
}

impl RegenerateRequest {
    /// The last question of the conversation, asked again.
    #[must_use]
    pub fn into_ask(
        self,
        user_id: Uuid,
        conversation: Uuid,
        query: &AnswerQuery,
        accept: Option<&str>,
    ) -> (Ask, Protocol) {
        let streamed = is_stream_wanted(self.stream, accept, query.protocol);
        (self.options.into_ask(user_id, None, ConversationRef::Id(conversation), true, streamed), query.protocol)
    }
}

/// Whether a client wants its answer as a stream: by the field, or else by what it accepts or how it reads.
fn is_stream_wanted(stream: Option<bool>, accept: Option<&str>, protocol: Protocol) -> bool {
    let accepts = |accept: &str| accept.to_ascii_lowercase().contains("text/event-stream");
    stream.unwrap_or_else(|| protocol == Protocol::AiSdk || accept.is_some_and(accepts))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(body: &Value) -> Result<SendRequest> {
        let mut fields = Fields::body(body.as_object().unwrap());
        let parsed = SendRequest::from_fields(&mut fields);
        fields.finish(parsed)
    }

    fn bad(body: &Value) -> Vec<String> {
        let error = parse(body).err().unwrap();
        error.fields().iter().map(|field| field.field.clone()).collect()
    }

    #[test]
    fn both_bodies_are_told_apart() {
        let own = parse(&json!({ "message": "Hi", "stream": true })).unwrap();
        assert_eq!((own.conversation, own.sdk), (ConversationRef::New, false));
        let messages = json!([{ "role": "user", "parts": [{ "type": "text", "text": "Hi" }] }]);
        let sdk = parse(&json!({ "id": "c1", "messages": messages, "trigger": "regenerate-message" })).unwrap();
        assert_eq!((sdk.conversation, sdk.again, sdk.sdk), (ConversationRef::ClientId("c1".into()), true, true));
    }

    #[test]
    fn every_bad_field_is_named() {
        assert_eq!(bad(&json!({})), ["message"]);
        assert_eq!(bad(&json!({ "messages": [{ "role": "user", "content": "Hi" }] })), ["id"]);
        assert_eq!(bad(&json!({ "messages": [] })), ["messages", "id"]);
        let body = json!({ "id": 5, "messages": [], "trigger": 5, "messageId": 5, "temperature": 9 });
        assert_eq!(bad(&body), ["messages", "temperature", "id", "trigger", "messageId"]);
        let body = json!({ "message": "", "conversationId": "x", "stream": "y", "temperature": 3 });
        assert_eq!(bad(&body), ["message", "conversationId", "stream", "temperature"]);
    }

    #[test]
    fn the_field_decides_before_the_header() {
        assert!(is_stream_wanted(None, Some("Text/Event-Stream, */*"), Protocol::Native));
        assert!(!is_stream_wanted(Some(false), Some("text/event-stream"), Protocol::Native));
        assert!(!is_stream_wanted(None, Some("application/json"), Protocol::Native));
        assert!(is_stream_wanted(None, None, Protocol::AiSdk));
    }
}
