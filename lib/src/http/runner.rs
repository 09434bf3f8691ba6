//! Runs a function: one event in, one reply out, with everything around the handler that no handler repeats.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream};
use lambda_http::Adapter;
use serde_json::json;
use tokio::time::{Instant, timeout};
use tracing::{Instrument, Span};

use crate::background;
use crate::clock;
use crate::config;
use crate::error::{Code, Error, Result};
use crate::events::Event;
use crate::http::cors::Origins;
use crate::http::credentials::{Caller, Credential, Gate};
use crate::http::headers;
use crate::http::problem;
use crate::http::rate_limit::{Allowance, ClientKey, RateLimiter};
use crate::http::request::Request;
use crate::http::response::{Body, Chunks, Response};
use crate::http::streaming;
use crate::runtime;
use crate::store;
use crate::telemetry::faults::{self, Fault};
use crate::telemetry::log::{self, Ids};
use crate::telemetry::record::Recorder;
use crate::telemetry::spans;
use crate::telemetry::trace::TraceContext;

/// The end of an invocation that is left for its answer.
const TO_ANSWER: Duration = Duration::from_secs(2);
/// Where nobody is refused for a store's silence, it is listened to for so long.
const LONGEST_LENIENT: Duration = Duration::from_secs(2);
/// A reply that is sent whole is sent by then: API Gateway waits for 29 seconds.
const LONGEST: Duration = Duration::from_secs(27);

/// What the runner checks before the handler.
///
/// Constants, so that a function whose policy needs no DynamoDB is linked without it.
#[derive(Clone, Copy)]
pub struct Policy {
    guard: Option<InitGuard>,
    /// Whether a foreign origin is refused even without a cookie.
    own_origins_only: bool,
    /// Whether nobody is let in whom no store can count or vouch for.
    is_strict: bool,
}

impl Policy {
    /// Nothing: for what anybody may read as often as they like.
    pub const OPEN: Self = Self { guard: None, own_origins_only: false, is_strict: true };
    /// Credentials, but no rate limit.
    pub const UNLIMITED: Self =
        Self { guard: Some(|| Box::pin(Guard::init(false))), own_origins_only: false, is_strict: true };
    /// Credentials and the rate limit.
    pub const API: Self =
        Self { guard: Some(|| Box::pin(Guard::init(true))), own_origins_only: false, is_strict: true };
    /// The same where the stores answer. A report of those that are down is for everybody.
    pub const HEALTH: Self = Self { is_strict: false, ..Self::API };
    /// The same for the routes that take or change credentials.
    pub const CREDENTIALS: Self =
        Self { guard: Some(|| Box::pin(Guard::init(true))), own_origins_only: true, is_strict: true };
    /// The same without the rate limit, for whoever wants to end a session.
    pub const CREDENTIALS_UNLIMITED: Self =
        Self { guard: Some(|| Box::pin(Guard::init(false))), own_origins_only: true, is_strict: true };
}

type InitGuard = fn() -> BoxFuture<'static, Result<Box<dyn Admit>>>;

/// Finds out who is calling, and counts the request.
trait Admit: Send + Sync {
    fn admit<'a>(&'a self, request: &'a mut Request, allowance: &'a mut Option<Allowance>)
    -> BoxFuture<'a, Result<()>>;
}

type Handler = Arc<dyn Fn(Request) -> BoxFuture<'static, Result<Response>> + Send + Sync>;
type Init = Box<dyn FnOnce() -> BoxFuture<'static, Result<Handler>> + Send>;

/// The `init` of a function whose handler needs nothing.
///
/// # Errors
/// None.
pub async fn no_context() -> Result<()> {
    Ok(())
}

/// Runs a function whose replies are sent whole.
///
/// `init` builds what the handler needs, once. Everything behind this shell is compiled once for all functions.
pub fn serve<C, F>(
    function: &'static str,
    policy: Policy,
    init: fn() -> F,
    handle: fn(&'static C, Request) -> BoxFuture<'static, Result<Response>>,
) -> ExitCode
where
    C: Send + Sync + 'static,
    F: Future<Output = Result<C>> + Send + 'static,
{
    run(function, policy, Mode::Whole, erase(init, handle))
}

/// Runs a function whose replies may be streamed. Its handler may take as long as an answer takes to begin, so it bounds
/// by itself whatever else might hang.
pub fn serve_streaming<C, F>(
    function: &'static str,
    policy: Policy,
    init: fn() -> F,
    handle: fn(&'static C, Request) -> BoxFuture<'static, Result<Response>>,
) -> ExitCode
where
    C: Send + Sync + 'static,
    F: Future<Output = Result<C>> + Send + 'static,
{
    run(function, policy, Mode::Streamed, erase(init, handle))
}

fn erase<C, F>(init: fn() -> F, handle: fn(&'static C, Request) -> BoxFuture<'static, Result<Response>>) -> Init
where
    C: Send + Sync + 'static,
    F: Future<Output = Result<C>> + Send + 'static,
{
    Box::new(move || {
        Box::pin(async move {
            // The context lives as long as the process.
            let context: &'static C = Box::leak(Box::new(init().await?));
            Ok(Arc::new(move |request| handle(context, request)) as Handler)
        })
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Whole,
    Streamed,
}

fn run(function: &'static str, policy: Policy, mode: Mode, init: Init) -> ExitCode {
    runtime::block_on(function, async move {
        let shell = Arc::new(Shell::start(function, policy, mode, init).await?);
        match mode {
            Mode::Whole => {
                let service = lambda_http::service_fn(move |event| {
                    let shell = shell.clone();
                    async move { Ok::<_, lambda_http::Error>(Reply(whole(shell.invoke(event).await))) }
                });
                runtime::answer_invocations(lambda_runtime::Runtime::new(Adapter::from(service))).await
            }
            Mode::Streamed => {
                streaming::run(move |event| {
                    let shell = shell.clone();
                    async move { shell.invoke(event).await }
                })
                .await
            }
        }
    })
}

/// A reply whose body is what it is. The conversion of any response brings the tables of all character sets along,
/// which would be a fortieth of each binary.
struct Reply(http::Response<lambda_http::Body>);

impl lambda_http::IntoResponse for Reply {
    fn into_response(self) -> BoxFuture<'static, http::Response<lambda_http::Body>> {
        Box::pin(std::future::ready(self.0))
    }
}

fn whole(response: Response) -> http::Response<lambda_http::Body> {
    let body = match response.body {
        Body::Whole(bytes) if bytes.is_empty() => lambda_http::Body::Empty,
        // Text stays text: API Gateway would hand out the base64 of a binary body as it is.
        Body::Whole(bytes) => match String::from_utf8(bytes.into()) {
            Ok(text) => lambda_http::Body::Text(text),
            Err(error) => lambda_http::Body::Binary(error.into_bytes()),
        },
        Body::Streamed(_) => lambda_http::Body::Empty,
    };
    let mut reply = http::Response::new(body);
    *reply.status_mut() = response.status;
    *reply.headers_mut() = response.headers;
    reply
}

/// Everything around the handler.
struct Shell {
    function: &'static str,
    policy: Policy,
    mode: Mode,
    handler: Handler,
    guard: Option<Box<dyn Admit>>,
    origins: Origins,
    recorder: Recorder,
    route: String,
    method: String,
    trusted_proxies: usize,
    max_body_bytes: usize,
    cold: std::sync::atomic::AtomicBool,
}

/// What is logged and recorded of a request.
struct Answered {
    id: String,
    trace: TraceContext,
    method: http::Method,
    status: u16,
    duration_ms: u64,
    cold: bool,
    user: Option<uuid::Uuid>,
    /// Code, place and causes.
    error: Option<(&'static str, String, Option<String>)>,
}

/// A streamed body whose end is the end of its request's span.
struct Spanned {
    chunks: Chunks,
    span: Span,
    status: u16,
}

impl Stream for Spanned {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.chunks.as_mut().poll_next(context)
    }
}

impl Drop for Spanned {
    fn drop(&mut self) {
        spans::end_request(&self.span, self.status);
    }
}

/// Checks credentials and counts requests.
struct Guard {
    gate: Gate,
    limiter: Option<RateLimiter>,
}

impl Guard {
    async fn init(limited: bool) -> Result<Box<dyn Admit>> {
        let limiter = if limited { Some(RateLimiter::from_env()?) } else { None };
        let (gate, ()) = futures_util::try_join!(Gate::init(), async {
            background::requests_sent().await;
            crate::store::dynamo::prepare()
        })?;
        Ok(Box::new(Self { gate, limiter }))
    }
}

async fn guard_of(policy: Policy) -> Result<Option<Box<dyn Admit>>> {
    match policy.guard {
        Some(init) => init().await.map(Some),
        None => Ok(None),
    }
}

impl Shell {
    async fn start(function: &'static str, policy: Policy, mode: Mode, init: Init) -> Result<Self> {
        let (handler, guard) = futures_util::try_join!(init(), guard_of(policy))?;
        let route = config::required("ROUTE")?;
        let (method, route) = route
            .split_once(' ')
            .map(|(method, route)| (method.to_owned(), route.to_owned()))
            .ok_or_else(|| Error::internal("environment variable ROUTE is not a method and a path"))?;
        Ok(Self {
            function,
            policy,
            mode,
            handler,
            guard,
            origins: Origins::from_env(),
            recorder: Recorder::start()?,
            route,
            method,
            trusted_proxies: config::parsed("TRUSTED_PROXIES", 0)?,
            max_body_bytes: config::parsed("MAX_BODY_BYTES", 1 << 20)?,
            cold: std::sync::atomic::AtomicBool::new(true),
        })
    }

    async fn invoke(self: Arc<Self>, event: lambda_http::Request) -> Response {
        let started = Instant::now();
        let cold = self.cold.swap(false, std::sync::atomic::Ordering::Relaxed);
        let request = Request::from_lambda(event, self.trusted_proxies);
        let (id, trace, method, request_headers) =
            (request.id.clone(), request.trace, request.method.clone(), request.headers.clone());

        let span = spans::request(&trace, method.as_str(), &self.route, &id);
        let (mut allowance, mut user) = (None, None);
        let work = AssertUnwindSafe(self.guarded(request, &mut allowance, &mut user)).catch_unwind();
        let outcome = log::within(Some(Ids::new(&id, Some(&trace))), work).instrument(span.clone()).await;
        let outcome = outcome.unwrap_or_else(|panic| Err(Error::panicked(&*panic)));
        let error = outcome.as_ref().err().map(|e| (e.code().as_str(), e.location(), e.cause_chain()));
        if let Err(error) = &outcome
            && error.code().status().is_server_error()
        {
            spans::fail(&span, error.code().as_str());
            faults::report(&Fault {
                function: self.function,
                route: Some(format!("{method} {}", self.route)),
                request_id: &id,
                trace: Some(&trace),
                code: error.code().as_str(),
                location: &error.location(),
                panicked: error.is_panic(),
            });
        }
        let mut response = outcome.unwrap_or_else(|error| problem::response(&error, &id));
        self.finish(&mut response, &request_headers, allowance, &id, &trace.to_string());

        let status = response.status.as_u16();
        let duration_ms = clock::whole_millis(started.elapsed());
        let answered = Answered { id, trace, method, status, duration_ms, cold, user, error };
        let shell = self.clone();
        background::spawn_behind_reply(async move { shell.tell(&answered) });
        spans::end_request(&span, status);
        if let Body::Streamed(chunks) = response.body {
            response.body = Body::Streamed(Box::pin(Spanned { chunks, span, status }));
        }
        response
    }

    async fn guarded(
        &self,
        mut request: Request,
        allowance: &mut Option<Allowance>,
        user: &mut Option<uuid::Uuid>,
    ) -> Result<Response> {
        let end = Instant::now() + request.time_left.saturating_sub(TO_ANSWER).min(LONGEST);
        if request.body.len() > self.max_body_bytes {
            return Err(Error::new(Code::PayloadTooLarge, format!("Send at most {} bytes.", self.max_body_bytes)));
        }
        if self.policy.own_origins_only || Credential::is_cookie(&request.headers) {
            self.origins.check(&request.method, &request.headers)?;
        }
        if let Some(guard) = &self.guard {
            let admitted = guard.admit(&mut request, allowance);
            if self.policy.is_strict {
                runtime::until(end, admitted).await?;
            } else {
                match timeout(LONGEST_LENIENT, admitted).await {
                    Ok(Err(error)) if error.code() != Code::Unavailable => return Err(error),
                    Ok(_) | Err(_) => {}
                }
            }
            *user = request.user_if_any().map(super::credentials::Caller::user_id);
            if let Some(allowance) = allowance {
                allowance.check()?;
            }
        }
        // Credential routes need Postgres before a caller is known; elsewhere, and where nobody is counted, an
        // authenticated one has it connected.
        if self.policy.own_origins_only && allowance.is_some() {
            store::connect().await;
        }
        let work = (self.handler)(request);
        match self.mode {
            Mode::Whole => runtime::until(end, work).await,
            Mode::Streamed => work.await,
        }
    }

    fn finish(
        &self,
        response: &mut Response,
        request: &http::HeaderMap,
        allowance: Option<Allowance>,
        id: &str,
        traceparent: &str,
    ) {
        headers::secure(&mut response.headers);
        self.origins.decorate(request, &mut response.headers);
        headers::set(&mut response.headers, "x-request-id", id);
        headers::set(&mut response.headers, "traceparent", traceparent);
        if let Some(allowance) = allowance {
            allowance.decorate(&mut response.headers);
        }
    }

    /// Writes the log line and the telemetry record of a request.
    fn tell(&self, answered: &Answered) {
        let Answered { id, trace, method, status, duration_ms, cold, user, error } = answered;
        let user = user.map(|id| id.to_string());
        let (code, location, cause) = match error {
            Some((code, location, cause)) => (Some(*code), Some(location.as_str()), cause.as_deref()),
            None => (None, None, None),
        };
        macro_rules! line {
            ($level:ident, $message:literal) => {
                tracing::$level!(
                    function = self.function,
                    http.route = self.route,
                    http.method = method.as_str(),
                    http.status = status,
                    duration_ms,
                    request.id = id,
                    trace.id = trace.trace_id(),
                    span.id = trace.span_id(),
                    cold_start = cold,
                    user.id = user,
                    error.code = code,
                    error.location = location,
                    error.cause = cause,
                    $message
                )
            };
        }
        if *status >= 500 {
            line!(error, "the request failed")
        } else {
            line!(info, "the request was answered")
        }
        self.recorder.record(&Event::request_completed(json!({
            "function": self.function,
            "route": self.route,
            // A route for every method is told by the method that came.
            "method": if self.method == "ANY" { known_method(method) } else { &self.method },
            "status": status,
            "durationMs": duration_ms,
            "coldStart": cold,
        })));
    }
}

/// The method, if it is one of HTTP's: this is a label of metrics, which are kept. The other word is OpenTelemetry's
/// (`http.request.method`).
fn known_method(method: &http::Method) -> &str {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" | "TRACE" | "CONNECT") => known,
        _ => "_OTHER",
    }
}

impl Admit for Guard {
    fn admit<'a>(
        &'a self,
        request: &'a mut Request,
        allowance: &'a mut Option<Allowance>,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.check(request, allowance))
    }
}

impl Guard {
    /// Checks the credential and counts the request, side by side where the client is known beforehand.
    async fn check(&self, request: &mut Request, allowance: &mut Option<Allowance>) -> Result<()> {
        let now = clock::now();
        let address = ClientKey::Address(request.ip);
        let credential = Credential::of(&request.headers);
        let Some(limiter) = &self.limiter else {
            request.caller = self.caller(credential).await?;
            return Ok(());
        };
        let owner = credential.as_ref().and_then(|credential| self.gate.recognize(credential));
        match (credential, owner) {
            (None, _) => *allowance = limiter.count(address, now).await?,
            (Some(credential), Some(owner)) => {
                let ((), caller, count) = futures_util::future::join3(
                    store::connect(),
                    self.caller(Some(credential)),
                    limiter.count(ClientKey::User(owner), now),
                )
                .await;
                request.caller = caller?;
                *allowance = count?;
            }
            (Some(credential), None) => {
                request.caller = self.caller(Some(credential)).await?;
                let user = request.user_if_any().map(|caller| ClientKey::User(caller.user_id()));
                *allowance = limiter.count(user.unwrap_or(address), now).await?;
            }
        }
        Ok(())
    }

    /// The caller, or the 401 that a handler that needs one will answer with; other errors end the request.
    async fn caller(&self, credential: Option<Credential>) -> Result<Result<Option<Caller>>> {
        let Some(credential) = credential else { return Ok(Ok(None)) };
        match self.gate.authenticate(credential).await {
            Ok(caller) => {
                store::connect().await;
                Ok(Ok(Some(caller)))
            }
            Err(error) if error.is_unauthorized() => Ok(Err(error)),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_methods_of_http_are_told_apart() {
        let told = ["GET", "PATCH", "PURGE", "get"].map(|method| known_method(&method.parse().unwrap()).to_owned());
        assert_eq!(told, ["GET", "PATCH", "_OTHER", "_OTHER"]);
    }
}
