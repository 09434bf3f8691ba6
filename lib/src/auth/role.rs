//! Roles, which an operator gives and takes.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::auth::email::Email;
use crate::auth::session::Sessions;
use crate::error::{Error, Result};
use crate::store::postgres::Database;

/// What a user may do beyond their own objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Nothing.
    User,
    /// Read everybody's figures.
    Admin,
}

impl Role {
    /// The role as it is stored and shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }

    /// Reads a stored role; anything unknown may do nothing.
    #[must_use]
    pub fn stored(text: &str) -> Self {
        if text == "admin" { Self::Admin } else { Self::User }
    }
}

/// Sets roles.
pub struct Roles {
    database: Database,
    sessions: Sessions,
}

impl Roles {
    /// Connects lazily.
    ///
    /// # Errors
    /// When a variable or the database secret is missing.
    pub async fn init() -> Result<Self> {
        Ok(Self { database: Database::init().await?, sessions: Sessions::from_env()? })
    }

    /// Gives the user of an address a role, which their sessions have from then on as well; tells the user's id.
    ///
    /// The user's row is locked until the sessions are written: a sign-in that read the role before waits for it.
    ///
    /// # Errors
    /// When nobody has the address, or a store does not answer; then it can be done again.
    pub async fn set(&self, address: &str, role: Role) -> Result<Uuid> {
        let email = Email::parse_text(address).map_err(|_| Error::internal("the e-mail address is malformed"))?;
        let mut transaction = self.database.pool().begin().await?;
        let id = sqlx::query_scalar!(
            "UPDATE users SET role = $1, updated_at = now() WHERE email = $2 RETURNING id",
            role.as_str(),
            email.as_str(),
        )
        .fetch_optional(&mut *transaction)
        .await?
        .ok_or_else(|| Error::internal("nobody has this e-mail address"))?;
        self.sessions.set_role(id, role).await?;
        transaction.commit().await?;
        tracing::info!(user.id = %id, user.role = role.as_str(), "a role was set");
        Ok(id)
    }
}
