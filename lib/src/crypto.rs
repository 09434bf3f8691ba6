//! Random values, digests and derived keys, all by `ring`; comparisons take constant time.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hkdf, hmac};
use subtle::ConstantTimeEq;

use crate::error::{Error, Result};

/// 256 random bits from the operating system.
///
/// # Errors
/// When the system has no randomness to give.
pub fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::internal("no randomness from the system"))?;
    Ok(bytes)
}

/// SHA-256.
#[must_use]
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, data).as_ref());
    out
}

/// HMAC-SHA-256 over the parts, each preceded by its length so that no two lists of parts look alike.
#[must_use]
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// A 256-bit key for one purpose, derived from a secret by HKDF-SHA-256 (RFC 5869).
#[must_use]
pub fn derive_key(secret: &str, purpose: &str) -> [u8; 32] {
    let mut out = [0; 32];
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"ai-chat-backend").extract(secret.as_bytes());
    // The output is exactly one block, which HKDF always has.
    if let Ok(okm) = prk.expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256) {
        let _ = okm.fill(&mut out);
    }
    out
}

/// Compares without telling by the time taken where the difference is.
#[must_use]
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Base64 of RFC 4648 section 5 without padding.
#[must_use]
pub fn base64url(data: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(data)
}

/// The inverse of [`base64url`].
#[must_use]
pub fn from_base64url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(hmac(b"k", &[b"ab", b"c"]), hmac(b"k", &[b"a", b"bc"]));
    }

    #[test]
    fn derived_keys_differ_by_purpose_and_are_stable() {
        assert_ne!(derive_key("s", "a"), derive_key("s", "b"));
        assert_eq!(derive_key("s", "a"), derive_key("s", "a"));
        assert_ne!(derive_key("s", "a"), [0; 32]);
    }

    #[test]
    fn hex_of_sha256_is_the_published_value() {
        assert_eq!(hex::encode(sha256(b"abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
