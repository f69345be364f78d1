// SPDX-License-Identifier: Apache-2.0
//! Cedar policies that scale, explain themselves and can be tested.
//!
//! [`TenantSchema`] is what a tenant's policies may speak of, made from its backends' documents.
//! [`TenantPolicies`] is a checked set under the baseline. [`SessionEntities`] and
//! [`TypedRequest`] put a session and a routed request in Cedar's terms, and
//! [`TenantPolicies::decide`] answers with a [`Decision`] that names its policies.
//!
//! Nothing here does I/O or reads a clock, and no type of Cedar's leaves this crate.

mod authorize;
mod baseline;
mod cases;
mod compile;
mod control_plane;
mod decide;
#[cfg(test)]
mod differential;
mod entities;
mod explain;
mod file;
#[cfg(test)]
mod fixture;
mod format;
mod index;
mod mistake;
mod names;
mod party;
mod plan;
mod promote;
mod record;
mod replay;
mod request;
mod schema;
mod schema_from_openapi;
mod set;
mod shape;
#[cfg(test)]
mod shipped;
mod source;
mod unknown;

pub use authorize::{Case, CaseAnswer, CaseEntity, CaseError, CaseRequest, CaseResult, authorize};
pub use baseline::{NOT_GRANTED, baseline_report, not_granted};
pub use cases::{ClauseCoverage, PolicyCoverage, ReadyCase, TestReport, TestResult, ready_cases, run_tests};
pub use control_plane::{ControlPlane, KeyFacts, NotAllowed, Target};
pub use decide::{CedarAnswer, Decision, PolicyFault, Refused, ShadowAnswer};
pub use entities::{SessionEntities, SessionError};
pub use explain::{Clause, ClauseOutcome, Considered, Explanation};
pub use format::format;
pub use index::Load;
pub use mistake::Mistake;
pub use names::namespace;
pub use promote::{enforced, in_shadow};
pub use record::{RECORD_BYTES, RecordedRequest, RecordedSession, record};
pub use replay::{Answer, Change, Explained, Open, PolicyChanges, PolicyDiff, diff, explain_recorded};
pub use request::{PeerFacts, RequestFacts, TypedRequest};
pub use schema::{Action, BASE, BackendSchema, DeclaredOperation, SchemaError, TenantSchema};
pub use schema_from_openapi::schema_from_openapi;
pub use set::{
    CANDIDATES, EXPRESSIONS, LinkError, POLICIES, SET_BYTES, TemplateLink, TenantPolicies, UNSCOPED,
};
pub use shape::Unfit;
pub use source::PolicySource;
