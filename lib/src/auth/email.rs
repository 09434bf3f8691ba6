//! E-mail addresses: trimmed, lower-cased, ASCII local part, IDNA domain, at most 254 characters (RFC 5321).

use std::fmt;

use crate::http::validate::{Field, Invalid, Raw};

/// An address in its canonical form: two spellings of one address are equal.
#[derive(Clone, PartialEq, Eq)]
pub struct Email(String);

impl Email {
    /// Reads an address.
    ///
    /// # Errors
    /// When it is too long or not an address.
    pub fn parse_text(text: &str) -> Result<Self, Invalid> {
        let malformed = || Invalid::new("malformed", "Must be an e-mail address.");
        let text = text.trim();
        // Longer than any address can become by IDNA; spares the work on megabytes.
        if text.len() > 1024 {
            return Err(Invalid::new("too_long", "Must have at most 254 characters."));
        }
        let (local, domain) = text.rsplit_once('@').ok_or_else(malformed)?;
        let atoms_are_good = local.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(is_atom_byte));
        if !atoms_are_good || local.len() > 64 {
            return Err(malformed());
        }
        let domain = idna::domain_to_ascii_strict(domain).map_err(|_| malformed())?;
        let labels_are_good = domain.split('.').all(|label| (1..=63).contains(&label.len()));
        let top = domain.rsplit('.').next().unwrap_or_default();
        if !domain.contains('.') || !labels_are_good || top.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        let address = format!("{}@{domain}", local.to_ascii_lowercase());
        if address.len() > 254 {
            return Err(Invalid::new("too_long", "Must have at most 254 characters."));
        }
        Ok(Self(address))
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the `@`.
    #[must_use]
    pub fn local_part(&self) -> &str {
        self.0.rsplit_once('@').map_or(self.0.as_str(), |(local, _)| local)
    }
}

/// `atext` of RFC 5322 section 3.2.3.
fn is_atom_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
}

impl Field for Email {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        Self::parse_text(raw.text()?)
    }
}

/// Addresses are personal data: they do not print.
impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[e-mail]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<String> {
        Email::parse_text(text).ok().map(|email| email.0)
    }

    #[test]
    fn two_spellings_are_one_address() {
        assert_eq!(parse("  Ada.Lovelace+x@Example.COM ").as_deref(), Some("ada.lovelace+x@example.com"));
        assert_eq!(parse("a@bücher.example").as_deref(), Some("a@xn--bcher-kva.example"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "a",
            "@",
            "a@",
            "@b.co",
            "a@b",
            "a b@c.de",
            "a@@b.de",
            "a..b@c.de",
            ".a@b.de",
            "a.@b.de",
            "ä@b.de",
            "a@b..de",
            "a@-b.de",
            "a@b.1",
            "a@[127.0.0.1]",
            "a\r\nBcc: x@y.de@z.de",
            "\"a b\"@c.de",
            "a@b.de\0",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(parse(&format!("{}@b.de", "a".repeat(65))), None);
        assert_eq!(parse(&format!("a@{}.de", "b".repeat(64))), None);
    }

    #[test]
    fn does_not_print() {
        assert_eq!(format!("{:?}", Email::parse_text("a@b.de").unwrap()), "[e-mail]");
    }
}
