//! Refreshing a session.

use crate::auth::jwt::{AccessToken, Keys};
use crate::auth::session::{Session, SessionIssuer, SessionToken};
use crate::clock;
use crate::error::{Error, Result};
use crate::http::credentials::Credential;

/// Replaces session tokens.
pub struct Refresh {
    issuer: SessionIssuer,
    keys: Keys,
}

/// A session's next tokens.
pub struct Refreshed {
    /// The session.
    pub session: Session,
    /// The successor of the session token.
    pub session_token: SessionToken,
    /// A new access token.
    pub access_token: AccessToken,
}

impl Refresh {
    /// Reads the secrets.
    ///
    /// # Errors
    /// When a variable or a secret is missing.
    pub async fn init() -> Result<Self> {
        let (issuer, keys) = futures_util::try_join!(SessionIssuer::init(), Keys::init())?;
        Ok(Self { issuer, keys })
    }

    /// The next tokens for a credential with a session token. An access token alone refreshes nothing.
    ///
    /// # Errors
    /// 401 for a token that is not or no longer valid.
    pub async fn refresh(&self, credential: &Credential) -> Result<Refreshed> {
        let (Credential::Cookie(token) | Credential::Session(token)) = credential else {
            return Err(Error::unauthenticated());
        };
        let (session, session_token) = self.issuer.refresh(token).await?;
        let access_token = self.keys.sign(session.user_id, session.id, clock::now())?;
        Ok(Refreshed { session, session_token, access_token })
    }
}
