//! `Stripe-Signature`: who sent a webhook, decided as Stripe's own libraries decide.

use ring::hmac;
use time::OffsetDateTime;

use crate::crypto;
use crate::error::{Code, Error, Result};

/// Seconds that a signature is good for; older ones are replays, later ones are forged or of a wrong clock.
const TOLERANCE: i64 = 300;

/// Checks the header against the bytes of the body. An empty secret, which anybody could guess,
/// verifies nothing.
///
/// # Errors
/// 400 `invalid_signature`.
pub fn verify(header: Option<&str>, body: &[u8], secret: &str, now: OffsetDateTime) -> Result<()> {
    let refuse = || Error::new(Code::InvalidSignature, "The webhook was not signed by Stripe for this endpoint.");
    if secret.is_empty() {
        return Err(refuse());
    }
    let header = header.ok_or_else(refuse)?;
    let mut timestamp = None;
    let mut signatures = Vec::new();
    for (name, value) in header.split(',').filter_map(|item| item.trim().split_once('=')) {
        match name {
            "t" => timestamp = Some(value),
            "v1" => signatures.push(value),
            _ => {}
        }
    }
    let timestamp = timestamp.ok_or_else(refuse)?;
    let at: i64 = timestamp.parse().map_err(|_| refuse())?;
    let age = now.unix_timestamp().checked_sub(at).ok_or_else(refuse)?;
    if !(-TOLERANCE..=TOLERANCE).contains(&age) {
        return Err(refuse());
    }
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()));
    context.update(timestamp.as_bytes());
    context.update(b".");
    context.update(body);
    let expected = hex::encode(context.sign().as_ref());
    // All are compared, so that the time tells nothing of which one was right.
    let mut good = false;
    for signature in signatures {
        good |= crypto::equal(signature.as_bytes(), expected.as_bytes());
    }
    if good { Ok(()) } else { Err(refuse()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const SECRET: &str = "whsec_test";
    const NOW: i64 = 1_768_469_400;

    fn sign(secret: &str, at: i64, body: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        hex::encode(hmac::sign(&key, format!("{at}.{body}").as_bytes()).as_ref())
    }

    fn accepts(header: &str, body: &str) -> bool {
        verify(Some(header), body.as_bytes(), SECRET, clock::from_millis(NOW * 1000)).is_ok()
    }

    #[test]
    fn without_a_secret_nothing_is_accepted() {
        let header = format!("t={NOW},v1={}", sign("", NOW, "{}"));
        assert!(verify(Some(&header), b"{}", "", clock::from_millis(NOW * 1000)).is_err());
    }

    #[test]
    fn accepts_and_refuses_as_stripe_does() {
        let good = sign(SECRET, NOW, "{}");
        let wrong = sign("whsec_other", NOW, "{}");
        for header in [
            format!("t={NOW},v1={good}"),
            format!("t={NOW}, v1={good}"),
            format!("t={NOW},v1={wrong},v1={good}"),
            format!("v1={good},t={NOW},v0={wrong}"),
            format!("t={},v1={}", NOW - 300, sign(SECRET, NOW - 300, "{}")),
            format!("t={},v1={}", NOW + 300, sign(SECRET, NOW + 300, "{}")),
        ] {
            assert!(accepts(&header, "{}"), "{header}");
            assert!(!accepts(&header, "{ }"), "changed body: {header}");
        }
        for header in [
            String::new(),
            "t=,v1=".to_owned(),
            format!("t={NOW}"),
            format!("v1={good}"),
            format!("t={NOW},v0={good}"),
            format!("t={NOW},v1={wrong}"),
            format!("t={NOW},v1={}", good.to_uppercase()),
            format!("t={NOW},v1={}", &good[..63]),
            format!("t=x,v1={good}"),
            format!("t={},v1={good}", i64::MIN),
            format!("t={},v1={}", NOW - 301, sign(SECRET, NOW - 301, "{}")),
            format!("t={},v1={}", NOW + 301, sign(SECRET, NOW + 301, "{}")),
        ] {
            assert!(!accepts(&header, "{}"), "{header}");
        }
        assert!(verify(None, b"{}", SECRET, clock::from_millis(NOW * 1000)).is_err());
    }
}
