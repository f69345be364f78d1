// SPDX-License-Identifier: Apache-2.0
//! What a change of policies would have meant for requests of the past.

use super::*;
use crate::fixture::{backend, load, schema};
use crate::{PolicySource, TenantSchema};
use postern_common::problem::Code;
use serde_json::{Value, json};

const CURRENT: &str = r#"
@id("writes") permit (principal, action in support_desk::Action::"write", resource);
@id("limit") forbid (principal, action == support_desk::Action::"createRefund", resource)
when { context.body.count > 10 };
"#;

fn recorded(number: u8, operation: &str, body: Option<&Value>) -> RecordedRequest {
    let request = json!({
        "decision": format!("dec_{number:032x}"),
        "session": {
            "sandbox_id": "sandbox-abcdefghijkl", "user_id": "alice", "conversation_id": "one",
            "operations": ["*"], "template": "default", "isolation": "gvisor",
        },
        "backend": "support-desk", "operation": operation, "path": {"order_id": 7}, "body": body,
        "peer": {"pod": "10.1.2.3"}, "now": "2026-03-04T05:06:07Z",
    });
    serde_json::from_value(request).expect("a request")
}

fn refund(number: u8, count: i64) -> RecordedRequest {
    recorded(number, "createRefund", Some(&json!({"amount": 1, "count": count})))
}

fn past() -> Vec<RecordedRequest> {
    vec![refund(1, 3), refund(2, 7), refund(3, 12), recorded(4, "ping", None)]
}

#[test]
fn a_set_changes_nothing_beside_itself() {
    let set = load(&schema(), CURRENT);
    let diff = diff(&set, &set, &past());
    assert_eq!((diff.decided, diff.changes.len(), diff.policies.len()), (4, 0, 0));
}

#[test]
fn what_would_be_denied_and_allowed_is_told_with_the_policies_that_changed() {
    let schema = schema();
    let stricter = CURRENT.replace("count > 10", "count > 5");
    let pings = "@id(\"pings\") permit (principal, action == support_desk::Action::\"ping\", resource);";
    let candidate = load(&schema, &format!("{stricter}{pings}"));
    insta::assert_snapshot!(diff(&load(&schema, CURRENT), &candidate, &past()));
}

#[test]
fn a_forbid_that_is_gone_is_named_though_the_permit_was_there_before() {
    let schema = schema();
    let candidate = CURRENT.replace("forbid (", "@mode(\"shadow\") forbid (");
    let diff = diff(&load(&schema, CURRENT), &load(&schema, &candidate), &past());
    assert_eq!(diff.policies, [("limit".to_owned(), PolicyChanges { allowed: 1, denied: 0 })].into());
}

#[test]
fn the_first_set_of_a_tenant_takes_the_baseline_s_permit_away() {
    let schema = schema();
    let nothing = TenantPolicies::load(&schema, None).unwrap_or_else(|_| panic!("the baseline is right"));
    let diff = diff(&nothing, &load(&schema, CURRENT), &past());
    let changed: Vec<_> = diff.changes.iter().map(|change| change.operation.as_str()).collect();
    assert_eq!(changed, ["support-desk/createRefund", "support-desk/ping"]);
    assert_eq!(diff.policies.get("postern-permit"), Some(&PolicyChanges { allowed: 0, denied: 2 }));
}

#[test]
fn an_operation_that_is_gone_is_a_route_that_is_unknown() {
    let none = TenantSchema::build(&"acme".parse().expect("a name"), &[]).expect("a schema");
    let sources: [PolicySource; 0] = [];
    let empty = TenantPolicies::load(&none, Some(&sources)).unwrap_or_else(|_| panic!("nothing is right"));
    assert_eq!(none.action(&backend("support-desk"), &"ping".parse().expect("an id")).map(|_| ()), None);
    let diff = diff(&load(&schema(), CURRENT), &empty, &[refund(1, 3)]);
    assert_eq!(diff.changes[0].candidate.code, Some(Code::RouteUnknown));
}

const CARDS: &str = r#"
@id("writes") permit (principal, action in support_desk::Action::"write", resource);
@id("card") forbid (principal, action == support_desk::Action::"createRefund", resource)
when { context.body.count > 5 && context.body has reason && context.body.reason == "4111" };
"#;

fn hidden(number: u8, count: i64) -> RecordedRequest {
    let mut request = refund(number, count);
    request.body = Some(json!({"amount": 1, "count": count, "reason": "digest:0123"}));
    request.digested = vec![vec!["body".to_owned(), "reason".to_owned()]];
    request
}

#[test]
fn where_a_digest_leaves_an_answer_open_it_is_said_and_nothing_is_guessed() {
    let schema = schema();
    let candidate = load(&schema, CARDS);
    let past = [hidden(1, 3), hidden(2, 7), refund(3, 12), recorded(4, "ping", None)];
    let diff = diff(&load(&schema, CURRENT), &candidate, &past);
    insta::assert_snapshot!(diff);
    assert_eq!(diff.open.len(), 1, "the first has too few for the digest to matter");
    let same = super::diff(&candidate, &load(&schema, CARDS), &past);
    assert!(same.open.is_empty(), "the same policies cannot answer differently");
}

#[test]
fn a_hidden_field_is_known_to_be_there_and_no_more() {
    let schema = schema();
    let asks = CARDS
        .replace("context.body has reason && context.body.reason == \"4111\"", "context.body has reason");
    let found = diff(&load(&schema, CURRENT), &load(&schema, &asks), &[hidden(1, 7)]);
    assert_eq!(found.policies.get("card"), Some(&PolicyChanges { allowed: 0, denied: 1 }), "{found}");
    let mut whole = hidden(1, 7);
    whole.digested = vec![vec!["body".to_owned()]];
    whole.body = Some(json!("digest:0123"));
    let found = diff(&load(&schema, CURRENT), &load(&schema, CARDS), &[whole]);
    assert_eq!(found.open[0].places, ["body.count", "body.reason"], "{found}");
}

#[test]
fn a_request_that_never_fitted_stays_refused() {
    let schema = schema();
    let mut request = refund(1, 3);
    request.body = None;
    request.unfit = Some("`/body/count` does not fit".to_owned());
    let everything = load(&schema, "@id(\"all\") permit (principal, action, resource);");
    assert!(diff(&load(&schema, CURRENT), &everything, std::slice::from_ref(&request)).changes.is_empty());
    let explained = explain_recorded(&everything, &request).expect("there is such an operation");
    assert_eq!(explained.explanation.code, Some(Code::PolicyError));
    assert!(explained.explanation.to_string().contains("/body/count"));
}

#[test]
fn a_recorded_request_is_explained_with_its_entities() {
    let explained = explain_recorded(&load(&schema(), CURRENT), &refund(3, 12)).expect("is one");
    assert_eq!(explained.explanation.determining, ["limit"]);
    assert!(explained.entities.to_string().contains("sandbox-abcdefghijkl"), "{}", explained.entities);
    let explained = explain_recorded(&load(&schema(), CARDS), &hidden(1, 7)).expect("is one");
    assert_eq!(explained.open, ["card"]);
    insta::assert_snapshot!(explained.explanation);
}

#[test]
fn a_recorded_request_survives_being_written_down() {
    for request in past() {
        let text = serde_json::to_string(&request).expect("written");
        assert_eq!(serde_json::from_str::<RecordedRequest>(&text).expect("read"), request);
    }
}
