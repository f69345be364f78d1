// SPDX-License-Identifier: Apache-2.0
//! Decides requests again that were decided before: why was it so, and what would change under a
//! candidate set?
//!
//! Both sides are decided anew, each against its own schema, so that a difference is the sets'
//! and not that of a filter, a limit or an older version. Where a value was kept as a digest, an
//! answer that rests on it is called open, never guessed. Where requests come from and how long
//! they are kept is others' business.

use crate::compile::{CompiledPolicy, OWN_PREFIX};
use crate::decide::{Decision, Outcome, verdict};
use crate::explain::Explanation;
use crate::record::RecordedRequest;
use crate::set::TenantPolicies;
use crate::unknown::{Weighed, weigh};
use postern_common::decision::{Effect, Mode, Verdict};
use postern_common::id::DecisionId;
use postern_common::problem::Code;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// What a candidate set would change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyDiff {
    /// Requests that were decided twice.
    pub decided: usize,
    /// Those that would be answered differently, in the order in which they were given.
    pub changes: Vec<Change>,
    /// For each policy that applied on one side only, what came of it.
    pub policies: BTreeMap<String, PolicyChanges>,
    /// Those of which a digest leaves the answer open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<Open>,
}

/// A request that would be answered differently.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Allow or deny.
    pub verdict: Verdict,
    /// Why it is denied; `route-unknown` where this side has no such operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// The policies that determine it.
    pub policies: Vec<String>,
}

/// Changed answers in which one policy had a part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChanges {
    /// Requests that would newly be allowed.
    pub allowed: usize,
    /// Requests that would newly be denied.
    pub denied: usize,
}

/// A request whose answer rests on a value of which only a digest was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The decision that was recorded.
    pub decision: DecisionId,
    /// The backend and operation, as tokens name it.
    pub operation: String,
    /// The policies that read such a value.
    pub policies: Vec<String>,
    /// The places that they read, as in `body.card`.
    pub places: Vec<String>,
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
        let (before, after) = (Side::of(request, current), Side::of(request, candidate));
        let (now, then) = (before.answer(), after.answer());
        if before.has_the_policies_of(&after) || (now == then && now.is_some()) {
            continue;
        }
        let operation = format!("{}/{}", request.backend, request.operation);
        let (Some(now), Some(then)) = (now, then) else {
            let mut policies: BTreeSet<String> = before.open_ids();
            policies.extend(after.open_ids());
            let places = before.places().union(&after.places()).cloned().collect();
            let policies = policies.into_iter().collect();
            diff.open.push(Open { decision: request.decision.clone(), operation, policies, places });
            continue;
        };
        let changed: BTreeSet<String> =
            before.applied().symmetric_difference(&after.applied()).map(|(id, ..)| id.clone()).collect();
        for id in changed {
            let changes = diff.policies.entry(id).or_default();
            match (now.0, then.0) {
                (Verdict::Allow, Verdict::Deny) => changes.denied += 1,
                (Verdict::Deny, Verdict::Allow) => changes.allowed += 1,
                _ => {}
            }
        }
        diff.changes.push(Change {
            decision: request.decision.clone(),
            operation,
            current: before.told(now),
            candidate: after.told(then),
        });
    }
    diff
}

/// Why a recorded request is decided as it is under `policies`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    /// The decision and what led to it.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// The entities that policies could look at, in Cedar's JSON.
    pub entities: serde_json::Value,
    /// Policies whose answer rests on a value of which only a digest was kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<String>,
}

/// Explains a recorded request; `None` if these policies have no such operation.
#[must_use]
pub fn explain_recorded(policies: &TenantPolicies, request: &RecordedRequest) -> Option<Explained> {
    let revived = request.revive(policies.schema())?;
    let side = Side::of(request, policies);
    let decision = side.decision.as_ref()?;
    let mut explanation =
        policies.explained(decision, &revived.session, &revived.request, &request.unknown());
    if let Some(unfit) = &request.unfit {
        explanation.refuse(unfit);
    } else if side.answer().is_none() {
        explanation.leave_open();
    }
    let open = side.open_ids().into_iter().collect();
    Some(Explained { explanation, entities: revived.session.to_json(), open })
}

/// A verdict with its reason.
type Reached = (Verdict, Option<Code>);

/// One request under one set.
struct Side {
    /// `None`: no such operation, or no such session.
    decision: Option<Decision>,
    /// Policies whose scope matches.
    candidates: Vec<Arc<CompiledPolicy>>,
    /// Those of them whose outcome is not known, with the places that they rest on.
    open: Vec<(Arc<CompiledPolicy>, Vec<String>)>,
    /// The request never fitted, whatever the set.
    is_unfit: bool,
}

impl Side {
    fn of(request: &RecordedRequest, policies: &TenantPolicies) -> Self {
        let mut side = Self {
            decision: None,
            candidates: Vec::new(),
            open: Vec::new(),
            is_unfit: request.unfit.is_some(),
        };
        let Some(revived) = request.revive(policies.schema()) else { return side };
        side.candidates = policies.candidates_of(&revived.session, &revived.request);
        let places = request.unknown();
        let weighed = if places.is_empty() { None } else { weigh(policies, &revived, &places) };
        side.decision = Some(match weighed {
            Some(Weighed { known, open }) => {
                side.open = open;
                Decision::from_outcomes(known)
            }
            None => policies.decide(&revived.session, &revived.request),
        });
        side
    }

    /// `None` where it rests on what is not known.
    fn answer(&self) -> Option<Reached> {
        let Some(decision) = &self.decision else { return Some((Verdict::Deny, Some(Code::RouteUnknown))) };
        if self.is_unfit {
            return Some((Verdict::Deny, Some(Code::PolicyError)));
        }
        if self.open.is_empty() {
            return Some((decision.verdict(), decision.code()));
        }
        let (most, least) = (self.with_open(Effect::Permit), self.with_open(Effect::Forbid));
        (most == least).then_some(most)
    }

    /// The verdict if of the open policies those with this effect applied, and no other.
    fn with_open(&self, effect: Effect) -> Reached {
        let known = self.decision.iter().flat_map(Decision::outcomes);
        let open = self.open.iter().filter(|(policy, _)| policy.effect == effect);
        let open: Vec<Outcome> =
            open.map(|(policy, _)| Outcome { policy: Arc::clone(policy), error: None }).collect();
        verdict(known.chain(&open).filter(|outcome| outcome.policy.mode == Mode::Enforce))
    }

    /// Whether the same policies meet the request on both sides, so that nothing can change.
    fn has_the_policies_of(&self, other: &Self) -> bool {
        let text = |policy: &Arc<CompiledPolicy>| (policy.id.to_string(), policy.policy.to_string());
        let texts = |side: &Self| side.candidates.iter().map(text).collect::<BTreeSet<_>>();
        self.decision.is_some() == other.decision.is_some()
            && self.candidates.len() == other.candidates.len()
            && texts(self) == texts(other)
    }

    fn open_ids(&self) -> BTreeSet<String> {
        self.open.iter().map(|(policy, _)| policy.id.to_string()).collect()
    }

    fn places(&self) -> BTreeSet<String> {
        self.open.iter().flat_map(|(_, places)| places).cloned().collect()
    }

    fn told(&self, (verdict, code): Reached) -> Answer {
        let determining = self.decision.iter().flat_map(Decision::determining);
        Answer { verdict, code, policies: determining.map(|part| part.id).collect() }
    }

    /// The enforced policies that applied or erred. The baseline's permit counts, the rest of the
    /// baseline is the same on both sides and says nothing of the change.
    fn applied(&self) -> BTreeSet<(String, bool)> {
        let outcomes = self.decision.iter().flat_map(Decision::outcomes);
        let enforced = outcomes.filter(|outcome| outcome.policy.mode == Mode::Enforce);
        enforced
            .filter(|outcome| {
                !outcome.policy.id.starts_with(OWN_PREFIX) || &*outcome.policy.id == "postern-permit"
            })
            .map(|outcome| (outcome.policy.id.to_string(), outcome.error.is_some()))
            .collect()
    }
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
        for open in &self.open {
            let (policies, places) = (open.policies.join(", "), open.places.join(", "));
            writeln!(
                formatter,
                "{} {}: open, for {policies} looks at {places}, kept as a digest",
                open.decision, open.operation
            )?;
        }
        for (id, changes) in &self.policies {
            writeln!(formatter, "{id}: {} newly allowed, {} newly denied", changes.allowed, changes.denied)?;
        }
        write!(
            formatter,
            "{} of {} requests would be answered differently",
            self.changes.len(),
            self.decided
        )?;
        if self.open.is_empty() { Ok(()) } else { write!(formatter, ", {} are open", self.open.len()) }
    }
}

#[cfg(test)]
mod tests;
