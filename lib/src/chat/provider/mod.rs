//! Model providers behind one small interface: a call goes in, pieces of an answer come out.

pub mod anthropic;
pub mod attempt;
pub mod google;
pub mod openai;
pub mod sse;
mod transport;

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::chat::catalogue::{Api, Choice};
use crate::chat::prompt;
use crate::error::{Code, Error};

pub use transport::{Endpoint, configured, from_env};

/// Who said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The role as it is stored and sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }

    /// Reads a stored role.
    #[must_use]
    pub fn stored(text: &str) -> Self {
        if text == "assistant" { Self::Assistant } else { Self::User }
    }
}

/// One message of a conversation.
#[derive(Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub content: String,
}

/// What a provider is asked.
#[derive(Clone)]
pub struct Call {
    /// The model.
    pub choice: Choice,
    /// Instructions that come before the conversation.
    pub system: Option<String>,
    /// The conversation, oldest message first.
    pub turns: Vec<Turn>,
    /// The longest answer that may be produced, reasoning included.
    pub max_tokens: i64,
    /// How freely to choose words.
    pub temperature: Option<f64>,
}

impl Call {
    /// A likely number of the prompt's tokens.
    #[must_use]
    pub fn prompt_tokens(&self) -> i64 {
        let turns = self.turns.iter().map(|turn| turn.content.as_str());
        turns.chain(self.system.as_deref()).map(prompt::estimated_tokens).sum()
    }

    fn api(&self) -> Api {
        self.choice.model.api
    }

    /// The temperature, for a model that takes one.
    fn temperature(&self) -> Option<f64> {
        self.temperature.filter(|_| !self.choice.model.fixed_sampling)
    }
}

/// Tokens of a request, counted alike over all providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// The prompt, cache reads and writes included.
    pub input_tokens: i64,
    /// The part of the prompt that was read from a cache.
    pub cached_input_tokens: i64,
    /// The part of the prompt that was written to a cache.
    pub cache_write_tokens: i64,
    /// The answer, reasoning included.
    pub output_tokens: i64,
    /// The part of the answer that nobody sees.
    pub reasoning_tokens: i64,
    /// Whether the provider told nothing, so that this is an estimate.
    pub estimated: bool,
}

impl Usage {
    /// What counts against the quota.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.input_tokens + self.output_tokens
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model was done.
    Stop,
    /// The longest answer was reached.
    Length,
    /// The model or a filter refused.
    ContentFilter,
    /// The model wants to call a tool.
    ToolCalls,
    /// The client wanted no more.
    Stopped,
    /// The stream broke.
    Error,
}

impl FinishReason {
    /// The reason as it is stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ContentFilter => "content_filter",
            Self::ToolCalls => "tool_calls",
            Self::Stopped => "stopped",
            Self::Error => "error",
        }
    }

    /// Reads a stored reason.
    #[must_use]
    pub fn stored(text: &str) -> Option<Self> {
        [Self::Stop, Self::Length, Self::ContentFilter, Self::ToolCalls, Self::Stopped, Self::Error]
            .into_iter()
            .find(|reason| reason.as_str() == text)
    }
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// More text.
    Text(String),
    /// The model thinks, which nobody sees and which not every provider counts before the end.
    Thinking,
    /// The count so far; the last one counts.
    Usage(Usage),
    /// The answer is complete.
    Finish(FinishReason),
}

/// An answer as it arrives. Dropping it closes the connection to the provider.
pub type Pieces = BoxStream<'static, Result<Piece, Failure>>;

/// A model provider.
pub trait Provider: Send + Sync {
    /// Sends the call; the pieces begin with the provider's first byte.
    fn start<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Result<Pieces, Failure>>;
}

/// Why a provider gave no answer, or not all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Too many requests, for now.
    RateLimited,
    /// The account with the provider has no money left.
    Exhausted,
    /// The provider does not accept our key.
    BadKey,
    /// The provider failed, or cannot be reached.
    Broken,
    /// Nothing came in time.
    TimedOut,
    /// The prompt does not fit the model.
    ContextLength,
    /// The prompt was blocked.
    ContentFiltered,
    /// The provider does not know the model.
    UnknownModel,
    /// The request is wrong in the provider's eyes.
    Rejected,
}

/// A provider's failure. What the provider said about it is for the log alone.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Why.
    pub cause: Cause,
    /// How long the provider asks to be left alone.
    pub retry_after: Option<Duration>,
    /// Status and the provider's words, for the log.
    pub detail: String,
}

impl Failure {
    /// A failure with what the log shall know about it.
    pub fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self { cause, retry_after: None, detail: detail.into() }
    }

    /// Whether the same request may succeed a moment later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self.cause, Cause::RateLimited | Cause::Broken | Cause::TimedOut)
    }

    /// Whether another provider may take the request.
    #[must_use]
    pub fn is_the_providers(&self) -> bool {
        self.is_passing() || self.is_our_account()
    }

    /// Whether the provider takes no request of ours until somebody sees to the account there.
    #[must_use]
    pub fn is_our_account(&self) -> bool {
        matches!(self.cause, Cause::Exhausted | Cause::BadKey)
    }

    /// The class in the words of the analytics contract; a stream that had begun is told apart.
    #[must_use]
    pub fn class(&self, begun: bool) -> &'static str {
        match self.cause {
            Cause::TimedOut => "timeout",
            _ if begun => "stream_broken",
            Cause::RateLimited | Cause::Exhausted => "rate_limit",
            Cause::BadKey | Cause::Broken => "server_error",
            Cause::ContextLength => "context_length",
            Cause::ContentFiltered => "content_filter",
            Cause::UnknownModel | Cause::Rejected => "rejected",
        }
    }

    /// The code of the reply.
    #[must_use]
    pub fn code(&self) -> Code {
        match self.cause {
            Cause::RateLimited | Cause::Exhausted => Code::ProviderRateLimited,
            Cause::BadKey | Cause::Broken => Code::ProviderUnavailable,
            Cause::TimedOut => Code::ProviderTimeout,
            Cause::ContextLength => Code::ContextLengthExceeded,
            Cause::ContentFiltered => Code::ContentFiltered,
            Cause::UnknownModel => Code::ModelNotAvailable,
            Cause::Rejected => Code::ProviderRejected,
        }
    }

    /// The sentence for the client.
    #[must_use]
    pub fn message(&self) -> &'static str {
        match self.cause {
            Cause::RateLimited | Cause::Exhausted => "The model provider takes no more requests for now.",
            Cause::BadKey | Cause::Broken => "The model provider failed. Try again, or choose another model.",
            Cause::TimedOut => "The model provider did not answer in time.",
            Cause::ContextLength => "The prompt is too long for the model.",
            Cause::ContentFiltered => "The prompt was blocked by the model provider's filter.",
            Cause::UnknownModel => "The model is not available.",
            Cause::Rejected => "The model provider rejected the request.",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({})", self.cause, self.detail)
    }
}

impl From<Failure> for Error {
    #[track_caller]
    fn from(failure: Failure) -> Self {
        let error = Self::new(failure.code(), failure.message());
        match failure.retry_after {
            Some(wait) if failure.cause == Cause::RateLimited => {
                // Rounded up: a client that comes back a moment early would be refused again.
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                error.with("retryAfterSeconds", seconds.max(1).into())
            }
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_reply_and_its_class() {
        for (cause, status, code, class) in [
            (Cause::RateLimited, 503, "provider_rate_limited", "rate_limit"),
            (Cause::Exhausted, 503, "provider_rate_limited", "rate_limit"),
            (Cause::BadKey, 502, "provider_unavailable", "server_error"),
            (Cause::Broken, 502, "provider_unavailable", "server_error"),
            (Cause::TimedOut, 504, "provider_timeout", "timeout"),
            (Cause::ContextLength, 400, "context_length_exceeded", "context_length"),
            (Cause::ContentFiltered, 422, "content_filtered", "content_filter"),
            (Cause::UnknownModel, 400, "model_not_available", "rejected"),
            (Cause::Rejected, 400, "provider_rejected", "rejected"),
        ] {
            let failure = Failure::new(cause, "played");
            let (of_reply, begun) = (failure.code(), failure.class(true));
            assert_eq!((of_reply.status().as_u16(), of_reply.as_str(), failure.class(false)), (status, code, class));
            assert_eq!(begun, if cause == Cause::TimedOut { "timeout" } else { "stream_broken" }, "{cause:?}");
        }
    }
}
