// SPDX-License-Identifier: Apache-2.0
//! Keys that are for single templates, labels and operations.

use crate::bench::Bench;
use http::{Method, StatusCode};
use serde_json::{Value, json};

const DOCUMENT: &str = r#"{"openapi": "3.1.0", "info": {"title": "desk", "version": "1"}, "paths": {
    "/orders": {"get": {"operationId": "listOrders", "responses": {}}},
    "/refunds": {"post": {"operationId": "createRefund", "responses": {}}}}}"#;

async fn desk(bench: &Bench) {
    let backend = json!({ "backend": { "url": "http://127.0.0.1:9000", "openapi": "openapi.json" }, "document": DOCUMENT });
    bench.put("/backends/desk", backend).await;
    for (name, operations) in [("small", json!(["desk/read"])), ("large", json!(["desk/read", "desk/write"]))]
    {
        let put = bench.put(&format!("/templates/{name}"), json!({ "operations": operations })).await;
        assert_eq!(put.status, StatusCode::CREATED, "{}", put.text);
    }
}

async fn key(bench: &Bench, wanted: Value) -> String {
    let made = bench.post("/keys", wanted).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    made.field("key")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_for_a_template_and_a_label_makes_and_touches_no_other_sandbox() {
    let bench = Bench::real().await;
    desk(&bench).await;
    let narrow =
        key(&bench, json!({ "role": "developer", "templates": ["small"], "labels": { "team": "a" } })).await;
    let create = async |conversation: &str, more: Value| {
        let mut body = json!({ "user_id": "alice", "conversation_id": conversation });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        bench.call_as(&narrow, Method::POST, "/sandbox?wait=running", body).await
    };
    let bare = create("c1", json!({ "template": "small" })).await;
    assert_eq!(bare.code(), "forbidden", "{}", bare.text);
    assert!(bare.field("detail").contains("labels"), "{}", bare.text);
    let large = create("c1", json!({ "template": "large", "labels": { "team": "a" } })).await;
    assert!(large.field("detail").contains("template"), "{}", large.text);
    let good = create("c1", json!({ "template": "small", "labels": { "team": "a", "more": "b" } })).await;
    assert_eq!(good.status, StatusCode::CREATED, "{}", good.text);
    let (own, other) = (good.field("sandbox_id"), bench.sandbox("c2").await);
    let ask = async |method, path: String| bench.call_as(&narrow, method, &path, Value::Null).await;
    assert_eq!(ask(Method::GET, format!("/sandbox/{own}")).await.status, StatusCode::OK);
    for (method, path) in [
        (Method::GET, format!("/sandbox/{other}")),
        (Method::DELETE, format!("/sandbox/{other}")),
        (Method::POST, format!("/tokens/{other}/refresh")),
        (Method::GET, "/decisions".to_owned()),
        (Method::GET, "/events".to_owned()),
    ] {
        assert_eq!(ask(method.clone(), path.clone()).await.code(), "forbidden", "{method} {path}");
    }
    let label = async |labels: Value| {
        let body = json!({ "labels": labels });
        bench.call_as(&narrow, Method::PATCH, &format!("/sandbox/{own}"), body).await
    };
    assert_eq!(label(json!({ "team": "b" })).await.code(), "forbidden", "it gives no labels but its own");
    assert_eq!(label(json!({ "team": "a", "more": "c" })).await.status, StatusCode::OK);
    let listed = ask(Method::GET, "/sandbox".to_owned()).await.json();
    let ids: Vec<&str> = listed["sandboxes"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|it| it["sandbox_id"].as_str())
        .collect();
    assert_eq!(ids, [own.as_str()], "it sees its own only");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrow_key_makes_no_wider_key_and_no_wider_template() {
    let bench = Bench::without_sandboxes().await;
    desk(&bench).await;
    let narrow = key(
        &bench,
        json!({ "role": "admin", "templates": ["small"], "labels": { "team": "a" }, "operations": ["desk/read"] }),
    )
    .await;
    let ask =
        async |method: Method, path: &str, body: Value| bench.call_as(&narrow, method, path, body).await;
    let wider = ask(Method::POST, "/keys", json!({ "role": "auditor", "templates": ["large"] })).await;
    assert_eq!(wider.code(), "forbidden", "{}", wider.text);
    let wider = ask(Method::POST, "/keys", json!({ "role": "auditor", "labels": { "team": "b" } })).await;
    assert_eq!(wider.code(), "forbidden", "{}", wider.text);
    let inherits =
        ask(Method::POST, "/keys", json!({ "role": "auditor", "labels": { "more": "c" } })).await.json();
    assert_eq!(inherits["templates"], json!(["small"]), "{inherits}");
    assert_eq!(inherits["labels"], json!({ "team": "a", "more": "c" }), "{inherits}");

    let put = async |name: &str, operations: Value| {
        ask(Method::PUT, &format!("/templates/{name}"), json!({ "operations": operations })).await
    };
    assert_eq!(put("small", json!([])).await.status, StatusCode::OK);
    assert_eq!(put("small", json!(["desk/write"])).await.code(), "forbidden", "more than the key may grant");
    assert_eq!(put("large", json!([])).await.code(), "forbidden", "another template");
    assert_eq!(ask(Method::DELETE, "/templates/large", Value::Null).await.code(), "forbidden");
    let applied =
        ask(Method::POST, "/apply", json!({ "templates": { "large": { "operations": [] } } })).await;
    assert_eq!(applied.code(), "forbidden", "nor by a whole configuration");
    assert_eq!(ask(Method::DELETE, "/templates/small", Value::Null).await.status, StatusCode::NO_CONTENT);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_for_one_operation_has_nothing_happen_in_a_sandbox_that_may_call_more() {
    let bench = Bench::real().await;
    desk(&bench).await;
    let narrow = key(&bench, json!({ "role": "developer", "operations": ["desk/read"] })).await;
    let create = async |conversation: &str, template: &str| {
        let body = json!({ "user_id": "alice", "conversation_id": conversation, "template": template });
        bench.post("/sandbox?wait=running", body).await.field("sandbox_id")
    };
    let (within, beyond) = (create("c1", "small").await, create("c2", "large").await);
    for (method, path, body) in [
        (Method::POST, "exec", json!({ "command": ["true"], "collect": true })),
        (Method::POST, "tickets", Value::Null),
        (Method::POST, "ports", json!({})),
        (Method::POST, "processes/1/stdin", Value::Null),
        (Method::POST, "processes/1/signal", json!({ "signal": "KILL" })),
        (Method::PUT, "files/data/user/profile", Value::Null),
        (Method::DELETE, "files/data/user/profile", Value::Null),
        (Method::PUT, "folders/data/user/new", json!({})),
        (Method::POST, "move", json!({ "from": "/data/user/a", "to": "/data/user/b" })),
        (Method::PUT, "trees/data/user", Value::Null),
    ] {
        let ask = async |sandbox: &str| {
            let path = format!("/sandbox/{sandbox}/{path}");
            bench.call_as(&narrow, method.clone(), &path, body.clone()).await.status
        };
        assert_eq!(ask(&beyond).await, StatusCode::FORBIDDEN, "{method} {path}");
        assert_ne!(ask(&within).await, StatusCode::FORBIDDEN, "{method} {path}: the control");
    }
    let refreshed = async |sandbox: &str| {
        bench.call_as(&narrow, Method::POST, &format!("/tokens/{sandbox}/refresh"), Value::Null).await.status
    };
    assert_eq!((refreshed(&beyond).await, refreshed(&within).await), (StatusCode::FORBIDDEN, StatusCode::OK));
    bench.close().await;
}
