// SPDX-License-Identifier: Apache-2.0
//! Decides requests again that were decided before: what would change under a candidate set?
//!
//! Both sides are decided anew, each against its own schema, so that a difference is the sets'
//! and not that of a filter, a limit or an older version. Where requests come from and how long
//! they are kept is others' business.

use crate::compile::OWN_PREFIX;
use crate::decide::Decision;
use crate::entities::SessionEntities;
use crate::request::{PeerFacts, RequestFacts, TypedRequest};
use crate::set::TenantPolicies;
use jiff::Timestamp;
use postern_common::decision::{Mode, Verdict};
use postern_common::id::{
    BackendName, ConversationId, DecisionId, OperationId, SandboxId, TemplateName, UserId,
};
use postern_common::problem::Code;
use postern_common::session::{Grant, Isolation, Peer, Session};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A request with all that policies saw of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedRequest {
    /// The decision that was made of it.
    pub decision: DecisionId,
    /// Who asked.
    pub session: RecordedSession,
    /// The backend that was asked.
    pub backend: BackendName,
    /// For what.
    pub operation: OperationId,
    /// Path parameters.
    #[serde(default)]
    pub path: Map<String, Value>,
    /// Query parameters.
    #[serde(default)]
    pub query: Map<String, Value>,
    /// Declared headers.
    #[serde(default)]
    pub header: Map<String, Value>,
    /// The body, if it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// Where it came from.
    pub peer: PeerFacts,
    /// When.
    pub now: Timestamp,
}

/// What policies know of a session; nothing that would let anybody in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedSession {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// Its user.
    pub user_id: UserId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// What its token names.
    pub operations: Vec<Grant>,
    /// Its template.
    pub template: TemplateName,
    /// Its isolation.
    pub isolation: Isolation,
    /// The application's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What else the application says of the user.
    #[serde(default)]
    pub claims: Map<String, Value>,
}

/// What a candidate set would change.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PolicyDiff {
    /// Requests that were decided twice.
    pub decided: usize,
    /// Those that would be answered differently, in the order in which they were given.
    pub changes: Vec<Change>,
    /// For each policy that applied on one side only, what came of it.
    pub policies: BTreeMap<String, PolicyChanges>,
}

/// A request that would be answered differently.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// The decision that was recorded.
    pub decision: DecisionId,
    /// The backend and operation, as tokens name it.
    pub operation: String,
    /// The answer of the set in force.
    pub current: Answer,
    /// The answer of the candidate.
    pub candidate: Answer,
}

/// How one side answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Allow or deny.
    pub verdict: Verdict,
    /// Why it is denied; `route-unknown` where this side has no such operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// The policies that determine it.
    pub policies: Vec<String>,
}

/// Changed answers in which one policy had a part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PolicyChanges {
    /// Requests that would newly be allowed.
    pub allowed: usize,
    /// Requests that would newly be denied.
    pub denied: usize,
}

/// Decides each request under both sets and says where the answers differ.
///
/// Cost: about a session and two decisions for each request, some tens of µs.
#[must_use]
pub fn diff<'a>(
    current: &TenantPolicies,
    candidate: &TenantPolicies,
    requests: impl IntoIterator<Item = &'a RecordedRequest>,
) -> PolicyDiff {
    let mut diff = PolicyDiff::default();
    for request in requests {
        diff.decided += 1;
        let (before, after) = (request.decide(current), request.decide(candidate));
        let (answer_before, answer_after) = (answer(before.as_ref()), answer(after.as_ref()));
        if answer_before.verdict == answer_after.verdict && answer_before.code == answer_after.code {
            continue;
        }
        let (applied_before, applied_after) = (applied(before.as_ref()), applied(after.as_ref()));
        let changed: BTreeSet<&String> =
            applied_before.symmetric_difference(&applied_after).map(|(id, ..)| id).collect();
        for id in changed {
            let changes = diff.policies.entry(id.clone()).or_default();
            match (answer_before.verdict, answer_after.verdict) {
                (Verdict::Allow, Verdict::Deny) => changes.denied += 1,
                (Verdict::Deny, Verdict::Allow) => changes.allowed += 1,
                _ => {}
            }
        }
        diff.changes.push(Change {
            decision: request.decision.clone(),
            operation: format!("{}/{}", request.backend, request.operation),
            current: answer_before,
            candidate: answer_after,
        });
    }
    diff
}

impl RecordedRequest {
    /// `None` if there is no such operation, or no such session, under this set.
    fn decide(&self, policies: &TenantPolicies) -> Option<Decision> {
        let schema = policies.schema();
        let action = schema.action(&self.backend, &self.operation)?;
        let recorded = &self.session;
        let session = Session {
            sandbox_id: recorded.sandbox_id.clone(),
            tenant: schema.tenant().clone(),
            user_id: recorded.user_id.clone(),
            conversation_id: recorded.conversation_id.clone(),
            operations: recorded.operations.clone(),
            tokens: Vec::new(),
            peer: Peer::Address(std::net::Ipv4Addr::LOCALHOST.into()),
            expires_at: Timestamp::MAX,
            template: recorded.template.clone(),
            isolation: recorded.isolation,
            labels: recorded.labels.clone(),
            claims: recorded.claims.clone(),
        };
        let session = SessionEntities::build(schema, &session).ok()?;
        let facts = RequestFacts {
            path: &self.path,
            query: &self.query,
            header: &self.header,
            body: self.body.as_ref(),
            peer: self.peer,
            now: self.now,
        };
        Some(policies.decide(&session, &TypedRequest::new(&session, action, &facts)))
    }
}

fn answer(decision: Option<&Decision>) -> Answer {
    match decision {
        None => Answer { verdict: Verdict::Deny, code: Some(Code::RouteUnknown), policies: Vec::new() },
        Some(decision) => Answer {
            verdict: decision.verdict(),
            code: decision.code(),
            policies: decision.determining().into_iter().map(|part| part.id).collect(),
        },
    }
}

/// The enforced policies that applied or erred. The baseline's permit counts, the rest of the
/// baseline is the same on both sides and says nothing of the change.
fn applied(decision: Option<&Decision>) -> BTreeSet<(String, bool)> {
    let outcomes = decision.into_iter().flat_map(Decision::outcomes);
    let enforced = outcomes.filter(|outcome| outcome.policy.mode == Mode::Enforce);
    enforced
        .filter(|outcome| {
            !outcome.policy.id.starts_with(OWN_PREFIX) || &*outcome.policy.id == "postern-permit"
        })
        .map(|outcome| (outcome.policy.id.to_string(), outcome.error.is_some()))
        .collect()
}

impl fmt::Display for PolicyDiff {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |answer: &Answer| {
            let word = if answer.verdict == Verdict::Allow { "allowed" } else { "denied" };
            match (answer.policies.as_slice(), answer.code) {
                ([], Some(code)) => format!("{word} ({})", code.as_str()),
                (ids, _) => format!("{word} by {}", ids.join(", ")),
            }
        };
        for change in &self.changes {
            let (before, after) = (name(&change.current), name(&change.candidate));
            writeln!(formatter, "{} {}: {before}, then {after}", change.decision, change.operation)?;
        }
        for (id, changes) in &self.policies {
            writeln!(formatter, "{id}: {} newly allowed, {} newly denied", changes.allowed, changes.denied)?;
        }
        write!(formatter, "{} of {} requests would be answered differently", self.changes.len(), self.decided)
    }
}

#[cfg(test)]
mod tests;
