// SPDX-License-Identifier: Apache-2.0
//! Says why a request is decided as it is: which policies were considered, and which clause of
//! each held, failed or could not be evaluated.
//!
//! Costs several times a decision; it is for people, not for the request path.

use crate::compile::CompiledPolicy;
use crate::decide::Decision;
use crate::entities::SessionEntities;
use crate::request::TypedRequest;
use crate::set::TenantPolicies;
use crate::unknown::{Partly, Places, partly};
use cedar_policy_core::ast::Expr;
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;
use postern_common::decision::{Effect, Mode, PolicyPart, Verdict};
use postern_common::problem::Code;
use std::fmt;
use std::sync::Arc;

/// A decision and what led to it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Explanation {
    /// Allow or deny; `error` where only values of which a digest was kept would tell.
    pub verdict: Verdict,
    /// `policy-denied` or `policy-error` where it is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// Why no policy was asked, if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// The policies that determined it, by id.
    pub determining: Vec<String>,
    /// Every policy whose scope matched, by id.
    pub considered: Vec<Considered>,
    /// Policies of the set whose scope did not match.
    pub others: usize,
}

/// A policy whose scope matched.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Considered {
    /// The policy.
    #[serde(flatten)]
    pub policy: PolicyPart,
    /// Its file and line, unless a link made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Whether it applied.
    pub outcome: ClauseOutcome,
    /// Its conditions, taken apart at `&&`, up to the first that did not hold.
    pub clauses: Vec<Clause>,
}

/// A condition, or a part of one.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Clause {
    /// As it stands in the policy.
    pub text: String,
    /// What it came to.
    pub outcome: ClauseOutcome,
}

/// What a condition came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClauseOutcome {
    /// True.
    Held,
    /// False.
    Failed,
    /// Could not be evaluated, and why.
    Error(String),
    /// Rests on values of which only a digest was kept, at these places.
    Open(Vec<String>),
}

impl TenantPolicies {
    /// Decides a request and says how it came to that.
    #[must_use]
    pub fn explain(&self, session: &SessionEntities, request: &TypedRequest) -> Explanation {
        self.explained(&self.decide(session, request), session, request, &Places::new())
    }

    /// Says how it came to a decision of a request whose values at `unknown` are not known.
    pub(crate) fn explained(
        &self,
        decision: &Decision,
        session: &SessionEntities,
        request: &TypedRequest,
        unknown: &Places,
    ) -> Explanation {
        let mut considered = Vec::new();
        if let (None, Ok(context)) = (decision.refusal(), request.context()) {
            // A time that does not fit was refused, unless no policy here asks for it.
            let whole = context.with_now().unwrap_or(context.without_now());
            let question = request.question(session, context);
            let entities = session.world().with_actions(&self.schema.actions);
            let evaluator = Evaluator::new(question.request(whole), entities, Extensions::all_available());
            self.index.candidates(question.principal, question.action, question.resource, |policy| {
                considered.push(self.consider(&evaluator, policy, unknown));
            });
        }
        considered.sort_by(|one, other| one.policy.id.cmp(&other.policy.id));
        Explanation {
            verdict: decision.verdict(),
            code: decision.code(),
            refusal: decision.refusal().map(ToString::to_string),
            determining: ids(decision),
            others: self.len().saturating_sub(considered.len()),
            considered,
        }
    }

    fn consider(
        &self,
        evaluator: &Evaluator<'_>,
        policy: &Arc<CompiledPolicy>,
        unknown: &Places,
    ) -> Considered {
        let mut clauses = Vec::new();
        let mut outcome = ClauseOutcome::Held;
        for part in policy.conditions() {
            let found = match partly(evaluator, part, policy.policy.env(), unknown) {
                Partly::Known(true) => ClauseOutcome::Held,
                Partly::Known(false) => ClauseOutcome::Failed,
                Partly::Error(reason) => ClauseOutcome::Error(reason),
                Partly::Open(places) => ClauseOutcome::Open(places),
            };
            clauses.push(Clause { text: text_of(part), outcome: found.clone() });
            match found {
                ClauseOutcome::Held => {}
                // What comes after may still settle it.
                ClauseOutcome::Open(_) => outcome = found,
                ClauseOutcome::Failed | ClauseOutcome::Error(_) => {
                    outcome = found;
                    break;
                }
            }
        }
        let place = self.place_of(policy).map(|(file, line)| format!("{file}:{line}"));
        Considered { policy: policy.part(), place, outcome, clauses }
    }
}

impl Explanation {
    /// The same for a request that did not fit the typed context, of which nothing else is known.
    pub(crate) fn refuse(&mut self, why: &str) {
        self.others += self.considered.len();
        self.considered.clear();
        self.determining.clear();
        self.verdict = Verdict::Deny;
        self.code = Some(Code::PolicyError);
        self.refusal = Some(why.to_owned());
    }

    /// The same where only the values behind digests would tell.
    pub(crate) fn leave_open(&mut self) {
        self.determining.clear();
        self.verdict = Verdict::Error;
        self.code = None;
    }
}

fn ids(decision: &Decision) -> Vec<String> {
    decision.determining().into_iter().map(|part| part.id).collect()
}

/// The text of a part as it stands in the policy, on one line.
pub(crate) fn text_of(part: &Expr) -> String {
    let written = part.source_loc().and_then(|place| place.snippet());
    let text = written.map_or_else(|| part.to_string(), str::to_owned);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl fmt::Display for ClauseOutcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => formatter.write_str("true"),
            Self::Failed => formatter.write_str("false"),
            Self::Error(reason) => write!(formatter, "error: {reason}"),
            Self::Open(places) => {
                write!(formatter, "open: only a digest was kept of {}", places.join(", "))
            }
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Allow => "allowed",
            Verdict::Deny => "denied",
            Verdict::Error => {
                writeln!(formatter, "open: it rests on values of which only a digest was kept")?;
                return self.write_considered(formatter);
            }
        };
        match (&self.refusal, self.determining.as_slice()) {
            (Some(refusal), _) => writeln!(formatter, "{verdict}: {refusal}")?,
            (None, []) => writeln!(formatter, "{verdict}: no policy permits it")?,
            (None, ids) => writeln!(formatter, "{verdict} by {}", ids.join(", "))?,
        }
        self.write_considered(formatter)
    }
}

impl Explanation {
    fn write_considered(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for considered in &self.considered {
            let policy = &considered.policy;
            let applied = match considered.outcome {
                ClauseOutcome::Held => "applies",
                ClauseOutcome::Failed => "does not apply",
                ClauseOutcome::Error(_) => "cannot be evaluated",
                ClauseOutcome::Open(_) => "may apply",
            };
            let effect = match policy.effect {
                Effect::Permit => "permit",
                Effect::Forbid => "forbid",
            };
            let shadow = if policy.mode == Mode::Shadow { ", in shadow" } else { "" };
            let place = considered.place.as_deref().unwrap_or("linked from a template");
            writeln!(formatter, "  {effect} {} ({place}{shadow}) {applied}", policy.id)?;
            for clause in &considered.clauses {
                writeln!(formatter, "    {}: {}", clause.text, clause.outcome)?;
            }
        }
        write!(formatter, "  {} other policies have a scope that does not match", self.others)
    }
}

#[cfg(test)]
mod tests {
    use crate::SessionEntities;
    use crate::fixture::{Asked, load, schema, session};
    use serde_json::json;

    const POLICIES: &str = r#"
@id("writes")
permit (principal, action in support_desk::Action::"write", resource)
when { context.body.count > 0 && context.body.count < 10 }
unless { context.body has urgent && context.body.urgent };

@id("limit") @mode("shadow")
forbid (principal, action, resource is Postern::Backend)
when { principal.labels.hasTag("none") };
"#;

    fn explained(body: serde_json::Value) -> String {
        let policies = load(&schema(), POLICIES);
        let session = SessionEntities::build(policies.schema(), &session(&["*"])).expect("a session");
        policies.explain(&session, &Asked::refund(body).typed(policies.schema(), &session)).to_string()
    }

    #[test]
    fn the_clause_that_failed_is_named() {
        insta::assert_snapshot!(explained(json!({"amount": 1, "count": 12})));
    }

    #[test]
    fn what_an_unless_excludes_is_named() {
        insta::assert_snapshot!(explained(json!({"amount": 1, "count": 2, "urgent": true})));
    }

    #[test]
    fn a_body_that_does_not_fit_says_where() {
        insta::assert_snapshot!(explained(json!({"amount": "1", "count": 2})));
    }
}
