// SPDX-License-Identifier: Apache-2.0
//! What is signed when the orchestrator speaks to a pod, and how it is written into a header.
//!
//! A request over the cluster's network is believed only if its signature covers all of it: which
//! pod and which sandbox it is for, when it was made, a number that is used once, method, target,
//! every header, and a digest of the body. The keys and the digest are the two sides' own affair:
//! this module is text in and text out, so that both write the same.
//!
//! ```text
//! postern-signature: v1 <pod uid> <sandbox id> <unix seconds> <nonce> <body's sha-256, or -> <signature>
//! ```

use std::time::Duration;

/// The header that holds the signature.
pub const HEADER: &str = "postern-signature";
/// How far a message's time may be from the reader's clock, either way.
pub const FRESH: Duration = Duration::from_secs(30);
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 16;
/// Headers that a transport writes by itself.
const TRANSPORTS_OWN: [&str; 2] = ["content-length", HEADER];
const VERSION: &str = "v1";
/// Each part of the header is short.
const PART_BYTES: usize = 128;

/// What a signature says about its message, besides the message itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The pod that it is for.
    pub pod: String,
    /// The sandbox that the pod is, or is to be.
    pub sandbox: String,
    /// When it was made, in seconds.
    pub at: u64,
    /// A number that is used once, in hex.
    pub nonce: String,
    /// SHA-256 of the body in hex; `None` for a body that is streamed.
    pub body: Option<String>,
}

impl Envelope {
    /// The bytes that are signed.
    #[must_use]
    pub fn signed<'a>(
        &self,
        method: &str,
        target: &str,
        headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Vec<u8> {
        let body = self.body.as_deref().unwrap_or("-");
        let head = format!(
            "postern control {VERSION}\n{}\n{}\n{}\n{}\n{body}\n{method}\n{target}\n",
            self.pod, self.sandbox, self.at, self.nonce
        );
        let is_signed = |(name, _): &(&str, &[u8])| !TRANSPORTS_OWN.contains(name);
        let mut headers: Vec<_> = headers.into_iter().filter(is_signed).collect();
        headers.sort_unstable();
        let mut bytes = head.into_bytes();
        for (name, value) in headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.push(b'\n');
        }
        bytes
    }

    /// The header's value.
    #[must_use]
    pub fn header(&self, signature: &[u8]) -> String {
        let body = self.body.as_deref().unwrap_or("-");
        let Self { pod, sandbox, at, nonce, .. } = self;
        format!("{VERSION} {pod} {sandbox} {at} {nonce} {body} {}", hex(signature))
    }

    /// Reads a header; the second is the signature. `None` for what is not one.
    #[must_use]
    pub fn parse(header: &str) -> Option<(Self, Vec<u8>)> {
        let mut parts = header.split(' ');
        let mut next = || parts.next().filter(|part| is_plain(part));
        if next()? != VERSION {
            return None;
        }
        let (pod, sandbox) = (next()?.to_owned(), next()?.to_owned());
        let at = next()?.parse().ok()?;
        let nonce = next().filter(|nonce| nonce.len() == 2 * NONCE_BYTES)?.to_owned();
        let body = Some(next()?.to_owned()).filter(|body| body != "-");
        let signature = parts.next().filter(|text| text.len() <= 2 * PART_BYTES).and_then(unhex)?;
        parts.next().is_none().then_some((Self { pod, sandbox, at, nonce, body }, signature))
    }

    /// Whether it was made about `now`.
    #[must_use]
    pub const fn is_fresh(&self, now: u64) -> bool {
        self.at.abs_diff(now) <= FRESH.as_secs()
    }
}

/// Letters, digits and `-`: nothing that could be taken for the text's own structure.
fn is_plain(part: &str) -> bool {
    (1..=PART_BYTES).contains(&part.len())
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Bytes in lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}").is_ok();
        text
    })
}

/// The bytes of a text in hex.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn envelope() -> Envelope {
        Envelope {
            pod: "0f8b3c1e-1111-4222-8333-444455556666".into(),
            sandbox: "sandbox-abcdefghijkl".into(),
            at: 1_800_000_000,
            nonce: "00112233445566778899aabbccddeeff".into(),
            body: Some("ab".repeat(32)),
        }
    }

    const NONE: [(&str, &[u8]); 0] = [];

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        for body in [Some("ab".repeat(32)), None] {
            let written = Envelope { body, ..envelope() };
            assert_eq!(Envelope::parse(&written.header(&[1, 0xff])), Some((written, vec![1, 0xff])));
        }
    }

    #[test]
    fn malformed_headers_are_none() {
        let good = envelope().header(&[7; 64]);
        assert!(Envelope::parse(&good).is_some());
        let wrong = [
            String::new(),
            good.replace("v1", "v2"),
            format!("{good} more"),
            good.replace("1800000000", "soon"),
            good.replace("00112233445566778899aabbccddeeff", "0011"),
            good.replace("sandbox-abcdefghijkl", "sandbox\nabcdefghijkl"),
            format!("{good}0"),
        ];
        for wrong in wrong {
            assert_eq!(Envelope::parse(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn whatever_a_message_says_changes_what_is_signed() {
        let signed = |envelope: Envelope| envelope.signed("POST", "/a", [("x-a", &b"1"[..])]);
        let base = signed(envelope());
        let others = [
            signed(Envelope { pod: "other".into(), ..envelope() }),
            signed(Envelope { sandbox: "other".into(), ..envelope() }),
            signed(Envelope { at: 1, ..envelope() }),
            signed(Envelope { nonce: "ff".repeat(16), ..envelope() }),
            signed(Envelope { body: None, ..envelope() }),
            envelope().signed("PUT", "/a", [("x-a", &b"1"[..])]),
            envelope().signed("POST", "/b", [("x-a", &b"1"[..])]),
            envelope().signed("POST", "/a", [("x-a", &b"2"[..])]),
            envelope().signed("POST", "/a", [("x-b", &b"1"[..])]),
            envelope().signed("POST", "/a", NONE),
        ];
        for other in others {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_order_of_headers_and_what_a_transport_adds_do_not_matter() {
        let one = envelope().signed("POST", "/a", [("b", &b"2"[..]), ("a", &b"1"[..])]);
        let added = [("a", &b"1"[..]), ("content-length", &b"9"[..]), ("b", &b"2"[..]), (HEADER, &b"v1"[..])];
        assert_eq!(one, envelope().signed("POST", "/a", added));
    }

    #[test]
    fn a_message_is_fresh_for_half_a_minute_either_way() {
        let it = Envelope { at: 1000, ..envelope() };
        assert!(it.is_fresh(1030) && it.is_fresh(970));
        assert!(!it.is_fresh(1031) && !it.is_fresh(969));
    }

    proptest! {
        #[test]
        fn hex_reads_back(bytes: Vec<u8>) {
            prop_assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        }

        #[test]
        fn nothing_makes_the_reader_of_headers_stumble(text in "\\PC*") {
            if let Some((envelope, signature)) = Envelope::parse(&text) {
                prop_assert_eq!(Envelope::parse(&envelope.header(&signature)), Some((envelope, signature)));
            }
        }
    }
}
