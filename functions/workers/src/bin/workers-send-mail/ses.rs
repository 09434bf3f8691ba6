//! SES: one mail at a time.

use std::time::Duration;

use aws_sdk_sesv2::Client;
use aws_sdk_sesv2::config::Config;
use aws_sdk_sesv2::config::http::HttpResponse;
use aws_sdk_sesv2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sesv2::types::{Body, Content, Destination, EmailContent, Message};
use aws_smithy_types::retry::{ReconnectMode, RetryConfig};
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::SdkConfig;
use lib::error::{Error, Result};
use lib::mail::{Rendered, Transport};
use lib::{aws, clock, config};
use tokio::time::{Instant, sleep};

/// SES may take so long for a mail.
const LONGEST_SENDING: Duration = Duration::from_secs(8);
/// At least half of this is waited before an SES that takes no more mails in this second is asked again.
const BUSY: Duration = Duration::from_millis(1500);

/// One try of a mail: SES knows no repeated request, so a second one after a slow answer is a second mail. The queue
/// delivers the job of a mail again that was not taken.
fn configured(shared: &SdkConfig) -> Config {
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(LONGEST_SENDING);
    Config::from(shared)
        .to_builder()
        .retry_config(RetryConfig::disabled().with_reconnect_mode(ReconnectMode::ReuseAllConnections))
        .timeout_config(timeouts.operation_timeout(LONGEST_SENDING).build())
        .build()
}

/// A client of SES.
pub(crate) struct Ses {
    client: Client,
    from: String,
}

impl Ses {
    /// Reads `MAIL_FROM`.
    ///
    /// # Errors
    /// When it or the AWS configuration is incomplete.
    pub(crate) fn init() -> Result<Self> {
        let client = Client::from_conf(configured(aws::sdk_config()?));
        Ok(Self { client, from: config::required("MAIL_FROM")? })
    }
}

impl Transport for Ses {
    /// What goes beyond the rate of the account was not sent, and is tried again for as long as there is time.
    async fn send(&self, mail: &Rendered<'_>, time_left: Duration) -> Result<Option<String>> {
        let end = Instant::now() + time_left;
        let content = |data: &str| Content::builder().data(data).charset("UTF-8").build().map_err(Error::internal);
        let body = Body::builder().html(content(&mail.html)?).text(content(&mail.text)?).build();
        let message = Message::builder().subject(content(mail.subject)?).body(body).build();
        let request = self
            .client
            .send_email()
            .from_email_address(&self.from)
            .destination(Destination::builder().to_addresses(mail.to).build())
            .content(EmailContent::builder().simple(message).build());
        loop {
            let error = match request.clone().send().await {
                Ok(sent) => return Ok(sent.message_id),
                Err(error) => error,
            };
            let wait = clock::jitter(BUSY);
            if !is_too_fast(&error) || Instant::now() + wait + LONGEST_SENDING > end {
                return Err(refused(error));
            }
            sleep(wait).await;
        }
    }
}

/// Whether SES refused a mail because of the others of its second. Beyond the quota of a day, waiting is of no use.
fn is_too_fast(error: &impl ProvideErrorMetadata) -> bool {
    matches!(error.code(), Some("TooManyRequestsException" | "Throttling" | "ThrottlingException"))
        && !error.message().is_some_and(|message| message.contains("Daily"))
}

/// What SES answers may name the recipient's address, which belongs into no log: of a refusal, the code goes on.
fn refused<E>(error: SdkError<E, HttpResponse>) -> Error
where
    E: std::error::Error + Send + Sync + 'static + ProvideErrorMetadata,
{
    let SdkError::ServiceError(refusal) = &error else { return error.into() };
    let cause = format!("SES refused the mail: {}", refusal.err().code().unwrap_or("without a code"));
    Error::caused(Error::from(error).code(), cause)
}

#[cfg(test)]
mod tests {
    use aws_sdk_sesv2::error::ErrorMetadata;

    use super::*;

    #[test]
    fn a_refusal_does_not_name_the_recipient() {
        let told = ErrorMetadata::builder().code("MessageRejected").message("not verified: a@example.com").build();
        let answer = HttpResponse::new(400.try_into().unwrap(), "to a@example.com".into());
        let error = refused(SdkError::service_error(told, answer)).to_string();
        assert!(error.contains("MessageRejected") && !error.contains("a@example.com"), "{error}");
    }

    #[test]
    fn only_the_rate_of_a_second_is_worth_a_wait() {
        let is_too_fast =
            |code: &str, message: &str| is_too_fast(&ErrorMetadata::builder().code(code).message(message).build());
        for code in ["TooManyRequestsException", "Throttling", "ThrottlingException"] {
            assert!(is_too_fast(code, "Maximum sending rate exceeded."), "{code}");
            assert!(!is_too_fast(code, "Daily message quota exceeded."), "{code}");
        }
        for code in ["LimitExceededException", "MessageRejected", "SendingPausedException"] {
            assert!(!is_too_fast(code, "Maximum sending rate exceeded."), "{code}");
        }
    }
}
