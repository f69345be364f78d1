// SPDX-License-Identifier: Apache-2.0
//! Whole cases as text, as a harness sends them.

use super::*;
use serde_json::json;

fn case(policies: &str, requests: &serde_json::Value) -> Case {
    serde_json::from_value(json!({
        "id": 7,
        "schema": "entity U; entity D { owner: U }; action view, edit in [all] appliesTo { principal: U, resource: D, context: { n: Long } }; action all;",
        "policies": policies,
        "entities": [
            {"uid": {"type": "U", "id": "a"}, "attrs": {}, "parents": []},
            {"uid": {"type": "D", "id": "d"}, "attrs": {"owner": {"type": "U", "id": "a"}}, "parents": []},
        ],
        "requests": requests,
    }))
    .expect("a case")
}

fn request(context: &serde_json::Value) -> serde_json::Value {
    json!({"principal": {"type": "U", "id": "a"}, "action": {"type": "Action", "id": "view"}, "resource": {"type": "D", "id": "d"}, "context": context})
}

#[test]
fn both_answers_are_given_and_policies_without_an_id_are_named_as_cedar_does() {
    let policies = r#"
        permit (principal, action in Action::"all", resource) when { resource.owner == principal && action in Action::"all" };
        @id("over") forbid (principal, action, resource) when { context.n * 2 > 10 };"#;
    let case = case(
        policies,
        &json!([
            request(&json!({"n": 1})),
            request(&json!({"n": 9})),
            request(&json!({"n": i64::MAX})),
            request(&json!({}))
        ]),
    );
    let answer = authorize(&case).expect("answered");
    assert!(answer.validates, "{:?}", answer.validation_errors);
    let told: Vec<_> = answer
        .results
        .iter()
        .map(|result| (result.decision, result.effective, result.reasons.join(","), result.errors.join(",")))
        .collect();
    assert_eq!(
        told,
        [
            ("allow", "allow", "policy0".to_owned(), String::new()),
            ("deny", "deny", "over".to_owned(), String::new()),
            ("allow", "deny", "policy0".to_owned(), "over".to_owned()),
            ("allow", "deny", "policy0".to_owned(), "over".to_owned()),
        ]
    );
}

#[test]
fn a_request_that_only_does_not_fit_the_schema_is_denied_though_cedar_allows() {
    let case = case(
        "permit (principal, action, resource);",
        &json!([request(&json!({"n": "text"})), request(&json!({"n": 1}))]),
    );
    let answer = authorize(&case).expect("answered");
    let told: Vec<_> = answer.results.iter().map(|result| (result.decision, result.effective)).collect();
    assert_eq!(told, [("allow", "deny"), ("allow", "allow")]);
}

#[test]
fn policies_that_do_not_validate_are_answered_and_said_so() {
    let case = case(
        "permit (principal, action, resource) when { principal.nope };",
        &json!([request(&json!({"n": 1}))]),
    );
    let answer = authorize(&case).expect("answered");
    assert!(!answer.validates && answer.validation_errors.len() == 1);
    assert_eq!(
        (answer.results[0].decision, answer.results[0].errors.as_slice()),
        ("deny", &["policy0".to_owned()][..])
    );
}

#[test]
fn templates_are_validated_though_none_is_linked() {
    let told = |condition: &str| {
        let policies =
            format!("@id(\"t\") permit (principal == ?principal, action, resource) when {{ {condition} }};");
        authorize(&case(&policies, &json!([request(&json!({"n": 1}))]))).expect("answered")
    };
    let (sound, broken) = (told("context.n > 0"), told("context.nope"));
    assert!(sound.validates && !broken.validates, "{:?}", broken.validation_errors);
    assert_eq!((broken.results[0].decision, broken.results[0].reasons.len()), ("deny", 0));
}

#[test]
fn a_part_that_cannot_be_read_is_named() {
    let error = authorize(&case("permit;", &json!([]))).expect_err("no policy");
    assert_eq!(error.part, "the policies");
}
