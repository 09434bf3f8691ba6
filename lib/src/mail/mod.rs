//! Mails: small jobs in a queue, rendered and sent by one worker.

mod sent;

use std::time::Duration;

use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::auth::account::{User, Users};
use crate::auth::email::Email;
use crate::auth::one_time::{OneTimeTokens, Purpose};
use crate::clock;
use crate::config;
use crate::error::{Error, Result};
use crate::mail::sent::SentMails;

/// News of billing that are older are none any more, and may be wrong by now.
const NEWS: time::Duration = time::Duration::days(1);

/// What a mail says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MailKind {
    /// A link that proves the address.
    VerifyEmail,
    /// A link that sets a new password.
    ResetPassword,
    /// Somebody tried to sign up with an address that has an account.
    SignupAttempted,
    /// The password was changed.
    PasswordChanged,
    /// An invoice could not be collected.
    PaymentFailed,
    /// A plan was taken because its payment is due for too long.
    PlanPaused,
    /// A subscription ended.
    SubscriptionEnded,
    /// A trial is about to end.
    TrialEnding,
}

impl MailKind {
    /// Whether it says how a subscription stands, which may change again within days.
    const fn is_news_of_billing(self) -> bool {
        matches!(self, Self::PaymentFailed | Self::PlanPaused | Self::SubscriptionEnded | Self::TrialEnding)
    }
}

/// Whom a mail is for. It goes to the stored address, never to what was typed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Recipient {
    /// The user of an id.
    User(Uuid),
    /// The user of an address, if there is one: only the worker finds out.
    Address(String),
}

/// A mail to be sent.
#[derive(Clone, Serialize, Deserialize)]
pub struct Mail {
    /// UUIDv7; the nonce of the mail's link.
    id: Uuid,
    #[serde(rename = "message")]
    kind: MailKind,
    recipient: Recipient,
}

impl Mail {
    /// A mail to be sent.
    #[must_use]
    pub fn new(kind: MailKind, recipient: Recipient) -> Self {
        Self { id: Uuid::now_v7(), kind, recipient }
    }

    /// Whether it says nothing that is worth knowing any more. What concerns the account's security is, however late.
    fn is_outdated(&self, now: OffsetDateTime) -> bool {
        self.kind.is_news_of_billing() && clock::of_uuid(self.id).is_some_and(|made| made + NEWS < now)
    }
}

/// A mail as it goes out.
pub struct Rendered<'a> {
    /// The recipient's address.
    pub to: &'a str,
    /// What it is about.
    pub subject: &'a str,
    /// The text with a button.
    pub html: String,
    /// The text alone.
    pub text: String,
}

/// The service that takes mails. It is the worker's: as a part of this crate, its client would be carried by every
/// function.
pub trait Transport: Send + Sync {
    /// Hands over a mail within some time, and gives the service's id of it.
    ///
    /// # Errors
    /// When the service refuses the mail or does not answer.
    fn send(&self, mail: &Rendered<'_>, time_left: Duration) -> impl Future<Output = Result<Option<String>>> + Send;
}

/// Renders and sends mails.
pub struct Mailer<T> {
    users: Users,
    tokens: OneTimeTokens,
    sent: SentMails,
    transport: T,
    app_url: String,
    templates: Environment<'static>,
}

/// Names and sources of the templates.
const TEMPLATES: [(&str, &str); 2] = [("mail.html", include_str!("mail.html")), ("mail.txt", include_str!("mail.txt"))];

impl<T: Transport> Mailer<T> {
    /// Reads settings and secrets; connects lazily.
    ///
    /// # Errors
    /// When one is missing.
    pub async fn init(transport: T) -> Result<Self> {
        let (users, tokens) = futures_util::try_join!(Users::init(), OneTimeTokens::init())?;
        let mut templates = Environment::new();
        for (name, source) in TEMPLATES {
            templates.add_template(name, source).map_err(Error::internal)?;
        }
        Ok(Self { users, tokens, sent: SentMails::init()?, transport, app_url: config::app_url()?, templates })
    }

    /// Sends the mail of a job within some time, unless it was sent, says what is long over, has nobody to go to, or its
    /// link has been used or voided.
    ///
    /// # Errors
    /// When a store or the service does not answer.
    pub async fn send(&self, mail: &Mail, time_left: Duration) -> Result<()> {
        let end = Instant::now() + time_left;
        if mail.is_outdated(clock::now()) {
            tracing::info!(mail.id = %mail.id, mail.kind = ?mail.kind, "a mail was dropped because it is old news");
            return Ok(());
        }
        let Some(user) = self.recipient(&mail.recipient).await? else {
            tracing::info!(mail.id = %mail.id, "a mail was dropped because its address has no account");
            return Ok(());
        };
        let link = match mail.kind {
            MailKind::VerifyEmail if user.email_verified => return Ok(()),
            MailKind::VerifyEmail => self.link(&user, Purpose::VerifyEmail, mail.id, "verify-email").await?,
            MailKind::ResetPassword => self.link(&user, Purpose::ResetPassword, mail.id, "reset-password").await?,
            MailKind::SignupAttempted | MailKind::PasswordChanged => Some(self.app_url.clone()),
            MailKind::PaymentFailed | MailKind::PlanPaused | MailKind::SubscriptionEnded | MailKind::TrialEnding => {
                Some(format!("{}/billing", self.app_url))
            }
        };
        let Some(link) = link else {
            tracing::info!(mail.id = %mail.id, "a mail was dropped because its link is void");
            return Ok(());
        };
        let words = Words::of(mail.kind);
        let values = context! {
            name => greeted(&user),
            subject => words.subject,
            text => words.text,
            action => words.action,
            link => link,
            footer => words.footer,
        };
        let render = |name: &str| -> Result<String> {
            self.templates.get_template(name).and_then(|t| t.render(&values)).map_err(Error::internal)
        };
        let (html, text) = (render("mail.html")?, render("mail.txt")?);
        let left = || end.saturating_duration_since(Instant::now());
        if !self.sent.claim(mail.id, left(), clock::now()).await? {
            tracing::info!(mail.id = %mail.id, "a mail was dropped because it was sent");
            return Ok(());
        }
        let rendered = Rendered { to: &user.email, subject: words.subject, html, text };
        let sent = self.transport.send(&rendered, left()).await?;
        tracing::info!(mail.id = %mail.id, ses.message.id = sent, user.id = %user.id, "a mail was sent");
        // As a failed one, it would be sent again.
        if let Err(error) = self.sent.note(mail.id, clock::now()).await {
            tracing::warn!(mail.id = %mail.id, error.cause = %error, "it is not noted that a mail was sent");
        }
        Ok(())
    }

    async fn recipient(&self, recipient: &Recipient) -> Result<Option<User>> {
        match recipient {
            Recipient::User(id) => self.users.by_id(*id).await,
            Recipient::Address(address) => match Email::parse_text(address) {
                Ok(email) => self.users.find(&email).await,
                Err(_) => Ok(None),
            },
        }
    }

    async fn link(&self, user: &User, purpose: Purpose, nonce: Uuid, page: &str) -> Result<Option<String>> {
        let token = self.tokens.issue(user.id, purpose, nonce, clock::now()).await?;
        Ok(token.map(|token| format!("{}/{page}?token={}", self.app_url, token.reveal())))
    }
}

/// The name to greet by. Until the address is proved, it is the text of whoever typed the address in, and what they
/// would have us send to somebody else.
fn greeted(user: &User) -> Option<&str> {
    user.name.as_deref().filter(|_| user.email_verified)
}

/// The words of one kind of mail.
struct Words {
    subject: &'static str,
    text: &'static str,
    action: &'static str,
    footer: &'static str,
}

impl Words {
    const fn of(kind: MailKind) -> Self {
        match kind {
            MailKind::VerifyEmail => Self {
                subject: "Verify your e-mail address",
                text: "Please confirm that this address is yours. The link is valid for 24 hours.",
                action: "Verify the address",
                footer: "If you did not sign up, you can ignore this mail.",
            },
            MailKind::ResetPassword => Self {
                subject: "Set a new password",
                text: "Somebody, hopefully you, asked for a new password. The link is valid for 60 minutes and works once.",
                action: "Set a new password",
                footer: "If it was not you, ignore this mail: nothing has changed.",
            },
            MailKind::SignupAttempted => Self {
                subject: "You already have an account",
                text: "Somebody, perhaps you, tried to sign up with this address. It has an account already, so you can simply sign in, or ask for a new password if you forgot yours.",
                action: "Go to sign-in",
                footer: "If it was not you, you can ignore this mail: nothing has changed.",
            },
            MailKind::PasswordChanged => Self {
                subject: "Your password was changed",
                text: "The password of your account was changed, and sessions on other devices were ended.",
                action: "Open the app",
                footer: "If it was not you, set a new password at once by way of \"Forgot password\".",
            },
            MailKind::PaymentFailed => Self {
                subject: "Your payment failed",
                text: "We could not collect the payment for your subscription. We will try again; please check your card, or confirm the payment if your bank asks you to, so that your plan goes on.",
                action: "Check the card",
                footer: "Until the payment is made, your plan stays as it is for a few days.",
            },
            MailKind::PlanPaused => Self {
                subject: "Your plan is paused",
                text: "The payment for your subscription is still due, so your account is on the free plan for now. Your conversations are still there.",
                action: "Pay the open invoice",
                footer: "As soon as it is paid, your plan is back.",
            },
            MailKind::SubscriptionEnded => Self {
                subject: "Your subscription has ended",
                text: "Your subscription has ended, and your account is on the free plan. Your conversations are still there.",
                action: "Subscribe again",
                footer: "Thank you for having been with us.",
            },
            MailKind::TrialEnding => Self {
                subject: "Your trial ends soon",
                text: "Your trial ends soon. Then the first payment is due; without a card, your subscription ends.",
                action: "Manage the subscription",
                footer: "If you do not want to go on, cancel before the trial ends and nothing is charged.",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::role::Role;
    use crate::billing::plan::Plan;

    #[test]
    fn names_are_escaped_in_html() {
        let mut templates = Environment::new();
        for (name, source) in TEMPLATES {
            templates.add_template(name, source).unwrap();
        }
        let values = context! { name => "<img src=x>", subject => "s", text => "t", action => "a", link => "https://x/?token=a-b_c", footer => "f" };
        let html = templates.get_template("mail.html").unwrap().render(&values).unwrap();
        assert!(html.contains("&lt;img src=x&gt;") && !html.contains("<img"), "{html}");
        let text = templates.get_template("mail.txt").unwrap().render(&values).unwrap();
        assert!(text.contains("https://x/?token=a-b_c"), "{text}");
        assert!(html.contains("\"https://x/?token=a-b_c\""), "{html}");
    }

    #[test]
    fn only_the_owner_of_an_address_is_greeted_by_name() {
        let mut user = User {
            id: Uuid::now_v7(),
            email: "a@example.com".to_owned(),
            name: Some("Visit evil.example".to_owned()),
            role: Role::User,
            email_verified: false,
            plan: Plan::Free,
            created_at: clock::now(),
        };
        assert_eq!(greeted(&user), None);
        user.email_verified = true;
        assert_eq!(greeted(&user), Some("Visit evil.example"));
    }

    #[test]
    fn news_of_billing_grow_old_and_others_do_not() {
        let is_outdated = |kind: MailKind, hours: i64| {
            let made = clock::now() - time::Duration::hours(hours);
            let mail = Mail { id: clock::uuid_at(made), ..Mail::new(kind, Recipient::User(Uuid::now_v7())) };
            mail.is_outdated(clock::now())
        };
        use MailKind::{PasswordChanged, PaymentFailed, PlanPaused, SignupAttempted, SubscriptionEnded, TrialEnding};
        for kind in [PaymentFailed, PlanPaused, SubscriptionEnded, TrialEnding] {
            assert!(!is_outdated(kind, 23) && is_outdated(kind, 25), "{kind:?}");
        }
        for kind in [PasswordChanged, SignupAttempted] {
            assert!(!is_outdated(kind, 13 * 24), "{kind:?}");
        }
    }
}
