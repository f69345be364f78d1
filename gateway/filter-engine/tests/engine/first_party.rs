// SPDX-License-Identifier: Apache-2.0
//! First-party filters do in the engine what they do natively.

use crate::fixture::{call, configured, engine, load};
use http::HeaderMap;
use postern_filter_engine::{Outcome, Rejection};
use serde_json::json;

fn rejection(outcome: &Outcome) -> &Rejection {
    match outcome {
        Outcome::Reject(rejection) => rejection,
        other => panic!("expected a rejection, got {other:?}"),
    }
}

#[tokio::test]
async fn claims_become_headers_and_what_the_sandbox_sent_is_replaced() {
    let engine = engine();
    let filter = configured(&load(&engine, "claim-injection"), json!({}));
    let called = call(&filter, &[("x-user-plan", "enterprise"), ("x-user-locale", "forged")], "").await;
    let Ok(Outcome::Changed(changes)) = called.outcome else {
        panic!("expected changes, got {:?}", called.outcome)
    };
    let mut headers = HeaderMap::new();
    headers.insert("x-user-plan", http::HeaderValue::from_static("enterprise"));
    headers.insert("x-user-locale", http::HeaderValue::from_static("forged"));
    changes.apply_to_headers(&mut headers);
    assert_eq!(headers.get("x-user-plan").map(http::HeaderValue::as_bytes), Some(&b"free"[..]));
    assert!(headers.get("x-user-locale").is_none());
}

#[tokio::test]
async fn an_attachments_settings_replace_the_manifests_and_are_checked() {
    let engine = engine();
    let loaded = load(&engine, "claim-injection");
    let filter = configured(&loaded, json!({"headers": {"x-team": "team"}, "required": true}));
    let outcome = call(&filter, &[], "").await.outcome.expect("a verdict");
    assert_eq!(rejection(&outcome).code(), "claim-missing");
    let bad = serde_json::from_value(json!({"headers": {"x": 1}, "typo": true})).expect("an object");
    let refused = loaded.configure(&bad).expect_err("is refused");
    assert_eq!(refused.mistakes.len(), 2, "{refused}");
}

#[tokio::test]
async fn a_card_number_is_refused_with_the_filters_own_code_and_counted() {
    let engine = engine();
    let loaded = load(&engine, "card-guard");
    let filter = configured(&loaded, json!({}));
    let outcome = call(&filter, &[], r#"{"note":"it is 4111 1111 1111 1111"}"#).await.outcome;
    let outcome = outcome.expect("a verdict");
    assert_eq!((rejection(&outcome).status(), rejection(&outcome).code()), (422, "card-number"));
    let outcome = call(&filter, &[], r#"{"note":"it ends in 1111"}"#).await.outcome;
    assert_eq!(outcome, Ok(Outcome::Continue));
    assert_eq!(loaded.counters().collect::<Vec<_>>(), [("refused", 1)]);
}

#[tokio::test]
async fn the_deepest_json_that_is_read_fits_the_guests_stack() {
    let engine = engine();
    let filter = configured(&load(&engine, "card-guard"), json!({}));
    for depth in [100, 127, 128, 1000] {
        let body = format!("{}\"4111111111111111\"{}", "[".repeat(depth), "]".repeat(depth));
        let outcome = call(&filter, &[], &body).await.outcome;
        let outcome = outcome.unwrap_or_else(|failure| panic!("depth {depth}: {failure}"));
        assert_eq!(rejection(&outcome).code(), "card-number", "depth {depth}");
        let objects = format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        assert_eq!(call(&filter, &[], &objects).await.outcome, Ok(Outcome::Continue), "depth {depth}");
    }
}

#[tokio::test]
async fn a_body_of_64_kib_is_read_whole() {
    let engine = engine();
    let filter = configured(&load(&engine, "card-guard"), json!({}));
    let body = json!({"filler": "x".repeat(65_000), "note": "4111111111111111"}).to_string();
    let outcome = call(&filter, &[], &body).await.outcome.expect("a verdict");
    assert_eq!(rejection(&outcome).code(), "card-number");
}

#[tokio::test]
async fn a_body_that_does_not_fit_a_schema_of_the_manifest_is_refused_with_its_places() {
    let engine = engine();
    let settings = json!({"schemas": {"addNote": "refund"}});
    let filter = configured(&load(&engine, "schema-validation"), settings);
    let outcome =
        call(&filter, &[], r#"{"order_id":"ord-1","amount":501}"#).await.outcome.expect("a verdict");
    assert_eq!((rejection(&outcome).status(), rejection(&outcome).code()), (422, "schema-violation"));
    assert!(rejection(&outcome).message().contains("/amount"), "{}", rejection(&outcome).message());
    assert!(!rejection(&outcome).message().contains("501"), "{}", rejection(&outcome).message());
    let outcome = call(&filter, &[], r#"{"order_id":"ord-1","amount":500}"#).await.outcome;
    assert_eq!(outcome, Ok(Outcome::Continue));
}

#[tokio::test]
async fn buckets_outlive_instances_and_each_key_has_its_own() {
    let engine = engine();
    let slow = crate::fixture::manifest("rate-limit").replace("per_second = 5.0", "per_second = 0.001");
    let loaded = crate::fixture::load_with(&engine, "rate-limit", "acme", &slow).expect("loads");
    let filter = configured(&loaded, json!({"by": "user", "costs": {"addNote": 10}}));
    for _ in 0..2 {
        assert_eq!(call(&filter, &[], "").await.outcome, Ok(Outcome::Continue));
    }
    let outcome = call(&filter, &[], "").await.outcome.expect("a verdict");
    assert_eq!((rejection(&outcome).status(), rejection(&outcome).code()), (429, "rate-limited"));
    let other = configured(&loaded, json!({"by": "conversation", "costs": {"addNote": 10}}));
    assert_eq!(call(&other, &[], "").await.outcome, Ok(Outcome::Continue), "another key");
    assert_eq!(loaded.counters().collect::<Vec<_>>(), [("limited", 1)]);
}
