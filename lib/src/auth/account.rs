//! Accounts: users in Postgres, and what happens to them.

use std::net::IpAddr;

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::auth::email::Email;
use crate::auth::jwt::{AccessToken, Keys};
use crate::auth::limits::Limits;
use crate::auth::one_time::{OneTimeToken, OneTimeTokens, Purpose};
use crate::auth::password::{self, Blocklist, NewPassword, Password};
use crate::auth::role::Role;
use crate::auth::session::{Session, SessionIssuer, SessionToken};
use crate::billing::plan::Plan;
use crate::clock;
use crate::config::{self, Stage};
use crate::error::{Code, Error, Result};
use crate::events::{Event, Subject};
use crate::mail::{Mail, MailKind, Recipient};
use crate::store::postgres::{Database, Transaction};
use crate::telemetry::trace::TraceContext;

/// Mails of a kind that one account gets in an hour.
const RESET_MAILS_PER_HOUR: i64 = 3;
const VERIFICATION_MAILS_PER_HOUR: i64 = 5;
const NOTICES_PER_HOUR: i64 = 3;

/// A user as the API shows them.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The user's id.
    pub id: Uuid,
    /// The canonical address.
    pub email: String,
    /// The name that the user gave, if any.
    pub name: Option<String>,
    /// What the user may do.
    pub role: Role,
    /// Whether the address was proved.
    pub email_verified: bool,
    /// What the user is entitled to.
    #[serde(serialize_with = "plan_id")]
    pub plan: Plan,
    /// When the account was made.
    #[serde(serialize_with = "crate::clock::text::serialize")]
    pub created_at: OffsetDateTime,
}

fn plan_id<S: serde::Serializer>(plan: &Plan, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(plan.as_str())
}

/// A row of `users`.
struct Row {
    id: Uuid,
    email: String,
    name: Option<String>,
    role: String,
    plan: String,
    password_hash: String,
    password_version: i32,
    email_verified_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
}

impl Row {
    fn user(&self) -> Result<User> {
        Ok(User {
            id: self.id,
            email: self.email.clone(),
            name: self.name.clone(),
            role: Role::stored(&self.role),
            email_verified: self.email_verified_at.is_some(),
            plan: Plan::stored(&self.plan)?,
            created_at: self.created_at,
        })
    }
}

/// Where a request comes from, when it came, and its trace.
#[derive(Debug, Clone)]
pub struct Visit {
    /// The client's address.
    pub ip: IpAddr,
    /// The client's `User-Agent`.
    pub device: String,
    /// ISO 3166-1 alpha-2, where the edge tells it.
    pub country: Option<String>,
    /// When the gateway received it.
    pub at: OffsetDateTime,
    /// The request's trace.
    pub trace: TraceContext,
}

impl Visit {
    /// The subject of an event about the user.
    #[must_use]
    pub fn subject(&self, user_id: Uuid, plan: Plan) -> Subject {
        Subject { user_id, plan, country: self.country.clone() }
    }
}

/// A new account as the client asks for it.
#[derive(Debug)]
pub struct NewAccount {
    /// The address.
    pub email: Email,
    /// The password.
    pub password: NewPassword,
    /// A name, if given.
    pub name: Option<String>,
}

/// A user with the session that was just started or refreshed.
pub struct SignedIn {
    /// The user.
    pub user: User,
    /// The session.
    pub session: Session,
    /// The session's token.
    pub session_token: SessionToken,
    /// A first access token.
    pub access_token: AccessToken,
}

/// What a sign-up came to.
pub enum SignUp {
    /// The account exists and its user is signed in.
    SignedIn(Box<SignedIn>),
    /// A mail is on its way; whether the address was known is not told.
    VerificationRequired,
}

/// The users, for reading.
#[derive(Clone)]
pub struct Users {
    /// The database.
    pub(crate) database: Database,
}

impl Users {
    /// Connects lazily.
    ///
    /// # Errors
    /// When the database secret cannot be read.
    pub async fn init() -> Result<Self> {
        Ok(Self { database: Database::init().await? })
    }

    /// The user of a session.
    ///
    /// # Errors
    /// 401 when the user is gone.
    pub async fn get(&self, id: Uuid) -> Result<User> {
        self.by_id(id).await?.ok_or_else(Error::unauthenticated)
    }

    /// The user of an id.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn by_id(&self, id: Uuid) -> Result<Option<User>> {
        self.row_by_id(id).await?.map(|row| row.user()).transpose()
    }

    async fn row_by_id(&self, id: Uuid) -> Result<Option<Row>> {
        Ok(sqlx::query_as!(
            Row,
            "SELECT id, email, name, role, plan, password_hash, password_version, email_verified_at, created_at
             FROM users WHERE id = $1",
            id,
        )
        .fetch_optional(self.database.pool())
        .await?)
    }

    /// The user of an address.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn find(&self, email: &Email) -> Result<Option<User>> {
        self.row_by_email(email).await?.map(|row| row.user()).transpose()
    }

    async fn row_by_email(&self, email: &Email) -> Result<Option<Row>> {
        Ok(sqlx::query_as!(
            Row,
            "SELECT id, email, name, role, plan, password_hash, password_version, email_verified_at, created_at
             FROM users WHERE email = $1",
            email.as_str(),
        )
        .fetch_optional(self.database.pool())
        .await?)
    }
}

/// Everything that happens to accounts.
pub struct Accounts {
    /// The users.
    pub(crate) users: Users,
    issuer: SessionIssuer,
    tokens: OneTimeTokens,
    limits: Limits,
    keys: Keys,
    blocklist: Blocklist,
    require_verification: bool,
    admins: Vec<String>,
}

impl Accounts {
    /// Reads secrets and settings; connects lazily.
    ///
    /// # Errors
    /// When a variable or a secret is missing.
    pub async fn init() -> Result<Self> {
        let (users, issuer, tokens, keys) =
            futures_util::try_join!(Users::init(), SessionIssuer::init(), OneTimeTokens::init(), Keys::init())?;
        let verification_default = Stage::from_env()? != Stage::Local;
        Ok(Self {
            users,
            issuer,
            tokens,
            limits: Limits::from_env()?,
            keys,
            blocklist: Blocklist::from_env()?,
            require_verification: config::parsed("REQUIRE_EMAIL_VERIFICATION", verification_default)?,
            admins: admins_from_env()?,
        })
    }

    /// Makes an account.
    ///
    /// Where verification is required, a known address is answered like a new one, after the same work, and
    /// its owner gets a notice.
    ///
    /// # Errors
    /// 409 `email_taken` where verification is not required; 400 for a common password; 429 beyond 5 an hour
    /// and address.
    pub async fn sign_up(&self, new: NewAccount, visit: &Visit) -> Result<SignUp> {
        let now = clock::now();
        self.blocklist.check("password", &new.password, &personal(&new.email, new.name.as_deref()))?;
        let attempt = self.limits.sign_up(visit.ip, now).await?;
        let outcome = self.create(new, visit, now).await;
        self.limits.settle(attempt, outcome).await
    }

    async fn create(&self, new: NewAccount, visit: &Visit, now: OffsetDateTime) -> Result<SignUp> {
        let hash = password::hash(new.password).await?;
        let mut transaction = self.users.database.begin(&visit.trace).await?;
        let row = sqlx::query_as!(
            Row,
            "INSERT INTO users (id, email, name, password_hash) VALUES ($1, $2, $3, $4)
             ON CONFLICT (email) DO NOTHING
             RETURNING id, email, name, role, plan, password_hash, password_version, email_verified_at, created_at",
            Uuid::now_v7(),
            new.email.as_str(),
            new.name,
            hash,
        )
        .fetch_optional(transaction.connection())
        .await?;
        let Some(row) = row else {
            if !self.require_verification {
                return Err(Error::new(Code::EmailTaken, "Sign in instead, or ask for a new password."));
            }
            let attempt = self.limits.mail("signup-notice", NOTICES_PER_HOUR, new.email.as_str(), now).await?;
            if let Some(attempt) = attempt {
                let outcome = commit_mail(transaction, MailKind::SignupAttempted, &new.email).await;
                self.limits.settle(attempt, outcome).await?;
            } else {
                transaction.commit().await?;
            }
            return Ok(SignUp::VerificationRequired);
        };
        let user = row.user()?;
        transaction.publish(Event::about(&visit.subject(user.id, user.plan), "user.signup").with("method", "password"));
        transaction.send_mail(&Mail::new(MailKind::VerifyEmail, Recipient::User(user.id)))?;
        transaction.commit().await?;
        if self.require_verification {
            return Ok(SignUp::VerificationRequired);
        }
        self.start_session(user, visit).await.map(|signed_in| SignUp::SignedIn(Box::new(signed_in)))
    }

    /// Checks an address and a password and starts a session, in place of the user's session that the request
    /// came with, if any. A proved address in `ADMIN_EMAILS` is an admin's from then on.
    ///
    /// # Errors
    /// 401 `invalid_credentials`, the same after the same time for an unknown address; 403
    /// `email_not_verified` after a right password; 429 `too_many_attempts`.
    pub async fn sign_in(
        &self,
        email: &Email,
        password: Password,
        replaces: Option<(Uuid, Uuid)>,
        visit: &Visit,
    ) -> Result<SignedIn> {
        let row = self.users.row_by_email(email).await?;
        self.check_password(email, row.as_ref(), password, visit).await?;
        let row = row.ok_or_else(wrong_credentials)?;
        let mut user = row.user()?;
        if self.require_verification && !user.email_verified {
            return Err(Error::new(Code::EmailNotVerified, "Follow the link in the mail, or ask for another one."));
        }
        self.promote_if_listed(&mut user).await?;
        let mut signed_in = self.start_session(user, visit).await?;
        let confirmed = self.confirm_sign_in(&row, &mut signed_in, visit).await;
        let session = &signed_in.session;
        match confirmed {
            Ok(true) => {}
            // A password that was replaced meanwhile must not leave a session.
            Ok(false) => {
                self.issuer.sessions.end(session.user_id, session.id).await?;
                return Err(wrong_credentials());
            }
            Err(error) => {
                self.issuer.sessions.end(session.user_id, session.id).await?;
                return Err(error);
            }
        }
        if let Some((user_id, session_id)) = replaces.filter(|(user_id, _)| *user_id == session.user_id) {
            self.issuer.sessions.end(user_id, session_id).await?;
        }
        Ok(signed_in)
    }

    /// Makes an admin of a user whose proved address is in `ADMIN_EMAILS`, which may have been added after the proof.
    async fn promote_if_listed(&self, user: &mut User) -> Result<()> {
        if user.role == Role::Admin || !user.email_verified || !self.admins.contains(&user.email) {
            return Ok(());
        }
        sqlx::query!("UPDATE users SET role = 'admin', updated_at = now() WHERE id = $1", user.id)
            .execute(self.users.database.pool())
            .await?;
        user.role = Role::Admin;
        self.promote_sessions(user.id).await;
        Ok(())
    }

    /// Lets an admin's sessions know. The row says it already, and so will the next session.
    async fn promote_sessions(&self, user_id: Uuid) {
        if let Err(error) = self.issuer.sessions.set_role(user_id, Role::Admin).await {
            tracing::warn!(error.cause = %error, "an admin's sessions keep their role until the next sign-in");
        }
    }

    /// Publishes the sign-in if the password is still the one that was checked. The share lock waits for a change of
    /// password or role under way, which in turn ends or writes the sessions that it finds before it commits.
    async fn confirm_sign_in(&self, row: &Row, signed_in: &mut SignedIn, visit: &Visit) -> Result<bool> {
        let mut transaction = self.users.database.begin(&visit.trace).await?;
        let current = sqlx::query!("SELECT password_version, role FROM users WHERE id = $1 FOR SHARE", row.id)
            .fetch_optional(transaction.connection())
            .await?;
        let Some(current) = current.filter(|current| current.password_version == row.password_version) else {
            return Ok(false);
        };
        let role = Role::stored(&current.role);
        if role != signed_in.user.role {
            self.issuer.sessions.set_role(row.id, role).await?;
            signed_in.user.role = role;
            signed_in.session.role = role;
        }
        let subject = visit.subject(row.id, signed_in.user.plan);
        transaction.publish(Event::about(&subject, "user.signin").with("method", "password"));
        transaction.commit().await?;
        Ok(true)
    }

    /// Checks a password under the limits; a wrong one is answered later and later.
    async fn check_password(&self, email: &Email, row: Option<&Row>, password: Password, visit: &Visit) -> Result<()> {
        let version = row.map_or(1, |row| row.password_version);
        let account = format!("{}#{version}", email.as_str());
        let attempt = self.limits.sign_in(&account, visit.ip, clock::now()).await?;
        let verified = password::verify(password.clone(), row.map(|row| row.password_hash.clone())).await;
        let verified = match verified {
            Ok(verified) => verified,
            Err(error) => return self.limits.settle(attempt, Err(error)).await,
        };
        let Some(row) = row.filter(|_| verified.matches) else {
            tokio::time::sleep(attempt.delay()).await;
            return Err(wrong_credentials());
        };
        self.limits.forgive(attempt).await?;
        if verified.outdated {
            let hash = password::rehash(password).await?;
            sqlx::query!(
                "UPDATE users SET password_hash = $1 WHERE id = $2 AND password_version = $3",
                hash,
                row.id,
                row.password_version,
            )
            .execute(self.users.database.pool())
            .await?;
        }
        Ok(())
    }

    /// Proves an address by the token of its mail. Addresses in `ADMIN_EMAILS` become admins by it.
    ///
    /// # Errors
    /// 400 `invalid_token`.
    pub async fn verify_email(&self, token: &OneTimeToken, visit: &Visit) -> Result<User> {
        let now = clock::now();
        self.limits.token(visit.ip, now).await?;
        self.tokens.check(token, Purpose::VerifyEmail, now).await?;
        let mut transaction = self.users.database.begin(&visit.trace).await?;
        let proved = prove_address(transaction.connection(), token.user_id).await?;
        let row = sqlx::query_as!(
            Row,
            "UPDATE users SET updated_at = now(),
                    role = CASE WHEN email = ANY($2) THEN 'admin' ELSE role END
             WHERE id = $1
             RETURNING id, email, name, role, plan, password_hash, password_version, email_verified_at, created_at",
            token.user_id,
            &self.admins,
        )
        .fetch_optional(transaction.connection())
        .await?;
        let user = row.ok_or_else(gone)?.user()?;
        // A reset by mail may have proved it before.
        if proved {
            transaction.publish(Event::about(&visit.subject(user.id, user.plan), "user.email_verified"));
        }
        // Used up last: an update that fails must not cost the user the link.
        self.tokens.consume(token, Purpose::VerifyEmail, now, transaction.commit()).await?;
        // The link is used up: whatever happens now, the address is proved.
        if user.role == Role::Admin {
            self.promote_sessions(user.id).await;
        }
        Ok(user)
    }

    /// Asks for another verification mail. The reply and its time are the same whether or not the address is
    /// known: the mail worker finds out.
    ///
    /// # Errors
    /// When a store does not answer.
    pub async fn resend_verification(&self, email: &Email, visit: &Visit) -> Result<()> {
        self.request_mail(email, MailKind::VerifyEmail, "verify", VERIFICATION_MAILS_PER_HOUR, visit).await
    }

    /// Asks for a link to set a new password; alike for unknown addresses.
    ///
    /// # Errors
    /// When a store does not answer.
    pub async fn forgot_password(&self, email: &Email, visit: &Visit) -> Result<()> {
        self.request_mail(email, MailKind::ResetPassword, "reset", RESET_MAILS_PER_HOUR, visit).await
    }

    async fn request_mail(
        &self,
        email: &Email,
        kind: MailKind,
        name: &str,
        per_hour: i64,
        visit: &Visit,
    ) -> Result<()> {
        let Some(attempt) = self.limits.mail(name, per_hour, email.as_str(), clock::now()).await? else {
            return Ok(());
        };
        let outcome = match self.users.database.begin(&visit.trace).await {
            Ok(transaction) => commit_mail(transaction, kind, email).await,
            Err(error) => Err(error),
        };
        self.limits.settle(attempt, outcome).await
    }

    /// Sets a new password by the token of a mail, which proves the address as well: ends every session, lifts the
    /// lockout, tells the owner. Addresses in `ADMIN_EMAILS` do not become admins by it.
    ///
    /// # Errors
    /// 400 `invalid_token`; 400 for a common password, which does not use up the token.
    pub async fn reset_password(
        &self,
        token: &OneTimeToken,
        field: &str,
        new: NewPassword,
        visit: &Visit,
    ) -> Result<()> {
        let now = clock::now();
        self.limits.token(visit.ip, now).await?;
        self.tokens.check(token, Purpose::ResetPassword, now).await?;
        let user = self.users.by_id(token.user_id).await?.ok_or_else(gone)?;
        self.blocklist.check(field, &new, &personal(&stored(&user.email)?, user.name.as_deref()))?;
        let hash = password::hash(new).await?;
        let mut transaction = self.users.database.begin(&visit.trace).await?;
        replace_password(transaction.connection(), user.id, &hash, None).await?;
        let proved = prove_address(transaction.connection(), user.id).await?;
        let subject = visit.subject(user.id, user.plan);
        transaction.publish(Event::about(&subject, "user.password_reset"));
        if proved {
            transaction.publish(Event::about(&subject, "user.email_verified"));
        }
        transaction.send_mail(&Mail::new(MailKind::PasswordChanged, Recipient::User(user.id)))?;
        let change = async {
            self.issuer.sessions.end_all(user.id, None).await?;
            transaction.commit().await
        };
        self.tokens.consume(token, Purpose::ResetPassword, now, change).await
    }

    /// Sets a new password for a signed-in user: ends the other sessions, voids reset links, and tells the owner of
    /// the first changes of an hour.
    ///
    /// # Errors
    /// 401 `invalid_credentials` for a wrong current password, under the limits of sign-in, and for one that is
    /// replaced meanwhile; 400 for a common new one.
    pub async fn change_password(
        &self,
        user_id: Uuid,
        session_id: Uuid,
        current: Password,
        new: NewPassword,
        visit: &Visit,
    ) -> Result<()> {
        let row = self.users.row_by_id(user_id).await?.ok_or_else(Error::unauthenticated)?;
        let email = stored(&row.email)?;
        self.check_password(&email, Some(&row), current, visit).await?;
        self.blocklist.check("newPassword", &new, &personal(&email, row.name.as_deref()))?;
        let hash = password::hash(new).await?;
        let mut transaction = self.users.database.begin(&visit.trace).await?;
        // A password that was replaced meanwhile is not the one that was checked.
        if !replace_password(transaction.connection(), user_id, &hash, Some(row.password_version)).await? {
            return Err(wrong_credentials());
        }
        self.issuer.sessions.end_all(user_id, Some(session_id)).await?;
        let now = clock::now();
        self.tokens.void(user_id, Purpose::ResetPassword, now).await?;
        let Some(notice) = self.limits.mail("password-notice", NOTICES_PER_HOUR, email.as_str(), now).await? else {
            return transaction.commit().await;
        };
        transaction.send_mail(&Mail::new(MailKind::PasswordChanged, Recipient::User(user_id)))?;
        let outcome = transaction.commit().await;
        self.limits.settle(notice, outcome).await
    }

    async fn start_session(&self, user: User, visit: &Visit) -> Result<SignedIn> {
        let (session, session_token) = self.issuer.start(user.id, user.role, visit).await?;
        let access_token = self.keys.sign(user.id, session.id, clock::now())?;
        Ok(SignedIn { user, session, session_token, access_token })
    }
}

/// The addresses of `ADMIN_EMAILS`, as accounts have them.
fn admins_from_env() -> Result<Vec<String>> {
    let parse = |address: String| match Email::parse_text(&address) {
        Ok(email) => Ok(email.as_str().to_owned()),
        Err(_) => Err(Error::internal("environment variable ADMIN_EMAILS holds something that is no address")),
    };
    config::list("ADMIN_EMAILS").into_iter().map(parse).collect()
}

async fn commit_mail(mut transaction: Transaction, kind: MailKind, email: &Email) -> Result<()> {
    transaction.send_mail(&Mail::new(kind, Recipient::Address(email.as_str().to_owned())))?;
    transaction.commit().await
}

/// Replaces the hash, if the password's version is the one given, and locks the row until the commit: a sign-in that
/// checked the old password waits for it. Tells whether it was replaced.
async fn replace_password(
    connection: &mut PgConnection,
    user_id: Uuid,
    hash: &str,
    version: Option<i32>,
) -> Result<bool> {
    let replaced = sqlx::query!(
        "UPDATE users SET password_hash = $1, password_version = password_version + 1, updated_at = now()
         WHERE id = $2 AND password_version = coalesce($3, password_version)",
        hash,
        user_id,
        version,
    )
    .execute(connection)
    .await?;
    Ok(replaced.rows_affected() > 0)
}

/// Notes that the user's address is proved. Tells whether it was not before.
async fn prove_address(connection: &mut PgConnection, user_id: Uuid) -> Result<bool> {
    let proved = sqlx::query!(
        "UPDATE users SET email_verified_at = now() WHERE id = $1 AND email_verified_at IS NULL",
        user_id,
    )
    .execute(connection)
    .await?;
    Ok(proved.rows_affected() > 0)
}

/// An address of a row.
fn stored(address: &str) -> Result<Email> {
    Email::parse_text(address).map_err(|_| Error::internal("a stored address is malformed"))
}

fn personal<'a>(email: &'a Email, name: Option<&'a str>) -> [&'a str; 3] {
    [email.as_str(), email.local_part(), name.unwrap_or_default()]
}

fn gone() -> Error {
    Error::new(Code::InvalidToken, "The account is gone.")
}

fn wrong_credentials() -> Error {
    Error::new(Code::InvalidCredentials, "Check the e-mail address and the password.")
}
