// SPDX-License-Identifier: Apache-2.0
//! Answers that stream: not buffered, counted until their end, and ended with their session.

use crate::world::{PATIENCE, World, eventually, read_until};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use postern_common::control::{Applied, Change, State};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
async fn a_dear_operation_takes_its_cost_from_session_and_tenant() {
    let world = World::empty().await;
    let mut file = world.described();
    file["operations"] = json!({ "createRefund": { "cost": 3 } });
    let mut config = world.config("acme", &[("desk", file)], None);
    let limits = json!({
        "session": { "per_second": 0.01, "burst": 5 },
        "tenant": { "per_second": 0.01, "burst": 8 },
    });
    config.limits = serde_json::from_value(limits).expect("limits");
    assert_eq!(world.put(config).await, Applied::InForce);
    let (alice, bob) = (world.sandbox("alice", &["*"]).await, world.sandbox("bob", &["*"]).await);
    let refund = json!({ "order": "1", "amount": 1 });
    assert_eq!(alice.post("/refunds", &refund).await.status, 200, "3 of 5 and of 8");
    assert_eq!(alice.get("/orders").await.status, 200, "1 more of both");
    assert_eq!(alice.post("/refunds", &refund).await.code(), "rate-limited", "the session has 1 left");
    assert_eq!(bob.get("/orders").await.status, 200);
    assert_eq!(bob.post("/refunds", &refund).await.code(), "rate-limited", "the tenant has too little");
    assert_eq!(world.recorded.text().matches("/refunds").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_passed_back_and_never_followed() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let answer = sandbox.get("/redirect").await;
    assert_eq!(answer.status, 302);
    assert_eq!(world.recorded.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_served_by_prior_knowledge_with_the_same_rules() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(sandbox.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.expect("HTTP/2");
    world.tasks.spawn(|_stop| async { drop(connection.await) });
    for (target, status) in [("/orders", 200), ("/orders/%2e%2e/refunds", 400), ("/refunds", 405)] {
        let request = http::Request::get(format!("http://gateway{target}"))
            .header("authorization", format!("Bearer {}", sandbox.token))
            .body(Full::new(Bytes::new()))
            .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        assert_eq!(response.status(), status, "{target}");
        drop(response.into_body().collect().await.expect("a body"));
    }
    let bare = http::Request::get("http://gateway/orders").body(Full::new(Bytes::new())).expect("a request");
    assert_eq!(sender.send_request(bare).await.expect("an answer").status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_what_is_in_flight_finish_and_nothing_new_begin() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let rest =
        "content-type: application/octet-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n";
    let mut stream = sandbox.connect().await;
    stream.write_all(sandbox.head("PUT", "/uploads", rest).as_bytes()).await.expect("writes");
    stream.write_all(b"5\r\nfirst\r\n").await.expect("writes");
    eventually("the request is in flight", || world.recorded.text().contains("first")).await;
    world.gateway_tasks.stop();
    eventually("the door is closed", || !sandbox.path.exists()).await;
    stream.write_all(b"4\r\nlast\r\n0\r\n\r\n").await.expect("writes");
    let mut read = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("in time").expect("reads");
    assert_eq!(crate::world::parse(&read).status, 200);
    world.gateway_tasks.shut_down(PATIENCE).await.expect("nothing is left running");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_lost_its_orchestrator_refuses_when_its_state_is_too_old() {
    let mut world = World::with_staleness(Duration::ZERO).await;
    let config = world.config("acme", &[("desk", world.described())], None);
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    assert_eq!(sandbox.get("/orders").await.status, 200);
    let before = world.recorded.text().len();
    world.disconnect();
    let stale = async { while sandbox.get("/orders").await.code() != "state-stale" {} };
    tokio::time::timeout(PATIENCE, stale).await.expect("it notices");
    let seen = world.recorded.text().len();
    assert_eq!(sandbox.get("/orders").await.status, 503);
    assert!(seen >= before && world.recorded.text().len() == seen, "nothing reaches the backend any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_was_dropped_is_opened_again_and_brings_the_state_anew() {
    let mut world = World::with_staleness(Duration::ZERO).await;
    let config = Arc::new(world.config("acme", &[("desk", world.described())], None));
    assert_eq!(world.send(Change::Tenant(Arc::clone(&config))).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    assert_eq!(sandbox.get("/orders").await.status, 200, "the control");
    let mut stream = sandbox.connect().await;
    world.drop_link();
    world.take_redial().await;
    stream.write_all(sandbox.head("GET", "/orders", "").as_bytes()).await.expect("writes");
    assert!(read_until(&mut stream, "request_id").await.contains("state-stale"), "nothing was heard yet");
    let state = State { tenants: vec![config], sessions: vec![sandbox.session.clone()], ended: Vec::new() };
    assert_eq!(world.send(Change::Snapshot(Box::new(state))).await, Applied::InForce);
    assert_eq!(sandbox.get("/orders").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_taken_is_broken_off_and_gives_its_permit_back() {
    let world = World::with(|settings| settings.waits.stall = Duration::from_millis(200)).await;
    let mut config = world.config("acme", &[("desk", world.described())], None);
    config.limits = serde_json::from_value(json!({ "session": { "per_second": 1000.0, "concurrent": 1 } }))
        .expect("limits");
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    let mut stream = sandbox.connect().await;
    stream.write_all(sandbox.head("GET", "/events", "").as_bytes()).await.expect("writes");
    read_until(&mut stream, "text/event-stream").await;
    // More than the sockets between them hold.
    let large: &'static str = "x".repeat(1024 * 1024).leak();
    for _ in 0..8 {
        world.recorded.send_event(large).await;
    }
    let waiting = async { while sandbox.get("/orders").await.status != 200 {} };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the permit comes back");
    eventually("the backend's end is closed too", || world.recorded.open_streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_stalls_is_ended_however_long_its_backend_would_wait() {
    let world = World::with(|settings| settings.waits.stall = Duration::from_millis(200)).await;
    let config = world.config("acme", &[("desk", world.described())], None);
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    let rest = "content-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n";
    let mut stream = sandbox.connect().await;
    stream.write_all(sandbox.head("PUT", "/uploads", rest).as_bytes()).await.expect("writes");
    stream.write_all(b"5\r\nfirst\r\n").await.expect("writes");
    let answer = read_until(&mut stream, "decision_id").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("request-timeout"), "{answer}");
    assert!(world.recorded.text().contains("first"), "it was on its way");
}
