//! Stripe's API in the version and the requests of `async-stripe`, replies as JSON, since its types know one
//! version's shapes and the API has to read two.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use stripe::{IdempotencyKey, RequestStrategy};
use stripe_client_core::{RequestBuilder, SharedConfigBuilder, StripeMethod};
use tracing::{Instrument, debug_span, field};

use crate::clock;
use crate::config::{self, Secret};
use crate::error::{Code, Error, Result};
use crate::outbound;
use crate::secrets;
use crate::telemetry::spans;

/// A call that has not been answered by then is given up.
const TIMEOUT: Duration = Duration::from_secs(6);
const CONNECT: Duration = Duration::from_secs(3);
/// At least half of this is waited before a busy Stripe is asked again, unless it says how long.
const BUSY: Duration = Duration::from_secs(1);
/// A longer `Retry-After` is not waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Idempotency keys that are tried where Stripe repeats a failure that it has saved under one.
const KEYS: u32 = 3;
const USER_AGENT: &str = concat!("ai-chat-backend/", env!("CARGO_PKG_VERSION"));

/// Fields of a form or a query: names as Stripe writes them, `items[0][price]`.
pub type Form<'a> = &'a [(&'static str, String)];

/// Why Stripe did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// The bank or Stripe declined the card, with the reason's code name.
    Declined(Option<String>),
    /// A parameter, by name, points to nothing or is refused.
    Refused {
        /// The HTTP status.
        status: u16,
        /// Stripe's code name of the error.
        code: String,
        /// The parameter.
        param: Option<String>,
    },
    /// Stripe is of no use now, and nobody knows whether it was done.
    Unreachable(&'static str),
    /// Stripe failed before, saved that under the idempotency key, and answers nothing else to it any more.
    Repeated,
}

impl Failure {
    /// Whether there is no such object.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. }) || self.has_code("resource_missing")
    }

    /// Whether nobody knows if it was done.
    #[must_use]
    pub fn is_unclear(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Repeated)
    }

    /// Whether the error has this code name.
    #[must_use]
    pub fn has_code(&self, name: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == name)
    }

    /// This failure, of a charge to the customer's saved card: having none counts as a decline.
    #[must_use]
    pub fn of_own_card(self) -> Self {
        match self {
            Self::Refused { status: 400, code, param: None } if code == "resource_missing" => {
                Self::Declined(Some("no_payment_method".to_owned()))
            }
            other => other,
        }
    }

    /// The error of a request in which the payment method is all that a client chose: of one that was used before
    /// Stripe says neither the code name nor the parameter.
    #[track_caller]
    #[must_use]
    pub fn of_method(self) -> Error {
        match self {
            Self::Refused { .. } => unusable_method(),
            other => other.into(),
        }
    }
}

impl From<Failure> for Error {
    #[track_caller]
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Declined(code) => {
                Self::new(Code::CardDeclined, "The card was declined.").with("declineCode", code.into())
            }
            Failure::Refused { param: Some(param), .. } if param.contains("payment_method") => unusable_method(),
            // What the API itself has made up and Stripe refuses is a fault of ours.
            Failure::Refused { status, code, param } => {
                Self::internal(format!("Stripe refused a request: {status} {code} {}", param.unwrap_or_default()))
            }
            Failure::Unreachable(why) => Self::caused(Code::StripeUnavailable, why),
            Failure::Repeated => Self::caused(Code::StripeUnavailable, "Stripe repeats an earlier failure"),
        }
    }
}

#[track_caller]
fn unusable_method() -> Error {
    Error::invalid_field("paymentMethodId", "unknown", "There is no such payment method that can be used.")
}

#[derive(Deserialize)]
struct StripeSecret {
    key: Secret,
}

/// A client of Stripe.
pub struct Stripe {
    client: reqwest::Client,
    base: String,
    key: Secret,
    version: String,
}

impl Stripe {
    /// Reads the key from the secret named by `STRIPE_SECRET_ARN`, and `STRIPE_BASE_URL`.
    ///
    /// # Errors
    /// When one of them is missing or malformed.
    pub async fn init() -> Result<Self> {
        let secret: StripeSecret = secrets::read("STRIPE_SECRET_ARN").await?;
        Self::new(&config::required("STRIPE_BASE_URL")?, &secret.key)
    }

    /// A client of the Stripe at a base URL.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    // Compiled where it is called: what `lib` itself refers to, every function has to carry.
    #[inline]
    pub fn new(base: &str, key: &Secret) -> Result<Self> {
        Ok(Self {
            client: outbound::client(base, CONNECT)?,
            base: base.trim_end_matches('/').to_owned(),
            key: key.clone(),
            version: SharedConfigBuilder::new(key.expose()).stripe_version.to_string(),
        })
    }

    /// Reads.
    ///
    /// # Errors
    /// Those of Stripe.
    pub async fn get(&self, path: &str, query: Form<'_>) -> Result<Value, Failure> {
        let request = || {
            let mut request = RequestBuilder::new(StripeMethod::Get, path);
            request.query = (!query.is_empty()).then(|| encode(query));
            request
        };
        self.send(request, RequestStrategy::Once).await
    }

    /// Reads an object; `None` when there is none.
    ///
    /// # Errors
    /// Those of Stripe.
    pub async fn find(&self, path: &str, query: Form<'_>) -> Result<Option<Value>, Failure> {
        match self.get(path, query).await {
            Ok(value) => Ok(Some(value)),
            Err(failure) if failure.is_missing() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Does something once, however often it is sent with this key.
    ///
    /// # Errors
    /// Those of Stripe.
    pub async fn post(&self, path: &str, form: Form<'_>, key: &str) -> Result<Value, Failure> {
        let request = || {
            let mut request = RequestBuilder::new(StripeMethod::Post, path);
            request.body = Some(encode(form));
            request
        };
        self.send(request, strategy(key)?).await
    }

    /// Does something once, as [`Self::post`] does. Stripe saves a failure of its own under the key, too: where it repeats
    /// one, and `done` finds that nothing was done, the next key is taken. Every try of the same thing goes through the
    /// same keys.
    ///
    /// # Errors
    /// Those of Stripe.
    pub async fn post_once<F>(
        &self,
        path: &str,
        form: Form<'_>,
        key: &str,
        done: impl Fn() -> F,
    ) -> Result<Value, Failure>
    where
        F: Future<Output = Result<Option<Value>, Failure>>,
    {
        let mut outcome = self.post(path, form, key).await;
        for number in 2..=KEYS {
            if !matches!(outcome, Err(Failure::Repeated)) {
                break;
            }
            if let Some(value) = done().await? {
                return Ok(value);
            }
            outcome = self.post(path, form, &format!("{key}-{number}")).await;
        }
        outcome
    }

    /// The same for what is harmless to repeat: there is nothing to look for.
    ///
    /// # Errors
    /// Those of Stripe.
    pub async fn post_repeatable(&self, path: &str, form: Form<'_>, key: &str) -> Result<Value, Failure> {
        self.post_once(path, form, key, || async { Ok(None) }).await
    }

    /// Ends something; Stripe answers a second time with 404.
    ///
    /// # Errors
    /// Those of Stripe.
    pub async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.send(|| RequestBuilder::new(StripeMethod::Delete, path), RequestStrategy::Once).await
    }

    /// A request that got lost is asked for once more: reads do nothing, and the same key gets the answer to what
    /// was done the first time.
    async fn send(&self, request: impl Fn() -> RequestBuilder, strategy: RequestStrategy) -> Result<Value, Failure> {
        let started = std::time::Instant::now();
        let built = request();
        let span = debug_span!(
            "stripe",
            otel.name = format!("stripe {:?}", built.method),
            otel.kind = "client",
            peer.service = "stripe",
            url.path = built.path,
            error.type = field::Empty,
        );
        let (mut outcome, again) = self.send_once(request(), strategy.clone()).instrument(span.clone()).await;
        if let Some(wait) = again {
            tokio::time::sleep(wait).await;
            (outcome, _) = self.send_once(request(), strategy).instrument(span.clone()).await;
        }
        let status = match &outcome {
            Ok(_) => "ok",
            Err(Failure::Declined(_)) => "declined",
            Err(Failure::Refused { .. }) => "refused",
            Err(Failure::Unreachable(_) | Failure::Repeated) => "unreachable",
        };
        if outcome.is_err() {
            spans::fail(&span, status);
        }
        let duration_ms = clock::whole_millis(started.elapsed());
        tracing::info!(stripe.method = ?built.method, stripe.path = built.path, stripe.status = status, duration_ms, "Stripe was asked");
        outcome
    }

    /// The outcome, and after which wait to ask again: when Stripe did not answer or failed, unless it says not to.
    async fn send_once(
        &self,
        request: RequestBuilder,
        strategy: RequestStrategy,
    ) -> (Result<Value, Failure>, Option<Duration>) {
        match self.call(request, strategy).await {
            Ok((status, _, body)) if status.is_success() => (Ok(body), None),
            Ok((status, headers, body)) => {
                let failure = refusal(status.as_u16(), &headers, &body["error"]);
                let again = matches!(failure, Failure::Unreachable(_)).then(|| wait(status.as_u16(), &headers));
                (Err(failure), again.flatten())
            }
            Err(failure) => (Err(failure), Some(Duration::ZERO)),
        }
    }

    async fn call(
        &self,
        request: RequestBuilder,
        strategy: RequestStrategy,
    ) -> Result<(StatusCode, HeaderMap, Value), Failure> {
        let method = match request.method {
            StripeMethod::Get => Method::GET,
            StripeMethod::Post => Method::POST,
            StripeMethod::Delete => Method::DELETE,
        };
        let query = request.query.map(|query| format!("?{query}")).unwrap_or_default();
        let mut call = self
            .client
            .request(method, format!("{}/v1{}{query}", self.base, request.path))
            .timeout(TIMEOUT)
            .bearer_auth(self.key.expose())
            .header("stripe-version", &self.version)
            .header(header::USER_AGENT, USER_AGENT);
        if let Some(key) = strategy.get_key() {
            call = call.header("idempotency-key", key.as_str());
        }
        if let Some(body) = request.body {
            call = call.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(body);
        }
        let reply = call.send().await.map_err(|error| unreachable(&error))?;
        let status = reply.status();
        let headers = reply.headers().clone();
        let body = reply.bytes().await.map_err(|error| unreachable(&error))?;
        match serde_json::from_slice(&body) {
            Ok(body) => Ok((status, headers, body)),
            // What stands before Stripe does not fail in JSON.
            Err(_) if status.is_server_error() => Ok((status, headers, Value::Null)),
            Err(_) => Err(Failure::Unreachable("Stripe's answer cannot be read")),
        }
    }
}

fn unreachable(error: &reqwest::Error) -> Failure {
    Failure::Unreachable(if error.is_timeout() { "Stripe did not answer in time" } else { "Stripe cannot be reached" })
}

fn strategy(key: &str) -> Result<RequestStrategy, Failure> {
    let key = IdempotencyKey::new(key).map_err(|_| Failure::Unreachable("the idempotency key is malformed"))?;
    Ok(RequestStrategy::Idempotent(key))
}

fn encode(form: Form<'_>) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish()
}

/// How long to wait before a request that was not served is sent again; `None` where that is of no use.
fn wait(status: u16, headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match status {
        _ if text("stripe-should-retry") == Some("false") => None,
        409 | 429 => match text("retry-after").and_then(|seconds| seconds.trim().parse().ok()) {
            Some(seconds) => Some(Duration::from_secs(seconds)).filter(|wait| *wait <= LONGEST_WAIT),
            None => Some(clock::jitter(BUSY)),
        },
        _ => Some(Duration::ZERO),
    }
}

/// What an error comes to. Stripe's own text stays out: it may tell of the card.
fn refusal(status: u16, headers: &HeaderMap, error: &Value) -> Failure {
    let text = |name: &str| error[name].as_str().map(str::to_owned);
    let code = text("code");
    match status {
        402 => Failure::Declined(text("decline_code").or(code)),
        401 | 403 => Failure::Unreachable("Stripe does not take the key"),
        409 | 429 => Failure::Unreachable("Stripe is busy"),
        500.. if headers.get("idempotent-replayed").is_some_and(|value| value == "true") => Failure::Repeated,
        500.. => Failure::Unreachable("Stripe failed"),
        _ => Failure::Refused { status, code: code.unwrap_or_default(), param: text("param") },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_clear_no_of_stripe_is_one() {
        let coded = |status: u16| refusal(status, &HeaderMap::new(), &json!({"code": "some_code", "param": "amount"}));
        for status in [400, 404] {
            assert!(matches!(coded(status), Failure::Refused { .. }), "{status}");
        }
        for status in [401, 403, 409, 429, 500, 502, 503] {
            assert!(matches!(coded(status), Failure::Unreachable(_)), "{status}");
            assert_eq!(Error::from(coded(status)).code(), Code::StripeUnavailable, "{status}");
        }
        let declined = refusal(402, &HeaderMap::new(), &json!({"code": "card_declined", "decline_code": "lost_card"}));
        assert!(matches!(declined, Failure::Declined(Some(code)) if code == "lost_card"));
        let used = refusal(400, &HeaderMap::new(), &json!({"message": "previously used"})).of_method();
        assert_eq!(used.code(), Code::ValidationFailed);
        assert_eq!(refusal(500, &HeaderMap::new(), &Value::Null).of_method().code(), Code::StripeUnavailable);
        let expired = refusal(402, &HeaderMap::new(), &json!({"code": "expired_card", "decline_code": null}));
        assert!(matches!(expired, Failure::Declined(Some(code)) if code == "expired_card"));
    }

    #[test]
    fn only_a_missing_card_declines_the_payment() {
        let of = |status, code: &str, param: Option<&str>| {
            Failure::Refused { status, code: code.to_owned(), param: param.map(str::to_owned) }.of_own_card()
        };
        let missing = of(400, "resource_missing", None);
        assert!(matches!(missing, Failure::Declined(Some(code)) if code == "no_payment_method"));
        for other in
            [of(400, "resource_missing", Some("items[0][price]")), of(404, "resource_missing", None), of(400, "", None)]
        {
            assert!(matches!(other, Failure::Refused { .. }));
        }
    }

    #[test]
    fn a_failure_that_is_repeated_is_told_from_a_new_one() {
        let replayed = HeaderMap::from_iter([("idempotent-replayed".parse().unwrap(), "true".parse().unwrap())]);
        assert!(matches!(refusal(500, &replayed, &Value::Null), Failure::Repeated));
        assert!(matches!(refusal(500, &HeaderMap::new(), &Value::Null), Failure::Unreachable(_)));
        // A card that was declined is declined however often that is told.
        assert!(matches!(refusal(402, &replayed, &Value::Null), Failure::Declined(None)));
    }

    #[test]
    fn a_busy_stripe_is_left_alone_for_a_while() {
        let with = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
        };
        for status in [409, 429] {
            let waited = wait(status, &HeaderMap::new()).unwrap();
            assert!((BUSY / 2..=BUSY).contains(&waited), "{waited:?}");
            assert_eq!(wait(status, &with("retry-after", "2")), Some(Duration::from_secs(2)));
            assert_eq!(wait(status, &with("retry-after", "60")), None);
            assert_eq!(wait(status, &with("stripe-should-retry", "false")), None);
        }
        assert_eq!(wait(500, &HeaderMap::new()), Some(Duration::ZERO));
        assert_eq!(wait(500, &with("stripe-should-retry", "false")), None);
    }
}
