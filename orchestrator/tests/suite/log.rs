// SPDX-License-Identifier: Apache-2.0
//! The log as a stream: what happened, what happens, and how a reader goes on after a break.

use crate::bench::{Bench, PATIENCE};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use postern_common::decision::{DecisionRecord, Verdict};
use postern_common::id::TenantId;
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

fn decision(tenant: &str, verdict: Verdict) -> DecisionRecord {
    DecisionRecord {
        tenant: Some(TenantId::parse(tenant).expect("a name")),
        verdict,
        ..DecisionRecord::begin(postern_common::clock::now(), "GET")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_are_told_as_they_come_home_also_those_that_come_late() {
    let bench = Bench::without_sandboxes().await;
    let bearer = format!("Bearer {}", bench.key);
    let (key, accept) = (("authorization", bearer.as_str()), ("accept", "text/event-stream"));
    let late = decision("default", Verdict::Deny);
    let early = decision("default", Verdict::Allow);
    bench.decisions.send(early.clone()).await.expect("is taken");
    let stream = async |target: &str, more: &[(&str, &str)]| {
        let headers = [&[key, accept], more].concat();
        (bench.open_stream(Method::GET, target, &headers, "").await.into_body(), String::new())
    };
    let (mut body, mut text) = stream("/decisions?after=0", &[]).await;
    let (first, told) = next(&mut body, &mut text, "decision").await;
    assert_eq!((told["id"].as_str(), told["verdict"].as_str()), (Some(early.id.as_str()), Some("allow")));
    // It was made before the other, by its id; it comes home after it and is told all the same.
    assert!(late.id.as_str() < early.id.as_str());
    bench.decisions.send(late.clone()).await.expect("is taken");
    let (second, told) = next(&mut body, &mut text, "decision").await;
    assert_eq!((second > first, told["id"].as_str()), (true, Some(late.id.as_str())));
    drop(body);

    // Who went away goes on where it was; who comes anew hears what comes from now on.
    let last = first.to_string();
    let (mut body, mut text) = stream("/decisions", &[("last-event-id", &last)]).await;
    assert_eq!(next(&mut body, &mut text, "decision").await.1["id"], late.id.as_str());
    let (mut denied, mut denied_text) = stream("/decisions?verdict=deny&tenant=default", &[]).await;
    for (tenant, verdict) in
        [("default", Verdict::Allow), ("other", Verdict::Deny), ("default", Verdict::Deny)]
    {
        bench.decisions.send(decision(tenant, verdict)).await.expect("is taken");
    }
    let (number, told) = next(&mut denied, &mut denied_text, "decision").await;
    assert_eq!((told["tenant"].as_str(), told["verdict"].as_str()), (Some("default"), Some("deny")));
    assert_ne!(told["id"], late.id.as_str(), "nothing of before");
    for _ in 0..3 {
        let (told, _) = next(&mut body, &mut text, "decision").await;
        assert!(told <= number, "numbers rise");
    }
    let wrong = bench.send(Method::GET, "/decisions", &[key, accept, ("last-event-id", "dec_1")], "").await;
    assert_eq!(wrong.code(), "invalid-input");
    drop((body, denied));
    bench.close().await;
}
