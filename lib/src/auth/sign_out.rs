//! Signing out.

use crate::auth::account::{Users, Visit};
use crate::auth::session::{Session, Sessions};
use crate::error::Result;
use crate::events::Event;

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

    /// Ends the session, or all of the user.
    ///
    /// # Errors
    /// When a store does not answer; then the session may live on, and the client tries again.
    pub async fn sign_out(&self, session: &Session, all: bool, visit: &Visit) -> Result<()> {
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
}
