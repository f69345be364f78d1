// SPDX-License-Identifier: Apache-2.0
//! Our answer against the crate's own, over the whole set, for random policies, entities and
//! requests: hierarchies, templates, conditions that err, extension types. Ours comes from
//! [`TenantPolicies::decide`], which is what the gateway calls.
//!
//! `make test` runs a few hundred; `make prove-policies` is the proof (`CASES=`, 100,000 unless
//! it says otherwise).

use crate::decide::Decision;
use crate::entities::{SessionEntities, World};
use crate::party::Party;
use crate::request::{RequestContext, TypedRequest};
use crate::schema::{Action, TenantSchema};
use crate::set::TenantPolicies;
use crate::shape::Shape;
use cedar_policy::{
    Authorizer, Context, Decision as CedarDecision, Entities, EntityUid, PolicyId, PolicySet, Request,
    Response, Schema, SlotId,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// Cases in `make test`: enough to reach every kind of scope, condition and answer, which
/// `the_random_cases_reach_every_kind_of_answer` holds them to.
const CASES: u32 = 400;

const SCHEMA: &str = r#"
entity Org;
entity Team in [Org, Team];
entity User in [Team, Org] tags String;
entity Folder in [Folder, Org];
entity Doc in [Folder];
action all;
action reads in [all];
action view in [reads];
action list in [reads];
action edit in [all] appliesTo { principal: User, resource: Doc, context: {} };
"#;

static OURS: LazyLock<Arc<TenantSchema>> =
    LazyLock::new(|| TenantSchema::alone(SCHEMA.to_owned()).expect("the schema is right"));
static ACTIONS: LazyLock<Entities> = LazyLock::new(|| {
    let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("the schema is right");
    schema.action_entities().expect("actions")
});

#[derive(Debug, Clone)]
struct Case {
    policies: String,
    links: Vec<(usize, String, String)>,
    parents: Vec<Vec<usize>>,
    ages: Vec<Option<i64>>,
    principal: String,
    action: String,
    resource: String,
    /// What the same session asks first, and then.
    contexts: [serde_json::Value; 2],
}

const PRINCIPALS: [&str; 7] = [
    r#"Org::"o""#,
    r#"Team::"t0""#,
    r#"Team::"t1""#,
    r#"Team::"t2""#,
    r#"User::"u0""#,
    r#"User::"u1""#,
    r#"User::"nobody""#,
];
const RESOURCES: [&str; 6] =
    [r#"Org::"o""#, r#"Folder::"f0""#, r#"Folder::"f1""#, r#"Doc::"d0""#, r#"Doc::"d1""#, r#"Doc::"none""#];
const ACTION_NAMES: [&str; 6] = [
    r#"Action::"all""#,
    r#"Action::"reads""#,
    r#"Action::"view""#,
    r#"Action::"list""#,
    r#"Action::"edit""#,
    r#"Action::"unknown""#,
];

fn one_of(of: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    prop::sample::select(of).prop_map(str::to_owned)
}

fn scope(variable: &'static str, of: &'static [&'static str]) -> impl Strategy<Value = String> {
    let types =
        if variable == "principal" { &["User", "Team", "Org"][..] } else { &["Doc", "Folder", "User"][..] };
    prop_oneof![
        8 => Just(variable.to_owned()),
        3 => one_of(of).prop_map(move |entity| format!("{variable} == {entity}")),
        4 => one_of(of).prop_map(move |entity| format!("{variable} in {entity}")),
        2 => one_of(types).prop_map(move |of_type| format!("{variable} is {of_type}")),
        2 => (one_of(types), one_of(of)).prop_map(move |(of_type, entity)| format!("{variable} is {of_type} in {entity}")),
        2 => Just(format!("{variable} == ?{variable}")),
        4 => Just(format!("{variable} in ?{variable}")),
        2 => one_of(types).prop_map(move |of_type| format!("{variable} is {of_type} in ?{variable}")),
    ]
}

fn action_scope() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => Just("action".to_owned()),
        3 => one_of(&ACTION_NAMES).prop_map(|action| format!("action == {action}")),
        3 => one_of(&ACTION_NAMES).prop_map(|action| format!("action in {action}")),
        3 => prop::collection::vec(one_of(&ACTION_NAMES), 0..4).prop_map(|actions| format!("action in [{}]", actions.join(", "))),
    ]
}

/// What scopes can say.
const SCOPES: [&str; 13] = [
    "(principal,",
    "principal ==",
    "principal in ?principal",
    "principal == ?principal",
    "principal is User,",
    "principal is Team in Team",
    "in ?resource",
    "resource ==",
    "resource is Doc in Folder",
    "resource is Doc)",
    "action ==",
    "action in Action",
    "action in [Action",
];

/// Atoms of conditions; many of them err for some requests, some for all.
const ATOMS: [&str; 30] = [
    "true",
    "false",
    "context.n < 5",
    "context.n + 9223372036854775800 > 0",
    "-context.n * 3 == 6",
    "context has s",
    r#"context.s like "a*b""#,
    r#"context has s && context.s == "ab""#,
    "context.set.contains(3)",
    "context.set.containsAny([1, 2])",
    "[1, 2].containsAll(context.set)",
    "context.set.isEmpty()",
    r#"context.d.lessThan(decimal("1.5"))"#,
    r#"decimal("1.55555").lessThan(context.d)"#,
    r#"context.ip.isInRange(ip("10.0.0.0/8"))"#,
    r#"ip("nonsense").isIpv4()"#,
    r#"context.t < datetime("2024-06-01")"#,
    r#"context.t.offset(duration("1d")) >= datetime("2024-01-02")"#,
    "principal.age > 3",
    "principal has age && principal.age > 3",
    "resource.owner == principal",
    "principal in resource.owner",
    r#"principal in Team::"t0""#,
    r#"principal in [Team::"t1", Org::"o"]"#,
    r#"action in Action::"reads""#,
    r#"action == Action::"edit""#,
    r#"Action::"view" in Action::"all""#,
    "resource is Doc",
    r#"principal.hasTag("k") && principal.getTag("k") == "v""#,
    r#"principal.getTag("k") == "v""#,
];

fn condition() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![20 => one_of(&ATOMS), 1 => Just("1".to_owned()), 1 => Just("principal".to_owned()), 1 => Just("context.missing".to_owned())];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(one, two)| format!("({one} && {two})")),
            (inner.clone(), inner.clone()).prop_map(|(one, two)| format!("({one} || {two})")),
            inner.clone().prop_map(|one| format!("!({one})")),
            (inner.clone(), inner.clone(), inner.clone())
                .prop_map(|(test, one, two)| format!("(if {test} then {one} else {two})")),
            (inner.clone(), inner).prop_map(|(one, two)| format!("(({one}) == ({two}))")),
        ]
    })
}

fn policy() -> impl Strategy<Value = String> {
    let clause = (prop::bool::ANY, condition()).prop_map(|(is_when, condition)| {
        format!("{} {{ {condition} }}", if is_when { "when" } else { "unless" })
    });
    (
        prop::bool::weighted(0.6),
        scope("principal", &PRINCIPALS),
        action_scope(),
        scope("resource", &RESOURCES),
        prop::collection::vec(clause, 0..3),
    )
        .prop_map(|(is_permit, principal, action, resource, clauses)| {
            let effect = if is_permit { "permit" } else { "forbid" };
            format!("{effect} ({principal}, {action}, {resource}) {};", clauses.join(" "))
        })
}

fn context() -> impl Strategy<Value = serde_json::Value> {
    let time = prop::sample::select(&["2024-01-01", "2024-12-31T10:00:00Z"]);
    let extension = |function: &'static str, of: &'static [&'static str]| {
        prop::sample::select(of).prop_map(move |text| json!({"__extn": {"fn": function, "arg": text}}))
    };
    (
        prop_oneof![Just(1_i64), Just(-2), Just(7), Just(i64::MAX)],
        prop::option::of(prop::sample::select(&["ab", "axb", "c"])),
        prop::collection::vec(0_i64..4, 0..3),
        extension("decimal", &["1.0", "1.5", "-3.25"]),
        extension("ip", &["10.1.2.3", "::1", "192.168.0.0/16"]),
        time,
        prop::bool::weighted(0.9),
    )
        .prop_map(|(n, s, set, d, ip, t, has_number)| {
            let mut context =
                json!({"set": set, "d": d, "ip": ip, "t": {"__extn": {"fn": "datetime", "arg": t}}});
            if has_number {
                context["n"] = json!(n);
            }
            if let Some(s) = s {
                context["s"] = json!(s);
            }
            context
        })
}

fn case() -> impl Strategy<Value = Case> {
    (
        prop::collection::vec(policy(), 0..10),
        prop::collection::vec((0_usize..10, one_of(&PRINCIPALS), one_of(&RESOURCES)), 0..6),
        prop::collection::vec(prop::collection::vec(0_usize..12, 0..3), 12),
        prop::collection::vec(prop::option::of(0_i64..8), 12),
        one_of(&PRINCIPALS),
        one_of(&ACTION_NAMES),
        one_of(&RESOURCES),
        [context(), context()],
    )
        .prop_map(|(policies, links, parents, ages, principal, action, resource, contexts)| Case {
            policies: policies.join("\n"),
            links,
            parents,
            ages,
            principal,
            action,
            resource,
            contexts,
        })
}

impl Case {
    /// Entities in which each may lie in any that come before it.
    fn entities(&self) -> Entities {
        let names: Vec<&str> = PRINCIPALS[..6].iter().chain(&RESOURCES[1..5]).copied().collect();
        let reference = |name: &str| {
            let (of_type, id) = name.split_once("::").expect("a reference");
            json!({"type": of_type, "id": id.trim_matches('"')})
        };
        let entities: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(index, name)| {
                let earlier = self.parents[index].iter().filter(|parent| **parent < index);
                let mut attributes = json!({"owner": {"__entity": reference(PRINCIPALS[4 + index % 2])}});
                if let Some(age) = self.ages[index] {
                    attributes["age"] = json!(age);
                }
                let tags = if index % 2 == 0 { json!({"k": "v"}) } else { json!({}) };
                json!({
                    "uid": reference(name),
                    "attrs": attributes,
                    "tags": tags,
                    "parents": earlier.map(|parent| reference(names[*parent])).collect::<Vec<_>>(),
                })
            })
            .collect();
        Entities::from_json_value(entities.into(), None).expect("entities")
    }

    fn policies(&self) -> PolicySet {
        let mut set: PolicySet =
            self.policies.parse().unwrap_or_else(|error| panic!("{error}: {}", self.policies));
        let mut templates: Vec<PolicyId> = set.templates().map(|template| template.id().clone()).collect();
        templates.sort();
        for (number, (template, principal, resource)) in self.links.iter().enumerate() {
            let Some(id) = templates.get(template % templates.len().max(1)).cloned() else { continue };
            let template = set.template(&id).expect("a template of the set");
            let entity = |text: &str| text.parse::<EntityUid>().expect("an entity");
            let values: HashMap<SlotId, EntityUid> = template
                .slots()
                .map(|slot| {
                    let value = if *slot == SlotId::principal() { principal } else { resource };
                    (slot.clone(), entity(value))
                })
                .collect();
            set.link(id, PolicyId::new(format!("link{number}")), values).expect("a link");
        }
        set
    }

    /// Both answers to each request: the crate's over everything, ours by way of the index and of
    /// what the session's first request settled.
    fn answers(&self) -> Vec<(Response, Decision)> {
        let (set, entities) = (self.policies(), self.entities());
        let entity = |text: &str| text.parse::<EntityUid>().expect("an entity");
        let everything = entities.clone().add_entities(ACTIONS.iter().cloned(), None).expect("entities");
        let policies = TenantPolicies::of_cedar(&OURS, set.as_ref()).expect("ids are unique");
        let party = |text: &str, known: &Entities| {
            Party::new(Arc::new(text.parse().expect("an entity")), known.as_ref())
        };
        let session = SessionEntities::of_any(
            &OURS,
            party(&self.principal, &entities),
            World::new(entities.as_ref().clone()),
        );
        let action = Arc::new(Action {
            origin: OURS.origin(),
            party: party(&self.action, &ACTIONS),
            resource: Arc::new(party(&self.resource, &entities)),
            context: Shape::Record(Vec::new()),
        });
        let answers = self.contexts.iter().map(|context| {
            let context = Context::from_json_value(context.clone(), None).expect("a context");
            let (principal, action_, resource) =
                (entity(&self.principal), entity(&self.action), entity(&self.resource));
            let request = Request::new(principal, action_, resource, context, None).expect("a request");
            let response = Authorizer::new().is_authorized(&request, &set, &everything);
            let core: &cedar_policy_core::ast::Request = request.as_ref();
            let context = RequestContext::timeless(core.context().expect("a context").clone());
            let request = TypedRequest::of_any(&session, Arc::clone(&action), context);
            (response, policies.decide(&session, &request))
        });
        answers.collect()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        self.answers().into_iter().try_for_each(|(response, decision)| self.compare(&response, &decision))
    }

    fn compare(&self, response: &Response, decision: &Decision) -> Result<(), TestCaseError> {
        let cedar = decision.cedar().expect("policies were asked");
        let sorted = |ids: &mut dyn Iterator<Item = String>| {
            let mut ids: Vec<_> = ids.collect();
            ids.sort();
            ids
        };
        let diagnostics = response.diagnostics();
        prop_assert_eq!(cedar.is_allowed, response.decision() == CedarDecision::Allow);
        prop_assert_eq!(cedar.reasons, sorted(&mut diagnostics.reason().map(ToString::to_string)));
        let failed = diagnostics.errors().map(|error| match error {
            cedar_policy::AuthorizationError::PolicyEvaluationError(error) => error.policy_id().to_string(),
        });
        prop_assert_eq!(&cedar.errors, &sorted(&mut failed.into_iter()));
        // What is stricter may deny what Cedar allows, and only for the stated reason.
        let is_faulty = decision
            .faults()
            .iter()
            .any(|fault| set_effect(&self.policies(), &fault.id) == cedar_policy::Effect::Forbid);
        prop_assert_eq!(decision.is_allowed(), cedar.is_allowed && !is_faulty);
        Ok(())
    }
}

fn set_effect(set: &PolicySet, id: &str) -> cedar_policy::Effect {
    set.policy(&PolicyId::new(id)).expect("a policy of the set").effect()
}

/// The library reads `PROPTEST_CASES` itself; where it does not stand, it wants this many.
const LIBRARY_DEFAULT: u32 = 256;

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if default.cases == LIBRARY_DEFAULT { CASES } else { default.cases };
    ProptestConfig { cases, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn decision_reasons_and_errors_equal_cedar_s_over_the_whole_set(case in case()) {
        case.check()?;
    }
}

/// The test above would say nothing if all its cases were denied by default, or if some kind of
/// policy never came up among as many cases as it runs.
#[test]
fn the_random_cases_reach_every_kind_of_answer() {
    let mut runner = TestRunner::deterministic();
    let (mut allowed, mut forbidden, mut erring, mut linked, mut differing) = (0, 0, 0, 0, 0);
    let mut written = String::new();
    let cases = case();
    for _ in 0..CASES {
        let case = cases.new_tree(&mut runner).expect("a case").current();
        let [first, second] = &case.answers()[..] else { panic!("two answers") };
        differing += usize::from(first.1.cedar() != second.1.cedar());
        let cedar = first.1.cedar().expect("policies were asked");
        allowed += usize::from(cedar.is_allowed);
        forbidden += usize::from(!cedar.is_allowed && !cedar.reasons.is_empty());
        erring += usize::from(!cedar.errors.is_empty());
        let reasons = [first, second].map(|(_, decision)| decision.cedar().map(|cedar| cedar.reasons));
        linked += usize::from(reasons.iter().flatten().flatten().any(|id| id.starts_with("link")));
        written.push_str(&case.policies);
    }
    let counts = [allowed, forbidden, erring, differing, linked];
    assert!(counts.iter().all(|count| *count >= 10), "too few to say anything: {counts:?}");
    for kind in SCOPES.iter().chain(&ATOMS) {
        assert!(written.contains(kind), "no policy says `{kind}`");
    }
}
