// SPDX-License-Identifier: Apache-2.0
//! The watched folder: a good edit is obeyed by the next request, a bad one changes nothing and is
//! told with its file, line and reason.

use crate::running::{Backend, Up, wait_for};
use std::fs;

const LIMIT: &str = "decimal(\"100.0\")";
const REFUND: &str = r#"{"order_id": "ord-1001", "amount": 20.0}"#;

fn refund(up: &Up, sandbox: &str) -> u64 {
    up.agent(sandbox, &["POST", "/refunds", REFUND])["status"].as_u64().expect("a status")
}

#[test]
fn an_edited_policy_is_obeyed_and_a_wrong_one_changes_nothing() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let alice = up.sandbox("alice", "c1");
    let id = alice["sandbox_id"].as_str().expect("an id");
    assert_eq!(refund(&up, id), 201);

    let file = up.config().join("policies/support-desk.cedar");
    let text = fs::read_to_string(&file).expect("reads");
    let stricter = text.replace(LIMIT, "decimal(\"10.0\")");
    fs::write(&file, &stricter).expect("writes");
    wait_for("the new policy", || up.log().contains("in force").then_some(()));
    wait_for("obedience", || (refund(&up, id) == 403).then_some(()));

    let wrong = text.replace(LIMIT, "\"a lot\"");
    let line = wrong.lines().position(|line| line.contains("a lot")).expect("is there") + 1;
    fs::write(up.config().join(".new"), &wrong).expect("writes");
    fs::rename(up.config().join(".new"), &file).expect("saves as editors do");
    let place = format!("support-desk.cedar:{line}");
    wait_for("the refusal", || up.log().contains(&place).then_some(()));
    assert!(up.log().contains("stays in force"), "{}", up.log());
    assert_eq!(refund(&up, id), 403, "the last good policy is still obeyed");

    fs::write(&file, &text).expect("writes");
    wait_for("the first policy again", || (refund(&up, id) == 201).then_some(()));
}

#[test]
fn what_a_folder_owns_the_api_may_not_change() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let text = fs::read_to_string(up.config().join("policies/support-desk.cedar")).expect("reads");
    let answer = up.call("PUT", "/policies/support-desk", Some(&serde_json::json!({ "text": text })));
    assert_eq!((answer.status, answer.code().as_str()), (409, "owned-elsewhere"), "{answer:?}");
    assert!(answer.text.contains("config"), "it says who owns it: {answer:?}");
}
