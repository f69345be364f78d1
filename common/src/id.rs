// SPDX-License-Identifier: Apache-2.0
//! Ids and names, each a type of its own so that no two can be swapped.
//!
//! An id that exists is well-formed: the only ways to one are `parse` (or deserializing, which
//! parses) and the generators. What the forms are is fixed in one table at the end of this file.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::fmt;

/// Text that is not the id that it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a {kind}: expected {form}")]
pub struct InvalidId {
    kind: &'static str,
    form: &'static str,
    given: String,
}

impl InvalidId {
    fn new(kind: &'static str, form: &'static str, given: &str) -> Self {
        const SHOWN: usize = 64;
        let given = given.chars().take(SHOWN).flat_map(char::escape_default).collect();
        Self { kind, form, given }
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $kind:literal, $form:literal, $check:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Takes text that already has the right form.
            ///
            /// # Errors
            /// [`InvalidId`] names the form that was expected.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                let is_valid: fn(&str) -> bool = $check;
                if is_valid(text) { Ok(Self(text.into())) } else { Err(InvalidId::new($kind, $form, text)) }
            }

            /// The id as text, in the one form that it has.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({:?})", stringify!($name), &*self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }

        #[cfg(feature = "server")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "description": $form })
            }
        }
    )*};
}

fn is_name(text: &str) -> bool {
    let lower_or_digit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(|&first| lower_or_digit(first))
        && bytes.iter().all(|&byte| lower_or_digit(byte) || byte == b'-')
}

fn is_application_id(text: &str) -> bool {
    (1..=128).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// An operationId is used as a path segment of a grant and as a Cedar action name.
fn is_operation(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':'))
        && !matches!(text, "." | "..")
}

/// RFC 4648 §6 in lower case: what is left when 0, 1, 8 and 9 are dropped for legibility.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const SANDBOX_PREFIX: &str = "sandbox-";
const SANDBOX_RANDOM_LENGTH: usize = 12;

fn is_sandbox(text: &str) -> bool {
    text.strip_prefix(SANDBOX_PREFIX).is_some_and(|rest| {
        rest.len() == SANDBOX_RANDOM_LENGTH && rest.bytes().all(|byte| BASE32.contains(&byte))
    })
}

fn has_prefix_and_hex(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| {
        rest.len() == 32 && rest.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

ids! {
    /// A sandbox; also a DNS label.
    SandboxId, "sandbox id", "`sandbox-` and 12 of a-z and 2-7", is_sandbox;
    /// A tenant: one team or customer, who owns everything else.
    TenantId, "tenant name", "1-63 of a-z, 0-9 and `-`, beginning with a letter or digit", is_name;
    /// A backend that sandboxes may be allowed to call.
    BackendName, "backend name", "1-63 of a-z, 0-9 and `-`, beginning with a letter or digit", is_name;
    /// A filter.
    FilterName, "filter name", "1-63 of a-z, 0-9 and `-`, beginning with a letter or digit", is_name;
    /// A file of Cedar policies, without its ending.
    PolicyName, "policy file name", "1-63 of a-z, 0-9 and `-`, beginning with a letter or digit", is_name;
    /// A sandbox template.
    TemplateName, "template name", "1-63 of a-z, 0-9 and `-`, beginning with a letter or digit", is_name;
    /// A secret of a tenant; the name, never the value.
    SecretName, "secret name", "1-63 of a-z, 0-9 and `-`, beginning with a letter or digit", is_name;
    /// A gateway that follows the orchestrator with a credential of its own.
    GatewayName, "gateway name", "1-63 of a-z, 0-9 and `-`, beginning with a letter or digit", is_name;
    /// An operation of a backend, as its OpenAPI document spells it.
    OperationId, "operation id", "1-128 of letters, digits, `_`, `-`, `.` and `:`", is_operation;
    /// The application's own id of its user. Compared byte for byte.
    UserId, "user_id", "1-128 bytes of UTF-8 without control characters", is_application_id;
    /// The application's own id of a conversation. Compared byte for byte.
    ConversationId, "conversation_id", "1-128 bytes of UTF-8 without control characters", is_application_id;
    /// The public part of an API key.
    ApiKeyId, "API key id", "16 of a-z and 2-7", |text| text.len() == 16 && text.bytes().all(|byte| BASE32.contains(&byte));
    /// One decision of the gateway or the control plane; sorts by time.
    DecisionId, "decision id", "`dec_` and 32 hex digits", |text| has_prefix_and_hex(text, "dec_");
    /// One event; sorts by time.
    EventId, "event id", "`evt_` and 32 hex digits", |text| has_prefix_and_hex(text, "evt_");
    /// One snapshot of a sandbox; sorts by time.
    SnapshotId, "snapshot id", "`snap_` and 32 hex digits", |text| has_prefix_and_hex(text, "snap_");
    /// One upload of a user's file; sorts by time.
    UploadId, "upload id", "`upl_` and 32 hex digits", |text| has_prefix_and_hex(text, "upl_");
    /// One request to the API or through the gateway; sorts by time.
    RequestId, "request id", "`req_` and 32 hex digits", |text| has_prefix_and_hex(text, "req_");
}

macro_rules! sortable {
    ($($name:ident $prefix:literal),*) => {$(
        impl $name {
            /// A fresh one. Later ones sort after earlier ones (UUID version 7, RFC 9562 §5.7).
            #[must_use]
            pub fn generate() -> Self {
                Self(format!(concat!($prefix, "{}"), uuid::Uuid::now_v7().simple()).into())
            }
        }
    )*};
}
sortable!(DecisionId "dec_", EventId "evt_", SnapshotId "snap_", UploadId "upl_", RequestId "req_");

/// Base-32 text of random bytes: five bits of each byte are used.
fn base32_of(random: impl IntoIterator<Item = u8>) -> String {
    random
        .into_iter()
        .filter_map(|byte| BASE32.get(usize::from(byte & 31)).copied().map(char::from))
        .collect()
}

impl SandboxId {
    /// The id for 12 random bytes (60 bits are used), which must come from a secure generator.
    #[must_use]
    pub fn from_random(random: [u8; SANDBOX_RANDOM_LENGTH]) -> Self {
        Self(format!("{SANDBOX_PREFIX}{}", base32_of(random)).into())
    }
}

impl ApiKeyId {
    /// The id for 16 random bytes (80 bits are used).
    #[must_use]
    pub fn from_random(random: [u8; 16]) -> Self {
        Self(base32_of(random).into())
    }
}

/// All that is percent-encoded where an application's id becomes a path, object name or header.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// `text` for use as an object name, a path segment or a header value (contracts: Ids).
///
/// Injective; the result is ASCII, never empty, `.`, `..`, and never holds `/`.
#[must_use]
pub fn percent_encoded(text: &str) -> String {
    match text {
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        _ => utf8_percent_encode(text, ESCAPED).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_keep_to_their_form() {
        for good in ["a", "support-desk", "0day", "a-", &"x".repeat(63)] {
            assert!(BackendName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a_b", "a/b", "ä", "a b", &"x".repeat(64)] {
            assert!(BackendName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn application_ids_take_any_text_but_control_characters() {
        for good in ["alice", "..", "a/b", "Ünïcode", "'; DROP", &"x".repeat(128)] {
            assert!(UserId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a\nb", "a\0", "\u{7f}", "\u{85}", &"x".repeat(129)] {
            assert!(UserId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_sandbox_id_is_a_dns_label_of_sixty_random_bits() {
        let id = SandboxId::from_random([0, 31, 32, 255, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(id.as_str(), "sandbox-a7a7bcdefghi");
        assert!(SandboxId::parse(id.as_str()).is_ok());
        for bad in [
            "sandbox-",
            "sandbox-a7a7bcdefgh",
            "sandbox-a7a7bcdefgh1",
            "sandbox-A7A7BCDEFGHI",
            "box-a7a7bcdefghi",
        ] {
            assert!(SandboxId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn generated_ids_sort_by_time_and_parse() {
        let ids: Vec<_> = (0..1000).map(|_| DecisionId::generate()).collect();
        assert!(ids.is_sorted());
        assert!(ids.iter().all(|id| DecisionId::parse(id.as_str()).is_ok()));
        assert!(EventId::parse(ids[0].as_str()).is_err(), "a decision is no event");
    }

    #[test]
    fn errors_name_the_form_and_escape_what_was_given() {
        let error = TenantId::parse("Evil\u{1b}[2J").expect_err("refused");
        assert_eq!(
            error.to_string(),
            "`Evil\\u{1b}[2J` is not a tenant name: expected 1-63 of a-z, 0-9 and `-`, beginning with a letter or digit"
        );
    }

    #[test]
    fn deserializing_parses() {
        assert!(serde_json::from_str::<TenantId>("\"acme\"").is_ok());
        assert!(serde_json::from_str::<TenantId>("\"../acme\"").is_err());
    }

    proptest! {
        #[test]
        fn percent_encoding_is_injective_and_safe_in_paths(a in "\\PC{1,40}", b in "\\PC{1,40}") {
            let (left, right) = (percent_encoded(&a), percent_encoded(&b));
            prop_assert_eq!(a == b, left == right);
            prop_assert!(left.is_ascii() && !left.contains(['/', '\\', '\0']));
            prop_assert!(left != "." && left != ".." && !left.is_empty());
        }
    }
}
