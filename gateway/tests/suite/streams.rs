// SPDX-License-Identifier: Apache-2.0
//! Answers that stream: not buffered, counted until their end, and ended with their session.

use crate::world::{PATIENCE, World, eventually};
use postern_common::control::Applied;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

async fn read_until(stream: &mut UnixStream, wanted: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    let reading = async {
        while !text.contains(wanted) {
            let count = stream.read(&mut buffer).await.expect("reads");
            assert_ne!(count, 0, "the stream ended: {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("in time");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_one_by_one_and_stop_when_the_session_ends() {
    let world = World::desk().await;
    let alice = world.sandbox("alice", &["*"]).await;
    let bob = world.sandbox("bob", &["*"]).await;
    let mut streams = Vec::new();
    for sandbox in [&alice, &bob] {
        let mut stream = sandbox.connect().await;
        stream.write_all(sandbox.head("GET", "/events", "").as_bytes()).await.expect("writes");
        read_until(&mut stream, "text/event-stream").await;
        streams.push(stream);
    }
    assert_eq!(world.recorded.send_event("data: one\n\n").await, 2);
    for stream in &mut streams {
        read_until(stream, "data: one").await;
    }
    world.end(&alice).await;
    let mut rest = Vec::new();
    let ended =
        tokio::time::timeout(PATIENCE, streams[0].read_to_end(&mut rest)).await.expect("ends in time");
    drop(ended);
    assert!(!String::from_utf8_lossy(&rest).ends_with("0\r\n\r\n"), "a broken stream is not a whole one");
    eventually("the backend's end is closed too", || world.recorded.open_streams() == 1).await;
    assert_eq!(world.recorded.send_event("data: two\n\n").await, 1);
    read_until(&mut streams[1], "data: two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_is_held_until_the_last_byte_of_the_answer() {
    let world = World::empty().await;
    let mut config = world.config("acme", &[("desk", world.described())], None);
    config.limits = serde_json::from_value(json!({ "session": { "per_second": 1000.0, "concurrent": 1 } }))
        .expect("limits");
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    let mut stream = sandbox.connect().await;
    stream.write_all(sandbox.head("GET", "/events", "").as_bytes()).await.expect("writes");
    read_until(&mut stream, "text/event-stream").await;
    let answer = sandbox.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (429, "concurrency-limited"));
    let other = world.sandbox("bob", &["*"]).await;
    assert_eq!(other.get("/orders").await.status, 200, "another session's permits are its own");
    drop(stream);
    let waiting = async { while sandbox.get("/orders").await.status != 200 {} };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the permit comes back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_refused_with_the_time_to_wait() {
    let world = World::empty().await;
    let mut config = world.config("acme", &[("desk", world.described())], None);
    config.limits =
        serde_json::from_value(json!({ "session": { "per_second": 0.01, "burst": 3 } })).expect("limits");
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    for _ in 0..3 {
        assert_eq!(sandbox.get("/orders").await.status, 200);
    }
    let before = world.recorded.text().len();
    let answer = sandbox.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (429, "rate-limited"));
    let wait: u64 = answer.headers["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((1..=100).contains(&wait), "{wait}");
    assert!(answer.headers.contains_key("ratelimit") && answer.headers.contains_key("ratelimit-policy"));
    assert_eq!(world.recorded.text().len(), before, "nothing more reached the backend");
    assert_eq!(world.sandbox("bob", &["*"]).await.get("/orders").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operations_own_bucket_counts_its_cost_over_all_sessions() {
    let world = World::empty().await;
    let mut file = world.described();
    file["operations"] = json!({ "createRefund": { "per_second": 0.01, "burst": 4, "cost": 2 } });
    let config = world.config("acme", &[("desk", file)], None);
    assert_eq!(world.put(config.clone()).await, Applied::InForce);
    let (alice, bob) = (world.sandbox("alice", &["*"]).await, world.sandbox("bob", &["*"]).await);
    let refund = json!({ "order": "1", "amount": 1 });
    assert_eq!(alice.post("/refunds", &refund).await.status, 200);
    assert_eq!(world.put(config).await, Applied::InForce, "a reload that does not concern the bucket");
    assert_eq!(bob.post("/refunds", &refund).await.status, 200);
    assert_eq!(alice.post("/refunds", &refund).await.code(), "rate-limited");
    assert_eq!(alice.get("/orders").await.status, 200, "other operations are not concerned");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_passed_back_and_never_followed() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let answer = sandbox.get("/redirect").await;
    assert_eq!(answer.status, 302);
    assert_eq!(world.recorded.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}
