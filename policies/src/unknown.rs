// SPDX-License-Identifier: Apache-2.0
//! Evaluates conditions of a request of which some values are not known any more.
//!
//! Such a value is one of Cedar's unknowns: a condition that comes out whatever it was is settled,
//! any other is open and names the places that it rests on. Nothing is guessed.

use crate::compile::CompiledPolicy;
use crate::decide::Outcome;
use crate::record::Revived;
use crate::set::TenantPolicies;
use cedar_policy_core::ast::{Expr, ExprKind, Literal, PartialValue, SlotEnv, Unknown, ValueKind, Var};
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Places of the context whose values are not known.
pub(crate) type Places = BTreeSet<Vec<String>>;

/// What a condition came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Partly {
    /// True or false, whatever the unknown values were.
    Known(bool),
    /// It cannot be evaluated, whatever they were.
    Error(String),
    /// It rests on the values at these places.
    Open(Vec<String>),
}

/// The candidates of a request: what they came to, and which are open.
#[derive(Debug, Default)]
pub(crate) struct Weighed {
    /// Those that apply or err.
    pub(crate) known: Vec<Outcome>,
    /// Those of which it is not known, and on what they rest.
    pub(crate) open: Vec<(Arc<CompiledPolicy>, Vec<String>)>,
}

/// Evaluates all candidates of a request whose values at `places` are not known.
///
/// `None` if the request cannot be put in Cedar's terms.
pub(crate) fn weigh(policies: &TenantPolicies, revived: &Revived, places: &Places) -> Option<Weighed> {
    let Revived { session, request } = revived;
    let context = request.context().as_ref().ok()?;
    let question = request.question(session, context);
    let entities = session.world().with_actions(&policies.schema.actions);
    let request_ = question.request(context.with_now().ok()?);
    let evaluator = Evaluator::new(request_, entities, Extensions::all_available());
    let mut weighed = Weighed::default();
    for policy in policies.candidates_of(session, request) {
        let partly = policy.policy.non_scope_constraints().map_or(Partly::Known(true), |conditions| {
            partly(&evaluator, conditions, policy.policy.env(), places)
        });
        match partly {
            Partly::Known(true) => weighed.known.push(Outcome { policy, error: None }),
            Partly::Known(false) => {}
            Partly::Error(error) => weighed.known.push(Outcome { policy, error: Some(error) }),
            Partly::Open(places) => weighed.open.push((policy, places)),
        }
    }
    Some(weighed)
}

/// Evaluates one condition of a request that lacks the values at `places`.
pub(crate) fn partly(
    evaluator: &Evaluator<'_>,
    condition: &Expr,
    slots: &SlotEnv,
    places: &Places,
) -> Partly {
    let marked = if places.is_empty() { condition.clone() } else { marked(condition, places) };
    match evaluator.partial_interpret(&marked, slots) {
        Err(error) => Partly::Error(error.to_string()),
        Ok(PartialValue::Value(value)) => match value.value {
            ValueKind::Lit(Literal::Bool(holds)) => Partly::Known(holds),
            _ => Partly::Error("a condition is neither true nor false".to_owned()),
        },
        Ok(PartialValue::Residual(residual)) => {
            let names: BTreeSet<String> =
                residual.unknowns().map(|unknown| unknown.name.to_string()).collect();
            Partly::Open(names.into_iter().collect())
        }
    }
}

/// The condition with an unknown wherever it reads one of `places`, or something that holds one.
fn marked(part: &Expr, places: &Places) -> Expr {
    let again = |part: &Arc<Expr>| marked(part, places);
    match part.expr_kind() {
        ExprKind::Lit(_) | ExprKind::Slot(_) | ExprKind::Unknown(_) => part.clone(),
        ExprKind::Var(Var::Context) => unknown(&[]),
        ExprKind::Var(_) => part.clone(),
        ExprKind::GetAttr { expr, attr } => match place(part) {
            Some(at) if touches(&at, places) => unknown(&at),
            Some(_) => part.clone(),
            None => Expr::get_attr(again(expr), attr.clone()),
        },
        ExprKind::HasAttr { expr, attr } => asked(expr, std::iter::once(attr.to_string()), places)
            .unwrap_or_else(|| match place(expr) {
                Some(_) => part.clone(),
                None => Expr::has_attr(again(expr), attr.clone()),
            }),
        ExprKind::ExtHasAttr { expr, attrs } => asked(expr, attrs.iter().map(ToString::to_string), places)
            .unwrap_or_else(|| match place(expr) {
                Some(_) => part.clone(),
                None => Expr::extended_has_attr(again(expr), attrs.clone()),
            }),
        ExprKind::If { test_expr, then_expr, else_expr } => {
            Expr::ite(again(test_expr), again(then_expr), again(else_expr))
        }
        ExprKind::And { left, right } => Expr::and(again(left), again(right)),
        ExprKind::Or { left, right } => Expr::or(again(left), again(right)),
        ExprKind::UnaryApp { op, arg } => Expr::unary_app(*op, again(arg)),
        ExprKind::BinaryApp { op, arg1, arg2 } => Expr::binary_app(*op, again(arg1), again(arg2)),
        ExprKind::ExtensionFunctionApp { fn_name, args } => {
            let args = args.iter().map(|part| marked(part, places)).collect();
            Expr::call_extension_fn(fn_name.clone(), args)
        }
        ExprKind::Like { expr, pattern } => Expr::like(again(expr), pattern.clone()),
        ExprKind::Is { expr, entity_type } => Expr::is_entity_type(again(expr), entity_type.clone()),
        ExprKind::Set(items) => Expr::set(items.iter().map(|part| marked(part, places))),
        ExprKind::Record(fields) => {
            let fields = fields.iter().map(|(name, part)| (name.clone(), marked(part, places)));
            Expr::record_arc(Arc::new(fields.collect()))
        }
    }
}

/// What is known of a question whether the context has something: what is not known was there.
fn asked(of: &Expr, further: impl Iterator<Item = String>, places: &Places) -> Option<Expr> {
    let mut at = place(of)?;
    at.extend(further);
    if places.contains(&at) {
        Some(Expr::val(true))
    } else if places.iter().any(|place| at.starts_with(place)) {
        Some(unknown(&at))
    } else {
        None
    }
}

/// Whether what stands `at` a place is unknown, in whole or in part.
fn touches(at: &[String], places: &Places) -> bool {
    places.iter().any(|place| at.starts_with(place) || place.starts_with(at))
}

fn unknown(at: &[String]) -> Expr {
    let name = if at.is_empty() { "context".to_owned() } else { at.join(".") };
    Expr::unknown(Unknown::new_untyped(name))
}

/// `context.a.b` as `[a, b]`.
fn place(part: &Expr) -> Option<Vec<String>> {
    match part.expr_kind() {
        ExprKind::Var(Var::Context) => Some(Vec::new()),
        ExprKind::GetAttr { expr, attr } => {
            let mut place = place(expr)?;
            place.push(attr.to_string());
            Some(place)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(condition: &str) -> String {
        let places = Places::from([vec!["body".to_owned(), "card".to_owned()]]);
        marked(&condition.parse().expect("a condition"), &places).to_string()
    }

    #[test]
    fn only_what_reads_an_unknown_value_is_marked() {
        for (condition, wanted) in [
            ("context.body.count > 1", "(context[\"body\"][\"count\"]) > 1"),
            ("context.body has card", "true"),
            ("context has body.card", "true"),
            ("context has body", "(context) has \"body\""),
            ("context.body has count", "(context[\"body\"]) has \"count\""),
        ] {
            let plain = |text: &str| text.replace(['(', ')'], "");
            let parsed: Expr = wanted.parse().expect("a condition");
            assert_eq!(plain(&told(condition)), plain(&parsed.to_string()), "{condition}");
        }
        for condition in [
            "context.body.card == \"1\"",
            "context.body.card.deeper == 1",
            "context.body.card has deeper",
            "context.body == {\"card\": 1}",
            "[context].contains(context)",
            "(if true then context else context).body.card == 1",
        ] {
            assert!(told(condition).contains("unknown"), "{condition}: {}", told(condition));
        }
    }
}
