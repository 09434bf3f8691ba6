//! Access tokens: Ed25519 JWTs (RFC 8037) of fifteen minutes that name their session.

use std::sync::OnceLock;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error as JwtError, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use signature::{Signer, Verifier};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock;
use crate::crypto;
use crate::error::{Code, Error, Result};
use crate::recent::Recent;
use crate::secrets;

/// How long an access token is valid, in seconds.
const LIFETIME_SECONDS: i64 = 15 * 60;

const ISSUER: &str = "ai-chat-backend";
const AUDIENCE: &str = "ai-chat-api";

/// The claims of an access token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    iss: String,
    aud: String,
    /// The user's id.
    pub sub: Uuid,
    /// The session's id.
    pub sid: Uuid,
    /// When the token was signed, in seconds since 1970.
    pub iat: i64,
    exp: i64,
}

/// A signed token and when it ends.
#[derive(Debug)]
pub struct AccessToken {
    /// The token.
    pub token: String,
    /// The moment from which it is refused.
    pub expires_at: OffsetDateTime,
}

/// The seeds of the keys, as the secret holds them. They do not print.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seeds {
    pub(super) current: String,
    /// Signs after the next rotation; known before, so that a sandbox that lives through one knows it.
    #[serde(default)]
    pub(super) next: String,
    #[serde(default)]
    pub(super) previous: String,
}

/// A key of which only the seed is known until it is needed: the derivation would be a tenth of what an init
/// computes, and most requests come with a session token.
struct Key {
    seed: [u8; 32],
    derived: OnceLock<Derived>,
}

struct Derived {
    id: String,
    signer: EncodingKey,
    public: Vec<u8>,
    verifier: DecodingKey,
}

/// The keys that sign and verify: the current one, the one after it, and the one before it until its tokens have
/// expired.
pub struct Keys {
    keys: Vec<Key>,
    /// By their digests, tokens that were found good: to check a signature is a tenth of what a chat request computes,
    /// and a client sends one token for a quarter of an hour.
    verified: Recent<[u8; 32], Claims>,
}

impl Keys {
    /// Reads the secret named by `SIGNING_SECRET_ARN`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn init() -> Result<Self> {
        Self::of(&secrets::read("SIGNING_SECRET_ARN").await?)
    }

    /// The keys of these seeds.
    pub(super) fn of(seeds: &Seeds) -> Result<Self> {
        Self::derive(&[&seeds.current, &seeds.next, &seeds.previous])
    }

    /// The keys of these secrets, the current one first; empty ones are left out.
    ///
    /// # Errors
    /// When no secret is left.
    pub fn derive(secrets: &[&str]) -> Result<Self> {
        let keys: Vec<Key> = secrets.iter().filter(|secret| !secret.is_empty()).map(|secret| Key::of(secret)).collect();
        if keys.is_empty() {
            return Err(Error::internal("the signing secret is empty"));
        }
        // The provider is the same for all keys of the process, so a second installation changes nothing.
        let _ = provider().install_default();
        Ok(Self { keys, verified: Recent::default() })
    }

    /// Signs a token for a session.
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign(&self, user_id: Uuid, session_id: Uuid, now: OffsetDateTime) -> Result<AccessToken> {
        let key = self.keys.first().ok_or_else(|| Error::internal("no signing key"))?.derived()?;
        let expires_at = now + time::Duration::seconds(LIFETIME_SECONDS);
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: user_id,
            sid: session_id,
            iat: now.unix_timestamp(),
            exp: expires_at.unix_timestamp(),
        };
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::EdDSA) };
        let token = jsonwebtoken::encode(&header, &claims, &key.signer).map_err(Error::internal)?;
        let expires_at = expires_at.replace_nanosecond(0).unwrap_or(expires_at);
        Ok(AccessToken { token, expires_at })
    }

    /// Checks a token: the algorithm is EdDSA and nothing else, the key is one of ours, issuer and audience
    /// are ours, and it has not expired.
    ///
    /// # Errors
    /// 401 `session_expired` for a token past its end, 401 `unauthenticated` for any other fault.
    pub fn verify(&self, token: &str) -> Result<Claims> {
        let digest = crypto::sha256(token.as_bytes());
        let claims = match self.verified.get(&digest) {
            Some(claims) => claims,
            None => {
                let claims = self.check(token)?;
                self.verified.remember(digest, claims.clone());
                claims
            }
        };
        // jsonwebtoken lets the last second pass; RFC 7519 refuses "on or after" the end.
        if claims.exp <= clock::now().unix_timestamp() { Err(expired()) } else { Ok(claims) }
    }

    fn check(&self, token: &str) -> Result<Claims> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Error::unauthenticated())?;
        let key = self.find(header.kid.as_deref().unwrap_or_default())?.ok_or_else(Error::unauthenticated)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["iss", "aud", "sub", "exp"]);
        validation.leeway = 0;
        match jsonwebtoken::decode::<Claims>(token, &key.verifier, &validation) {
            Ok(data) => Ok(data.claims),
            Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => Err(expired()),
            Err(_) => Err(Error::unauthenticated()),
        }
    }

    fn find(&self, id: &str) -> Result<Option<&Derived>> {
        for key in &self.keys {
            let key = key.derived()?;
            if key.id == id {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// The public keys as a JSON Web Key Set (RFC 7517, RFC 8037).
    ///
    /// # Errors
    /// When a key cannot be derived.
    pub fn jwks(&self) -> Result<serde_json::Value> {
        let mut keys = Vec::new();
        for key in &self.keys {
            let key = key.derived()?;
            keys.push(serde_json::json!({
                "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
                "kid": key.id, "x": crypto::base64url(&key.public),
            }));
        }
        Ok(serde_json::json!({ "keys": keys }))
    }
}

fn expired() -> Error {
    Error::new(Code::SessionExpired, "The access token has expired; refresh it.")
}

impl Key {
    fn of(secret: &str) -> Self {
        Self { seed: crypto::derive_key(secret, "jwt-ed25519"), derived: OnceLock::new() }
    }

    fn derived(&self) -> Result<&Derived> {
        if let Some(derived) = self.derived.get() {
            return Ok(derived);
        }
        let pair = Ed25519KeyPair::from_seed_unchecked(&self.seed)
            .map_err(|_| Error::internal("the signing key is refused"))?;
        let public = pair.public_key().as_ref().to_vec();
        Ok(self.derived.get_or_init(|| Derived {
            id: crypto::base64url(&crypto::sha256(&public)[..12]),
            signer: EncodingKey::from_ed_der(&self.seed),
            verifier: DecodingKey::from_ed_der(&public),
            public,
        }))
    }
}

/// Ed25519 by `ring`, the one crypto library here, and no other algorithm.
fn provider() -> &'static CryptoProvider {
    static PROVIDER: OnceLock<CryptoProvider> = OnceLock::new();
    PROVIDER.get_or_init(|| CryptoProvider {
        signer_factory: |algorithm, key| match algorithm {
            Algorithm::EdDSA => {
                let pair = Ed25519KeyPair::from_seed_unchecked(key.as_bytes());
                Ok(Box::new(Ed25519Signer(pair.map_err(|_| JwtError::from(ErrorKind::InvalidEddsaKey))?)))
            }
            _ => Err(ErrorKind::InvalidAlgorithm.into()),
        },
        verifier_factory: |algorithm, key| match algorithm {
            Algorithm::EdDSA => Ok(Box::new(Ed25519Verifier(key.try_get_as_bytes()?.to_vec()))),
            _ => Err(ErrorKind::InvalidAlgorithm.into()),
        },
        key_utils: KeyUtils::new_unimplemented(),
    })
}

struct Ed25519Signer(Ed25519KeyPair);

impl Signer<Vec<u8>> for Ed25519Signer {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(self.0.sign(message).as_ref().to_vec())
    }
}

impl JwtSigner for Ed25519Signer {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

struct Ed25519Verifier(Vec<u8>);

impl Verifier<Vec<u8>> for Ed25519Verifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Ed25519Verifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn keys() -> Keys {
        Keys::derive(&["current", "previous"]).unwrap()
    }

    fn with_header(token: &str, header: &Value) -> String {
        let (_, rest) = token.split_once('.').unwrap();
        format!("{}.{rest}", crypto::base64url(header.to_string().as_bytes()))
    }

    #[test]
    fn signs_and_verifies() {
        let (user, session) = (Uuid::now_v7(), Uuid::now_v7());
        let token = keys().sign(user, session, clock::now()).unwrap();
        let claims = keys().verify(&token.token).unwrap();
        assert_eq!((claims.sub, claims.sid), (user, session));
    }

    #[test]
    fn accepts_the_previous_key_and_no_foreign_one() {
        let sign =
            |secret: &str| Keys::derive(&[secret]).unwrap().sign(Uuid::nil(), Uuid::nil(), clock::now()).unwrap();
        assert!(keys().verify(&sign("previous").token).is_ok());
        assert_eq!(keys().verify(&sign("foreign").token).unwrap_err().code(), Code::Unauthenticated);
    }

    #[test]
    fn refuses_other_algorithms_and_changed_tokens() {
        let keys = keys();
        let token = keys.sign(Uuid::nil(), Uuid::nil(), clock::now()).unwrap().token;
        let key = keys.keys[0].derived().unwrap();
        let kid = &key.id;
        for alg in ["none", "HS256", "RS256", "ES256"] {
            let forged = with_header(&token, &json!({"alg": alg, "typ": "JWT", "kid": kid}));
            assert_eq!(keys.verify(&forged).unwrap_err().code(), Code::Unauthenticated, "{alg}");
        }
        let unsigned = token.rsplit_once('.').unwrap().0.to_owned() + ".";
        for bad in [unsigned.as_str(), "", "a.b.c", &token[..token.len() - 2], &token.replacen('.', "..", 1)] {
            assert_eq!(keys.verify(bad).unwrap_err().code(), Code::Unauthenticated, "{bad}");
        }
        // HMAC keyed with the public key, the classic confusion.
        let header = crypto::base64url(json!({"alg": "HS256", "kid": kid}).to_string().as_bytes());
        let payload = token.split('.').nth(1).unwrap();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key.public);
        let tag = ring::hmac::sign(&key, format!("{header}.{payload}").as_bytes());
        let confused = format!("{header}.{payload}.{}", crypto::base64url(tag.as_ref()));
        assert_eq!(keys.verify(&confused).unwrap_err().code(), Code::Unauthenticated);
    }

    #[test]
    fn an_expired_token_says_so() {
        for beyond in [0, 1] {
            let long_ago = clock::now() - time::Duration::seconds(LIFETIME_SECONDS + beyond);
            let token = keys().sign(Uuid::nil(), Uuid::nil(), long_ago).unwrap().token;
            assert_eq!(keys().verify(&token).unwrap_err().code(), Code::SessionExpired);
        }
    }

    #[test]
    fn a_token_that_was_found_good_expires_and_vouches_for_no_other() {
        let keys = keys();
        let sign =
            |ago| keys.sign(Uuid::nil(), Uuid::nil(), clock::now() - time::Duration::seconds(ago)).unwrap().token;
        let token = sign(0);
        for _ in 0..2 {
            assert_eq!(keys.verify(&token).unwrap().sub, Uuid::nil());
            assert_eq!(keys.verify(&token[..token.len() - 1]).unwrap_err().code(), Code::Unauthenticated);
        }
        let mut expired = keys.verify(&token).unwrap();
        expired.exp -= LIFETIME_SECONDS + 1;
        let old = sign(LIFETIME_SECONDS + 1);
        keys.verified.remember(crypto::sha256(old.as_bytes()), expired);
        assert_eq!(keys.verify(&old).unwrap_err().code(), Code::SessionExpired);
        assert!(keys.verified.contains(&crypto::sha256(token.as_bytes())));
    }

    #[test]
    fn a_token_for_another_audience_is_refused() {
        let keys = keys();
        let key = keys.keys[0].derived().unwrap();
        let now = clock::now().unix_timestamp();
        let claims =
            json!({"iss": ISSUER, "aud": "other", "sub": Uuid::nil(), "sid": Uuid::nil(), "iat": now, "exp": now + 60});
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::EdDSA) };
        let token = jsonwebtoken::encode(&header, &claims, &key.signer).unwrap();
        assert_eq!(keys.verify(&token).unwrap_err().code(), Code::Unauthenticated);
    }
}
