// SPDX-License-Identifier: Apache-2.0
//! How Postern's things are called in Cedar.
//!
//! An id carries its tenant: `acme/alice`. A tenant's name holds no slash, so the first one ends
//! it and two tenants' ids never meet, whatever follows.

use cedar_policy_core::ast::{Eid, EntityType, EntityUID};
use postern_common::id::{BackendName, TenantId};
use std::sync::LazyLock;

/// A namespace that is a word of the language gets an underscore in front.
const RESERVED: [&str; 10] = ["true", "false", "if", "then", "else", "in", "is", "like", "has", "__cedar"];

/// The Cedar namespace of a backend: its name with `-` as `_`, and `_` before a leading digit or
/// a word of the language.
#[must_use]
pub fn namespace(backend: &BackendName) -> String {
    let name = backend.as_str().replace('-', "_");
    let is_taken =
        name.starts_with(|first: char| first.is_ascii_digit()) || RESERVED.contains(&name.as_str());
    if is_taken { format!("_{name}") } else { name }
}

macro_rules! entity_types {
    ($($name:ident = $text:literal;)*) => {$(
        pub(crate) static $name: LazyLock<EntityType> = LazyLock::new(|| {
            // INVARIANT: a constant that every test reads.
            $text.parse().expect("a valid name")
        });
    )*};
}

entity_types! {
    TENANT = "Postern::Tenant";
    USER = "Postern::User";
    SANDBOX = "Postern::Sandbox";
    LABELS = "Postern::Labels";
    CLAIMS = "Postern::Claims";
    BACKEND = "Postern::Backend";
}

/// The entity of a tenant.
pub(crate) fn tenant(tenant: &TenantId) -> EntityUID {
    uid(&TENANT, tenant.as_str())
}

/// Something that belongs to a tenant.
pub(crate) fn owned(of_type: &EntityType, tenant: &TenantId, name: &str) -> EntityUID {
    uid(of_type, &format!("{tenant}/{name}"))
}

fn uid(of_type: &EntityType, id: &str) -> EntityUID {
    EntityUID::from_components(of_type.clone(), Eid::new(id), None)
}

/// `text` as a Cedar string literal.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> String {
        namespace(&BackendName::parse(name).expect("a name"))
    }

    #[test]
    fn a_backend_s_namespace_is_a_valid_name() {
        assert_eq!(of("support-desk"), "support_desk");
        assert_eq!(of("2nd"), "_2nd");
        for word in ["if", "in", "is", "like", "has", "true", "namespace", "action", "entity", "permit"] {
            let schema = format!("namespace {} {{ action a; }}", of(word));
            schema.parse::<cedar_policy::Schema>().unwrap_or_else(|error| panic!("{word}: {error}"));
        }
    }

    #[test]
    fn ids_of_two_tenants_never_meet() {
        let tenant = |name: &str| TenantId::parse(name).expect("a name");
        let first = owned(&USER, &tenant("a"), "b/c");
        let second = owned(&USER, &tenant("a-b"), "c");
        assert_ne!(first, second);
        assert_eq!(first.to_string(), "Postern::User::\"a/b/c\"");
    }

    #[test]
    fn any_text_survives_as_a_literal() {
        for text in ["plain", "a\"b\\c", "\n\t\u{0}", "日本\u{301}", "'"] {
            let literal: cedar_policy_core::ast::Expr = quoted(text).parse().expect("a literal");
            assert_eq!(literal, cedar_policy_core::ast::Expr::val(text), "{text:?}");
        }
    }
}
