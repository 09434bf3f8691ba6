//! AWS without what Lambda never uses: credentials come from the environment, one HTTP client is shared by all
//! services, time-outs are shorter than API Gateway's.
//!
//! DynamoDB and SES are called through their SDKs. Secrets Manager, which every init waits for, and SQS, of which
//! one operation is used, are called here: a client of the SDK parses a table of all regions when it is built,
//! which is most of what an init computes, and its code would be a part of each function.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::SdkConfig;
use aws_types::region::Region;
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{Instrument, debug_span, field};

use crate::clock;
use crate::config;
use crate::error::{Error, Result};
use crate::outbound::{self, Smithy};

const CONNECT: Duration = Duration::from_secs(1);
const ATTEMPT: Duration = Duration::from_secs(3);
const OPERATION: Duration = Duration::from_secs(8);
const ATTEMPTS: u32 = 3;
/// The longest wait before the second attempt; each further one doubles it.
const BACKOFF: Duration = Duration::from_millis(100);

/// What the environment says about the account.
struct Access {
    endpoint: Option<String>,
    region: String,
    credentials: Credentials,
}

fn access() -> Result<&'static Access> {
    static ACCESS: OnceLock<Access> = OnceLock::new();
    if let Some(access) = ACCESS.get() {
        return Ok(access);
    }
    let credentials = Credentials::new(
        config::required("AWS_ACCESS_KEY_ID")?,
        config::required("AWS_SECRET_ACCESS_KEY")?,
        config::optional("AWS_SESSION_TOKEN"),
        None,
        "environment",
    );
    let region = config::optional("AWS_REGION")
        .or_else(|| config::optional("AWS_DEFAULT_REGION"))
        .ok_or_else(|| Error::internal("environment variable AWS_REGION is not set"))?;
    let access = Access { endpoint: config::optional("AWS_ENDPOINT_URL"), region, credentials };
    Ok(ACCESS.get_or_init(|| access))
}

fn http_client() -> Result<&'static Smithy> {
    static CLIENT: OnceLock<Smithy> = OnceLock::new();
    if let Some(client) = CLIENT.get() {
        return Ok(client);
    }
    let client = outbound::smithy_client(access()?.endpoint.as_deref().unwrap_or_default(), CONNECT)?;
    Ok(CLIENT.get_or_init(|| client))
}

/// Checks that the environment has what calls will need.
///
/// # Errors
/// When region or credentials are missing from the environment.
pub fn check() -> Result<()> {
    access().map(drop)
}

/// The configuration that all clients of the SDK share.
///
/// # Errors
/// When region or credentials are missing from the environment.
pub fn sdk_config() -> Result<&'static SdkConfig> {
    static CONFIG: OnceLock<SdkConfig> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config);
    }
    let access = access()?;
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT).operation_timeout(OPERATION).build();
    let mut builder = SdkConfig::builder()
        .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
        .region(Region::new(access.region.clone()))
        .credentials_provider(SharedCredentialsProvider::new(access.credentials.clone()))
        .http_client(SharedHttpClient::new(http_client()?.clone()))
        .sleep_impl(aws_smithy_async::rt::sleep::TokioSleep::new())
        .time_source(aws_smithy_async::time::SystemTimeSource::new())
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .timeout_config(timeouts);
    builder.set_endpoint_url(access.endpoint.clone());
    let config = builder.build();
    Ok(CONFIG.get_or_init(|| config))
}

/// A service that speaks AWS's JSON protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Service {
    /// In its host and in signatures.
    id: &'static str,
    /// Before the operation in `X-Amz-Target`.
    target: &'static str,
    content_type: &'static str,
    /// In spans and messages.
    name: &'static str,
}

/// Secrets Manager.
pub(crate) const SECRETS_MANAGER: Service = Service {
    id: "secretsmanager",
    target: "secretsmanager",
    content_type: "application/x-amz-json-1.1",
    name: "Secrets Manager",
};

/// SQS.
pub(crate) const SQS: Service =
    Service { id: "sqs", target: "AmazonSQS", content_type: "application/x-amz-json-1.0", name: "SQS" };

/// Why a call came to nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The service answered that it will not do it.
    Refused {
        /// The status of the reply.
        status: u16,
        /// The error's name.
        code: String,
        /// What failed and why.
        cause: String,
    },
    /// There was no answer, or none that can be read.
    Unanswered(String),
}

impl Failure {
    fn is_passing(&self) -> bool {
        match self {
            Self::Refused { status, code, .. } => *status >= 500 || *status == 429 || code.contains("Throttl"),
            Self::Unanswered(_) => true,
        }
    }

    /// Whether the service knows no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "ResourceNotFoundException")
    }

    /// The same, told with what was asked for.
    pub(crate) fn about(mut self, what: &str) -> Self {
        let (Self::Refused { cause, .. } | Self::Unanswered(cause)) = &mut self;
        *cause = format!("{what}: {cause}");
        self
    }

    fn cause(&self) -> &str {
        let (Self::Refused { cause, .. } | Self::Unanswered(cause)) = self;
        cause
    }
}

impl From<Failure> for Error {
    #[track_caller]
    fn from(failure: Failure) -> Self {
        // A request that was understood and refused is our bug; anything else means out of reach.
        let cause = failure.cause().to_owned();
        if failure.is_passing() { Self::unavailable(cause) } else { Self::internal(cause) }
    }
}

impl Service {
    /// Calls an operation, and again after a passing failure.
    ///
    /// # Errors
    /// When it fails.
    pub(crate) async fn call<T: DeserializeOwned>(
        self,
        operation: &'static str,
        input: &impl Serialize,
    ) -> Result<T, Failure> {
        let input = serde_json::to_vec(input).map_err(|error| Failure::Unanswered(error.to_string()))?;
        let output = self.patiently(operation, input.into()).await?;
        // The parser's message may quote the reply, which may be a secret.
        serde_json::from_slice(&output)
            .map_err(|_| Failure::Unanswered(format!("{} answered {operation} in another shape", self.name)))
    }

    async fn patiently(self, operation: &'static str, input: Bytes) -> Result<Bytes, Failure> {
        let span = debug_span!(
            "call",
            otel.name = format!("{}.{operation}", self.name),
            otel.kind = "client",
            rpc.system = "aws-api",
            rpc.service = self.name,
            rpc.method = operation,
            error.cause = field::Empty,
        );
        let work = async {
            let mut attempt = 1;
            loop {
                let failure = match tokio::time::timeout(ATTEMPT, self.once(operation, input.clone())).await {
                    Ok(Ok(output)) => return Ok(output),
                    Ok(Err(failure)) => failure,
                    Err(_) => Failure::Unanswered(format!("{} did not answer {operation} in time", self.name)),
                };
                if attempt == ATTEMPTS || !failure.is_passing() {
                    return Err(failure);
                }
                tokio::time::sleep(clock::jitter(BACKOFF * 2_u32.pow(attempt - 1))).await;
                attempt += 1;
            }
        };
        let result = match tokio::time::timeout(OPERATION, work.instrument(span.clone())).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Unanswered(format!("{} did not answer {operation} in time", self.name))),
        };
        if let Err(failure) = &result {
            span.record("error.cause", failure.cause());
        }
        result
    }

    async fn once(self, operation: &str, input: Bytes) -> Result<Bytes, Failure> {
        let unanswered = |error: &dyn std::fmt::Display| {
            Failure::Unanswered(format!("{} did not answer {operation}: {error}", self.name))
        };
        let request = self.request(operation, input).map_err(|error| unanswered(&error))?;
        let client = http_client().map_err(|error| unanswered(&error))?;
        let reply = client.send(request).await.map_err(|error| unanswered(&Error::internal(error)))?;
        let status = reply.status();
        let body = reply.into_body().collect().await.map_err(|error| unanswered(&error))?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        #[derive(Default, serde::Deserialize)]
        struct Problem {
            #[serde(rename = "__type", default)]
            kind: String,
            #[serde(alias = "Message", default)]
            message: String,
        }
        let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
        let code = problem.kind.rsplit('#').next().unwrap_or_default().to_owned();
        let cause = format!("{} answered {operation} with {status} {code}: {}", self.name, problem.message);
        Err(Failure::Refused { status: status.as_u16(), code, cause })
    }

    /// The request, signed.
    fn request(self, operation: &str, input: Bytes) -> Result<http::Request<SdkBody>> {
        let access = access()?;
        let url = match &access.endpoint {
            Some(endpoint) => format!("{}/", endpoint.trim_end_matches('/')),
            None => format!("https://{}.{}.{}/", self.id, access.region, domain(&access.region)),
        };
        let target = format!("{}.{operation}", self.target);
        let headers = [("content-type", self.content_type), ("x-amz-target", &target)];
        let identity = access.credentials.clone().into();
        let parameters = SigningParams::builder()
            .identity(&identity)
            .region(&access.region)
            .name(self.id)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(Error::internal)?
            .into();
        let signable = SignableRequest::new("POST", &url, headers.into_iter(), SignableBody::Bytes(&input));
        let (signature, _) =
            signable.and_then(|request| sign(request, &parameters)).map_err(Error::internal)?.into_parts();
        let mut builder = http::Request::post(&url);
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        // By this Lambda notices functions that call each other without end.
        if let Some(trace) = config::optional("_X_AMZN_TRACE_ID") {
            builder = builder.header("x-amzn-trace-id", trace);
        }
        let mut request = builder.body(SdkBody::from(input)).map_err(Error::internal)?;
        signature.apply_to_request_http1x(&mut request);
        Ok(request)
    }
}

/// The domain of a region's endpoints.
fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str) -> Failure {
        Failure::Refused { status, code: code.to_owned(), cause: format!("{status} {code}") }
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_told_as_out_of_reach() {
        use crate::error::Code;
        let code = |failure: Failure| Error::from(failure).code();
        assert_eq!(code(refused(400, "ResourceNotFoundException")), Code::Internal);
        assert_eq!(code(refused(400, "AccessDeniedException")), Code::Internal);
        assert_eq!(code(refused(400, "ThrottlingException")), Code::Unavailable);
        assert_eq!(code(refused(500, "InternalServiceError")), Code::Unavailable);
        assert_eq!(code(Failure::Unanswered("gone".to_owned())), Code::Unavailable);
        assert!(refused(400, "ResourceNotFoundException").is_not_found());
    }

    #[test]
    fn a_region_of_china_has_endpoints_of_its_own() {
        assert_eq!(domain("eu-central-1"), "amazonaws.com");
        assert_eq!(domain("cn-north-1"), "amazonaws.com.cn");
    }
}
