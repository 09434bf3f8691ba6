//! One-time tokens for links in mails: one item per user and purpose, so that asking again voids the older
//! one. The item holds the token's hash; the mail job holds a nonce, which the mail worker turns into the
//! token with a key from Secrets Manager, so that no token waits in a queue.

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::auth::session::TokenKey;
use crate::clock;
use crate::crypto;
use crate::error::{Code, Error, Result};
use crate::http::validate::{Field, Invalid, Raw};
use crate::store::dynamo::{Table, binary, epoch_seconds, get_digest, get_number, number, text, unless_refused};

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Proving that an address is read by its owner.
    VerifyEmail,
    /// Setting a new password.
    ResetPassword,
}

impl Purpose {
    /// How long a token of this purpose is valid.
    const fn lifetime(self) -> Duration {
        match self {
            Self::VerifyEmail => Duration::hours(24),
            Self::ResetPassword => Duration::minutes(60),
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::VerifyEmail => "verify-email",
            Self::ResetPassword => "reset-password",
        }
    }
}

/// A token as the client presents it.
#[derive(Clone)]
pub struct OneTimeToken {
    /// Whose token it is, if the secret proves it.
    pub user_id: Uuid,
    secret: [u8; 32],
}

impl OneTimeToken {
    /// The text of the link.
    #[must_use]
    pub fn reveal(&self) -> String {
        let mut bytes = self.user_id.as_bytes().to_vec();
        bytes.extend_from_slice(&self.secret);
        crypto::base64url(&bytes)
    }
}

/// Any text parses: a malformed token is as invalid as an unknown one, and no more.
impl Field for OneTimeToken {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let bytes =
            crypto::from_base64url(raw.text()?).filter(|bytes| bytes.len() == 48).unwrap_or_else(|| vec![0; 48]);
        let (id, secret) = bytes.split_at(16);
        let mut token = Self { user_id: Uuid::from_slice(id).unwrap_or_default(), secret: [0; 32] };
        token.secret.copy_from_slice(secret);
        Ok(token)
    }
}

/// The tokens table, with the key that tokens are made with.
#[derive(Clone)]
pub struct OneTimeTokens {
    table: Table,
    key: TokenKey,
}

impl OneTimeTokens {
    /// Reads `ONE_TIME_TOKENS_TABLE` and the tokens secret.
    ///
    /// # Errors
    /// When one is missing.
    pub async fn init() -> Result<Self> {
        Ok(Self { table: Table::from_env("ONE_TIME_TOKENS_TABLE")?, key: TokenKey::init("one-time").await? })
    }

    /// Makes the token of a nonce, which voids the user's older one of the same purpose.
    ///
    /// Nonces are UUIDv7, so they tell which request is newer: a mail job that is delivered twice makes the
    /// same token again, neither a second one nor a used one anew. The token's time runs from its request, and so
    /// a job that comes when the table has forgotten what became of it makes none. `None` when the token has
    /// expired, was voided by a newer request or used in the meantime.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn issue(
        &self,
        user_id: Uuid,
        purpose: Purpose,
        nonce: Uuid,
        now: OffsetDateTime,
    ) -> Result<Option<OneTimeToken>> {
        let Some(expires) = expiry(nonce, purpose).filter(|expires| *expires > now) else { return Ok(None) };
        let token = token(&self.key, user_id, purpose, nonce);
        let result = self
            .table
            .client()
            .put_item()
            .table_name(&self.table.name)
            .item("pk", text(key(user_id, purpose)))
            .item("nonce", text(nonce))
            .item("hash", binary(&crypto::sha256(&token.secret)))
            .item("expires", epoch_seconds(expires))
            .condition_expression("attribute_not_exists(pk) OR nonce < :nonce")
            .expression_attribute_values(":nonce", text(nonce))
            .send()
            .await;
        if unless_refused(result)?.is_some() {
            return Ok(Some(token));
        }
        match self.check(&token, purpose, now).await {
            Ok(()) => Ok(Some(token)),
            Err(error) if error.code() == Code::InvalidToken => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tells whether a token is valid without using it up.
    ///
    /// # Errors
    /// 400 `invalid_token` when it is not.
    pub async fn check(&self, token: &OneTimeToken, purpose: Purpose, now: OffsetDateTime) -> Result<()> {
        let reply = self
            .table
            .client()
            .get_item()
            .table_name(&self.table.name)
            .key("pk", text(key(token.user_id, purpose)))
            .consistent_read(true)
            .send()
            .await?;
        let item = reply.item.ok_or_else(invalid)?;
        let hash = get_digest(&item, "hash")?;
        let expires = get_number(&item, "expires")?;
        let unused = !item.contains_key("used");
        if crypto::equal(&hash, &crypto::sha256(&token.secret)) && expires > now.unix_timestamp() && unused {
            Ok(())
        } else {
            Err(invalid())
        }
    }

    /// Uses a token up for some work, which begins once it is; of several at once, one succeeds. Work that fails leaves
    /// the token as it was. If what failed was only to hear of its success, it can be done once more.
    ///
    /// # Errors
    /// 400 `invalid_token` when it is unknown, used or expired; the work's own.
    pub async fn consume<T>(
        &self,
        token: &OneTimeToken,
        purpose: Purpose,
        now: OffsetDateTime,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let used_by = Uuid::now_v7();
        let outcome = match self.mark(token, purpose, used_by, now).await {
            Ok(()) => work.await,
            Err(error) => Err(error),
        };
        if let Err(error) = &outcome
            && error.code() != Code::InvalidToken
            && let Err(error) = self.unmark(token, purpose, used_by).await
        {
            tracing::warn!(error.cause = %error, "a link stays used up although nothing was done by it");
        }
        outcome
    }

    async fn mark(&self, token: &OneTimeToken, purpose: Purpose, used_by: Uuid, now: OffsetDateTime) -> Result<()> {
        let result = self
            .table
            .client()
            .update_item()
            .table_name(&self.table.name)
            .key("pk", text(key(token.user_id, purpose)))
            .update_expression("SET used = :now, used_by = :use")
            // A call that is repeated after a lost answer finds its own mark.
            .condition_expression("#hash = :hash AND expires > :now AND (attribute_not_exists(used) OR used_by = :use)")
            .expression_attribute_values(":use", text(used_by))
            .expression_attribute_names("#hash", "hash")
            .expression_attribute_values(":hash", binary(&crypto::sha256(&token.secret)))
            .expression_attribute_values(":now", number(now.unix_timestamp()))
            .send()
            .await;
        unless_refused(result)?.map(drop).ok_or_else(invalid)
    }

    /// Takes a mark back, unless it is none or the token was voided meanwhile.
    async fn unmark(&self, token: &OneTimeToken, purpose: Purpose, used_by: Uuid) -> Result<()> {
        let result = self
            .table
            .client()
            .update_item()
            .table_name(&self.table.name)
            .key("pk", text(key(token.user_id, purpose)))
            .update_expression("REMOVE used, used_by")
            .condition_expression("used_by = :use")
            .expression_attribute_values(":use", text(used_by))
            .send()
            .await;
        unless_refused(result).map(drop)
    }

    /// Voids a user's tokens of a purpose that were asked for until now.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn void(&self, user_id: Uuid, purpose: Purpose, now: OffsetDateTime) -> Result<()> {
        self.table
            .client()
            .put_item()
            .table_name(&self.table.name)
            .item("pk", text(key(user_id, purpose)))
            .item("nonce", text(Uuid::now_v7()))
            .item("hash", binary(&[0; 32]))
            .item("used", number(now.unix_timestamp()))
            .item("expires", epoch_seconds(now + purpose.lifetime()))
            .send()
            .await?;
        Ok(())
    }
}

/// The token of a nonce.
fn token(key: &TokenKey, user_id: Uuid, purpose: Purpose, nonce: Uuid) -> OneTimeToken {
    let parts: [&[u8]; 3] = [purpose.as_str().as_bytes(), user_id.as_bytes(), nonce.as_bytes()];
    OneTimeToken { user_id, secret: crypto::hmac(key.bytes(), &parts) }
}

/// When the token of a nonce expires; nothing for a nonce that does not tell when it was made.
fn expiry(nonce: Uuid, purpose: Purpose) -> Option<OffsetDateTime> {
    clock::of_uuid(nonce)?.checked_add(purpose.lifetime())
}

fn key(user_id: Uuid, purpose: Purpose) -> String {
    format!("{user_id}#{}", purpose.as_str())
}

fn invalid() -> Error {
    Error::new(Code::InvalidToken, "The link is unknown, was used, or has expired; ask for a new one.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_belongs_to_its_purpose() {
        let (key, user, nonce) = (TokenKey::derive("s", "one-time"), Uuid::now_v7(), Uuid::now_v7());
        let verify = token(&key, user, Purpose::VerifyEmail, nonce);
        let parsed = OneTimeToken::parse(Raw::Text(&verify.reveal())).unwrap();
        assert_eq!((parsed.user_id, parsed.secret), (user, verify.secret));
        assert_ne!(token(&key, user, Purpose::ResetPassword, nonce).secret, verify.secret);
    }

    #[test]
    fn a_token_expires_by_the_time_of_its_request() {
        let nonce = clock::uuid_at(clock::from_millis(1_700_000_000_000));
        let after = |purpose| expiry(nonce, purpose).unwrap().unix_timestamp() - 1_700_000_000;
        assert_eq!((after(Purpose::VerifyEmail), after(Purpose::ResetPassword)), (24 * 3600, 3600));
        assert_eq!(expiry(Uuid::nil(), Purpose::VerifyEmail), None);
    }
}
