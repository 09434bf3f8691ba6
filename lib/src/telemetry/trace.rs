//! W3C Trace Context (https://www.w3.org/TR/trace-context/): continued when a request brings one, begun otherwise.

use std::fmt;

use crate::crypto;
use crate::telemetry::spans;

/// The ids of the current span and its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: [u8; 16],
    parent_id: Option<[u8; 8]>,
    span_id: [u8; 8],
    sampled: bool,
}

impl TraceContext {
    /// A child span of the `traceparent` header's span, or the root of a new trace.
    #[must_use]
    pub fn continue_or_begin(traceparent: Option<&str>) -> Self {
        let fresh = crypto::random().unwrap_or([1; 32]);
        let span_id = span_id_of(&fresh);
        match traceparent.and_then(Self::parse) {
            Some(parent) => Self { parent_id: Some(parent.span_id), span_id, ..parent },
            None => {
                let mut trace_id = [0; 16];
                trace_id.copy_from_slice(&fresh[16..]);
                Self { trace_id, parent_id: None, span_id, sampled: spans::samples(&trace_id) }
            }
        }
    }

    /// The root of a new trace.
    #[must_use]
    pub fn begin() -> Self {
        Self::continue_or_begin(None)
    }

    /// A span within this one.
    #[must_use]
    pub fn child(&self) -> Self {
        let span_id = span_id_of(&crypto::random().unwrap_or([1; 32]));
        Self { parent_id: Some(self.span_id), span_id, ..*self }
    }

    /// The span that a `traceparent` header names; `None` when it is malformed.
    #[must_use]
    pub fn parse(traceparent: &str) -> Option<Self> {
        let (trace_id, span_id, sampled) = parse(traceparent)?;
        Some(Self { trace_id, parent_id: None, span_id, sampled })
    }

    /// Whether the trace is to be recorded.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The id of the span around this one in hexadecimal; `None` for the root of a trace.
    #[must_use]
    pub fn parent_id(&self) -> Option<String> {
        self.parent_id.map(hex::encode)
    }

    /// The trace's id in hexadecimal.
    #[must_use]
    pub fn trace_id(&self) -> String {
        hex::encode(self.trace_id)
    }

    /// The span's id in hexadecimal.
    #[must_use]
    pub fn span_id(&self) -> String {
        hex::encode(self.span_id)
    }
}

/// The value of a `traceparent` header that makes the receiver's span a child of this one.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{}", self.trace_id(), self.span_id(), if self.sampled { "01" } else { "00" })
    }
}

fn span_id_of(random: &[u8; 32]) -> [u8; 8] {
    let mut span_id = [0; 8];
    span_id.copy_from_slice(&random[..8]);
    span_id
}

fn parse(header: &str) -> Option<([u8; 16], [u8; 8], bool)> {
    let mut parts = header.trim().split('-');
    let (version, trace_id, parent_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // Later versions may append fields; version 00 may not, and ff is never valid.
    if version == "ff" || hex_bytes::<1>(version).is_none() || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let trace_id = hex_bytes::<16>(trace_id)?;
    let parent_id = hex_bytes::<8>(parent_id)?;
    let flags = hex_bytes::<1>(flags)?;
    (trace_id != [0; 16] && parent_id != [0; 8]).then_some((trace_id, parent_id, flags[0] & 1 == 1))
}

fn hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 || digits.iter().any(|d| !matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn continues_a_trace_with_a_span_of_its_own() {
        let context = TraceContext::continue_or_begin(Some(HEADER));
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(context.span_id(), "00f067aa0ba902b7");
        assert_eq!(context.to_string().len(), HEADER.len());
    }

    #[test]
    fn begins_anew_when_the_header_is_malformed() {
        for header in [
            "",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-é-é-01",
        ] {
            let context = TraceContext::continue_or_begin(Some(header));
            assert_ne!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736", "{header}");
        }
    }
}
