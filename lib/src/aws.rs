//! AWS clients without what Lambda never uses: credentials come from the environment, one HTTP client is
//! shared by all services, time-outs are shorter than API Gateway's.

use std::sync::OnceLock;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime::client::identity::IdentityCache;
use aws_smithy_runtime_api::client::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_smithy_types::retry::{ReconnectMode, RetryConfig};
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::SdkConfig;
use aws_types::region::Region;

use crate::config;
use crate::error::{Error, Result};
use crate::outbound;

const CONNECT: Duration = Duration::from_secs(1);

/// The configuration that all clients of this process share.
///
/// # Errors
/// When region or credentials are missing from the environment.
pub fn sdk_config() -> Result<&'static SdkConfig> {
    static CONFIG: OnceLock<SdkConfig> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config);
    }
    let config = build()?;
    Ok(CONFIG.get_or_init(|| config))
}

fn build() -> Result<SdkConfig> {
    let endpoint = config::optional("AWS_ENDPOINT_URL");
    let http_client = outbound::smithy_client(endpoint.as_deref().unwrap_or_default(), CONNECT)?;
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
    let timeouts = TimeoutConfig::builder()
        .operation_attempt_timeout(Duration::from_secs(3))
        .operation_timeout(Duration::from_secs(8))
        .build();
    let mut builder = SdkConfig::builder()
        .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
        .region(Region::new(region))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .http_client(http_client)
        .sleep_impl(aws_smithy_async::rt::sleep::TokioSleep::new())
        .time_source(aws_smithy_async::time::SystemTimeSource::new())
        // The HTTP client does not tell the SDK its connections; each failed attempt to close one would be an error in the
        // log, also of a call that then succeeds.
        .retry_config(
            RetryConfig::standard().with_max_attempts(3).with_reconnect_mode(ReconnectMode::ReuseAllConnections),
        )
        // The credentials do not change while the process lives.
        .identity_cache(IdentityCache::no_cache())
        // Requests and replies are small, and each attempt has its time-out.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .timeout_config(timeouts);
    builder.set_endpoint_url(endpoint);
    Ok(builder.build())
}
