// SPDX-License-Identifier: Apache-2.0
//! The log as a stream: what happened, what happens, and how a reader goes on after a break.

use crate::bench::{Bench, PATIENCE};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

/// Reads a stream until an event of this kind has come; returns its number and data.
async fn next(body: &mut Incoming, text: &mut String, kind: &str) -> (u64, Value) {
    let read = async {
        loop {
            while let Some((event, rest)) = text.clone().split_once("\n\n") {
                *text = rest.to_owned();
                let line = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                if line("event: ") == Some(kind) {
                    let number = line("id: ").expect("is numbered").parse().expect("a number");
                    return (number, serde_json::from_str(line("data: ").expect("has data")).expect("JSON"));
                }
            }
            let frame = body.frame().await.expect("goes on").expect("is whole");
            text.push_str(std::str::from_utf8(&frame.into_data().expect("is data")).expect("is text"));
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_is_told_as_the_log_grows_and_goes_on_where_it_was() {
    let bench = Bench::without_sandboxes().await;
    let bearer = format!("Bearer {}", bench.key);
    let (key, accept) = (("authorization", bearer.as_str()), ("accept", "text/event-stream"));
    let answer = bench.open_stream(Method::GET, "/events", &[key, accept], "").await;
    assert_eq!(
        (answer.status(), &answer.headers()["content-type"]),
        (StatusCode::OK, &"text/event-stream".parse().expect("valid"))
    );
    let (mut body, mut text) = (answer.into_body(), String::new());
    let (first, _) = next(&mut body, &mut text, "key.created").await;
    // It has all that was; now something happens.
    bench.post("/tenants", json!({ "name": "acme" })).await;
    let (number, event) = next(&mut body, &mut text, "tenant.created").await;
    assert!(number > first);
    assert_eq!((event["tenant"].as_str(), event["action"].as_str()), (Some("acme"), Some("tenant.created")));
    drop(body);

    bench.post("/tenants", json!({ "name": "other" })).await;
    let last = number.to_string();
    let again = bench.open_stream(Method::GET, "/events", &[key, accept, ("last-event-id", &last)], "").await;
    let (mut body, mut text) = (again.into_body(), String::new());
    let (_, event) = next(&mut body, &mut text, "tenant.created").await;
    assert_eq!(event["tenant"], "other", "nothing twice, nothing lost");

    let wrong = bench.send(Method::GET, "/events", &[key, accept, ("last-event-id", "x")], "").await;
    assert_eq!(wrong.code(), "invalid-input");
    drop(body);
    bench.close().await;
}
