// SPDX-License-Identifier: Apache-2.0
use super::*;
use postern_sdk_wasm::harness::{Case, Outcome};
use serde_json::json;

/// Numbers that payment networks publish for tests.
const CARDS: [&str; 7] = [
    "4111111111111111",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "5555555555554444",
    "2223003122003222",
    "378282246310005",
    "30569309025904",
];

fn run(body: impl Into<Vec<u8>>) -> Outcome {
    Case::new("POST", "/notes").body(body).run::<CardGuard>().expect("runs")
}

fn is_refused(body: impl Into<Vec<u8>>) -> bool {
    run(body).rejection().is_some()
}

#[test]
fn a_card_number_in_a_text_is_refused_with_a_code_and_without_the_number() {
    for card in CARDS {
        let outcome = run(json!({"note": format!("pay with {card} please")}).to_string());
        let rejection = outcome.rejection().expect(card);
        assert_eq!((rejection.status, rejection.code.as_str()), (422, "card-number"));
        assert!(!rejection.message.contains(|letter: char| letter.is_ascii_digit()));
        assert_eq!(outcome.counters.get("refused"), Some(&1));
    }
}

#[test]
fn other_long_numbers_pass() {
    for text in [
        "order 4111111111111112",
        "call +49 30 901820 or 0049 30 901821",
        "2026-11-23 10:15:30.123456789",
        "0000000000000000",
        "41111111",
        "4111 1111   1111 1111",
        "id 550e8400-e29b-41d4-a716-446655440000",
    ] {
        assert!(!is_refused(json!({"note": text}).to_string()), "{text}");
    }
    assert!(!is_refused(""));
}

#[test]
fn no_spelling_in_json_hides_a_number() {
    for body in [
        r#"{"note":"\u0034\u0031111111111111111"}"#,
        r#"{"note":4111111111111111}"#,
        r#"{"4111111111111111":1}"#,
        r#"{"a":[{"b":["x","4111111111111111"]}]}"#,
        r#""4111111111111111""#,
    ] {
        assert!(is_refused(body), "{body}");
    }
}

#[test]
fn a_number_beside_other_digits_is_still_found() {
    assert!(is_refused(r#"{"note":"994111111111111111"}"#));
    assert!(is_refused(r#"{"note":"4111111111111111 12/29 123"}"#));
}

#[test]
fn a_body_that_is_not_json_or_too_deep_is_looked_at_as_text() {
    assert!(is_refused("note=4111111111111111&x=1"));
    let deep = format!("{}\"4111111111111111\"{}", "[".repeat(200), "]".repeat(200));
    assert!(is_refused(deep));
    assert!(is_refused(r#"{"a":1} 4111111111111111"#));
}

#[test]
fn only_configured_fields_are_looked_at_with_all_that_lies_in_them() {
    let refused = |body: serde_json::Value| {
        let case = Case::post_json("/notes", &body).config(json!({"fields": ["note"]}));
        case.run::<CardGuard>().expect("runs").rejection().is_some()
    };
    assert!(refused(json!({"note": "4111111111111111"})));
    assert!(refused(json!({"a": {"note": {"text": ["4111111111111111"]}}})));
    assert!(!refused(json!({"reference": "4111111111111111", "note": "fine"})));
}
