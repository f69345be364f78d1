// SPDX-License-Identifier: Apache-2.0
//! What authors are told, and what a set takes over from the one before.

use crate::fixture::{Asked, decide, load, schema, session, source, told};
use crate::{
    CANDIDATES, LinkError, Mistake, PolicySource, SessionEntities, TemplateLink, TenantPolicies,
    TenantSchema, UNSCOPED,
};
use postern_common::problem::Code;
use proptest::prelude::*;
use std::sync::{Arc, LazyLock};

fn mistakes(text: &str) -> String {
    told(&refused(text))
}

fn refused(text: &str) -> Vec<Mistake> {
    TenantPolicies::load(&schema(), Some(&[source(text)]))
        .map(|set| set.ids().join(" "))
        .expect_err("mistakes")
}

#[test]
fn a_syntax_error_is_shown_where_it_is() {
    insta::assert_snapshot!(mistakes(
        "@id(\"good\") permit (principal, action, resource);\n\n@id(\"bad\")\npermit (principal, action, resource)\nwhen { context.now = 1 };\n"
    ));
}

#[test]
fn a_field_that_does_not_exist_is_shown_with_what_was_meant() {
    insta::assert_snapshot!(mistakes(
        "@id(\"typo\") forbid (principal, action == support_desk::Action::\"createRefund\", resource)\nwhen { context.body.amuont.greaterThan(decimal(\"5.0\")) };"
    ));
}

#[test]
fn a_comparison_of_two_types_is_refused() {
    insta::assert_snapshot!(mistakes(
        "@id(\"types\") forbid (principal, action == support_desk::Action::\"createRefund\", resource)\nwhen { context.body.count > \"5\" };"
    ));
}

#[test]
fn an_optional_field_must_be_asked_for_first() {
    insta::assert_snapshot!(mistakes(
        "@id(\"optional\") forbid (principal, action == support_desk::Action::\"createRefund\", resource)\nwhen { context.body.urgent };"
    ));
}

#[test]
fn an_action_that_does_not_exist_is_shown_with_what_was_meant() {
    insta::assert_snapshot!(mistakes(
        "@id(\"a\") permit (principal, action == support_desk::Action::\"createRefunds\", resource);"
    ));
}

#[test]
fn a_condition_that_can_never_hold_is_refused() {
    insta::assert_snapshot!(mistakes(
        "@id(\"never\") permit (principal, action, resource)\nwhen { principal is Postern::ApiKey };"
    ));
}

#[test]
fn ids_are_required_unique_and_not_the_baseline_s() {
    insta::assert_snapshot!(mistakes(
        "permit (principal, action, resource);\n@id(\"a\") permit (principal, action, resource is Postern::Template);\n@id(\"postern-x\") forbid (principal, action, resource);\n@id(\"m\") @mode(\"off\") forbid (principal, action, resource);"
    ));
    let twice =
        "@id(\"a\") permit (principal, action, resource);\n@id(\"a\") forbid (principal, action, resource);";
    insta::assert_snapshot!("twice", mistakes(twice));
    let same = "@id(\"a\") permit (principal, action, resource);";
    assert_eq!(refused(&format!("{same}\n{same}")).len(), 1, "the same text twice is two policies");
}

#[test]
fn an_id_may_move_from_one_file_to_another() {
    let schema = schema();
    let file = |name: &str, text: &str| PolicySource { name: name.to_owned(), text: text.to_owned() };
    let policy = "@id(\"a\") permit (principal, action, resource);";
    let before = TenantPolicies::load(&schema, Some(&[file("a", policy), file("b", "")])).expect("right");
    let after = before.reload(&schema, Some(&[file("a", ""), file("b", policy)])).expect("right");
    assert!(decide(&after, &["*"], &Asked::list()).is_allowed());
}

#[test]
fn unscoped_policies_are_warned_of_and_bounded() {
    let unscoped = |count: usize| -> String {
        (0..count).map(|n| format!("@id(\"p{n}\") permit (principal, action, resource);\n")).collect()
    };
    let set = load(&schema(), &unscoped(UNSCOPED));
    assert_eq!(set.warnings().len(), UNSCOPED);
    insta::assert_snapshot!(set.warnings()[1]);
    assert_eq!(refused(&unscoped(UNSCOPED + 1)).len(), 1);
}

#[test]
fn policies_that_a_request_must_consider_are_bounded_however_their_scopes_are_written() {
    let policies = |count: usize, scope: &str| -> String {
        (0..count).map(|n| format!("@id(\"p{n}\") permit ({scope});\n")).collect()
    };
    for scope in [
        "principal in Postern::Tenant::\"acme\", action, resource",
        "principal, action, resource in Postern::Tenant::\"acme\"",
        "principal, action in support_desk::Action::\"read\", resource",
        "principal is Postern::Sandbox in Postern::Tenant::\"acme\", action, resource",
        "principal, action, resource == Postern::Backend::\"acme/support-desk\"",
        "principal == Postern::Sandbox::\"acme/s\", action, resource",
        "principal in Postern::User::\"acme/alice\", action, resource",
    ] {
        let set = load(&schema(), &policies(CANDIDATES / 2, scope));
        assert_eq!(set.warnings(), [], "{scope}");
        let told = mistakes(&policies(CANDIDATES + 1, scope));
        assert!(told.contains("2000 are allowed"), "{scope}: {told}");
    }
    let one_each: String = (0..CANDIDATES * 2)
        .map(|n| {
            format!("@id(\"p{n}\") permit (principal in Postern::User::\"acme/u{n}\", action, resource);\n")
        })
        .collect();
    let set = load(&schema(), &one_each);
    let action = Asked::list().action(&schema());
    assert!(set.load_of(&action).candidates < 10, "{:?}", set.load_of(&action));
}

#[test]
fn conditions_that_a_request_must_evaluate_are_bounded() {
    let long = vec!["context.peer.kind != \"x\""; 500].join(" && ");
    let policies: String = (0..150)
        .map(|n| {
            format!(
                "@id(\"p{n}\") permit (principal in Postern::Tenant::\"acme\", action, resource) when {{ {long} }};\n"
            )
        })
        .collect();
    let told = mistakes(&policies);
    assert!(told.contains("expressions in conditions"), "{told}");
}

#[test]
fn a_change_of_a_set_counts_its_policies_anew() {
    let schema = schema();
    let policies = |count: usize| -> String {
        (0..count)
            .map(|n| {
                format!("@id(\"p{n}\") permit (principal in Postern::Tenant::\"acme\", action, resource);\n")
            })
            .collect()
    };
    let set = load(&schema, &policies(CANDIDATES / 2));
    let count = |set: &TenantPolicies| set.load_of(&Asked::list().action(&schema)).candidates;
    let before = count(&set);
    let more = set.reload(&schema, Some(&[source(&policies(CANDIDATES / 2 + 7))])).expect("few enough");
    assert_eq!(count(&more), before + 7);
    let fewer = more.reload(&schema, Some(&[source(&policies(CANDIDATES / 2 - 7))])).expect("few enough");
    assert_eq!(count(&fewer), before - 7);
    assert!(set.reload(&schema, Some(&[source(&policies(CANDIDATES + 1))])).is_err());
}

#[test]
fn a_policy_that_is_too_long_is_refused() {
    let text = format!(
        "@id(\"a\") permit (principal, action, resource) when {{ context.peer.kind != \"{}\" }};",
        "x".repeat(70_000)
    );
    assert!(refused(&text)[0].message.contains("64 KiB"));
}

#[test]
fn a_template_applies_where_it_is_linked_and_nowhere_else() {
    let text = "@id(\"t\") permit (principal in ?principal, action, resource == ?resource);";
    let set = load(&schema(), text);
    assert!(!decide(&set, &["*"], &Asked::list()).is_allowed(), "not linked yet");
    let link = |user: &str| TemplateLink {
        template: "t".to_owned(),
        id: format!("t-{user}"),
        principal: Some(format!("Postern::User::\"acme/{user}\"")),
        resource: Some("Postern::Backend::\"acme/support-desk\"".to_owned()),
    };
    let bob = set.with_links(&[link("bob")]).expect("linked");
    assert!(!decide(&bob, &["*"], &Asked::list()).is_allowed(), "linked to another user");
    let alice = bob.with_links(&[link("alice")]).expect("linked");
    let decision = decide(&alice, &["*"], &Asked::list());
    assert_eq!(decision.determining()[0].id, "t-alice");
    assert_eq!(
        alice.with_links(&[link("alice")]).expect_err("taken"),
        LinkError::Taken("t-alice".to_owned())
    );
    let reloaded = alice.reload(alice.schema(), Some(&[source(text)])).expect("right");
    assert!(!decide(&reloaded, &["*"], &Asked::list()).is_allowed(), "links are not taken over");
    assert!(matches!(
        set.with_links(&[TemplateLink { template: "u".to_owned(), ..link("x") }]),
        Err(LinkError::UnknownTemplate(_))
    ));
    assert!(matches!(
        set.with_links(&[TemplateLink { principal: None, ..link("x") }]),
        Err(LinkError::Slots { .. })
    ));
}

#[test]
fn no_permit_of_a_tenant_undoes_the_baseline() {
    let set = load(&schema(), "@id(\"all\") permit (principal, action, resource);");
    let decision = decide(&set, &["support-desk/listOrders"], &Asked::new("ping"));
    assert_eq!(decision.code(), Some(Code::PolicyDenied));
    insta::assert_debug_snapshot!(decision.determining());
}

#[test]
fn a_set_of_many_policies_answers_as_its_few_candidates_do() {
    let mut text: String = (0..500)
        .map(|n| {
            format!("@id(\"u{n}\") permit (principal in Postern::User::\"acme/u{n}\", action, resource);\n")
        })
        .collect();
    text.push_str("@id(\"mine\") permit (principal in Postern::User::\"acme/alice\", action in [support_desk::Action::\"read\", support_desk::Action::\"orders\"], resource);");
    let set = load(&schema(), &text);
    let session = SessionEntities::build(set.schema(), &session(&["*"])).expect("a session");
    let explanation = set.explain(&session, &Asked::list().typed(set.schema(), &session));
    assert_eq!(explanation.determining, ["mine"]);
    assert_eq!(explanation.considered.len(), 3, "the policy once, and two of the baseline");
}

/// Pieces of files: right, wrong, and full of what could mislead whoever looks for their ends.
const PIECES: [&str; 8] = [
    "@id(\"a\") permit (principal, action, resource == Postern::Backend::\"acme/a\");",
    "@id(\"b\") permit (principal, action, resource == Postern::Backend::\"acme/b;\\\"\");",
    "@id(\"c\")\n// not the end; \"nor this\npermit (principal, action, resource == Postern::Backend::\"acme/ä\");",
    "@id(\"d\") forbid (principal in Postern::User::\"acme/d\", action, resource);",
    "@id(\"d\") forbid (principal in Postern::User::\"acme/e\", action, resource);",
    "@id(\"t\") permit (principal in ?principal, action, resource);",
    "@id(\"f\") permit (principal, action, resource == ;",
    "\"",
];
const BETWEEN: [&str; 5] = ["", "\n", " // a; \"b\n", "\n// ä\n\n", " "];

fn file() -> impl Strategy<Value = String> {
    let right = prop::sample::select(&PIECES[..6]);
    let piece = prop_oneof![24 => right, 1 => prop::sample::select(&PIECES[6..])];
    prop::collection::vec((piece, prop::sample::select(&BETWEEN)), 0..5)
        .prop_map(|parts| parts.into_iter().map(|(piece, between)| format!("{piece}{between}")).collect())
}

/// All that can be seen of a set from outside: ids and their places, or what is wrong. Which of
/// two policies with one id is in the way depends on which was there first.
fn seen(loaded: Result<TenantPolicies, Vec<Mistake>>) -> Result<Vec<(String, String)>, Vec<String>> {
    let set =
        loaded.map_err(|mistakes| mistakes.into_iter().map(|mistake| mistake.message).collect::<Vec<_>>())?;
    let place = |id: &str| format!("{:?}", set.policy(id).and_then(|policy| set.place_of(policy)));
    Ok(set.ids().into_iter().map(|id| (id.to_owned(), place(id))).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_set_that_took_over_is_the_set_that_was_loaded_anew(before in file(), now in file(), moved in any::<bool>()) {
        static SCHEMA: LazyLock<Arc<TenantSchema>> = LazyLock::new(schema);
        let files = |one: &str, two: &str| {
            let file = |name: &str, text: &str| PolicySource { name: name.to_owned(), text: text.to_owned() };
            [file("one", one), file("two", two)]
        };
        let half = |text: &str| text.find(';').map_or(0, |at| at + 1);
        let (first, second) = if moved { now.split_at(half(&now)) } else { (now.as_str(), "") };
        let anew = TenantPolicies::load(&SCHEMA, Some(&files(first, second)));
        if let Ok(before) = TenantPolicies::load(&SCHEMA, Some(&files(&before, ""))) {
            prop_assert_eq!(seen(before.reload(&SCHEMA, Some(&files(first, second)))), seen(anew));
        }
    }
}

#[test]
fn a_change_in_the_middle_leaves_everything_else_as_it_was() {
    let schema = schema();
    let policy =
        |id: &str| format!("@id(\"{id}\") permit (principal, action, resource is Postern::Backend);");
    let file = |ids: &[&str]| ids.iter().map(|id| policy(id)).collect::<Vec<_>>().join("\n");
    let before = load(&schema, &file(&["a", "b", "c", "d", "e"]));
    for now in [
        &["a", "b", "x", "d", "e"][..],
        &["a", "b", "d", "e"],
        &["a", "b", "c", "x", "d", "e"],
        &["d", "e", "a", "b"],
    ] {
        let after = before.reload(&schema, Some(&[source(&file(now))])).expect("right");
        for id in ["a", "b", "d", "e"] {
            let (one, other) = (before.policy(id).expect("there"), after.policy(id).expect("still there"));
            assert!(Arc::ptr_eq(one, other), "`{id}` of {now:?} was compiled again");
        }
        assert_eq!(after.len(), now.len() + before.len() - 5);
    }
}
