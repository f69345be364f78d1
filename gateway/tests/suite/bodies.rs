// SPDX-License-Identifier: Apache-2.0
//! Bodies: judged whole before anything is forwarded, or streamed untouched.

use crate::filters;
use crate::world::{Answer, PATIENCE, Sandbox, World, exchange, read_until};
use postern_common::control::Applied;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_cannot_be_read_in_one_way_are_refused_before_a_byte_is_forwarded() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    for body in [
        &br#"{"order":"1","amount":1,"amount":1000}"#[..],
        br#"{"order":"1","amount":1,"am\u006funt":1000}"#,
        br#"{"order":"1","amount":1,"extra":{"a":1,"a":2}}"#,
        b"\xef\xbb\xbf{\"order\":\"1\",\"amount\":1}",
        b"{\"order\":\"\xff\",\"amount\":1}",
        br#"{"order":"\ud800","amount":1}"#,
        br#"{"order":"1","amount":1} {}"#,
        br#"{"order":"1","amount":1e400}"#,
        br#"{"order":"1","amount":123456789012345678901}"#,
        br#"{"order":"1","amount":1,}"#,
    ] {
        let answer = sandbox.call("POST", "/refunds", &[JSON], body).await;
        let shown = String::from_utf8_lossy(body);
        assert_eq!((answer.status, answer.code()), (400, "request-malformed"), "{shown}");
    }
    let deep = "[".repeat(200) + &"]".repeat(200);
    assert_eq!(sandbox.call("POST", "/refunds", &[JSON], deep.as_bytes()).await.status, 400);
    world.recorded.assert_untouched("a malformed body");
    let answer = sandbox.post("/refunds", &json!({ "order": "1", "amount": 1 })).await;
    assert_eq!(answer.status, 200, "the control: {:?}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_fit_names_its_fields() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let answer = sandbox.post("/refunds", &json!({ "order": 7, "amount": "many" })).await;
    assert_eq!((answer.status, answer.code()), (422, "schema-violation"));
    let pointers: Vec<_> = answer.body["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| error["pointer"].clone())
        .collect();
    assert!(
        pointers.contains(&json!("/body/amount")) && pointers.contains(&json!("/body/order")),
        "{pointers:?}"
    );
    let absent = sandbox.call("POST", "/refunds", &[JSON], b"").await;
    assert_eq!((absent.status, absent.code()), (422, "schema-violation"));
    let unwanted = sandbox.call("GET", "/orders", &[JSON], b"{}").await;
    assert_eq!((unwanted.status, unwanted.code()), (422, "schema-violation"));
    assert_eq!(sandbox.get("/orders?limit=0").await.code(), "schema-violation");
    assert_eq!(sandbox.get("/orders?limit=07").await.code(), "schema-violation");
    assert_eq!(sandbox.get("/orders?colour=red").await.code(), "schema-violation");
    world.recorded.assert_untouched("a schema violation");
}

#[tokio::test(flavor = "multi_thread")]
async fn types_encodings_and_sizes_are_bounded_by_the_operation() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let body = br#"{"order":"1","amount":1}"#;
    let text = sandbox.call("POST", "/refunds", &[("content-type", "text/plain")], body).await;
    assert_eq!((text.status, text.code()), (415, "content-type-refused"));
    let zipped = sandbox.call("POST", "/refunds", &[JSON, ("content-encoding", "gzip")], body).await;
    assert_eq!((zipped.status, zipped.code()), (415, "content-type-refused"));
    let large = format!("{{\"order\":\"{}\",\"amount\":1}}", "a".repeat(1_100_000));
    let large = sandbox.call("POST", "/refunds", &[JSON], large.as_bytes()).await;
    assert_eq!((large.status, large.code()), (413, "body-too-large"));
    world.recorded.assert_untouched("a refused body");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_body_that_is_refused_at_its_last_chunk_reaches_nobody() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let rest = "content-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n";
    let mut bytes = sandbox.head("POST", "/refunds", rest).into_bytes();
    for part in [r#"{"order":"1","#, r#""amount":1,"#, r#""amount":2}"#] {
        bytes.extend_from_slice(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes());
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    let answer = sandbox.raw(&bytes).await;
    assert_eq!((answer.status, answer.code()), (400, "request-malformed"), "{:?}", answer.body);
    world.recorded.assert_untouched("a duplicate key in the last chunk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_arrives_while_its_session_ends_reaches_nobody() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let rest = "content-type: application/json\r\ncontent-length: 24\r\nconnection: close\r\n";
    let mut stream = sandbox.connect().await;
    // A first answer shows that the connection was accepted before the door closes.
    stream.write_all(sandbox.head("GET", "/nothing", "").as_bytes()).await.expect("writes");
    read_until(&mut stream, "decision_id").await;
    stream.write_all(sandbox.head("POST", "/refunds", rest).as_bytes()).await.expect("writes");
    stream.write_all(br#"{"order":"1","#).await.expect("writes");
    world.end(&sandbox).await;
    let answer = exchange(stream, b"").await;
    assert_eq!((answer.status, answer.code()), (401, "token-revoked"), "{:?}", answer.body);
    world.recorded.assert_untouched("a session that ended in mid-body");
}

/// Uploads in two chunks, the second only when the first has reached the backend; what came back.
async fn streamed(world: &World, sandbox: &Sandbox) -> Answer {
    let rest =
        "content-type: application/octet-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n";
    let mut stream = sandbox.connect().await;
    stream.write_all(sandbox.head("PUT", "/uploads", rest).as_bytes()).await.expect("writes");
    stream.write_all(b"5\r\nfirst\r\n").await.expect("writes");
    crate::world::eventually("the first chunk is there before the last was sent", || {
        world.recorded.text().contains("first")
    })
    .await;
    stream.write_all(b"4\r\nlast\r\n0\r\n\r\n").await.expect("writes");
    let mut read = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("in time").expect("reads");
    let answer = crate::world::parse(&read);
    assert_eq!(answer.status, 200);
    assert!(answer.body["body"].as_str().is_some_and(|body| body == "firstlast"), "{:?}", answer.body);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nothing_judges_is_streamed_as_it_comes() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    streamed(&world, &sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_streams_past_a_filter_that_reads_none_and_what_it_changes_is_changed() {
    let world = filters::world().await;
    let plugin = "claim-injection";
    let config = filters::chain(&world, "acme", &[plugin], &json!([plugin]));
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world
        .sandbox_with("acme", "alice", &["*"], |session| {
            session.claims.insert("plan".into(), json!("free"));
        })
        .await;
    let answer = streamed(&world, &sandbox).await;
    assert_eq!(answer.seen_header("x-user-plan"), ["free"], "the filter ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_a_request_are_not_forwarded() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let rest = "content-type: application/octet-stream\r\ntransfer-encoding: chunked\r\ntrailer: x-user-id\r\nconnection: close\r\n";
    let mut bytes = sandbox.head("PUT", "/uploads", rest).into_bytes();
    bytes.extend_from_slice(b"1\r\na\r\n0\r\nx-user-id: bob\r\n\r\n");
    let answer = sandbox.raw(&bytes).await;
    assert_eq!(answer.status, 200);
    assert!(!world.recorded.text().contains("bob"));
}
