//! Stripe's API over `async-stripe`: requests with idempotency keys and time-outs, replies as JSON, since its
//! types know one version's shapes and the API has to read two.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use stripe::StripeError;
use stripe_client_core::{IdempotencyKey, RequestBuilder, RequestStrategy, StripeMethod};

use crate::config::{self, Secret};
use crate::error::{Code, Error, Result};
use crate::secrets;

/// A call that has not been answered by then is given up.
const TIMEOUT: Duration = Duration::from_secs(6);

/// Fields of a form or a query: names as Stripe writes them, `items[0][price]`.
pub type Form = Vec<(&'static str, String)>;

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
    /// Nobody knows whether it was done.
    Unreachable(&'static str),
}

impl Failure {
    /// Whether there is no such object.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. }) || self.has_code("resource_missing")
    }

    /// Whether the error has this code name.
    #[must_use]
    pub fn has_code(&self, name: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == name)
    }
}

impl From<Failure> for Error {
    #[track_caller]
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Declined(code) => {
                Self::new(Code::CardDeclined, "The card was declined.").with("declineCode", code.into())
            }
            Failure::Refused { param: Some(param), .. } if param.contains("payment_method") => {
                Self::invalid_field("paymentMethodId", "unknown", "There is no such payment method that can be used.")
            }
            // What the API itself has made up and Stripe refuses is a fault of ours.
            Failure::Refused { status: status @ 400..=404, code, param } if !matches!(status, 401 | 403) => {
                Self::internal(format!("Stripe refused a request: {status} {code} {}", param.unwrap_or_default()))
            }
            Failure::Refused { status, code, .. } => {
                Self::caused(Code::StripeUnavailable, format!("Stripe answered {status} {code}"))
            }
            Failure::Unreachable(why) => Self::caused(Code::StripeUnavailable, why),
        }
    }
}

#[derive(Deserialize)]
struct StripeSecret {
    key: Secret,
}

/// A client of Stripe.
pub struct Stripe {
    client: stripe::Client,
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
    /// When the URL or the key is malformed.
    pub fn new(base: &str, key: &Secret) -> Result<Self> {
        let client = stripe::ClientBuilder::new(key.expose())
            .url(format!("{}/", base.trim_end_matches('/')))
            .timeout(TIMEOUT)
            .build()
            // The message may quote the key.
            .map_err(|_| Error::internal("Stripe's URL or key is malformed"))?;
        Ok(Self { client })
    }

    /// Reads.
    ///
    /// # Errors
    /// Those of Stripe.
    pub async fn get(&self, path: &str, query: &Form) -> Result<Value, Failure> {
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
    pub async fn find(&self, path: &str, query: &Form) -> Result<Option<Value>, Failure> {
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
    pub async fn post(&self, path: &str, form: &Form, key: &str) -> Result<Value, Failure> {
        let request = || {
            let mut request = RequestBuilder::new(StripeMethod::Post, path);
            request.body = Some(encode(form));
            request
        };
        self.send(request, strategy(key)?).await
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
        let mut outcome = self.send_once(request(), strategy.clone()).await;
        if matches!(outcome, Err(Failure::Unreachable(_))) {
            outcome = self.send_once(request(), strategy).await;
        }
        let built = request();
        let status = match &outcome {
            Ok(_) => "ok",
            Err(Failure::Declined(_)) => "declined",
            Err(Failure::Refused { .. }) => "refused",
            Err(Failure::Unreachable(_)) => "unreachable",
        };
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(stripe.method = ?built.method, stripe.path = built.path, stripe.status = status, duration_ms, "Stripe was asked");
        outcome
    }

    async fn send_once(&self, request: RequestBuilder, strategy: RequestStrategy) -> Result<Value, Failure> {
        let reply: Result<miniserde::json::Value, StripeError> =
            request.customize().request_strategy(strategy).send(&self.client).await;
        match reply {
            Ok(value) => serde_json::from_str(&miniserde::json::to_string(&value))
                .map_err(|_| Failure::Unreachable("the reply is not JSON")),
            Err(error) => Err(failure(error)),
        }
    }
}

fn strategy(key: &str) -> Result<RequestStrategy, Failure> {
    let key = IdempotencyKey::new(key).map_err(|_| Failure::Unreachable("the idempotency key is malformed"))?;
    Ok(RequestStrategy::Idempotent(key))
}

fn encode(form: &Form) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish()
}

/// What a failure comes to. Stripe's own text stays out: it may tell of the card.
fn failure(error: StripeError) -> Failure {
    let (error, status) = match error {
        StripeError::Stripe(error, status) => (error, status),
        StripeError::Timeout => return Failure::Unreachable("Stripe did not answer in time"),
        StripeError::ClientError(_) => return Failure::Unreachable("Stripe cannot be reached"),
        StripeError::JSONDeserialize(_) => return Failure::Unreachable("Stripe's answer cannot be read"),
        StripeError::ConfigError(_) => return Failure::Unreachable("the client of Stripe is misconfigured"),
    };
    let code = error.code.as_ref().map(ToString::to_string).unwrap_or_default();
    if status == 402 {
        return Failure::Declined(error.decline_code.or((!code.is_empty()).then_some(code)));
    }
    Failure::Refused { status, code, param: error.param }
}
