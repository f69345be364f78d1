// SPDX-License-Identifier: Apache-2.0
//! The policies that every tenant has, whatever it puts.
//!
//! Forbids, which nothing can undo: nothing crosses a tenant, and a session calls what its token
//! names. And one permit for tenants that never put a set of their own.

use crate::cases::{TestReport, run_tests};
use crate::mistake::{Mistake, Place};
use crate::names::{namespace, quoted};
use crate::schema::TenantSchema;
use crate::schema_from_openapi::schema_from_openapi;
use crate::set::TenantPolicies;
use crate::source::PolicySource;
use postern_common::id::{BackendName, OperationId, TenantId};
use postern_openapi::Document;
use std::fmt::Write as _;

const TENANT: &str = include_str!("../baseline/tenant.cedar");
const PERMIT: &str = include_str!("../baseline/permit.cedar");

/// The API and the cases that the baseline is tested with.
const DESK: &str = include_str!("../tests/desk.yaml");
const CASES: [(&str, &str); 2] = [
    ("operations.toml", include_str!("../tests/operations.toml")),
    ("tenant.toml", include_str!("../tests/tenant.toml")),
];

/// The reason that callers read when their session's token does not name the operation.
pub const NOT_GRANTED: &str = "the session's token does not name this operation";

/// The id of the baseline's policy that forbids an operation to sessions that were not given it.
///
/// A caller that is refused before its request is judged is told of this same policy.
#[must_use]
pub fn not_granted(backend: &BackendName, operation: &OperationId) -> String {
    format!("postern-operations:{backend}/{operation}")
}

/// Runs the cases that are shipped with the baseline against the baseline alone.
///
/// # Errors
/// Only if what is shipped is broken.
pub fn baseline_report() -> Result<TestReport, Vec<Mistake>> {
    let broken = |reason: String| vec![Place { file: "baseline", text: "" }.mistake(0..0, reason, None)];
    let document = Document::parse(DESK).map_err(|mistakes| broken(format!("{mistakes:?}")))?;
    let backend = BackendName::parse("support-desk").map_err(|error| broken(error.to_string()))?;
    let tenant = TenantId::parse("acme").map_err(|error| broken(error.to_string()))?;
    let schema = TenantSchema::build(&tenant, &[schema_from_openapi(&backend, &document)])
        .map_err(|error| broken(error.to_string()))?;
    let cases = CASES
        .map(|(name, text)| PolicySource { name: format!("baseline/tests/{name}"), text: text.to_owned() });
    run_tests(&TenantPolicies::load(&schema, None)?, &cases)
}

/// The baseline of a tenant with this schema.
pub(crate) fn sources(schema: &TenantSchema, has_own_set: bool) -> Vec<PolicySource> {
    let mut sources =
        vec![source("tenant.cedar", TENANT.to_owned()), source("operations.cedar", operations(schema))];
    if !has_own_set {
        sources.push(source("permit.cedar", PERMIT.to_owned()));
    }
    sources
}

fn source(name: &str, text: String) -> PolicySource {
    PolicySource { name: format!("baseline/{name}"), text }
}

/// For each operation a forbid unless the token names it or one of its groups. Cedar cannot look
/// at an action's name, so there is one policy an operation; a request meets one of them.
fn operations(schema: &TenantSchema) -> String {
    let mut text = String::new();
    for (backend, operation) in schema.operations() {
        let names = std::iter::once(operation.id.as_str()).chain(operation.groups.iter().map(String::as_str));
        let mut granted = quoted("*");
        for name in names {
            // INVARIANT: writing to a string cannot fail; the same below.
            let _ = write!(granted, ", {}", quoted(&format!("{backend}/{name}")));
        }
        let _ = writeln!(
            text,
            "@id({}) @reason(\"{NOT_GRANTED}\")\nforbid (principal is Postern::Sandbox, action == {}::Action::{}, resource)\nunless {{ principal.operations.containsAny([{granted}]) }};\n",
            quoted(&not_granted(backend, &operation.id)),
            namespace(backend),
            quoted(operation.id.as_str()),
        );
    }
    text
}
