//! The one error type: a closed set of client errors with stable codes, and everything else as a 5xx
//! whose cause is logged where the request ends and never sent.

use std::any::Any;
use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::panic::Location;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_types::request_id::RequestId;
use http::StatusCode;
use serde_json::{Map, Value};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:literal, $code:literal, $title:literal;)*) => {
        /// Every code that a reply may carry; `openapi.yaml` lists the same ones.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// All codes, in the order of the contract.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable, snake_case name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The HTTP status that goes with the code.
            #[must_use]
            pub fn status(self) -> StatusCode {
                let status: u16 = match self { $(Self::$name => $status,)* };
                StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }

            /// The short text of the problem, the same for every occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// One or more fields are missing or malformed.
    ValidationFailed = 400, "validation_failed", "Some fields are not valid";
    /// The body is not JSON, or not an object.
    InvalidJson = 400, "invalid_json", "The body is not valid JSON";
    /// A one-time token is unknown, used or expired.
    InvalidToken = 400, "invalid_token", "The token is not valid";
    /// A webhook's signature does not match its body.
    InvalidSignature = 400, "invalid_signature", "The signature is not valid";
    /// The prompt is longer than the model's context window.
    ContextLengthExceeded = 400, "context_length_exceeded", "The prompt is too long for the model";
    /// No such model, or none that is configured.
    ModelNotAvailable = 400, "model_not_available", "The model is not available";
    /// The provider refused the request as such.
    ProviderRejected = 400, "provider_rejected", "The provider rejected the request";
    /// No credential, or one that is not valid.
    Unauthenticated = 401, "unauthenticated", "Sign in to continue";
    /// A wrong e-mail or password.
    InvalidCredentials = 401, "invalid_credentials", "The e-mail or the password is wrong";
    /// The session has ended.
    SessionExpired = 401, "session_expired", "The session has expired";
    /// A card that its bank declined.
    CardDeclined = 402, "card_declined", "The card was declined";
    /// Signed in, but not allowed.
    Forbidden = 403, "forbidden", "Not allowed";
    /// A right password, but the address is not verified.
    EmailNotVerified = 403, "email_not_verified", "The e-mail address is not verified";
    /// A request from an origin outside the allow-list.
    OriginNotAllowed = 403, "origin_not_allowed", "The origin is not allowed";
    /// No such object, or somebody else's.
    NotFound = 404, "not_found", "Not found";
    /// No such path and method.
    RouteNotFound = 404, "route_not_found", "No such route";
    /// The address has an account.
    EmailTaken = 409, "email_taken", "The e-mail address has an account";
    /// There is an active subscription.
    AlreadySubscribed = 409, "already_subscribed", "There is an active subscription";
    /// The same idempotency key is being worked on.
    RequestInProgress = 409, "request_in_progress", "The same request is in progress";
    /// The body is larger than the limit.
    PayloadTooLarge = 413, "payload_too_large", "The body is too large";
    /// The body is not of the media type that the route takes.
    UnsupportedMediaType = 415, "unsupported_media_type", "The media type is not supported";
    /// The idempotency key was used with another body.
    IdempotencyKeyReused = 422, "idempotency_key_reused", "The idempotency key was used for another request";
    /// The provider's filter blocked the prompt.
    ContentFiltered = 422, "content_filtered", "The prompt was blocked by a content filter";
    /// More requests than the client's limit.
    RateLimited = 429, "rate_limited", "Too many requests";
    /// More attempts than the limit of a credential route.
    TooManyAttempts = 429, "too_many_attempts", "Too many attempts";
    /// The plan's tokens of the month are spent or reserved.
    QuotaExceeded = 429, "quota_exceeded", "The quota is used up";
    /// A fault of ours.
    Internal = 500, "internal", "Something went wrong";
    /// The provider failed before the first token.
    ProviderUnavailable = 502, "provider_unavailable", "The model provider failed";
    /// The provider refuses more requests for now.
    ProviderRateLimited = 503, "provider_rate_limited", "The model provider is rate limiting";
    /// Stripe cannot be reached.
    StripeUnavailable = 503, "stripe_unavailable", "Payments are not available";
    /// A dependency of ours cannot be reached.
    Unavailable = 503, "unavailable", "The service is not available";
    /// The provider did not answer in time.
    ProviderTimeout = 504, "provider_timeout", "The model provider did not answer in time";
}

/// What is wrong with one field of a request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FieldError {
    /// The field's name as the client writes it.
    pub field: String,
    /// A stable, snake_case reason such as `required` or `too_long`.
    pub code: &'static str,
    /// One sentence that can be shown.
    pub message: String,
}

/// An error on its way to a reply.
pub struct Error(Box<Inner>);

struct Inner {
    code: Code,
    detail: Cow<'static, str>,
    fields: Vec<FieldError>,
    extensions: Map<String, Value>,
    location: &'static Location<'static>,
    /// Where the code panicked, for a panic that was caught.
    panicked_at: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A client error with its code and one sentence for the client.
    #[track_caller]
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            code,
            detail: detail.into(),
            fields: Vec::new(),
            extensions: Map::new(),
            location: Location::caller(),
            panicked_at: None,
            source: None,
        }))
    }

    /// A fault of ours: 500, with the cause kept for the log.
    #[track_caller]
    pub fn internal(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::caused(Code::Internal, source)
    }

    /// A panic that was caught: 500, raised where the code panicked.
    #[track_caller]
    #[must_use]
    pub fn panicked(panic: &(dyn Any + Send)) -> Self {
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let mut error = Self::internal(format!("the code panicked: {}", message.unwrap_or("without a message")));
        error.0.panicked_at = Some(crate::telemetry::faults::panicked_at().unwrap_or_else(|| error.location()));
        error
    }

    /// A dependency that cannot be reached: 503, with the cause kept for the log.
    #[track_caller]
    pub fn unavailable(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::caused(Code::Unavailable, source)
    }

    /// An error with a code of its own and a cause that is logged, never sent.
    #[track_caller]
    pub fn caused(code: Code, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let mut error = Self::new(code, code.title());
        error.0.source = Some(source.into());
        error
    }

    /// A 400 that names every bad field.
    #[track_caller]
    #[must_use]
    pub fn validation(fields: Vec<FieldError>) -> Self {
        let mut error = Self::new(Code::ValidationFailed, "Correct the fields named in `errors`.");
        error.0.fields = fields;
        error
    }

    /// A 400 about one field.
    #[track_caller]
    #[must_use]
    pub fn invalid_field(field: &str, code: &'static str, message: impl Into<String>) -> Self {
        Self::validation(vec![FieldError { field: field.to_owned(), code, message: message.into() }])
    }

    /// A 401 for a missing or invalid credential.
    #[track_caller]
    #[must_use]
    pub fn unauthenticated() -> Self {
        Self::new(Code::Unauthenticated, "This needs a valid session cookie or bearer token.")
    }

    /// A 404 for an object that does not exist or belongs to somebody else.
    #[track_caller]
    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::new(Code::NotFound, format!("There is no such {what}."))
    }

    /// A 429 with the seconds after which another try makes sense.
    #[track_caller]
    #[must_use]
    pub fn too_many(code: Code, retry_after_seconds: u64) -> Self {
        Self::new(code, format!("Try again in {retry_after_seconds} seconds."))
            .with("retryAfterSeconds", retry_after_seconds.into())
    }

    /// Adds a member to the problem document.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.0.extensions.insert(name.to_owned(), value);
        self
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Whether it says that nobody is signed in.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        self.code().status() == http::StatusCode::UNAUTHORIZED
    }

    /// The sentence for the client.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The bad fields of a validation error.
    #[must_use]
    pub fn fields(&self) -> &[FieldError] {
        &self.0.fields
    }

    /// The extra members of the problem document.
    #[must_use]
    pub fn extensions(&self) -> &Map<String, Value> {
        &self.0.extensions
    }

    /// Where the error was raised, as `file:line`.
    #[must_use]
    pub fn location(&self) -> String {
        self.0.panicked_at.clone().unwrap_or_else(|| format!("{}:{}", self.0.location.file(), self.0.location.line()))
    }

    /// Whether it was a panic.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        self.0.panicked_at.is_some()
    }

    /// The cause and its causes in one line, for the log.
    #[must_use]
    pub fn cause_chain(&self) -> Option<String> {
        let mut cause: Option<&dyn StdError> = Some(self.0.source.as_deref()?);
        let mut text = String::new();
        while let Some(error) = cause {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&error.to_string());
            cause = error.source();
        }
        Some(text)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.0.code.as_str(), self.location())?;
        match self.cause_chain() {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for Error {}

impl From<sqlx::Error> for Error {
    #[track_caller]
    fn from(error: sqlx::Error) -> Self {
        let is_of = |classes: &[&str]| match &error {
            sqlx::Error::Database(e) => {
                e.code().is_some_and(|code| classes.iter().any(|class| code.starts_with(class)))
            }
            _ => false,
        };
        // 28 invalid authorization: the password was rotated since it was read
        let refused = is_of(&["28"]);
        if refused {
            crate::store::postgres::credentials_refused();
        }
        // 25006 read-only transaction: after a failover, the connection is still to the server that was the writer
        let outdated = is_of(&["25006"]);
        if outdated {
            crate::store::postgres::writes_refused();
        }
        let unreachable = match &error {
            _ if refused || outdated => true,
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Protocol(_) => true,
            // 08 connection, 53 resources, 57 operator intervention (shutdown, cancel), 40 serialization; 55P03 a lock that
            // others kept for too long, which is nobody's fault and worth another try
            _ => is_of(&["08", "53", "57", "40", "55P03"]),
        };
        if unreachable { Self::unavailable(error) } else { Self::internal(error) }
    }
}

impl From<clickhouse::error::Error> for Error {
    #[track_caller]
    fn from(error: clickhouse::error::Error) -> Self {
        use clickhouse::error::Error as E;
        let unreachable = match &error {
            E::Network(_) | E::TimedOut => true,
            // 159 takes too long, 202 too many queries, 241 out of memory, 242 read-only. What has no code is no reply
            // of the server's own.
            E::BadResponse(reply) => clickhouse_code(reply).is_none_or(|code| [159, 202, 241, 242].contains(&code)),
            _ => false,
        };
        if unreachable { Self::unavailable(error) } else { Self::internal(error) }
    }
}

/// The code of an exception of ClickHouse: `Code: 60. DB::Exception: …`.
fn clickhouse_code(reply: &str) -> Option<u32> {
    let (_, rest) = reply.split_once("Code: ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl<E> From<SdkError<E, HttpResponse>> for Error
where
    E: StdError + Send + Sync + 'static + ProvideErrorMetadata,
{
    #[track_caller]
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        // A request that was understood and refused is our bug; anything else means out of reach.
        let ours = matches!(&error, SdkError::ConstructionFailure(_))
            || matches!(&error, SdkError::ServiceError(e) if matches!(
                e.err().code(),
                Some("ValidationException" | "AccessDeniedException" | "ResourceNotFoundException")
            ));
        let code = if ours { Code::Internal } else { Code::Unavailable };
        match error.raw_response() {
            Some(answer) => Self::caused(code, answered(&error, answer)),
            None => Self::caused(code, error),
        }
    }
}

/// What the log tells of an answer of AWS that is an error, or that nobody understands: never its body, nor what the
/// parser says of it, since a secret or a session may stand there.
fn answered<E>(error: &SdkError<E, HttpResponse>, answer: &HttpResponse) -> String
where
    E: StdError + 'static + ProvideErrorMetadata,
{
    let (code, message) = match error.as_service_error() {
        Some(refusal) => (refusal.code(), refusal.message()),
        None => (None, None),
    };
    format!(
        "{error}: {}: {} (status {}, request {})",
        code.unwrap_or("without a code"),
        message.unwrap_or("without a message"),
        answer.status().as_u16(),
        answer.request_id().unwrap_or("without an id"),
    )
}

impl From<serde_json::Error> for Error {
    #[track_caller]
    fn from(error: serde_json::Error) -> Self {
        Self::internal(error)
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::error::ErrorMetadata;
    use aws_smithy_runtime_api::client::result::ConnectorError;

    use super::*;

    #[test]
    fn remembers_where_it_was_raised_and_hides_the_cause() {
        let error = Error::from(sqlx::Error::PoolTimedOut);
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.location().starts_with("lib/src/error.rs:"), "{}", error.location());
        assert!(!error.detail().contains("pool"), "the cause must stay out of what the client reads");
        assert!(error.cause_chain().unwrap().contains("pool"));
    }

    #[test]
    fn an_answer_of_aws_is_not_in_the_log() {
        let answer = || {
            let body = r#"{"SecretString": "postgres://app:hunter2@"#;
            let mut answer = HttpResponse::new(200.try_into().unwrap(), body.into());
            answer.headers_mut().insert("x-amzn-requestid", "r1");
            answer
        };
        let refusal = ErrorMetadata::builder().code("ThrottlingException").message("Slow down").build();
        let unread = ErrorMetadata::builder().build();
        for (error, told) in [
            (SdkError::service_error(refusal, answer()), "service error: ThrottlingException: Slow down"),
            (SdkError::service_error(unread, answer()), "service error: without a code: without a message"),
            (SdkError::response_error("hunter2", answer()), "response error: without a code: without a message"),
        ] {
            let error = Error::from(error);
            assert_eq!(error.cause_chain().unwrap(), format!("{told} (status 200, request r1)"));
            assert_eq!(error.code(), Code::Unavailable);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let unreachable = ConnectorError::io("connection refused".into());
        let error = Error::from(SdkError::<ErrorMetadata, HttpResponse>::dispatch_failure(unreachable));
        assert_eq!(error.cause_chain().unwrap(), "dispatch failure: io error: connection refused");
    }

    #[test]
    fn a_clickhouse_that_is_down_or_full_is_unavailable() {
        let code = |reply: &str| Error::from(clickhouse::error::Error::BadResponse(reply.to_owned())).code();
        for reply in ["502 Bad Gateway", "<html></html>", "Code: 241. DB::Exception: Memory limit", "Code: 159"] {
            assert_eq!(code(reply), Code::Unavailable, "{reply}");
        }
        for reply in ["Code: 60. DB::Exception: Unknown table", "Code: 2410. DB::Exception"] {
            assert_eq!(code(reply), Code::Internal, "{reply}");
        }
    }

    #[test]
    fn codes_are_unique_and_client_or_server_errors() {
        let mut names: Vec<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|c| c.status().is_client_error() || c.status().is_server_error()));
    }
}
