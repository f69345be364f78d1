// SPDX-License-Identifier: Apache-2.0
//! Bodies that try to slip past a `forbid` on a field of the body: each is denied, and no byte of
//! it reaches the backend. Plain spellings of the same are the controls.

use crate::world::World;
use postern_common::control::{Applied, BackendConfig};
use std::sync::Arc;

const DOCUMENT: &str = r"
openapi: 3.1.0
info: { title: refunds, version: '1' }
paths:
  /refunds:
    post:
      operationId: createRefund
      requestBody:
        required: true
        content:
          application/json:
            schema:
              type: object
              required: [amount, count]
              properties:
                amount: { type: number }
                count: { type: integer }
                note: { type: [string, 'null'] }
";

/// `square` overflows for a large count: Cedar alone would skip it then, and allow.
const POLICIES: &str = r#"
@id("writes") permit (principal, action in desk::Action::"write", resource);
@id("limit") @reason("over 100 needs a person")
forbid (principal, action == desk::Action::"createRefund", resource)
when { context.body.amount.greaterThan(decimal("100.0")) };
@id("square")
forbid (principal, action == desk::Action::"createRefund", resource)
when { context.body.count * context.body.count > 100 };
@id("note")
forbid (principal, action == desk::Action::"createRefund", resource)
when { context.body has note && context.body.note like "*urgent*" };
"#;

const JSON: &str = "application/json";

/// What is tried, how it is sent, and the code that refuses it.
const SLIPS: &[(&str, &str, &[u8], &str)] = &[
    ("over the limit", JSON, br#"{"amount":100.01,"count":1}"#, "policy-denied"),
    ("over it, with an exponent", JSON, br#"{"amount":1.0001e2,"count":1}"#, "policy-denied"),
    ("a forbidden word, escaped", JSON, br#"{"amount":1,"count":1,"note":"\u0075rgent"}"#, "policy-denied"),
    ("a count whose square overflows", JSON, br#"{"amount":1,"count":3037000500}"#, "policy-error"),
    (
        "the least integer, whose square overflows",
        JSON,
        br#"{"amount":1,"count":-9223372036854775808}"#,
        "policy-error",
    ),
    (
        "an integer beyond 64 bits, signed",
        JSON,
        br#"{"amount":1,"count":9223372036854775808}"#,
        "policy-error",
    ),
    ("an integer beyond all", JSON, br#"{"amount":1,"count":92233720368547758080000}"#, "request-malformed"),
    ("a number beyond all", JSON, br#"{"amount":1e400,"count":1}"#, "request-malformed"),
    ("a number beyond decimals", JSON, br#"{"amount":1e15,"count":1}"#, "policy-error"),
    ("five decimals", JSON, br#"{"amount":0.00001,"count":1}"#, "policy-error"),
    ("five decimals, just over the limit", JSON, br#"{"amount":100.00001,"count":1}"#, "policy-error"),
    ("text for a number", JSON, br#"{"amount":"500","count":1}"#, "schema-violation"),
    ("a list of one number", JSON, br#"{"amount":[500],"count":1}"#, "schema-violation"),
    ("a fraction for an integer", JSON, br#"{"amount":1,"count":11.5}"#, "schema-violation"),
    ("no amount", JSON, br#"{"count":1}"#, "schema-violation"),
    ("null for the amount", JSON, br#"{"amount":null,"count":1}"#, "schema-violation"),
    ("no body at all", JSON, b"", "schema-violation"),
    ("the amount twice", JSON, br#"{"amount":1,"count":1,"amount":500}"#, "request-malformed"),
    (
        "the amount twice, once escaped",
        JSON,
        br#"{"amount":1,"count":1,"\u0061mount":500}"#,
        "request-malformed",
    ),
    ("a second spelling of the amount", JSON, br#"{"amount":1,"count":1,"Amount":500}"#, "policy-error"),
    ("a second spelling of the note", JSON, br#"{"amount":1,"count":1,"no_te":"urgent"}"#, "policy-error"),
    ("a number that JSON has not", JSON, br#"{"amount":NaN,"count":1}"#, "request-malformed"),
    ("a second document", JSON, br#"{"amount":1,"count":1}{"amount":500,"count":1}"#, "request-malformed"),
    ("a byte order mark", JSON, b"\xef\xbb\xbf{\"amount\":500,\"count\":1}", "request-malformed"),
    ("half a character", JSON, br#"{"amount":1,"count":1,"note":"\ud800urgent"}"#, "request-malformed"),
    ("another declared type", "text/plain", br#"{"amount":500,"count":1}"#, "content-type-refused"),
    ("a form", "application/x-www-form-urlencoded", b"amount=500&count=1", "content-type-refused"),
];

/// The same things said plainly, which pass.
const CONTROLS: &[&[u8]] = &[
    br#"{"amount":100,"count":10}"#,
    br#"{"amount":1e2,"count":-10}"#,
    br#"{"amount":0.0001,"count":0,"note":null}"#,
    br#"{"count":1,"amount":99.9999,"note":"no hurry","other":{"deep":[1]}}"#,
];

async fn world() -> World {
    let world = World::empty().await;
    let mut config = world.config("acme", &[("desk", world.plain())], Some(POLICIES));
    for backend in config.backends.values_mut() {
        let file = backend.file.clone();
        *backend = BackendConfig { file, document: Some(Arc::from(DOCUMENT)) };
    }
    assert_eq!(world.put(config).await, Applied::InForce);
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn no_body_slips_past_a_forbid_on_one_of_its_fields() {
    let world = world().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    for (what, content_type, body, code) in SLIPS {
        let answer = sandbox.call("POST", "/refunds", &[("content-type", content_type)], body).await;
        assert_eq!(answer.code(), *code, "{what}: {} {}", answer.status, answer.body);
    }
    let deep = format!("{{\"amount\":500,\"count\":1,\"other\":{}{}}}", "[".repeat(500), "]".repeat(500));
    let answer = sandbox.call("POST", "/refunds", &[("content-type", JSON)], deep.as_bytes()).await;
    assert_eq!(answer.code(), "request-malformed", "500 levels: {}", answer.body);
    world.recorded.assert_untouched("a body that tried to slip past");
    assert!(SLIPS.len() >= 20);
    for body in CONTROLS {
        let answer = sandbox.call("POST", "/refunds", &[("content-type", JSON)], body).await;
        let shown = String::from_utf8_lossy(body);
        assert_eq!(answer.status, 200, "the control {shown}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_carries_the_reason_and_the_policy_that_could_not_be_evaluated() {
    let world = world().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let denied = sandbox.call("POST", "/refunds", &[("content-type", JSON)], SLIPS[0].2).await;
    let detail = denied.body["detail"].as_str().expect("a detail");
    assert!(detail.contains("`limit`") && detail.contains("over 100 needs a person"), "{detail}");
    assert!(denied.body["decision_id"].as_str().is_some_and(|id| id.starts_with("dec_")));
    let faulty = sandbox.call("POST", "/refunds", &[("content-type", JSON)], SLIPS[3].2).await;
    let detail = faulty.body["detail"].as_str().expect("a detail");
    assert!(detail.contains("`square`") && !detail.contains("3037000500"), "{detail}");
}
