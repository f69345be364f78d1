// SPDX-License-Identifier: Apache-2.0
//! Which headers a filter may see, and which it may change.

use http::header::HeaderName;

/// Headers that carry a caller's secrets.
const SECRET: &[&str] = &["authorization", "cookie", "proxy-authorization", "set-cookie"];

/// Headers that are not a filter's to change: framing and the connection (RFC 9110 §7.6.1, RFC
/// 9112 §6), where a request goes, and who forwarded it.
const RESERVED: &[&str] = &[
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
];

/// Whether a filter may read this header. Names are in lower case.
pub(crate) fn is_visible(name: &HeaderName) -> bool {
    !SECRET.contains(&name.as_str())
}

/// Whether a filter may set or remove this header. Identity headers are among these: whatever a
/// filter writes there, the gateway writes over.
pub(crate) fn is_changeable(name: &HeaderName) -> bool {
    is_visible(name) && !RESERVED.contains(&name.as_str()) && !name.as_str().starts_with("x-forwarded-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HeaderName {
        HeaderName::from_bytes(text.as_bytes()).expect("a header name")
    }

    #[test]
    fn secrets_are_neither_seen_nor_changed_in_any_case() {
        for secret in ["Authorization", "COOKIE", "set-cookie", "Proxy-Authorization"] {
            assert!(!is_visible(&name(secret)), "{secret}");
            assert!(!is_changeable(&name(secret)), "{secret}");
        }
    }

    #[test]
    fn framing_connection_and_forwarding_are_seen_but_not_changed() {
        for reserved in ["Host", "Content-Length", "Transfer-Encoding", "X-Forwarded-For", "Connection"] {
            assert!(is_visible(&name(reserved)), "{reserved}");
            assert!(!is_changeable(&name(reserved)), "{reserved}");
        }
        assert!(is_changeable(&name("X-Plan")) && is_changeable(&name("Content-Type")));
    }
}
