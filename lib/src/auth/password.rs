//! Passwords: 8 to 128 characters of any kind, hashed with Argon2id off the async thread.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};

use crate::background;
use crate::config;
use crate::crypto;
use crate::error::{Error, Result};
use crate::http::validate::{Field, Invalid, Raw};

/// OWASP's second choice of equal strength (Password Storage Cheat Sheet): 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;

const MIN_CHARACTERS: usize = 8;
const MAX_CHARACTERS: usize = 128;

/// The most common passwords of eight characters and more, lower-case, one a line.
const COMMON: &str = include_str!("common-passwords.txt");
/// A password must not be made of these and digits alone.
const CONTEXT_WORDS: [&str; 4] = ["password", "aichat", "chatai", "assistant"];

/// A password as it was typed: neither trimmed nor normalised, and it does not print.
#[derive(Clone)]
pub struct Password(String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[password]")
    }
}

/// A password that is to be checked may be any text, so that old rules never lock anybody out.
impl Field for Password {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let text = raw.text()?;
        if text.chars().count() > MAX_CHARACTERS {
            return Err(Invalid::new("too_long", format!("Must have at most {MAX_CHARACTERS} characters.")));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A password that is to be set: long enough, and where the blocklist is on, not a common one.
#[derive(Debug, Clone)]
pub struct NewPassword(Password);

impl Field for NewPassword {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        let password = Password::parse(raw)?;
        if password.0.chars().count() < MIN_CHARACTERS {
            return Err(Invalid::new("too_short", format!("Must have at least {MIN_CHARACTERS} characters.")));
        }
        Ok(Self(password))
    }
}

/// Whether common passwords are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocklist {
    /// Refused.
    Enforce,
    /// Accepted, for development.
    Off,
}

impl Blocklist {
    /// Reads `PASSWORD_BLOCKLIST`; without it the list is enforced.
    ///
    /// # Errors
    /// When the value is neither `enforce` nor `off`.
    pub fn from_env() -> Result<Self> {
        match config::optional("PASSWORD_BLOCKLIST").as_deref() {
            None | Some("enforce") => Ok(Self::Enforce),
            Some("off") => Ok(Self::Off),
            Some(_) => Err(Error::internal("environment variable PASSWORD_BLOCKLIST is neither enforce nor off")),
        }
    }

    /// Refuses a common password, or one made of the person's own e-mail address or name.
    ///
    /// # Errors
    /// A 400 that names `field`.
    pub fn check(self, field: &str, password: &NewPassword, personal: &[&str]) -> Result<()> {
        if self == Self::Off {
            return Ok(());
        }
        let lower = password.0.0.to_lowercase();
        let letters: String = lower.chars().filter(|c| c.is_alphabetic()).collect();
        let is_personal = personal.iter().any(|word| {
            let word = word.to_lowercase();
            word.chars().count() >= 4 && (lower == word || letters == word)
        });
        if is_personal || CONTEXT_WORDS.contains(&letters.as_str()) || COMMON.lines().any(|line| line == lower) {
            return Err(Error::invalid_field(field, "too_common", "Is too easy to guess; choose another one."));
        }
        Ok(())
    }
}

/// The memory of a computation, kept for the next one: to ask for it and clear it is a tenth of a sign-in, and with
/// what is given back to the allocator a sandbox grows to hundreds of megabytes. It computes one at a time.
static MEMORY: Mutex<Vec<Block>> = Mutex::new(Vec::new());

/// How a password is made into a hash.
struct Recipe {
    algorithm: Algorithm,
    version: Version,
    params: Params,
    salt: Salt,
}

impl Recipe {
    /// The one for new hashes.
    fn new() -> Result<Self> {
        let salt = crypto::random()?;
        Ok(Self {
            algorithm: Algorithm::Argon2id,
            version: Version::V0x13,
            params: Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(internal)?,
            salt: Salt::new(&salt[..16]).map_err(internal)?,
        })
    }

    /// The one of a stored hash.
    fn of(stored: &PasswordHash) -> Result<Self> {
        Ok(Self {
            algorithm: Algorithm::try_from(stored.algorithm.as_str()).map_err(internal)?,
            version: stored.version.map(Version::try_from).transpose().map_err(internal)?.unwrap_or_default(),
            params: Params::try_from(stored).map_err(internal)?,
            salt: stored.salt.ok_or_else(|| Error::internal("a stored password hash has no salt"))?,
        })
    }

    fn is_current(&self) -> bool {
        (self.params.m_cost(), self.params.t_cost(), self.params.p_cost()) == (MEMORY_KIB, PASSES, LANES)
    }

    fn compute(&self, password: &Password) -> Result<PasswordHash> {
        let mut output = [0; Output::MAX_LENGTH];
        let output = output
            .get_mut(..self.params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN))
            .ok_or_else(|| Error::internal("a password hash is too long"))?;
        let mut memory = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = self.params.block_count().saturating_sub(memory.len());
        memory.try_reserve_exact(missing).map_err(Error::internal)?;
        let blocks = memory.len() + missing;
        memory.resize(blocks, Block::new());
        #[cfg(test)]
        tests::count(&self.params);
        Argon2::new(self.algorithm, self.version, self.params.clone())
            .hash_password_into_with_memory(password.0.as_bytes(), &self.salt, output, memory.as_mut_slice())
            .map_err(internal)?;
        Ok(PasswordHash {
            algorithm: self.algorithm.ident(),
            version: Some(self.version.into()),
            params: ParamsString::try_from(&self.params).map_err(internal)?,
            salt: Some(self.salt),
            hash: Some(Output::new(output).map_err(internal)?),
        })
    }
}

fn internal(error: impl fmt::Display) -> Error {
    Error::internal(error.to_string())
}

/// Hashes a new password to a PHC string.
///
/// # Errors
/// When there is no memory or randomness for it.
pub async fn hash(password: NewPassword) -> Result<String> {
    rehash(password.0).await
}

/// What a password check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// The password is right.
    pub matches: bool,
    /// The stored hash has other parameters than new ones get, so it should be made anew.
    pub outdated: bool,
}

/// Checks a password against a stored hash, or against a dummy of the same cost when there is no account, so
/// that both take the same time.
///
/// # Errors
/// When the stored hash is malformed.
pub async fn verify(password: Password, stored: Option<String>) -> Result<Verified> {
    let exists = stored.is_some();
    background::blocking(move || {
        let phc = match &stored {
            Some(stored) => stored.as_str(),
            None => dummy()?,
        };
        let stored = PasswordHash::new(phc).map_err(internal)?;
        let recipe = Recipe::of(&stored)?;
        // Outputs are compared in constant time.
        let matches = stored.hash.is_some() && recipe.compute(&password)?.hash == stored.hash;
        Ok(Verified { matches: matches && exists, outdated: !recipe.is_current() })
    })
    .await?
}

/// Hashes a password that was just found right, with the current parameters.
///
/// # Errors
/// When there is no memory or randomness for it.
pub async fn rehash(password: Password) -> Result<String> {
    let recipe = Recipe::new()?;
    background::blocking(move || recipe.compute(&password).map(|hash| hash.to_string())).await?
}

/// A hash that no password is checked against in earnest.
fn dummy() -> Result<&'static str> {
    static DUMMY: OnceLock<String> = OnceLock::new();
    if let Some(dummy) = DUMMY.get() {
        return Ok(dummy);
    }
    // Written out rather than computed: computing it would make the first unknown address slow.
    let dummy = format!(
        "$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    );
    Ok(DUMMY.get_or_init(|| dummy))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use argon2::password_hash::{PasswordHasher, PasswordVerifier};
    use serde_json::Value;

    thread_local! {
        /// The costs of what was computed on this thread.
        static COMPUTED: RefCell<Vec<(u32, u32, u32)>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn count(params: &Params) {
        COMPUTED.with_borrow_mut(|computed| computed.push((params.m_cost(), params.t_cost(), params.p_cost())));
    }

    fn new_password(text: &str) -> Result<NewPassword, Invalid> {
        NewPassword::parse(Raw::Json(&Value::String(text.to_owned())))
    }

    #[test]
    fn lengths_count_characters_not_bytes() {
        assert_eq!(new_password("1234567").unwrap_err().code, "too_short");
        assert!(new_password("ääääääää").is_ok());
        assert!(new_password(&"ä".repeat(128)).is_ok());
        assert_eq!(new_password(&"a".repeat(129)).unwrap_err().code, "too_long");
        assert!(new_password("        ").is_ok());
        assert!(new_password("nul\0nul\0").is_ok());
    }

    #[test]
    fn the_blocklist_knows_common_and_personal_passwords() {
        let check = |text| {
            Blocklist::Enforce.check("password", &new_password(text).unwrap(), &["ada.lovelace", "Ada Lovelace"])
        };
        for bad in ["Password1", "12345678", "ada.lovelace", "qwertyuiop"] {
            assert_eq!(check(bad).unwrap_err().fields()[0].code, "too_common", "{bad}");
        }
        assert!(check("correct horse battery staple").is_ok());
        assert!(Blocklist::Off.check("password", &new_password("12345678").unwrap(), &[]).is_ok());
    }

    #[tokio::test]
    async fn a_hash_verifies_its_password_and_no_other() {
        let stored = hash(new_password("correct horse").unwrap()).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert_eq!(Argon2::default().verify_password(b"correct horse", stored.as_str()), Ok(()));
        let right = verify(Password("correct horse".to_owned()), Some(stored.clone())).await.unwrap();
        assert_eq!(right, Verified { matches: true, outdated: false });
        let wrong = verify(Password("correct horsf".to_owned()), Some(stored)).await.unwrap();
        assert!(!wrong.matches);
    }

    #[tokio::test]
    async fn without_an_account_nothing_matches_and_old_hashes_are_outdated() {
        assert!(!verify(Password("x".repeat(8)), None).await.unwrap().matches);
        let old = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8, 1, 1, None).unwrap());
        let stored = old.hash_password_with_salt(b"correct horse", &[7; 16]).unwrap().to_string();
        let found = verify(Password("correct horse".to_owned()), Some(stored)).await.unwrap();
        assert_eq!(found, Verified { matches: true, outdated: true });
    }

    #[test]
    fn without_an_account_as_much_is_computed_as_with_one() {
        // One thread computes for this runtime alone, and so counts for this test alone.
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let stored = hash(new_password("correct horse").unwrap()).await.unwrap();
            let wrong = || Password("wrong horse".to_owned());
            let computed = async || background::blocking(|| COMPUTED.take()).await.unwrap();
            assert_eq!(computed().await.len(), 1);
            verify(wrong(), Some(stored)).await.unwrap();
            let with_account = computed().await;
            verify(wrong(), None).await.unwrap();
            assert_eq!(computed().await, with_account);
            assert_eq!(with_account, [(MEMORY_KIB, PASSES, LANES)]);
        });
    }

    #[tokio::test]
    async fn memory_that_was_used_changes_no_hash() {
        let password = Password("correct horse".to_owned());
        for (memory, passes, output) in [(64, 2, 32), (8, 1, 16), (512, 3, 64), (64, 2, 32)] {
            let params = Params::new(memory, passes, 1, Some(output)).unwrap();
            let other = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            let stored = other.hash_password_with_salt(b"correct horse", &[7; 16]).unwrap().to_string();
            assert!(verify(password.clone(), Some(stored.clone())).await.unwrap().matches, "{stored}");
        }
    }

    #[tokio::test]
    async fn a_stored_hash_that_is_none_is_an_error_and_no_match() {
        for stored in [
            "",
            "secret",
            "$argon2id$v=19$m=8,t=1,p=1",
            "$scrypt$ln=1,r=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
        ] {
            let found = verify(Password("x".repeat(8)), Some(stored.to_owned())).await;
            assert!(found.is_err(), "{stored}");
        }
        let without_hash = "$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA";
        assert!(!verify(Password("x".repeat(8)), Some(without_hash.to_owned())).await.unwrap().matches);
    }
}
