//! Signing out.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::auth::account::{Users, Visit};
use crate::auth::session::{Session, Sessions};
use crate::error::Result;
use crate::events::Event;
use crate::http::credentials::{Caller, Credential};
use crate::runtime;

/// Whoever has left waits no longer for its being told.
const LONGEST_TELLING: Duration = Duration::from_secs(5);

/// Ends sessions and tells of it.
pub struct SignOut {
    users: Users,
    sessions: Sessions,
}

impl SignOut {
    /// Connects lazily.
    ///
    /// # Errors
    /// When a variable or the database secret is missing.
    pub async fn init() -> Result<Self> {
        Ok(Self { users: Users::init().await?, sessions: Sessions::from_env()? })
    }

    /// Ends the session of a caller, or of the cookie where the caller showed no session token; or all of the user. Where
    /// Postgres does not answer, nobody is told, and whoever leaves is gone all the same.
    ///
    /// # Errors
    /// 401 without a session; else when DynamoDB does not answer: then the session may live on, and the client tries
    /// again.
    pub async fn sign_out(
        &self,
        caller: Result<&Caller>,
        cookie: Option<Credential>,
        all: bool,
        visit: &Visit,
    ) -> Result<()> {
        let session = self.session(caller, cookie).await?;
        if all {
            self.sessions.end_all(session.user_id, None).await?;
        } else {
            self.sessions.end(session.user_id, session.id).await?;
        }
        if let Err(error) = runtime::until(Instant::now() + LONGEST_TELLING, self.tell(session.user_id, visit)).await {
            tracing::error!(error.cause = %error, "a sign-out could not be told");
        }
        Ok(())
    }

    async fn tell(&self, user_id: Uuid, visit: &Visit) -> Result<()> {
        let user = self.users.get(user_id).await?;
        let mut transaction = self.users.database.begin(&visit.trace).await?;
        transaction.publish(Event::about(&visit.subject(user.id, user.plan), "user.signout"));
        transaction.commit().await
    }

    /// The session of the session token, or else of the access token, which may have expired beside a good cookie.
    async fn session(&self, caller: Result<&Caller>, cookie: Option<Credential>) -> Result<Session> {
        if !matches!(caller, Ok(Caller { credential: Credential::Cookie(_) | Credential::Session(_), .. }))
            && let Some(Credential::Cookie(token)) = cookie
        {
            match self.sessions.authenticate(&token).await {
                Err(error) if error.is_unauthorized() => {}
                session => return session,
            }
        }
        caller.map(|caller| caller.session.clone())
    }
}
