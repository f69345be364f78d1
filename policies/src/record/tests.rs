// SPDX-License-Identifier: Apache-2.0
//! What is kept of a request, and what is not.

use super::*;
use crate::fixture::{backend, session};
use crate::{TenantPolicies, schema_from_openapi};
use serde_json::json;

const DOCUMENT: &str = r"
openapi: 3.1.0
info: { title: desk, version: '1' }
paths:
  /refunds/{id}:
    post:
      operationId: createRefund
      parameters:
        - { name: id, in: path, required: true, schema: { type: string } }
        - { name: pin, in: query, schema: { type: string, x-postern-sensitive: true } }
      requestBody:
        content:
          application/json:
            schema:
              type: object
              required: [amount, card]
              properties:
                amount: { type: number }
                card: { type: string, x-postern-sensitive: true }
                lines:
                  type: array
                  items:
                    type: object
                    properties:
                      sku: { type: string }
                      code: { type: string, x-postern-sensitive: true }
";

fn kept(query: &Value, body: &Value) -> Option<String> {
    let document = postern_openapi::Document::parse(DOCUMENT).expect("the document is right");
    let schema = TenantSchema::build(
        &"acme".parse().expect("a name"),
        &[schema_from_openapi(&backend("desk"), &document)],
    )
    .expect("a schema");
    let entities = SessionEntities::build(&schema, &session(&["*"])).expect("a session");
    let (desk, operation) = (backend("desk"), "createRefund".parse().expect("an id"));
    let object = |value: &Value| value.as_object().cloned().expect("an object");
    let (path, query, header) = (object(&json!({"id": "7"})), object(query), Map::new());
    let facts = RequestFacts {
        path: &path,
        query: &query,
        header: &header,
        body: Some(body),
        peer: PeerFacts::Socket,
        now: Timestamp::UNIX_EPOCH,
    };
    let action = schema.action(&desk, &operation).expect("an operation");
    let request = TypedRequest::new(&entities, action, &facts);
    let text = record(&DecisionId::generate(), &entities, (&desk, &operation), &request, &facts)?;
    let recorded = RecordedRequest::read(&text).expect("is what it says");
    let policies = TenantPolicies::load(&schema, None).unwrap_or_else(|_| panic!("the baseline is right"));
    let explained = crate::explain_recorded(&policies, &recorded).expect("is explained");
    assert_eq!(explained.explanation.refusal.is_some(), recorded.unfit.is_some(), "fits when it is revived");
    Some(text)
}

#[test]
fn sensitive_fields_are_digests_and_undeclared_ones_are_not_kept() {
    let body = |card: &str| {
        json!({"amount": 1.5, "card": card, "hidden": "secret-1",
            "lines": [{"sku": "a", "code": "secret-2"}, {"sku": "b", "more": "secret-3"}]})
    };
    let text = kept(&json!({"pin": "secret-4"}), &body("secret-5")).expect("is small");
    assert!(!text.contains("secret"), "{text}");
    let recorded = RecordedRequest::read(&text).expect("is one");
    let places: Vec<String> = recorded.digested.iter().map(|place| place.join(".")).collect();
    assert_eq!(places, ["body.card", "body.lines.*.code", "query.pin"]);
    let body_kept = recorded.body.expect("a body");
    assert_eq!((&body_kept["amount"], &body_kept["lines"][1]["sku"]), (&json!(1.5), &json!("b")));
    let card =
        |text: &str| RecordedRequest::read(text).expect("is one").body.expect("a body")["card"].clone();
    let same = kept(&json!({}), &body("secret-5")).expect("is small");
    let other = kept(&json!({}), &body("secret-6")).expect("is small");
    assert_eq!(card(&text), card(&same), "equal values have equal digests");
    assert_ne!(card(&text), card(&other));
}

#[test]
fn of_what_does_not_fit_only_the_reason_is_kept() {
    let text = kept(&json!({}), &json!({"amount": "secret", "card": "secret"})).expect("is small");
    assert!(!text.contains("secret"), "{text}");
    let recorded = RecordedRequest::read(&text).expect("is one");
    assert!(recorded.unfit.is_some_and(|unfit| unfit.contains("/body/amount")) && recorded.body.is_none());
}

#[test]
fn what_is_too_large_is_not_kept() {
    let lines: Vec<Value> = (0..2_000).map(|number| json!({"sku": format!("number {number}")})).collect();
    assert!(kept(&json!({}), &json!({"amount": 1, "card": "x", "lines": lines})).is_none());
}
