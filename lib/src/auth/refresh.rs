//! Refreshing a session.

use crate::auth::jwt::{AccessToken, Keys};
use crate::auth::session::{Session, SessionIssuer, SessionToken};
use crate::clock;
use crate::error::{Code, Error, Result};
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

    /// The session token among the request's credentials. An access token of ours, even one that has expired,
    /// may stand beside the cookie: pages send both. Alone it refreshes nothing.
    ///
    /// # Errors
    /// 401 without a session token, or with a bearer that is not ours.
    pub fn session_token(&self, headers: &http::HeaderMap) -> Result<(Credential, SessionToken)> {
        let mut credential = Credential::of(headers);
        if let Some(Credential::Jwt(token)) = &credential {
            match self.keys.verify(token) {
                Ok(_) => {}
                Err(error) if error.code() == Code::SessionExpired => {}
                Err(error) => return Err(error),
            }
            credential = Credential::cookie(headers);
        }
        let credential = credential.ok_or_else(Error::unauthenticated)?;
        let (Credential::Cookie(token) | Credential::Session(token)) = &credential else {
            return Err(Error::unauthenticated());
        };
        let token = token.clone();
        Ok((credential, token))
    }

    /// The next tokens for a session token.
    ///
    /// # Errors
    /// 401 for a token that is not or no longer valid.
    pub async fn refresh(&self, token: &SessionToken) -> Result<Refreshed> {
        let (session, session_token) = self.issuer.refresh(token).await?;
        let access_token = self.keys.sign(session.user_id, session.id, clock::now())?;
        Ok(Refreshed { session, session_token, access_token })
    }
}
