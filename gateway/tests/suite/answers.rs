// SPDX-License-Identifier: Apache-2.0
//! Filters on the way back: what they change, refuse and fail on; whole answers and streams.

use crate::filters::{artefact, chain, name, patient, world};
use crate::plugins::manifest;
use crate::world::{PATIENCE, Sandbox, World, eventually, read_until};
use postern_common::control::Applied;
use postern_common::decision::{FilterPhase, Mode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const SECRET: &str = "AKIAABCDEFGHIJKLMNOP";

/// A gateway whose tenant `acme` has `hostile` on its responses, in one of its ways.
async fn hostile(way: &str, body: &str, more: Value) -> (World, Sandbox) {
    let world = world().await;
    let mut attached = json!({ "name": "hostile", "config": { "way": way } });
    attached.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let mut config = chain(&world, "acme", &[], &json!([attached]));
    let manifest = manifest("hostile")
        .replace(r#"["request", "response"]"#, r#"["response"]"#)
        .replace(r#"request = "64KiB", response = "64KiB""#, body)
        .replace(r#"time = "20ms""#, r#"time = "500ms""#);
    config.filters.insert(name("hostile"), artefact("hostile", "acme", 1, &manifest));
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    (world, sandbox)
}

const WHOLE: &str = r#"response = "64KiB""#;
const PARTS: &str = r#"response_chunk = "4KiB""#;
const NONE: &str = "";

async fn redacting() -> (World, Sandbox) {
    let world = world().await;
    let mut config = chain(&world, "acme", &[], &json!(["secret-redaction"]));
    let redaction = artefact("secret-redaction", "acme", 1, &patient("secret-redaction"));
    config.filters.insert(name("secret-redaction"), redaction);
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    (world, sandbox)
}

/// The whole answer as it stands on the wire.
async fn answer_to(sandbox: &Sandbox, method: &str, target: &str, rest: &str, body: &str) -> String {
    let mut stream = sandbox.connect().await;
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let head = sandbox.head(method, target, &format!("connection: close\r\n{length}{rest}"));
    stream.write_all(format!("{head}{body}").as_bytes()).await.expect("writes");
    let mut read = Vec::new();
    let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read));
    drop(reading.await.expect("in time"));
    String::from_utf8_lossy(&read).into_owned()
}

async fn upload(sandbox: &Sandbox, body: &str) -> String {
    answer_to(sandbox, "PUT", "/uploads", "content-type: application/octet-stream\r\n", body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_in_an_answer_are_blanked_and_the_rest_is_as_it_was() {
    let (world, sandbox) = redacting().await;
    let answer = upload(&sandbox, &format!("key {SECRET} end")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("key [redacted] end") && !answer.contains(SECRET), "{answer}");
    let (head, _) = answer.split_once("\r\n\r\n").expect("has a head");
    assert!(!head.contains("content-length"), "the length is not what the backend said: {head}");
    let records = world.decisions();
    let ran = &records.last().expect("a record").filters;
    assert_eq!((ran.len(), ran[0].verdict.as_str()), (1, "changed"));
    assert_eq!((ran[0].phase, ran[0].mode), (Some(FilterPhase::Response), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_redacted_as_it_comes_also_where_it_cuts_a_secret_in_two() {
    let (world, sandbox) = redacting().await;
    let mut stream = sandbox.connect().await;
    stream.write_all(sandbox.head("GET", "/events", "").as_bytes()).await.expect("writes");
    eventually("the backend streams", || world.recorded.open_streams() == 1).await;
    world.recorded.send_event("data: one\n\n").await;
    let first = read_until(&mut stream, "data: one").await;
    assert!(first.starts_with("HTTP/1.1 200 "), "a stream streams: {first}");
    world.recorded.send_event("data: use AKIAABCDEF").await;
    world.recorded.send_event("GHIJKLMNOP now\n\n").await;
    let second = read_until(&mut stream, " now").await;
    assert!(second.contains("data: use ") && second.contains("[redacted]"), "{second}");
    assert!(!second.contains("AKIA"), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_asked_for_answers_that_a_filter_can_read() {
    let (_world, sandbox) = redacting().await;
    let asked = "accept-encoding: gzip\r\nrange: bytes=0-3\r\naccept: text/plain\r\n";
    let answer = answer_to(&sandbox, "GET", "/orders", asked, "").await;
    assert!(!answer.contains("gzip") && !answer.contains("bytes=0-3"), "{answer}");
    assert!(answer.contains("text/plain"), "the control: other headers go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_changed_refused_or_failed_on_whole() {
    for (way, body, status, wanted) in [
        ("response-body", WHOLE, 200, r#"{"rewritten":true}"#),
        ("response-body", PARTS, 200, r#"{"rewritten":true}"#),
        ("", NONE, 200, "x-hostile: was here"),
        ("", PARTS, 200, "x-hostile: was here"),
        ("response-reject", WHOLE, 403, "(not-yours)"),
        ("response-reject", PARTS, 403, "(not-yours)"),
        ("response-reject", NONE, 403, "(not-yours)"),
        ("response-trap", WHOLE, 500, "filter-failed"),
        ("response-trap", PARTS, 500, "filter-failed"),
        ("response-loop", PARTS, 500, "filter-failed"),
        ("response-cookie", NONE, 500, "filter-failed"),
    ] {
        let (_world, sandbox) = hostile(way, body, json!({})).await;
        let answer = answer_to(&sandbox, "GET", "/orders", "", "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{way} {body}: {answer}");
        assert!(answer.contains(wanted), "{way} {body}: {answer}");
        let is_backends = answer.contains("/api/orders");
        assert_eq!(is_backends, way.is_empty(), "{way} {body}: nothing of the backend's: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_too_long_to_be_seen_whole_is_refused_unless_the_tenant_lets_it_pass() {
    let long = "a".repeat(80_000);
    let (_world, sandbox) = hostile("", WHOLE, json!({})).await;
    let answer = upload(&sandbox, &long).await;
    assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("filter-failed"), "{answer:.300}");
    for more in [json!({ "on_failure": "open" }), json!({ "mode": "shadow" })] {
        let (world, sandbox) = hostile("", WHOLE, more.clone()).await;
        let answer = upload(&sandbox, &long).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(&long), "{more}: {answer:.300}");
        assert!(!answer.contains("x-hostile"), "{more}: it did not see it: {answer:.300}");
        let records = world.decisions();
        let verdict = records.last().expect("a record").filters[0].verdict.clone();
        assert!(verdict == "failed" || verdict == "unread", "{more}: {verdict}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_after_the_head_breaks_the_answer_off() {
    let (world, sandbox) = hostile("part-reject", PARTS, json!({})).await;
    let mut stream = sandbox.connect().await;
    stream.write_all(sandbox.head("GET", "/events", "").as_bytes()).await.expect("writes");
    eventually("the backend streams", || world.recorded.open_streams() == 1).await;
    world.recorded.send_event("data: one\n\n").await;
    read_until(&mut stream, "data: one").await;
    world.recorded.send_event("data: two\n\n").await;
    let mut rest = Vec::new();
    drop(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it ends"));
    let rest = String::from_utf8_lossy(&rest);
    assert!(!rest.contains("data: two") && !rest.ends_with("0\r\n\r\n"), "no good end: {rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_in_shadow_is_recorded_and_changes_nothing() {
    for (way, body, verdict, code) in [
        ("response-body", WHOLE, "changed", None),
        ("response-body", PARTS, "changed", None),
        ("part-keep-all", PARTS, "failed", Some("forbidden")),
        ("response-reject", WHOLE, "reject", Some("not-yours")),
        ("response-trap", NONE, "failed", Some("trap")),
    ] {
        let (world, sandbox) = hostile(way, body, json!({ "mode": "shadow" })).await;
        let answer = answer_to(&sandbox, "GET", "/orders", "", "").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("/api/orders"), "{way}: {answer}");
        assert!(!answer.contains("rewritten"), "{way}: {answer}");
        let records = world.decisions();
        let ran = &records.last().expect("a record").filters[0];
        assert_eq!((ran.verdict.as_str(), ran.code.as_deref()), (verdict, code), "{way} {body}");
        assert_eq!(ran.mode, Some(Mode::Shadow));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_filter_in_shadow_refuses_and_rewrites_nothing() {
    let world = world().await;
    let attached =
        json!([{ "name": "hostile", "mode": "shadow" }, { "name": "card-guard", "mode": "shadow" }]);
    let config = chain(&world, "acme", &["hostile", "card-guard"], &attached);
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    let refund = json!({ "order": "1", "amount": 1, "note": "4111111111111111" });
    let headers = [("content-type", "application/json"), ("x-hostile", "rewrite"), ("x-new-header", "x-a=b")];
    let answer = sandbox.call("POST", "/refunds", &headers, refund.to_string().as_bytes()).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    assert!(answer.seen_header("x-a").is_empty());
    let records = world.decisions();
    let ran = &records.last().expect("a record").filters;
    let verdicts: Vec<_> = ran.iter().map(|ran| (ran.verdict.as_str(), ran.mode)).collect();
    assert_eq!(verdicts, [("changed", Some(Mode::Shadow)), ("reject", Some(Mode::Shadow))]);
    assert_eq!(ran[1].code.as_deref(), Some("card-number"));
    // A body that streams is not held for one that only watches.
    let answer =
        sandbox.call("PUT", "/uploads", &[("content-type", "application/octet-stream")], b"4111").await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    let records = world.decisions();
    assert!(records.last().expect("a record").filters.iter().all(|ran| ran.verdict == "unread"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_filter_logs_goes_home_to_its_author() {
    let world = world().await;
    let attached = json!([{ "name": "hostile", "config": { "way": "some-logs" } }]);
    assert_eq!(world.put(chain(&world, "acme", &["hostile"], &attached)).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    assert_eq!(sandbox.get("/orders").await.status, 200);
    let lines = world.lines();
    let line = lines.first().expect("a line");
    assert_eq!((line.filter.as_str(), line.tenant.as_str()), ("hostile", "acme"));
    assert_eq!((line.level.as_ref(), line.message.as_str()), ("info", "a line and a forged one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_something_else_leaves_buckets_as_they_are() {
    let world = world().await;
    let slow = patient("rate-limit")
        .replace("per_second = 5.0", "per_second = 0.001")
        .replace("burst = 20", "burst = 1");
    let with_limit = |requests: u32| {
        let mut config = chain(&world, "acme", &[], &json!(["rate-limit"]));
        config.filters.insert(name("rate-limit"), artefact("rate-limit", "acme", 1, &slow));
        let limit = json!({ "session": { "per_second": requests } });
        config.limits = serde_json::from_value(limit).expect("limits");
        config
    };
    assert_eq!(world.put(with_limit(100)).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    assert_eq!(sandbox.get("/orders").await.status, 200);
    assert_eq!(sandbox.get("/orders").await.status, 429);
    assert_eq!(world.put(with_limit(99)).await, Applied::InForce);
    assert_eq!(sandbox.get("/orders").await.status, 429, "the filter is the same, its bucket too");
}
