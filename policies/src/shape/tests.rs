// SPDX-License-Identifier: Apache-2.0
//! Which bodies fit and which are refused, through decisions.

use crate::TenantPolicies;
use crate::fixture::{Asked, decide, load, schema};
use postern_common::problem::Code;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::LazyLock;

/// A permit for everything, and a forbid on two fields of the body that a caller wants to avoid.
const FORBID: &str = r#"
@id("all") permit (principal, action, resource);
@id("limit") forbid (principal, action == support_desk::Action::"createRefund", resource)
when { context.body.amount.greaterThan(decimal("100.0")) || context.body.count > 10 };
"#;

/// Loaded once: thousands of bodies are held against it.
fn policies() -> &'static TenantPolicies {
    static LOADED: LazyLock<TenantPolicies> = LazyLock::new(|| load(&schema(), FORBID));
    &LOADED
}

fn body(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn bodies_that_try_to_slip_past_a_forbid_are_denied() {
    let policies = policies();
    let denied = [
        // Over the limit in plain sight.
        r#"{"amount": 100.0001, "count": 1}"#,
        r#"{"amount": 1e3, "count": 1}"#,
        r#"{"amount": 1, "count": 11}"#,
        // Too large for the type.
        r#"{"amount": 1e300, "count": 1}"#,
        r#"{"amount": 922337203685477.5808, "count": 1}"#,
        r#"{"amount": 18446744073709551615, "count": 1}"#,
        r#"{"amount": 1, "count": 9223372036854775808}"#,
        r#"{"amount": 1, "count": 1e30}"#,
        // Too fine for it.
        r#"{"amount": 0.00001, "count": 1}"#,
        r#"{"amount": 100.00001, "count": 1}"#,
        r#"{"amount": 1, "count": 1.5}"#,
        // Of another type.
        r#"{"amount": "500", "count": 1}"#,
        r#"{"amount": [500], "count": 1}"#,
        r#"{"amount": {"value": 500}, "count": 1}"#,
        r#"{"amount": true, "count": 1}"#,
        r#"{"amount": 1, "count": "11"}"#,
        // Not there, or not there for one of two readers.
        r#"{"count": 1}"#,
        r#"{"amount": null, "count": 1}"#,
        r#"{"Amount": 500, "amount": 1, "count": 1}"#,
        r#"{"a-mount": 500, "amount": 1, "count": 1}"#,
        // No such body at all.
        "[]",
        "null",
        "\"amount\"",
        r#"{"amount": 1, "count": 1, "tags": "x"}"#,
        r#"{"amount": 1, "count": 1, "tags": ["x", 1]}"#,
        r#"{"amount": 1, "count": 1, "customer": {"id": 7}}"#,
        r#"{"amount": 1, "count": 1, "customer": {"id": "7", "ID": "8"}}"#,
    ];
    for text in denied {
        let decision = decide(policies, &["*"], &Asked::refund(body(text)));
        assert!(!decision.is_allowed(), "{text}");
    }
    let nothing = Asked { body: None, ..Asked::refund(json!({})) };
    assert_eq!(decide(policies, &["*"], &nothing).code(), Some(Code::PolicyError));
}

#[test]
fn bodies_within_the_limit_fit_however_their_numbers_are_spelt() {
    let policies = policies();
    let allowed = [
        r#"{"amount": 100, "count": 10}"#,
        r#"{"amount": 100.0, "count": 10.0}"#,
        r#"{"amount": 1e2, "count": 1e1}"#,
        r#"{"amount": 0.0001, "count": -3}"#,
        r#"{"amount": -0.5, "count": 0}"#,
        r#"{"amount": 1, "count": 1, "note": null, "urgent": false, "tags": []}"#,
        r#"{"amount": 1, "count": 1, "customer": {"id": "x", "2nd name": "y"}, "undeclared": {"deep": [1]}}"#,
        r#"{"amount": 1, "count": 1, "anything": [1, null, {"a": "b"}]}"#,
    ];
    for text in allowed {
        let decision = decide(policies, &["*"], &Asked::refund(body(text)));
        assert!(decision.is_allowed(), "{text}: {:?}", decision.refusal());
    }
}

#[test]
fn parameters_are_typed_too() {
    let policies = policies();
    let asked = |query: Value| Asked { query, ..Asked::new("listOrders") };
    assert!(decide(policies, &["*"], &asked(json!({"user_id": "a", "limit": 3}))).is_allowed());
    for query in [
        json!({}),
        json!({"user_id": 1}),
        json!({"user_id": "a", "limit": "3"}),
        json!({"user_id": "a", "User-Id": "b"}),
    ] {
        assert_eq!(
            decide(policies, &["*"], &asked(query.clone())).code(),
            Some(Code::PolicyError),
            "{query}"
        );
    }
}

#[test]
fn the_refusal_names_the_place_and_never_the_value() {
    let decision = decide(
        policies(),
        &["*"],
        &Asked::refund(json!({"amount": 1, "count": 1, "tags": ["ok", {"secret-a/b": 1}]})),
    );
    let said = decision.refusal().expect("it does not fit").to_string();
    assert_eq!(said, "`/body/tags/1` does not fit the typed context: text");
}

proptest! {
    /// Cents within the decimal's range: whatever fits is compared as the number that was sent.
    #[test]
    fn a_decimal_is_neither_rounded_nor_cut(ten_thousandths in -2_000_000_i64..2_000_000) {
        let text = format!(r#"{{"amount": {}{}.{:04}, "count": 1}}"#,
            if ten_thousandths < 0 { "-" } else { "" },
            ten_thousandths.abs() / 10_000,
            ten_thousandths.abs() % 10_000);
        let decision = decide(policies(), &["*"], &Asked::refund(body(&text)));
        prop_assert_eq!(decision.is_allowed(), ten_thousandths <= 1_000_000, "{}", text);
    }

    #[test]
    fn no_body_whatever_is_allowed_with_a_large_amount(amount in any::<f64>(), count in any::<i64>()) {
        let decision = decide(policies(), &["*"], &Asked::refund(json!({"amount": amount, "count": count})));
        prop_assert!(!decision.is_allowed() || (amount <= 100.0 && count <= 10), "{amount} {count}");
    }
}
