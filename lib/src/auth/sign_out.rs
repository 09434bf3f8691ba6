//! Signing out.

use crate::auth::account::{Users, Visit};
use crate::auth::session::{Session, Sessions};
use crate::error::Result;
use crate::events::Event;
use crate::http::credentials::{Caller, Credential};

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

    /// Ends the session of a caller, or of the cookie where the caller showed no session token; or all of the user.
    ///
    /// # Errors
    /// 401 without a session; else when a store does not answer: then the session may live on, and the client tries
    /// again.
    pub async fn sign_out(
        &self,
        caller: Result<&Caller>,
        cookie: Option<Credential>,
        all: bool,
        visit: &Visit,
    ) -> Result<()> {
        let session = self.session(caller, cookie).await?;
        let user = self.users.get(session.user_id).await?;
        let mut transaction = self.users.database.begin(&visit.trace).await?;
        transaction.publish(Event::about(&visit.subject(user.id, user.plan), "user.signout"));
        if all {
            self.sessions.end_all(user.id, None).await?;
        } else {
            self.sessions.end(user.id, session.id).await?;
        }
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
