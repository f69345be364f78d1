// SPDX-License-Identifier: Apache-2.0
//! Who may call what; and that no key grants more than it has.

use crate::bench::Bench;
use http::{Method, StatusCode};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_asks_for_its_role() {
    let bench = Bench::without_sandboxes().await;
    let keys = [
        ("auditor", bench.key("auditor", "default").await),
        ("developer", bench.key("developer", "default").await),
        ("admin", bench.key("admin", "default").await),
    ];
    let document = bench.send(Method::GET, "/openapi.json", &[], "").await.json();
    let rank = |role: &str| {
        ["auditor", "developer", "admin", "admin of the whole installation"]
            .iter()
            .position(|known| *known == role)
    };
    let mut checked = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let role = operation["x-role"].as_str().expect("a role");
            let Some(needed) = rank(role) else { continue };
            let method: Method = method.to_uppercase().parse().expect("a method");
            let path = path
                .replace("{id}", "sandbox-aaaaaaaaaaaa")
                .replace("{sandbox}", "sandbox-aaaaaaaaaaaa")
                .replace("{name}", "nothing");
            let none = bench.call_as("", method.clone(), &path, Value::Null).await;
            assert_eq!(none.status, StatusCode::UNAUTHORIZED, "{method} {path}");
            // An answer to HEAD has no body that could tell more.
            assert!(method == Method::HEAD || none.code() == "key-missing", "{method} {path}");
            for (place, (name, key)) in keys.iter().enumerate() {
                let answer = bench.call_as(key, method.clone(), &path, Value::Null).await;
                let is_refused = answer.status == StatusCode::FORBIDDEN;
                assert_eq!(is_refused, place < needed, "{method} {path} as {name}: {}", answer.text);
                checked += 1;
            }
        }
    }
    assert!(checked > 90, "only {checked}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_believed_only_as_they_were_made_and_while_they_are_there() {
    let bench = Bench::without_sandboxes().await;
    let made = bench.post("/keys", json!({ "role": "auditor" })).await;
    let (key, key_id) = (made.field("key"), made.field("key_id"));
    let list = async |headers: &[(&str, &str)]| bench.send(Method::GET, "/sandbox", headers, "").await;
    let bearer = format!("Bearer {key}");
    assert_eq!(list(&[("authorization", &bearer)]).await.status, StatusCode::OK);
    assert_eq!(list(&[("x-api-key", &key)]).await.status, StatusCode::OK);
    let both = list(&[("authorization", &bearer), ("x-api-key", &key)]).await;
    assert_eq!(both.code(), "key-invalid", "which of two counts would be a guess");
    let mut wrong = key.clone();
    wrong.pop();
    for bad in [
        wrong.as_str(),
        &format!("{key}x"),
        "postern_",
        "nonsense",
        &format!("postern_{key_id}_"),
        &"x".repeat(10_000),
    ] {
        assert_eq!(list(&[("x-api-key", bad)]).await.code(), "key-invalid", "{bad}");
    }
    assert_eq!(bench.delete(&format!("/keys/{key_id}")).await.status, StatusCode::NO_CONTENT);
    assert_eq!(list(&[("x-api-key", &key)]).await.code(), "key-invalid", "at once");
    let listed = bench.get("/keys").await;
    assert!(!listed.text.contains(&key) && !listed.text.contains("hash"));
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_makes_one_that_can_do_more_than_itself() {
    let bench = Bench::without_sandboxes().await;
    assert_eq!(bench.post("/tenants", json!({ "name": "acme" })).await.status, StatusCode::CREATED);
    let admin = bench.key("admin", "acme").await;
    let ask = async |body: Value| bench.call_as(&admin, Method::POST, "/keys", body).await;
    assert_eq!(ask(json!({ "role": "admin" })).await.status, StatusCode::CREATED);
    assert_eq!(ask(json!({ "role": "admin", "tenant": "default" })).await.code(), "forbidden");
    assert_eq!(ask(json!({ "role": "auditor", "whole_installation": true })).await.code(), "forbidden");
    assert_eq!(ask(json!({ "role": "developer", "operations": ["*"] })).await.code(), "forbidden");
    let developer = bench.key("developer", "acme").await;
    let asked = bench.call_as(&developer, Method::POST, "/keys", json!({ "role": "auditor" })).await;
    assert_eq!(asked.code(), "forbidden");
    let stars =
        bench.post("/keys", json!({ "role": "developer", "tenant": "acme", "operations": ["*"] })).await;
    assert_eq!(stars.status, StatusCode::CREATED, "the installation's own key may: {}", stars.text);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_sees_nothing_of_another() {
    let bench = Bench::real().await;
    bench.post("/tenants", json!({ "name": "acme" })).await;
    let stranger = bench.key("admin", "acme").await;
    let sandbox = bench.sandbox("c1").await;
    for (method, path) in [
        (Method::GET, format!("/sandbox/{sandbox}")),
        (Method::DELETE, format!("/sandbox/{sandbox}")),
        (Method::POST, format!("/sandbox/{sandbox}/exec")),
        (Method::POST, format!("/tokens/{sandbox}/refresh")),
    ] {
        let answer = bench.call_as(&stranger, method.clone(), &path, Value::Null).await;
        assert_eq!(answer.code(), "not-found", "{method} {path}");
        let never = bench
            .call_as(&stranger, method, &path.replace(&sandbox, "sandbox-aaaaaaaaaaaa"), Value::Null)
            .await;
        let (mut left, mut right) = (answer.json(), never.json());
        for answer in [&mut left, &mut right] {
            answer["request_id"] = Value::Null;
            answer["detail"] =
                json!(answer["detail"].as_str().expect("text").replace(&sandbox, "sandbox-aaaaaaaaaaaa"));
        }
        assert_eq!(left, right, "nothing tells another's sandbox from none");
    }
    let list = bench.call_as(&stranger, Method::GET, "/sandbox", Value::Null).await.json();
    assert_eq!(list["sandboxes"], json!([]));
    assert_eq!(
        bench.call_as(&stranger, Method::GET, "/sandbox?tenant=default", Value::Null).await.code(),
        "forbidden"
    );
    assert_eq!(
        bench.call_as(&stranger, Method::GET, "/tenants/default", Value::Null).await.code(),
        "not-found"
    );
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_gets_no_more_out_of_a_sandbox_than_it_may_give_to_one() {
    let bench = Bench::real().await;
    bench.put("/backends/desk", json!({ "backend": { "url": "http://desk.internal:8080" } })).await;
    let key = async |operations: Value| {
        let made = bench.post("/keys", json!({ "role": "developer", "operations": operations })).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        made.field("key")
    };
    let (reader, writer) = (key(json!(["desk/read"])).await, key(json!(["desk/read", "desk/write"])).await);
    let body = |conversation: &str, operations: Value| json!({ "user_id": "alice", "conversation_id": conversation, "operations": operations });
    for (conversation, operations, is_beyond) in
        [("c1", json!(["desk/read", "desk/write"]), true), ("c2", json!(["desk/read"]), false)]
    {
        let made = bench
            .call_as(&writer, Method::POST, "/sandbox?wait=running", body(conversation, operations))
            .await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        let id = made.field("sandbox_id");
        for (path, body) in [
            ("/sandbox".to_owned(), json!({ "user_id": "alice", "conversation_id": conversation })),
            (format!("/tokens/{id}/refresh"), Value::Null),
            (format!("/sandbox/{id}/exec"), json!({ "command": "true", "collect": true })),
        ] {
            let answer = bench.call_as(&reader, Method::POST, &path, body.clone()).await;
            assert_eq!(answer.status == StatusCode::FORBIDDEN, is_beyond, "{path}: {}", answer.text);
            assert_eq!(is_beyond, !answer.text.contains("token\":") && answer.status != StatusCode::OK);
            let answer = bench.call_as(&writer, Method::POST, &path, body).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        }
    }
    bench.close().await;
}
