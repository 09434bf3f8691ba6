//! Which mails were sent. A queue may have several copies of one job: an SQS that answers too late has taken each try of
//! the sender, and the relay sends once more what was not heard of.

use std::time::Duration;

use aws_sdk_dynamodb::types::ReturnValuesOnConditionCheckFailure;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::store::dynamo::{Table, epoch_seconds, found_instead, text};

/// Longer than a copy lies in its queue.
const KEPT: time::Duration = time::Duration::days(15);

/// An item per mail, in the table of the one-time tokens.
pub(super) struct SentMails {
    table: Table,
}

impl SentMails {
    /// Reads `ONE_TIME_TOKENS_TABLE`.
    ///
    /// # Errors
    /// When it is missing.
    pub(super) fn init() -> Result<Self> {
        Ok(Self { table: Table::from_env("ONE_TIME_TOKENS_TABLE")? })
    }

    /// Claims a mail for this time, after which nobody who has claimed it can be at work any more; `false` where it was
    /// sent.
    ///
    /// # Errors
    /// When a copy of its job is being worked on, which may come to nothing, and when the table does not answer.
    pub(super) async fn claim(&self, id: Uuid, time_left: Duration, now: OffsetDateTime) -> Result<bool> {
        // Seconds are cut off.
        let expires = now + time_left + Duration::from_secs(1);
        let claim = text(Uuid::now_v7());
        let put = self
            .table
            .client()
            .put_item()
            .table_name(&self.table.name)
            .item("pk", text(key(id)))
            .item("claimed_by", claim.clone())
            .item("expires", epoch_seconds(expires))
            // A call that is repeated after a lost answer finds its own claim.
            .condition_expression("attribute_not_exists(pk) OR expires < :now OR claimed_by = :claim")
            .expression_attribute_values(":now", epoch_seconds(now))
            .expression_attribute_values(":claim", claim)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        let Err(error) = put else { return Ok(true) };
        let Some(found) = found_instead(&error) else { return Err(error.into()) };
        if found.contains_key("claimed_by") {
            return Err(Error::unavailable("a copy of the mail's job is being worked on"));
        }
        Ok(false)
    }

    /// Notes that a mail was sent.
    ///
    /// # Errors
    /// When the table does not answer.
    pub(super) async fn note(&self, id: Uuid, now: OffsetDateTime) -> Result<()> {
        self.table
            .client()
            .put_item()
            .table_name(&self.table.name)
            .item("pk", text(key(id)))
            .item("expires", epoch_seconds(now + KEPT))
            .send()
            .await?;
        Ok(())
    }
}

fn key(id: Uuid) -> String {
    format!("mail#{id}")
}
