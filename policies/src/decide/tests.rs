// SPDX-License-Identifier: Apache-2.0
//! What requests of a small tenant are answered.

use crate::fixture::{Asked, decide, desk, load, schema, session, source};
use crate::{Refused, SessionEntities, TenantPolicies, TenantSchema};
use postern_common::decision::{Mode, Verdict};
use postern_common::problem::Code;
use serde_json::json;

const LIMIT: &str = r#"
@id("writes") permit (principal, action in support_desk::Action::"write", resource);
@id("reads") permit (principal, action in support_desk::Action::"read", resource);
@id("refund-limit") @reason("refunds over 100 need a person")
forbid (principal, action == support_desk::Action::"createRefund", resource)
when { context.body.amount.greaterThan(decimal("100.0")) };
"#;

fn ids(parts: &[postern_common::decision::PolicyPart]) -> Vec<&str> {
    parts.iter().map(|part| part.id.as_str()).collect()
}

#[test]
fn a_forbid_on_a_field_of_the_body_denies_with_its_id_and_reason() {
    let policies = load(&schema(), LIMIT);
    let small = decide(&policies, &["*"], &Asked::refund(json!({"amount": 100, "count": 1})));
    assert_eq!((small.verdict(), small.code()), (Verdict::Allow, None));
    assert_eq!(ids(&small.determining()), ["writes"]);

    let large = decide(&policies, &["*"], &Asked::refund(json!({"amount": 100.01, "count": 1})));
    assert_eq!((large.verdict(), large.code()), (Verdict::Deny, Some(Code::PolicyDenied)));
    let determining = large.determining();
    assert_eq!(ids(&determining), ["refund-limit"]);
    assert_eq!(determining[0].reason.as_deref(), Some("refunds over 100 need a person"));
}

#[test]
fn what_the_token_does_not_name_is_denied_whatever_the_tenant_permits() {
    let policies = load(&schema(), LIMIT);
    for granted in [
        "*",
        "support-desk/createRefund",
        "support-desk/write",
        "support-desk/money",
        "createRefund",
        "write",
    ] {
        let decision = decide(&policies, &[granted], &Asked::refund(json!({"amount": 1, "count": 1})));
        assert!(decision.is_allowed(), "{granted}: {decision:?}");
    }
    for granted in ["support-desk/read", "support-desk/listOrders", "other/write", "files:sync"] {
        let decision = decide(&policies, &[granted], &Asked::refund(json!({"amount": 1, "count": 1})));
        assert_eq!(
            ids(&decision.determining()),
            ["postern-operations:support-desk/createRefund"],
            "{granted}"
        );
    }
    assert!(!decide(&policies, &[], &Asked::list()).is_allowed());
}

#[test]
fn a_tenant_that_never_put_a_set_is_permitted_and_an_empty_set_permits_nothing() {
    let schema = schema();
    let never = TenantPolicies::load(&schema, None).expect("the baseline is right");
    assert_eq!(ids(&decide(&never, &["*"], &Asked::list()).determining()), ["postern-permit"]);
    let empty = TenantPolicies::load(&schema, Some(&[])).expect("the baseline is right");
    let denied = decide(&empty, &["*"], &Asked::list());
    assert_eq!(denied.code(), Some(Code::PolicyDenied));
    assert!(denied.determining().is_empty());
}

#[test]
fn an_erring_forbid_denies_where_cedar_would_allow() {
    let overflow = r#"
        @id("p") permit (principal, action, resource);
        @id("f") forbid (principal, action == support_desk::Action::"createRefund", resource)
        when { context.body.count * 2 > 1000 };"#;
    let policies = load(&schema(), overflow);
    let decision = decide(&policies, &["*"], &Asked::refund(json!({"amount": 1, "count": i64::MAX})));
    assert_eq!(decision.code(), Some(Code::PolicyError));
    assert_eq!(ids(&decision.determining()), ["f"]);
    assert_eq!(decision.faults()[0].id, "f");
    let cedar = decision.cedar().expect("policies were asked");
    assert!(cedar.is_allowed, "the control: Cedar alone skips the forbid");
    assert_eq!((cedar.reasons, cedar.errors), (vec!["p".to_owned()], vec!["f".to_owned()]));
}

#[test]
fn an_erring_permit_only_fails_to_permit() {
    let policies = load(
        &schema(),
        r#"@id("p") permit (principal, action == support_desk::Action::"createRefund", resource) when { context.body.count * 2 > 1 };
           @id("q") permit (principal, action, resource);"#,
    );
    let decision = decide(&policies, &["*"], &Asked::refund(json!({"amount": 1, "count": i64::MAX})));
    assert!(decision.is_allowed());
    assert_eq!(ids(&decision.determining()), ["q"]);
}

#[test]
fn shadow_policies_decide_nothing_and_their_answer_is_kept() {
    let text = LIMIT.replace("@id(\"refund-limit\")", "@id(\"refund-limit\") @mode(\"shadow\")");
    let policies = load(&schema(), &text);
    let decision = decide(&policies, &["*"], &Asked::refund(json!({"amount": 500, "count": 1})));
    assert!(decision.is_allowed());
    let shadow = decision.shadow().expect("a shadow policy matched");
    assert_eq!(shadow.verdict, Verdict::Deny);
    assert_eq!((shadow.policies[0].id.as_str(), shadow.policies[0].mode), ("refund-limit", Mode::Shadow));
    assert!(!decision.cedar().expect("policies were asked").is_allowed, "Cedar knows no modes");
    assert!(decide(&policies, &["*"], &Asked::list()).shadow().is_none());
}

#[test]
fn policies_see_labels_claims_user_and_time() {
    let seen = r#"
        @id("all") permit (principal in Postern::User::"acme/alice", action == support_desk::Action::"ping", resource)
        when {
          principal.labels.hasTag("plan") && principal.labels.getTag("plan") == "pro" &&
          context.claims.hasTag("age") && context.claims.getTag("age") == "41" &&
          principal.conversation == "conversation 1" && principal.isolation == "gvisor" &&
          context.peer.kind == "socket" && !(context.peer has address) &&
          context.now == datetime("2026-03-04T05:06:07Z") &&
          action in support_desk::Action::"read" && resource == Postern::Backend::"acme/support-desk"
        };"#;
    let decision = decide(&load(&schema(), seen), &["*"], &Asked::new("ping"));
    assert!(decision.is_allowed(), "{decision:?}");
}

#[test]
fn entities_of_another_configuration_deny() {
    let policies = load(&schema(), LIMIT);
    let other = schema();
    let session = SessionEntities::build(&other, &session(&["*"])).expect("a session");
    let decision = policies.decide(&session, &Asked::list().typed(&other, &session));
    assert_eq!((decision.code(), decision.refusal()), (Some(Code::PolicyError), Some(&Refused::Stale)));
}

#[test]
fn a_session_of_another_tenant_has_no_entities_here() {
    let other = TenantSchema::build(&"other".parse().expect("a name"), &[desk()]).expect("a schema");
    assert!(SessionEntities::build(&other, &session(&["*"])).is_err());
}

#[test]
fn a_reload_takes_over_what_did_not_change_and_drops_what_is_gone() {
    let schema = schema();
    let first = load(&schema, LIMIT);
    let without = LIMIT.replace("@id(\"reads\")", "@id(\"reads-again\")");
    let second = first.reload(&schema, Some(&[source(&without)])).expect("right");
    assert!(second.ids().contains(&"reads-again") && !second.ids().contains(&"reads"));
    assert_eq!(ids(&decide(&second, &["*"], &Asked::list()).determining()), ["reads-again"]);
    let third = second.reload(&schema, None).expect("right");
    assert_eq!(ids(&decide(&third, &["*"], &Asked::list()).determining()), ["postern-permit"]);
    assert!(first.reload(&schema, Some(&[source("permit;")])).is_err());
    assert_eq!(ids(&decide(&first, &["*"], &Asked::list()).determining()), ["reads"]);
}

#[test]
fn the_time_is_there_however_a_policy_reaches_for_it() {
    for condition in [
        r#"context.now == datetime("2026-03-04T05:06:07Z")"#,
        r#"context["now"].toDate() == datetime("2026-03-04")"#,
        r#"context.peer.kind == "socket" && context.now > datetime("2026-03-04")"#,
        r#"(if context.peer.kind == "socket" then context else context).now > datetime("2026-03-04")"#,
        r#"{ said: context }.said.now > datetime("2026-03-04")"#,
        "context has now",
    ] {
        let set = format!(
            "@id(\"timed\") permit (principal, action == support_desk::Action::\"ping\", resource) when {{ {condition} }};"
        );
        let decision = decide(&load(&schema(), &set), &["*"], &Asked::new("ping"));
        assert!(decision.is_allowed(), "{condition}: {:?}", decision.faults());
    }
}

#[test]
fn a_time_that_cedar_cannot_hold_denies_where_a_policy_looks_at_it() {
    let asked = Asked { now: "-000300-01-01T00:00:00Z", ..Asked::new("ping") };
    let set = "@id(\"all\") permit (principal, action, resource);\n@id(\"late\") forbid (principal, action == support_desk::Action::\"ping\", resource) when { context.now > datetime(\"2026-03-04\") };";
    let decision = decide(&load(&schema(), set), &["*"], &asked);
    assert_eq!(decision.code(), Some(Code::PolicyError));
    assert_eq!(
        decision.refusal().map(ToString::to_string).as_deref(),
        Some("`/now` does not fit the typed context: a time that Cedar can hold")
    );
}
