// SPDX-License-Identifier: Apache-2.0
//! The token in a file inside, where a template wants that, at each isolation: always the one of now.

use crate::bench::{Bench, claims, new_folder, on_each_level};
use http::StatusCode;
use postern_orchestrator::runtime::Isolation;
use serde_json::{Value, json};

on_each_level!(
    a_token_file_is_rotated_and_is_another_after_a_wake,
    a_token_file_of_what_is_restored_is_its_own,
    without_a_template_that_wants_one_there_is_no_token_file,
);

async fn open(level: Isolation) -> Bench {
    let bench = Bench::open(new_folder(), true, |config| config.isolation = Some(level)).await;
    let put = bench.put("/templates/told", json!({ "token_file": true })).await;
    assert_eq!(put.status, StatusCode::CREATED, "{}", put.text);
    bench
}

async fn make(bench: &Bench, conversation: &str, snapshot: Option<&str>) -> (String, String) {
    let body = json!({ "user_id": "alice", "conversation_id": conversation, "template": "told", "snapshot": snapshot });
    let made = bench.post("/sandbox?wait=running", body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    (made.field("sandbox_id"), made.field("token"))
}

async fn read(bench: &Bench, sandbox: &str) -> String {
    bench.shell(sandbox, "cat \"$SANDBOX_TOKEN_FILE\"").await
}

async fn a_token_file_is_rotated_and_is_another_after_a_wake(level: Isolation) {
    let bench = open(level).await;
    let (sandbox, token) = make(&bench, "c1", None).await;
    assert_eq!(read(&bench, &sandbox).await, token);
    let mode = bench.shell(&sandbox, "stat -c %a $SANDBOX_TOKEN_FILE; ls /tmp").await;
    assert_eq!(mode, "600\nsandbox-token\n");
    let fresh = bench.post(&format!("/tokens/{sandbox}/refresh"), json!({})).await.field("token");
    assert_ne!(fresh, token);
    assert_eq!(read(&bench, &sandbox).await, fresh);
    let stopped = bench.post(&format!("/sandbox/{sandbox}/stop"), Value::Null).await;
    assert_eq!(stopped.field("status"), "stopped", "{}", stopped.text);
    let woken = claims(&bench.orchestrator, &read(&bench, &sandbox).await);
    assert_ne!(woken.jti, claims(&bench.orchestrator, &fresh).jti, "the one of before is dead");
    let accepted = bench.told().last_session(&sandbox);
    assert!(accepted.tokens.iter().any(|token| token.jti == woken.jti), "the gateways know it: {accepted:?}");
    bench.close().await;
}

async fn a_token_file_of_what_is_restored_is_its_own(level: Isolation) {
    let bench = open(level).await;
    let (first, _) = make(&bench, "c1", None).await;
    let has_memory = level == Isolation::Gvisor;
    let taken = bench.post(&format!("/sandbox/{first}/snapshot"), json!({ "memory": has_memory })).await;
    assert_eq!(taken.status, StatusCode::CREATED, "{}", taken.text);
    let theirs = claims(&bench.orchestrator, &read(&bench, &first).await);
    assert_eq!(theirs.sandbox_id.as_str(), first, "it goes on with its own");
    let (second, token) = make(&bench, "c2", Some(&taken.field("snapshot_id"))).await;
    assert_eq!(read(&bench, &second).await, token);
    assert_eq!(claims(&bench.orchestrator, &token).sandbox_id.as_str(), second);
    bench.close().await;
}

async fn without_a_template_that_wants_one_there_is_no_token_file(level: Isolation) {
    let bench = open(level).await;
    let sandbox = bench.sandbox("c1").await;
    assert_eq!(bench.shell(&sandbox, "echo \"$SANDBOX_TOKEN_FILE\"; ls /tmp").await, "\n");
    let env = json!({ "SANDBOX_TOKEN_FILE": "/data/user/token" });
    let body = json!({ "user_id": "alice", "conversation_id": "c2", "env": env });
    let refused = bench.post("/sandbox", body).await;
    assert_eq!(refused.code(), "invalid-input", "it is the template's to say: {}", refused.text);
    bench.close().await;
}
