// SPDX-License-Identifier: Apache-2.0
//! What all requests of a session to one operation have in common, worked out at the first of them.
//!
//! Which scopes match is the same for all, and so is what a condition comes to that looks at
//! nothing of the request. Where no condition is left after that, the plan is the whole answer:
//! no other answer is kept, for all else may differ from one request to the next.
//!
//! ```text
//!   candidates ─▶ leading conditions ─┬─▶ one is false: left out
//!                                     ├─▶ one errs, or none is left: settled
//!                                     └─▶ the rest looks at the context: open, for each request
//! ```
//!
//! A plan lives in its session, and keeps no policy in memory that its set has dropped.

use crate::compile::CompiledPolicy;
use crate::decide::{Question, hold};
use crate::schema::Action;
use crate::set::TenantPolicies;
use cedar_policy_core::ast::Context;
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Candidates that the plans of one session may hold: twenty operations with twenty each. They
/// take 16 KiB at most; a session with more works some plans out again.
const KEPT: usize = 512;
/// What a plan weighs besides its candidates.
const PLAN: usize = 4;

/// The candidates of a request, as far as session and operation settle them.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Those that apply, or err, whatever the request says.
    pub(crate) settled: Vec<(Weak<CompiledPolicy>, Option<String>)>,
    /// Those whose further conditions are to be evaluated for each request.
    pub(crate) open: Vec<Weak<CompiledPolicy>>,
    /// Whether one of those looks at the time.
    pub(crate) reads_now: bool,
    /// Whether one of those looks at an action.
    pub(crate) reads_actions: bool,
}

impl TenantPolicies {
    /// What a question comes to as far as its context has no part in it.
    pub(crate) fn plan(&self, question: &Question<'_>) -> Plan {
        let mut candidates: Vec<&Arc<CompiledPolicy>> = Vec::new();
        self.index.candidates(question.principal, question.action, question.resource, |policy| {
            candidates.push(policy);
        });
        let needs_actions = candidates.iter().any(|policy| policy.reads_actions);
        let entities = question.world.entities(&self.schema, needs_actions);
        let evaluator =
            Evaluator::new(question.request(&Context::empty()), entities, Extensions::all_available());
        let mut plan = Plan::default();
        for policy in candidates {
            match hold(&evaluator, &policy.leading, policy.policy.env()) {
                Ok(false) => {}
                Ok(true) if !policy.rest.is_empty() => plan.leave_open(policy),
                Ok(true) => plan.settled.push((Arc::downgrade(policy), None)),
                Err(error) => plan.settled.push((Arc::downgrade(policy), Some(error))),
            }
        }
        plan
    }
}

impl Plan {
    fn leave_open(&mut self, policy: &Arc<CompiledPolicy>) {
        self.reads_now |= policy.reads_now;
        self.reads_actions |= policy.reads_actions;
        self.open.push(Arc::downgrade(policy));
    }

    fn weight(&self) -> usize {
        PLAN + self.settled.len() + self.open.len()
    }
}

/// The plans of one session: for an operation and an edition of a set, of which there may be two
/// that are asked in turn, one in force and one in shadow.
#[derive(Debug, Default)]
pub(crate) struct Plans(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    plans: Vec<(u64, Arc<Action>, Arc<Plan>)>,
    weight: usize,
}

impl Plans {
    /// The plan for an operation under a set, from `make` if there is none.
    ///
    /// INVARIANT: what `make` makes rests on edition, session and operation alone.
    pub(crate) fn of(&self, edition: u64, action: &Arc<Action>, make: impl FnOnce() -> Plan) -> Arc<Plan> {
        if let Some(plan) = self.kept().find(edition, action) {
            return plan;
        }
        // The lock is free meanwhile; two requests may make the same plan, and either will do.
        let plan = Arc::new(make());
        self.kept().keep(edition, action, &plan);
        plan
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn find(&self, edition: u64, action: &Arc<Action>) -> Option<Arc<Plan>> {
        let is_wanted = |(of, to, _): &&(u64, Arc<Action>, _)| *of == edition && Arc::ptr_eq(to, action);
        self.plans.iter().find(is_wanted).map(|(.., plan)| Arc::clone(plan))
    }

    fn keep(&mut self, edition: u64, action: &Arc<Action>, plan: &Arc<Plan>) {
        let weight = plan.weight();
        if weight > KEPT {
            return;
        }
        if self.weight + weight > KEPT {
            // Most are of sets that are gone. The others are worked out again.
            self.plans.clear();
            self.weight = 0;
        }
        self.plans.push((edition, Arc::clone(action), Arc::clone(plan)));
        self.weight += weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Asked, load, schema, session};
    use crate::{SessionEntities, TenantSchema};
    use serde_json::json;

    const SET: &str = r#"
@id("pro") permit (principal, action in support_desk::Action::"write", resource)
when { principal.labels.hasTag("plan") && principal.labels.getTag("plan") == "pro" };
@id("free") permit (principal, action in support_desk::Action::"write", resource)
when { principal.template == "free" && context.body.count > 0 };
@id("either") forbid (principal, action == support_desk::Action::"createRefund", resource)
when { principal.template == "free" || context.body.count > 50 };
@id("errs") permit (principal, action == support_desk::Action::"createRefund", resource)
when { 9223372036854775807 + 1 > 0 && context.body.count > 0 };
@id("limit") forbid (principal, action == support_desk::Action::"createRefund", resource)
when { principal.template == "default" } unless { context.body.count < 10 };
"#;

    fn entities(schema: &Arc<TenantSchema>) -> SessionEntities {
        SessionEntities::build(schema, &session(&["*"])).expect("a session")
    }

    fn ids<'a>(policies: impl Iterator<Item = &'a Weak<CompiledPolicy>>) -> Vec<String> {
        let mut ids: Vec<_> =
            policies.filter_map(Weak::upgrade).map(|policy| policy.id.to_string()).collect();
        ids.sort();
        ids
    }

    #[test]
    fn what_only_the_session_decides_is_settled_and_the_rest_is_open() {
        let policies = load(&schema(), SET);
        let session = entities(policies.schema());
        let request = Asked::refund(json!({"amount": 1, "count": 2})).typed(policies.schema(), &session);
        let context = request.context().as_ref().expect("it fits");
        let plan = policies.plan(&request.question(&session, context));
        assert_eq!(ids(plan.settled.iter().map(|(policy, _)| policy)), ["errs", "pro"]);
        assert_eq!(plan.settled.iter().filter(|(_, error)| error.is_some()).count(), 1);
        assert_eq!(
            ids(plan.open.iter()),
            ["either", "limit"],
            "the baseline is settled: nothing of it is left"
        );
    }

    #[test]
    fn one_plan_serves_requests_that_are_answered_differently() {
        let policies = load(&schema(), SET);
        let session = entities(policies.schema());
        for (count, is_allowed) in [(2, true), (20, false), (3, true), (70, false), (2, true)] {
            let asked = Asked::refund(json!({"amount": 1, "count": count}));
            let decision = policies.decide(&session, &asked.typed(policies.schema(), &session));
            assert_eq!(decision.is_allowed(), is_allowed, "{count}: {decision:?}");
        }
        assert_eq!(session.plans().kept().plans.len(), 1);
    }

    #[test]
    fn a_condition_is_open_however_it_reaches_for_the_context() {
        for condition in [
            "context.body has urgent",
            "context has body.urgent",
            "context.body has urgent && principal.template == \"default\"",
            "principal.template == \"default\" && context.body has urgent",
            "if context.body has urgent then true else principal.template == \"free\"",
            "[context.body has urgent].contains(true)",
            "{ said: context.body }.said has urgent",
            "(if true then context else context).body has urgent",
            "!(context.body.count == 1)",
            "context.body.amount.greaterThan(decimal(\"1.0\"))",
        ] {
            let set = format!(
                "@id(\"it\") permit (principal, action == support_desk::Action::\"createRefund\", resource) when {{ {condition} }};"
            );
            let policies = load(&schema(), &set);
            let session = entities(policies.schema());
            let plain = json!({"amount": 1, "count": 1});
            let urgent = json!({"amount": 2, "count": 2, "urgent": true});
            let answers = [&plain, &urgent, &plain].map(|body| {
                let request = Asked::refund(body.clone()).typed(policies.schema(), &session);
                policies.decide(&session, &request).is_allowed()
            });
            assert_eq!(answers, [false, true, false], "{condition}");
        }
    }

    #[test]
    fn a_changed_set_is_asked_anew_and_an_unchanged_one_is_not() {
        let schema = schema();
        let first = load(&schema, SET);
        let second = load(&schema, "@id(\"other\") permit (principal, action, resource);");
        let session = entities(&schema);
        let request = Asked::refund(json!({"amount": 1, "count": 70})).typed(&schema, &session);
        let determining = |policies: &TenantPolicies| {
            let parts = policies.decide(&session, &request).determining();
            parts.into_iter().map(|part| part.id).collect::<Vec<_>>()
        };
        let both = [determining(&first), determining(&second), determining(&first), determining(&second)];
        assert_eq!(both, [&["either", "limit"][..], &["other"], &["either", "limit"], &["other"]]);
        assert_eq!(session.plans().kept().plans.len(), 2, "each set has a plan of its own");
        let again = first.reload(&schema, Some(&[crate::fixture::source(SET)])).expect("right");
        assert_eq!(determining(&again), ["either", "limit"]);
        assert_eq!(session.plans().kept().plans.len(), 2, "nothing changed");
        let gone = SET.replace("@id(\"either\")", "@id(\"later\")");
        let changed = again.reload(&schema, Some(&[crate::fixture::source(&gone)])).expect("right");
        assert_eq!(determining(&changed), ["later", "limit"]);
    }

    #[test]
    fn plans_keep_no_policy_that_its_set_has_dropped_and_are_bounded() {
        let schema = schema();
        let session = entities(&schema);
        let request = Asked::refund(json!({"amount": 1, "count": 2})).typed(&schema, &session);
        let mut dropped = Vec::new();
        for _ in 0..200 {
            let policies = load(&schema, SET);
            assert_eq!(policies.decide(&session, &request).determining().len(), 1);
            dropped.push(Arc::downgrade(policies.policy("limit").expect("it is there")));
        }
        assert!(dropped.iter().all(|policy| policy.upgrade().is_none()));
        let kept = session.plans().kept();
        assert!(kept.weight <= KEPT && !kept.plans.is_empty(), "{} of {KEPT}", kept.weight);
    }
}
