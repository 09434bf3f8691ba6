//! HTTP clients for what is outside.
//!
//! They speak HTTP/1.1, which every service behind them does, since HTTP/2 would be a tenth of each binary; and
//! they trust Mozilla's roots, compiled in, so that no init reads certificates from files.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_smithy_runtime::client::orchestrator::operation::Operation;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector as SmithyConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::timeout::TimeoutConfig;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as HyperError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};

use crate::error::{Error, Result};

/// A thawed sandbox finds idle connections dead: those of a while ago are not tried.
const IDLE: Duration = Duration::from_secs(20);
/// A connection that is waited on says so this often.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// TLS for a base URL; a plain one needs no certificates, which spares loading them.
fn tls(base: &str) -> Result<ClientConfig> {
    let roots = if base.starts_with("http://") { Vec::new() } else { webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    Ok(ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(Error::internal)?
        .with_root_certificates(RootCertStore { roots })
        .with_no_client_auth())
}

/// A client for an API at a base URL, which follows no redirects.
///
/// # Errors
/// When the client cannot be built.
pub(crate) fn client(base: &str, connect_timeout: Duration) -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls(base)?)
        .connect_timeout(connect_timeout)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tcp_nodelay(true)
        .pool_idle_timeout(IDLE)
        .build()
        .map_err(Error::internal)
}

/// The same for the AWS SDK and what else is built on Smithy. Time-outs of a whole call are the SDK's own.
///
/// # Errors
/// When the client cannot be built.
pub(crate) fn smithy_client(base: &str, connect_timeout: Duration) -> Result<SharedHttpClient> {
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build(connector(base, connect_timeout)?);
    Ok(SharedHttpClient::new(Smithy { client }))
}

/// What such a client connects with. A gateway on the way forgets a connection that is silent for 350 seconds, which a
/// statement of ClickHouse may well take; what has a deadline of its own ends sooner.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn connector(base: &str, connect_timeout: Duration) -> Result<HttpsConnector<HttpConnector>> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_connect_timeout(Some(connect_timeout));
    let tls = HttpsConnectorBuilder::new().with_tls_config(tls(base)?).https_or_http().enable_http1();
    Ok(tls.wrap_connector(tcp))
}

#[derive(Debug, Clone)]
struct Smithy {
    client: Client<HttpsConnector<HttpConnector>, SdkBody>,
}

impl HttpClient for Smithy {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl SmithyConnector for Smithy {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.client.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let reply = client.request(request).await.map_err(failure)?;
            HttpResponse::try_from(reply.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// Sends reports to one address, over the client that every function has. Nobody waits for them, and a receiver that
/// does not take one is left alone for a while.
pub(crate) struct Reporter {
    post: Operation<String, u16, std::io::Error>,
    rest: Rest,
}

/// The time for which a receiver is left alone after it failed, so that a sandbox is not held up again and again.
#[derive(Default)]
pub(crate) struct Rest {
    until: Mutex<Option<Instant>>,
}

impl Rest {
    const LENGTH: Duration = Duration::from_secs(10);

    /// Leaves the receiver alone from now on.
    pub(crate) fn begin(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + Self::LENGTH);
    }

    /// Whether the receiver is left alone for now.
    pub(crate) fn is_on(&self) -> bool {
        self.until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }
}

impl Reporter {
    /// How long a receiver is given for one.
    pub(crate) const TIMEOUT: Duration = Duration::from_secs(2);

    /// One that posts to a path of a host.
    ///
    /// # Errors
    /// When the client cannot be built.
    pub(crate) fn to(host: &str, path: String, headers: Vec<(&'static str, String)>) -> Result<Self> {
        let post = Operation::builder()
            .service_name("reports")
            .operation_name("post")
            .http_client(smithy_client(host, Self::TIMEOUT)?)
            .endpoint_url(host)
            .no_auth()
            .no_retry()
            .sleep_impl(aws_smithy_async::rt::sleep::TokioSleep::new())
            .time_source(aws_smithy_async::time::SystemTimeSource::new())
            .timeout_config(TimeoutConfig::builder().operation_timeout(Self::TIMEOUT).build())
            .serializer(move |body: String| {
                let mut request = HttpRequest::new(SdkBody::from(body));
                request.set_method("POST")?;
                request.set_uri(path.as_str())?;
                for (name, value) in &headers {
                    request.headers_mut().try_insert(*name, value.clone())?;
                }
                Ok(request)
            })
            .deserializer(|response| Ok(response.status().as_u16()))
            .build();
        Ok(Self { post, rest: Rest::default() })
    }

    /// Whether the receiver is left alone for now.
    pub(crate) fn is_resting(&self) -> bool {
        self.rest.is_on()
    }

    /// Sends one.
    ///
    /// # Errors
    /// When the receiver does not take it in time.
    pub(crate) async fn send(&self, body: String) -> Result<()> {
        let error = match self.post.invoke(body).await {
            Ok(200..=299) => return Ok(()),
            Ok(status) => Error::internal(format!("the receiver answered {status}")),
            Err(error) => Error::internal(error),
        };
        self.rest.begin();
        Err(error)
    }
}

/// What the SDK has to know to decide whether it tries again.
fn failure(error: HyperError) -> ConnectorError {
    let timed_out = std::iter::successors(std::error::Error::source(&error), |cause| cause.source())
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::TimedOut);
    if timed_out { ConnectorError::timeout(error.into()) } else { ConnectorError::io(error.into()) }
}
