//! What the three providers share: the HTTP client, the time-outs, and the way from bytes to pieces.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::chat::catalogue::ProviderId;
use crate::chat::provider::sse::{Parser, SseEvent};
use crate::chat::provider::{Cause, Failure, Piece, Pieces, Provider, Turn, anthropic, google, openai};
use crate::config::{self, Secret};
use crate::error::Result;
use crate::outbound;
use crate::secrets;

/// A connection that is not made by then is not made.
const CONNECT: Duration = Duration::from_secs(3);
/// Of an error's body, so much is read.
const ERROR_BODY: usize = 64 << 10;

/// Where errors carry words: three kinds of code names, the parameter that is objected to, and a sentence.
const WORDS: [&str; 5] = ["type", "code", "status", "param", "message"];
/// Of the words, so many characters are logged.
const LONGEST_WORDS: usize = 240;

/// Where a provider is and what opens it.
#[derive(Clone)]
pub struct Endpoint {
    base: String,
    pub(super) key: Secret,
    pub(super) client: reqwest::Client,
}

impl Endpoint {
    /// A provider at a base URL, which may end in the version that its paths begin with.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(base: &str, key: Secret) -> Result<Self> {
        Ok(Self { base: base.trim_end_matches('/').to_owned(), key, client: outbound::client(base, CONNECT)? })
    }

    /// The URL of a path such as `/v1/messages`.
    pub(super) fn url(&self, version: &str, path: &str) -> String {
        let base = self.base.strip_suffix(version).unwrap_or(&self.base);
        format!("{base}{version}{path}")
    }
}

#[derive(Deserialize)]
struct Keys {
    openai: Secret,
    anthropic: Secret,
    google: Secret,
}

/// The keys in the secret named by `PROVIDERS_SECRET_ARN` that are set.
async fn keys() -> Result<Vec<(ProviderId, Secret)>> {
    let keys: Keys = secrets::read("PROVIDERS_SECRET_ARN").await?;
    let all =
        [(ProviderId::Openai, keys.openai), (ProviderId::Anthropic, keys.anthropic), (ProviderId::Google, keys.google)];
    Ok(all.into_iter().filter(|(_, key)| !key.expose().is_empty()).collect())
}

/// The providers that have a key in the secret named by `PROVIDERS_SECRET_ARN`.
///
/// # Errors
/// When the secret cannot be read.
pub async fn from_env() -> Result<Vec<(ProviderId, Box<dyn Provider>)>> {
    let mut providers: Vec<(ProviderId, Box<dyn Provider>)> = Vec::new();
    for (id, key) in keys().await? {
        let endpoint = Endpoint::new(&config::required(base_url_variable(id))?, key)?;
        providers.push((
            id,
            match id {
                ProviderId::Openai => Box::new(openai::OpenAi(endpoint)),
                ProviderId::Anthropic => Box::new(anthropic::Anthropic(endpoint)),
                ProviderId::Google => Box::new(google::Google(endpoint)),
            },
        ));
    }
    Ok(providers)
}

/// The providers that have a key, for showing what is available.
///
/// # Errors
/// When the secret cannot be read.
pub async fn configured() -> Result<Vec<ProviderId>> {
    Ok(keys().await?.into_iter().map(|(id, _)| id).collect())
}

const fn base_url_variable(id: ProviderId) -> &'static str {
    match id {
        ProviderId::Openai => "OPENAI_BASE_URL",
        ProviderId::Anthropic => "ANTHROPIC_BASE_URL",
        ProviderId::Google => "GOOGLE_BASE_URL",
    }
}

/// How one provider's events become pieces.
pub(super) trait Decoder: Send {
    /// Reads an event.
    ///
    /// # Errors
    /// When it tells of a failure or cannot be understood.
    fn event(&mut self, event: &SseEvent, pieces: &mut Vec<Piece>) -> Result<(), Failure>;

    /// Whether the stream may end here.
    fn is_complete(&self) -> bool;
}

/// What a provider's error says, in its code names.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// The body, or null where it is no JSON.
    pub(super) body: Value,
}

impl Refusal {
    /// `Retry-After` in seconds; the form with a date is not used by providers.
    fn retry_after(&self) -> Option<Duration> {
        let seconds: f64 = self.headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
        (0.0..=86_400.0).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
    }

    /// The cause that the status alone tells.
    fn cause_by_status(&self) -> Cause {
        match self.status.as_u16() {
            401 | 403 => Cause::BadKey,
            402 => Cause::Exhausted,
            404 => Cause::UnknownModel,
            408 => Cause::TimedOut,
            413 => Cause::ContextLength,
            429 => Cause::RateLimited,
            400..=499 => Cause::Rejected,
            _ => Cause::Broken,
        }
    }

    /// The failure of a cause, or of what the status alone tells, with the provider's words for the log.
    pub(super) fn failure(&self, cause: Option<Cause>, error: &Value) -> Failure {
        let cause = cause.unwrap_or_else(|| self.cause_by_status());
        let mut failure = Failure::new(cause, format!("{} {}", self.status.as_u16(), words(error, cause)));
        failure.retry_after = self.retry_after();
        failure
    }
}

/// What a provider's error says, for the log: its code names, and a sentence unless that may quote our key.
fn words(error: &Value, cause: Cause) -> String {
    let names = if cause == Cause::BadKey { &WORDS[..4] } else { &WORDS[..] };
    let told: Vec<&str> = names.iter().filter_map(|name| error[*name].as_str()).collect();
    told.join(" ").chars().filter(|c| !c.is_control()).take(LONGEST_WORDS).collect()
}

/// The failure that a stream tells of in its middle.
pub(super) fn stream_failure(cause: Option<Cause>, error: &Value) -> Failure {
    let cause = cause.unwrap_or(Cause::Broken);
    Failure::new(cause, words(error, cause))
}

/// Messages as most providers take them.
pub(super) fn messages(turns: &[Turn]) -> impl Iterator<Item = Value> {
    turns.iter().map(|turn| json!({ "role": turn.role.as_str(), "content": turn.content }))
}

/// Sends a request and gives the pieces of its answer.
pub(super) async fn open(
    request: reqwest::RequestBuilder,
    refused: fn(&Refusal) -> Failure,
    decoder: Box<dyn Decoder>,
) -> Result<Pieces, Failure> {
    let reply = request.send().await.map_err(|error| network(&error))?;
    let status = reply.status();
    if !status.is_success() {
        let headers = reply.headers().clone();
        let body = error_body(reply).await;
        return Err(refused(&Refusal { status, headers, body }));
    }
    Ok(Box::pin(pieces(reply.bytes_stream().map(|chunk| chunk.map_err(|error| network(&error))), decoder)))
}

async fn error_body(reply: reqwest::Response) -> Value {
    let mut bytes = Vec::new();
    let mut stream = reply.bytes_stream();
    while let Some(Ok(chunk)) = stream.next().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > ERROR_BODY {
            break;
        }
    }
    serde_json::from_slice(&bytes).unwrap_or(Value::Null)
}

fn network(error: &reqwest::Error) -> Failure {
    let cause = if error.is_timeout() { Cause::TimedOut } else { Cause::Broken };
    let kind = if error.is_connect() { "connect" } else { "connection" };
    Failure::new(cause, kind)
}

/// Cuts bytes into events and decodes them; a stream that ends too early ends with a failure.
fn pieces<S>(bytes: S, decoder: Box<dyn Decoder>) -> impl Stream<Item = Result<Piece, Failure>> + Send
where
    S: Stream<Item = Result<Bytes, Failure>> + Send + Unpin,
{
    struct State<S> {
        bytes: S,
        parser: Parser,
        decoder: Box<dyn Decoder>,
        ready: VecDeque<Result<Piece, Failure>>,
        over: bool,
    }
    impl<S> State<S> {
        fn decode(&mut self, events: impl IntoIterator<Item = SseEvent>) {
            let mut pieces = Vec::new();
            for event in events {
                let outcome = self.decoder.event(&event, &mut pieces);
                self.ready.extend(pieces.drain(..).map(Ok));
                if let Err(failure) = outcome {
                    self.fail(failure);
                    return;
                }
            }
        }

        fn fail(&mut self, failure: Failure) {
            self.over = true;
            self.ready.push_back(Err(failure));
        }
    }
    let state = State { bytes, parser: Parser::default(), decoder, ready: VecDeque::new(), over: false };
    futures_util::stream::unfold(state, |mut state| async move {
        loop {
            if let Some(piece) = state.ready.pop_front() {
                return Some((piece, state));
            }
            if state.over {
                return None;
            }
            match state.bytes.next().await {
                Some(Ok(chunk)) => {
                    let events = state.parser.push(&chunk);
                    state.decode(events);
                }
                // What follows a complete answer cannot break it.
                Some(Err(_)) if state.decoder.is_complete() => state.over = true,
                Some(Err(failure)) => state.fail(failure),
                None => {
                    let last = state.parser.finish();
                    state.decode(last);
                    if !state.over && !state.decoder.is_complete() {
                        state.fail(Failure::new(Cause::Broken, "the stream ended early"));
                    }
                    state.over = true;
                }
            }
        }
    })
}

/// Reads an event's JSON.
pub(super) fn json(event: &SseEvent) -> Result<Value, Failure> {
    serde_json::from_str(&event.data).map_err(|_| Failure::new(Cause::Broken, "an event is not JSON"))
}

/// A counter that may be missing or null.
pub(super) fn count(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0).max(0)
}

/// Adds text, if there is any; the database takes no NUL.
pub(super) fn push_text(pieces: &mut Vec<Piece>, text: &Value) {
    match text.as_str() {
        None | Some("") => {}
        Some(text) => pieces.push(Piece::Text(text.replace('\0', "\u{fffd}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_may_end_in_the_version_of_its_paths() {
        for base in ["https://host/prefix", "https://host/prefix/", "https://host/prefix/v1", "https://host/prefix/v1/"]
        {
            let endpoint = Endpoint::new(base, Secret::new("key".to_owned())).unwrap();
            assert_eq!(endpoint.url("/v1", "/messages"), "https://host/prefix/v1/messages", "{base}");
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// All pieces of a recorded stream, given in two parts at every byte, which must not matter.
    pub(in super::super) fn decode(recorded: &str, decoder: fn() -> Box<dyn Decoder>) -> Vec<Result<Piece, Cause>> {
        let bytes = recorded.as_bytes();
        let whole = run(&[bytes], decoder());
        for split in 1..bytes.len() {
            assert_eq!(run(&[&bytes[..split], &bytes[split..]], decoder()), whole, "split at byte {split}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(run(&single, decoder()), whole, "byte by byte");
        whole
    }

    fn run(parts: &[&[u8]], decoder: Box<dyn Decoder>) -> Vec<Result<Piece, Cause>> {
        let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::copy_from_slice(part))).collect();
        let stream = pieces(futures_util::stream::iter(parts), decoder);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let all: Vec<_> = runtime.block_on(stream.collect());
        all.into_iter().map(|piece| piece.map_err(|failure| failure.cause)).collect()
    }
}
