//! Limits of the routes that take credentials or cards: counters in DynamoDB that are raised before the attempt and
//! taken back when it succeeds, is refused or we fail it, so that parallel attempts cannot slip through, and that expire
//! with their window.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::config;
use crate::crypto;
use crate::error::{Code, Error, Result};
use crate::store::counter::{Counters, network, seconds_until};

/// The more wrong passwords an account has seen lately, whoever sent them, the later the next is answered.
/// A right one is answered at once, so that nobody can lock the owner out.
const FREE_FAILURES: i64 = 10;
const DELAY_STEP: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(3);
/// Attempts under way count as failures; within this time those with a right password are taken back.
const SETTLING: Duration = Duration::from_millis(500);

/// How strict the limits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Production.
    Strict,
    /// Development: many more per address, since everything comes from one, and shorter windows.
    Relaxed,
}

impl Strictness {
    fn from_env() -> Result<Self> {
        match config::optional("AUTH_LIMITS").as_deref() {
            None | Some("strict") => Ok(Self::Strict),
            Some("relaxed") => Ok(Self::Relaxed),
            Some(_) => Err(Error::internal("environment variable AUTH_LIMITS is neither strict nor relaxed")),
        }
    }
}

/// One counter of attempts.
struct Rule {
    key: String,
    limit: i64,
    window: Duration,
}

/// Attempts that were counted and can be taken back.
#[must_use]
pub struct Attempt {
    keys: Vec<String>,
    account_failures: i64,
}

impl Attempt {
    /// How long to wait before the answer to a wrong password.
    #[must_use]
    pub fn delay(&self) -> Duration {
        let over = u32::try_from((self.account_failures - FREE_FAILURES).clamp(0, 1_000)).unwrap_or(0);
        (DELAY_STEP * over).min(MAX_DELAY)
    }
}

/// The limits of the credential routes.
#[derive(Clone)]
pub struct Limits {
    counters: Counters,
    strictness: Strictness,
}

impl Limits {
    /// Reads `RATE_LIMITS_TABLE` and `AUTH_LIMITS`.
    ///
    /// # Errors
    /// When a variable is missing or malformed.
    pub fn from_env() -> Result<Self> {
        Ok(Self { counters: Counters::from_env()?, strictness: Strictness::from_env()? })
    }

    /// Counts a sign-in attempt: 5 failures per account and address, 10 per address, in 15 minutes. One beyond them is
    /// counted anew once others have settled, since right passwords at the same moment are no failures.
    ///
    /// The account is named by its address and password version, so that a new password lifts every count.
    ///
    /// # Errors
    /// 429 `too_many_attempts` beyond a limit.
    pub async fn sign_in(&self, account: &str, ip: IpAddr, now: OffsetDateTime) -> Result<Attempt> {
        let window = self.window(15 * 60);
        let (account, ip) = (digest(account), network(ip));
        let rules = vec![
            Rule { key: format!("signin#{account}#{ip}"), limit: 5, window },
            Rule { key: format!("signin-ip#{ip}"), limit: self.per_address(10), window },
            // All failures of the account, which only delay.
            Rule { key: format!("signin-account#{account}"), limit: i64::MAX, window },
        ];
        let (attempt, counts) = match self.attempt(&rules, now).await {
            Err(error) if error.code() == Code::TooManyAttempts => {
                tokio::time::sleep(SETTLING).await;
                self.attempt(&rules, now).await?
            }
            counted => counted?,
        };
        Ok(Attempt { account_failures: counts.last().copied().unwrap_or(0), ..attempt })
    }

    /// Takes an attempt back because it succeeded, or was none.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn forgive(&self, attempt: Attempt) -> Result<()> {
        // Each is awaited, so that one that fails leaves no other undone.
        join_all(attempt.keys.iter().map(|key| self.counters.add(key, -1, None)))
            .await
            .into_iter()
            .try_for_each(|count| count.map(drop))
    }

    /// Passes on what an attempt came to, and takes it back if we failed it: an outage must not use up limits.
    ///
    /// # Errors
    /// The outcome's.
    pub async fn settle<T>(&self, attempt: Attempt, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome
            && error.code().status().is_server_error()
            && let Err(error) = self.forgive(attempt).await
        {
            tracing::warn!(error.cause = %error, "an attempt that could not be served stays counted");
        }
        outcome
    }

    /// Counts a sign-up: 5 an hour and address.
    ///
    /// # Errors
    /// 429 `too_many_attempts` beyond the limit.
    pub async fn sign_up(&self, ip: IpAddr, now: OffsetDateTime) -> Result<Attempt> {
        let rule =
            Rule { key: format!("signup-ip#{}", network(ip)), limit: self.per_address(5), window: self.window(3600) };
        self.attempt(&[rule], now).await.map(|(attempt, _)| attempt)
    }

    /// Counts a mail of a kind to an account, whether or not the account exists; `None` when it may not go out.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn mail(&self, kind: &str, per_hour: i64, account: &str, now: OffsetDateTime) -> Result<Option<Attempt>> {
        let rule = Rule {
            key: format!("mail-{kind}#{}", digest(account)),
            limit: per_hour,
            window: Duration::from_secs(3600),
        };
        let (count, key) = self.count(&rule, now).await?;
        Ok((count <= rule.limit).then(|| Attempt { keys: vec![key], account_failures: 0 }))
    }

    /// Counts tries of one-time tokens: 30 in 15 minutes and address.
    ///
    /// # Errors
    /// 429 `too_many_attempts` beyond the limit.
    pub async fn token(&self, ip: IpAddr, now: OffsetDateTime) -> Result<()> {
        let rule = Rule {
            key: format!("token-ip#{}", network(ip)),
            limit: self.per_address(30),
            window: self.window(15 * 60),
        };
        self.attempt(&[rule], now).await.map(drop)
    }

    /// Charges a card, unless 10 charges of the user were refused within the hour: whoever tries which of many cards are
    /// good must not do it here, and each try is several calls of Stripe, whose rate all users share. What comes to
    /// anything but a declined or unusable card is not counted.
    ///
    /// # Errors
    /// 429 `too_many_attempts` beyond the limit; the charge's own.
    pub async fn card<T>(
        &self,
        user_id: Uuid,
        now: OffsetDateTime,
        charge: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let rule = Rule { key: format!("card#{user_id}"), limit: 10, window: self.window(3600) };
        let (attempt, _) = self.attempt(&[rule], now).await?;
        let outcome = charge.await;
        let refused = outcome.as_ref().is_err_and(|error| {
            let unusable = error.fields().iter().any(|bad| bad.field == "paymentMethodId");
            unusable || error.code() == Code::CardDeclined
        });
        if !refused && let Err(error) = self.forgive(attempt).await {
            tracing::warn!(error.cause = %error, "a charge that was not refused stays counted");
        }
        outcome
    }

    fn per_address(&self, strict: i64) -> i64 {
        match self.strictness {
            Strictness::Strict => strict,
            Strictness::Relaxed => strict * 1_000,
        }
    }

    fn window(&self, strict_seconds: u64) -> Duration {
        match self.strictness {
            Strictness::Strict => Duration::from_secs(strict_seconds),
            Strictness::Relaxed => Duration::from_secs(strict_seconds.min(60)),
        }
    }

    /// Counts an attempt under rules, and gives the count of each. What is refused was no attempt, and counts under no
    /// rule: a device with an old password must not use up what others of its address may try. Those that were
    /// admitted stay counted meanwhile, so that no more are admitted than a rule allows.
    async fn attempt(&self, rules: &[Rule], now: OffsetDateTime) -> Result<(Attempt, Vec<i64>)> {
        let mut attempt = Attempt { keys: Vec::new(), account_failures: 0 };
        let (mut counts, mut refusal) = (Vec::new(), None);
        for (rule, counted) in rules.iter().zip(join_all(rules.iter().map(|rule| self.count(rule, now))).await) {
            match counted {
                Ok((count, key)) => {
                    attempt.keys.push(key);
                    counts.push(count);
                    if count > rule.limit {
                        refusal.get_or_insert_with(|| too_many(rule, now));
                    }
                }
                Err(error) => refusal = Some(error),
            }
        }
        let Some(refusal) = refusal else { return Ok((attempt, counts)) };
        if let Err(error) = self.forgive(attempt).await {
            tracing::warn!(error.cause = %error, "an attempt that was refused stays counted");
        }
        Err(refusal)
    }

    async fn count(&self, rule: &Rule, now: OffsetDateTime) -> Result<(i64, String)> {
        let (key, ends) = slot(&rule.key, rule.window, now);
        let count = self.counters.add(&key, 1, Some(ends)).await?;
        Ok((count, key))
    }
}

fn too_many(rule: &Rule, now: OffsetDateTime) -> Error {
    let (_, ends) = slot("", rule.window, now);
    Error::too_many(Code::TooManyAttempts, seconds_until(ends, now))
}

/// The counter of the window that holds this moment, and the second at which the window ends.
fn slot(key: &str, window: Duration, now: OffsetDateTime) -> (String, i64) {
    let seconds = i64::try_from(window.as_secs()).unwrap_or(i64::MAX);
    let index = now.unix_timestamp() / seconds;
    (format!("{key}#{index}"), (index + 1) * seconds)
}

/// Addresses are personal data: keys hold a digest.
fn digest(account: &str) -> String {
    hex::encode(&crypto::sha256(account.as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_rise_and_stay_bounded() {
        let delay = |failures| Attempt { keys: Vec::new(), account_failures: failures }.delay();
        assert_eq!(delay(1), Duration::ZERO);
        assert_eq!(delay(FREE_FAILURES), Duration::ZERO);
        assert_eq!(delay(FREE_FAILURES + 5), Duration::from_millis(500));
        assert_eq!(delay(100_000), MAX_DELAY);
    }

    #[test]
    fn a_window_ends_where_the_next_begins() {
        let at = OffsetDateTime::from_unix_timestamp(1_000_000_799).unwrap();
        let (key, ends) = slot("k", Duration::from_secs(900), at);
        assert_eq!((key.as_str(), ends), ("k#1111111", 1_000_000_800));
    }
}
