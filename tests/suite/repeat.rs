// SPDX-License-Identifier: Apache-2.0
//! POST /sandbox again: the same user finds the sandbox, another learns nothing, and a different
//! wish is refused by name.

use crate::running::{Backend, Up};
use serde_json::{Value, json};

fn post(up: &Up, body: &Value) -> (u16, Value) {
    let answer = up.call("POST", "/sandbox?wait=running", Some(body));
    (answer.status, answer.json())
}

#[test]
fn a_repeat_finds_the_sandbox_and_nobody_elses() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let wish =
        json!({"user_id": "alice", "conversation_id": "c1", "env": {"A": "1"}, "claims": {"plan": "gold"}});
    let (status, first) = post(&up, &wish);
    assert_eq!(status, 201, "{first}");

    let (status, again) = post(&up, &wish);
    assert_eq!((status, &again["sandbox_id"]), (200, &first["sandbox_id"]));
    assert_ne!(again["token"], first["token"], "a repeat has a fresh token");

    let (status, less) = post(&up, &json!({"user_id": "alice", "conversation_id": "c1"}));
    assert_eq!(
        (status, &less["sandbox_id"]),
        (200, &first["sandbox_id"]),
        "what is left out matches anything"
    );

    let (status, other) = post(&up, &json!({"user_id": "mallory", "conversation_id": "c1"}));
    assert_eq!((status, &other["code"]), (409, &json!("conversation-of-another-user")));
    let said = other.to_string();
    for of_alice in [
        "alice",
        "gold",
        first["sandbox_id"].as_str().expect("an id"),
        first["token"].as_str().expect("a token"),
    ] {
        assert!(!said.contains(of_alice), "{of_alice} in {said}");
    }
}

#[test]
fn a_repeat_that_wishes_otherwise_is_told_what_differs() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let (status, first) = post(&up, &json!({"user_id": "alice", "conversation_id": "c1", "env": {"A": "1"}}));
    assert_eq!(status, 201, "{first}");
    for (field, value) in [
        ("env", json!({"A": "2"})),
        ("claims", json!({"plan": "gold"})),
        ("operations", json!(["support-desk/read"])),
    ] {
        let (status, answer) = post(&up, &json!({"user_id": "alice", "conversation_id": "c1", field: value}));
        assert_eq!((status, &answer["code"]), (409, &json!("sandbox-differs")), "{field}: {answer}");
        assert!(answer.to_string().contains(field), "{field}: {answer}");
    }
}
