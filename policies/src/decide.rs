// SPDX-License-Identifier: Apache-2.0
//! Decides a request: evaluates the conditions of the policies whose scope matches with Cedar's own
//! evaluator, and combines them as Cedar does; then applies what is stricter here.
//!
//! ```text
//!   plan ─▶ outcome of each candidate ─┬─▶ Cedar's answer: forbids win, errors are skipped
//!                                      └─▶ verdict: shadow policies left out, an erring forbid denies
//! ```
//!
//! Both come from the same outcomes, so that a test of Cedar's answer is a test of what the
//! gateway enforces.

use crate::compile::CompiledPolicy;
use crate::entities::{SessionEntities, World};
use crate::party::Party;
use crate::plan::Plan;
use crate::request::{RequestContext, TypedRequest};
use crate::set::TenantPolicies;
use crate::shape::Unfit;
use cedar_policy_core::ast::{Context, EntityUIDEntry, Expr, Literal, Request, SlotEnv, ValueKind};
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;
use postern_common::decision::{Effect, Mode, PolicyPart, Verdict};
use postern_common::problem::Code;
use std::sync::{Arc, Weak};

/// What is asked: everything but the policies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) principal: &'a Party,
    pub(crate) action: &'a Party,
    pub(crate) resource: &'a Party,
    pub(crate) context: &'a RequestContext,
    pub(crate) world: &'a World,
}

/// What one candidate came to. Candidates whose conditions are false are left out.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) policy: Arc<CompiledPolicy>,
    /// `Some` if its conditions could not be evaluated.
    pub(crate) error: Option<String>,
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Decision {
    verdict: Verdict,
    code: Option<Code>,
    outcomes: Vec<Outcome>,
    refused: Option<Refused>,
}

/// Why a request was denied without asking any policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its context cannot hold it.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Session, request and policies are of different configurations.
    #[error("the session's entities are of another configuration than the policies")]
    Stale,
}

/// A policy that could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFault {
    /// The policy's `@id`.
    pub id: String,
    /// What went wrong. May repeat values of the request: for the operator, not for the caller.
    pub message: String,
}

/// Cedar's own answer over every policy of the set, those in shadow included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CedarAnswer {
    /// Whether Cedar allows it.
    pub is_allowed: bool,
    /// The ids of the policies that determine it, sorted.
    pub reasons: Vec<String>,
    /// The ids of the policies that could not be evaluated, sorted.
    pub errors: Vec<String>,
}

/// What would have been decided, had shadow policies been enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowAnswer {
    /// The verdict with them.
    pub verdict: Verdict,
    /// The shadow policies that matched or erred.
    pub policies: Vec<PolicyPart>,
}

impl TenantPolicies {
    /// Decides a request of a session.
    ///
    /// Cost: a few µs for a session's first request to an operation, then about half of one for
    /// each policy that looks at the request's context; the number of other policies does not
    /// matter.
    #[must_use]
    pub fn decide(&self, session: &SessionEntities, request: &TypedRequest) -> Decision {
        if !session.is_of(&self.schema) || !request.is_of(session) {
            return Decision::refused(Refused::Stale);
        }
        let question = match request.context() {
            Err(unfit) => return Decision::refused(Refused::Unfit(unfit.clone())),
            Ok(context) => request.question(session, context),
        };
        let edition = self.index.edition();
        let plan = session.plans().of(edition, request.action(), || self.plan(&question));
        self.follow(&plan, &question)
    }

    /// Answers a question that nobody will ask again.
    pub(crate) fn answer(&self, question: &Question<'_>) -> Decision {
        self.follow(&self.plan(question), question)
    }

    fn follow(&self, plan: &Plan, question: &Question<'_>) -> Decision {
        match self.outcomes(plan, question) {
            Ok(outcomes) => Decision::from_outcomes(outcomes),
            Err(refused) => Decision::refused(refused),
        }
    }

    /// The policies whose scope matches a request.
    pub(crate) fn candidates_of(
        &self,
        session: &SessionEntities,
        request: &TypedRequest,
    ) -> Vec<Arc<CompiledPolicy>> {
        let mut candidates = Vec::new();
        let action = request.action();
        self.index.candidates(&session.principal, &action.party, &action.resource, |policy| {
            candidates.push(Arc::clone(policy));
        });
        candidates
    }

    fn outcomes(&self, plan: &Plan, question: &Question<'_>) -> Result<Vec<Outcome>, Refused> {
        // INVARIANT: the set holds each policy of a plan that was made from it.
        let held = |policy: &Weak<CompiledPolicy>| policy.upgrade().ok_or(Refused::Stale);
        let mut outcomes = Vec::with_capacity(plan.settled.len() + plan.open.len());
        for (policy, error) in &plan.settled {
            outcomes.push(Outcome { policy: held(policy)?, error: error.clone() });
        }
        if plan.open.is_empty() {
            return Ok(outcomes);
        }
        let context =
            if plan.reads_now { question.context.with_now()? } else { question.context.without_now() };
        let entities = question.world.entities(&self.schema, plan.reads_actions);
        let evaluator = Evaluator::new(question.request(context), entities, Extensions::all_available());
        for policy in &plan.open {
            let policy = held(policy)?;
            match hold(&evaluator, &policy.rest, policy.policy.env()) {
                Ok(true) => outcomes.push(Outcome { policy, error: None }),
                Ok(false) => {}
                Err(error) => outcomes.push(Outcome { policy, error: Some(error) }),
            }
        }
        Ok(outcomes)
    }
}

impl Question<'_> {
    pub(crate) fn request(&self, context: &Context) -> Request {
        let known = |party: &Party| EntityUIDEntry::Known { euid: Arc::clone(party.uid()), loc: None };
        Request::new_unchecked(
            known(self.principal),
            known(self.action),
            known(self.resource),
            Some(context.clone()),
        )
    }
}

/// Whether conditions hold, all of them, as Cedar evaluates `&&`; the error is what Cedar says.
pub(crate) fn hold(
    evaluator: &Evaluator<'_>,
    conditions: &[Arc<Expr>],
    slots: &SlotEnv,
) -> Result<bool, String> {
    for condition in conditions {
        match evaluator.interpret(condition, slots).map_err(|error| error.to_string())?.value {
            ValueKind::Lit(Literal::Bool(true)) => {}
            ValueKind::Lit(Literal::Bool(false)) => return Ok(false),
            _ => return Err("a condition is neither true nor false".to_owned()),
        }
    }
    Ok(true)
}

impl Decision {
    fn refused(why: Refused) -> Self {
        Self {
            verdict: Verdict::Deny,
            code: Some(Code::PolicyError),
            outcomes: Vec::new(),
            refused: Some(why),
        }
    }

    pub(crate) fn from_outcomes(outcomes: Vec<Outcome>) -> Self {
        let (verdict, code) = verdict(outcomes.iter().filter(|outcome| outcome.policy.mode == Mode::Enforce));
        Self { verdict, code, outcomes, refused: None }
    }

    pub(crate) fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// Allow or deny.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether the request may go on.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }

    /// `policy-denied` or `policy-error` where it is denied.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        self.code
    }

    /// Why no policy was asked, if none was.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refused> {
        self.refused.as_ref()
    }

    /// The enforced policies that decided: the permits of an allowed request; the forbids, or
    /// the forbids that could not be evaluated, of a denied one. None if nothing permitted it.
    #[must_use]
    pub fn determining(&self) -> Vec<PolicyPart> {
        let is_determining = |outcome: &&Outcome| {
            let policy = &outcome.policy;
            policy.mode == Mode::Enforce
                && match (self.verdict, self.code) {
                    (Verdict::Allow, _) => policy.effect == Effect::Permit && outcome.error.is_none(),
                    (_, Some(Code::PolicyError)) => {
                        policy.effect == Effect::Forbid && outcome.error.is_some()
                    }
                    _ => policy.effect == Effect::Forbid && outcome.error.is_none(),
                }
        };
        parts(self.outcomes.iter().filter(is_determining))
    }

    /// Candidates that could not be evaluated, permits and shadow policies included.
    #[must_use]
    pub fn faults(&self) -> Vec<PolicyFault> {
        let faults = self.outcomes.iter().filter_map(|outcome| {
            let message = outcome.error.clone()?;
            Some(PolicyFault { id: outcome.policy.id.to_string(), message })
        });
        faults.collect()
    }

    /// What shadow policies would have made of it; `None` if none matched or erred.
    #[must_use]
    pub fn shadow(&self) -> Option<ShadowAnswer> {
        let policies = parts(self.outcomes.iter().filter(|outcome| outcome.policy.mode == Mode::Shadow));
        let (verdict, _) = verdict(self.outcomes.iter());
        (!policies.is_empty()).then_some(ShadowAnswer { verdict, policies })
    }

    /// What Cedar says, before anything that is stricter here; `None` if no policy was asked.
    #[must_use]
    pub fn cedar(&self) -> Option<CedarAnswer> {
        if self.refused.is_some() {
            return None;
        }
        let matched = |effect: Effect| {
            let ids = self
                .outcomes
                .iter()
                .filter(|outcome| outcome.error.is_none() && outcome.policy.effect == effect);
            sorted(ids.map(|outcome| outcome.policy.id.to_string()))
        };
        let (permits, forbids) = (matched(Effect::Permit), matched(Effect::Forbid));
        let is_allowed = forbids.is_empty() && !permits.is_empty();
        let failed = self.outcomes.iter().filter(|outcome| outcome.error.is_some());
        Some(CedarAnswer {
            is_allowed,
            reasons: if is_allowed { permits } else { forbids },
            errors: sorted(failed.map(|outcome| outcome.policy.id.to_string())),
        })
    }
}

/// The stricter rules: a forbid that holds denies, then one that cannot be evaluated does.
pub(crate) fn verdict<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> (Verdict, Option<Code>) {
    let (mut is_permitted, mut is_forbidden, mut is_faulty) = (false, false, false);
    for outcome in outcomes {
        match (outcome.policy.effect, &outcome.error) {
            (Effect::Permit, None) => is_permitted = true,
            (Effect::Forbid, None) => is_forbidden = true,
            (Effect::Forbid, Some(_)) => is_faulty = true,
            (Effect::Permit, Some(_)) => {}
        }
    }
    match (is_forbidden, is_faulty, is_permitted) {
        (false, true, _) => (Verdict::Deny, Some(Code::PolicyError)),
        (false, false, true) => (Verdict::Allow, None),
        _ => (Verdict::Deny, Some(Code::PolicyDenied)),
    }
}

fn parts<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Vec<PolicyPart> {
    let mut parts: Vec<_> = outcomes.map(|outcome| outcome.policy.part()).collect();
    parts.sort_by(|one, other| one.id.cmp(&other.id));
    parts
}

fn sorted(ids: impl Iterator<Item = String>) -> Vec<String> {
    let mut ids: Vec<_> = ids.collect();
    ids.sort_unstable();
    ids
}

#[cfg(test)]
mod tests;
