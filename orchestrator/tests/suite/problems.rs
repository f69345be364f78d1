// SPDX-License-Identifier: Apache-2.0
//! How the API refuses: in one form, with a hint, all mistakes at once; and what it never accepts.

use crate::bench::{Answer, Bench};
use http::{Method, StatusCode};
use serde_json::{Value, json};

/// A problem without what differs each time.
fn stable(answer: &Answer) -> Value {
    let mut json = answer.json();
    assert!(json["request_id"].as_str().is_some_and(|id| answer.headers["x-request-id"] == id));
    json["request_id"] = json!("req_…");
    json
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn problems_say_what_happened_and_what_to_do() {
    let bench = Bench::without_sandboxes().await;
    let input = json!({ "user_id": "a\nb", "template": "Big", "operations": ["a/b/c", 7], "ttl": "soon", "idle": "48h",
        "env": { "A B": "x" }, "labels": { "": "x" }, "conversationid": "c" });
    insta::assert_json_snapshot!("input_with_many_mistakes", stable(&bench.post("/sandbox", input).await));
    let body = json!({ "user_id": "a", "conversation_id": "c" });
    insta::assert_json_snapshot!("no_isolation_works", stable(&bench.post("/sandbox", body).await));
    insta::assert_json_snapshot!(
        "no_key",
        stable(&bench.call_as("", Method::GET, "/sandbox", Value::Null).await)
    );
    insta::assert_json_snapshot!(
        "no_such_sandbox",
        stable(&bench.get("/sandbox/sandbox-aaaaaaaaaaaa").await)
    );
    insta::assert_json_snapshot!("no_such_path", stable(&bench.get("/sandboxes").await));
    insta::assert_json_snapshot!("no_such_method", stable(&bench.put("/sandbox", Value::Null).await));
    insta::assert_json_snapshot!(
        "unknown_parameter",
        stable(&bench.get("/sandbox?limt=1&limit=1&limit=2").await)
    );
    let auditor = bench.key("auditor", "default").await;
    let lacking = bench.call_as(&auditor, Method::POST, "/sandbox", json!({})).await;
    insta::assert_json_snapshot!("role_is_too_low", stable(&lacking));
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_in_one_way_is_refused() {
    let bench = Bench::without_sandboxes().await;
    let bearer = format!("Bearer {}", bench.key);
    let send = async |headers: &[(&str, &str)], body: &str| {
        let all: Vec<(&str, &str)> =
            headers.iter().copied().chain([("authorization", bearer.as_str())]).collect();
        bench.send(Method::POST, "/sandbox", &all, body).await
    };
    let twice = r#"{"user_id": "alice", "user_id": "bob", "conversation_id": "c"}"#;
    assert_eq!(send(&[], twice).await.code(), "request-malformed");
    assert_eq!(send(&[], "{").await.code(), "request-malformed");
    assert_eq!(send(&[], "[]").await.code(), "invalid-input");
    assert_eq!(send(&[("content-type", "text/plain")], "{}").await.code(), "content-type-refused");
    assert_eq!(send(&[("content-encoding", "gzip")], "{}").await.code(), "content-type-refused");
    assert_eq!(send(&[], &format!("{{\"a\": \"{}\"}}", "x".repeat(2 << 20))).await.code(), "body-too-large");
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    assert_eq!(send(&[], &format!("{{\"claims\": {deep}}}")).await.code(), "request-malformed");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_loopback_only_local_names_are_served() {
    let bench = Bench::without_sandboxes().await;
    let ask = async |host: &str| bench.send(Method::GET, "/healthz", &[("host", host)], "").await;
    for good in ["localhost", "localhost:8080", "127.0.0.1", "127.0.0.1:1", "[::1]:8080", "LOCALHOST:1"] {
        assert_eq!(ask(good).await.status, StatusCode::OK, "{good}");
    }
    for bad in [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8080",
        "10.0.0.1",
        "",
        "localhost@evil:80",
    ] {
        assert_eq!(ask(bad).await.status, StatusCode::FORBIDDEN, "{bad}");
    }
    let asked = [("origin", "https://evil.example"), ("access-control-request-method", "POST")];
    let preflight = bench.send(Method::OPTIONS, "/sandbox", &asked, "").await;
    assert!(
        !preflight.headers.contains_key("access-control-allow-origin"),
        "no page of another origin may call"
    );
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_problem_has_a_page_and_every_route_is_in_the_document() {
    let bench = Bench::without_sandboxes().await;
    for code in postern_common::problem::Code::ALL {
        let page = bench.send(Method::GET, &format!("/problems/{code}"), &[], "").await;
        assert_eq!(page.status, StatusCode::OK, "{code}");
        assert!(page.text.contains(code.title()));
    }
    let document = bench.send(Method::GET, "/openapi.json", &[], "").await;
    // The gateway's own strict reader must be able to read it.
    let read = postern_openapi::Document::parse(&document.text);
    let read = read.unwrap_or_else(|mistakes| {
        panic!("{}", mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    });
    assert!(read.operations().len() >= 35);
    for operation in read.operations() {
        let path = operation.path.to_string().replace(['{', '}'], "");
        let method: Method = operation.method.as_str().parse().expect("a method");
        let answer = bench.call_as("", method, &path, Value::Null).await;
        assert!(answer.status != StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let is_missing = answer.status == StatusCode::NOT_FOUND && answer.text.contains("no such path");
        assert!(!is_missing, "{path} is in the document but not served");
    }
    bench.close().await;
}
