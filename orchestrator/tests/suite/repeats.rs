// SPDX-License-Identifier: Apache-2.0
//! One conversation, one live sandbox: what a repeat of the create call gets.

use crate::bench::Bench;
use http::StatusCode;
use serde_json::{Value, json};

fn first() -> Value {
    json!({
        "user_id": "alice", "conversation_id": "c1", "env": { "A": "secret-of-alice" },
        "claims": { "plan": "gold" }, "labels": { "team": "alices-team" }, "operations": [],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_gets_the_same_sandbox_or_is_told_what_differs() {
    let bench = Bench::real().await;
    let made = bench.post("/sandbox?wait=running", first()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let (sandbox, token) = (made.field("sandbox_id"), made.field("token"));

    // The table: what the repeat says besides user and conversation, and the field that differs.
    let table = [
        (json!({}), None),
        (json!({ "env": { "A": "secret-of-alice" } }), None),
        (json!({ "claims": { "plan": "gold" }, "operations": [] }), None),
        (json!({ "template": "default" }), None),
        (json!({ "ttl": "2h", "idle": "5m", "labels": { "other": "label" } }), None),
        (json!({ "env": { "A": "other" } }), Some("/env")),
        (json!({ "env": {} }), Some("/env")),
        (json!({ "claims": {} }), Some("/claims")),
        (json!({ "claims": { "plan": "gold", "more": true } }), Some("/claims")),
    ];
    for (fields, differs) in table {
        let mut body = json!({ "user_id": "alice", "conversation_id": "c1" });
        body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let again = bench.post("/sandbox", body).await;
        match differs {
            None => {
                assert_eq!(again.status, StatusCode::OK, "{fields}: {}", again.text);
                assert_eq!(again.field("sandbox_id"), sandbox);
                assert_ne!(again.field("token"), token, "the token is a fresh one");
            }
            Some(pointer) => {
                assert_eq!(again.code(), "sandbox-differs", "{fields}");
                assert_eq!(again.json()["errors"][0]["pointer"], pointer);
                assert!(!again.text.contains("secret-of-alice"), "{}", again.text);
            }
        }
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_learns_nothing_of_the_first() {
    let bench = Bench::real().await;
    let made = bench.post("/sandbox?wait=running", first()).await.json();
    let body = json!({ "user_id": "bob", "conversation_id": "c1", "env": { "A": "b" } });
    let refused = bench.post("/sandbox", body).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (StatusCode::CONFLICT, "conversation-of-another-user")
    );
    let ours = ["alice", "alices-team", "secret-of-alice", "gold"].map(str::to_owned);
    let shown = ["sandbox_id", "token", "created_at", "expires_at"]
        .map(|field| made[field].as_str().expect("text").to_owned());
    for of_alice in ours.iter().chain(&shown) {
        assert!(!refused.text.contains(of_alice.as_str()), "`{of_alice}` in {}", refused.text);
        let in_headers = refused
            .headers
            .values()
            .any(|value| value.to_str().is_ok_and(|text| text.contains(of_alice.as_str())));
        assert!(!in_headers);
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_that_ask_at_once_one_makes_it_and_the_rest_find_it() {
    let bench = Bench::real().await;
    let body = || json!({ "user_id": "alice", "conversation_id": "c1" });
    let answers =
        futures_util::future::join_all((0..8).map(|_| bench.post("/sandbox?wait=running", body()))).await;
    let made = answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count();
    let found = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
    assert_eq!((made, found), (1, 7), "{answers:?}");
    let ids: std::collections::BTreeSet<String> =
        answers.iter().map(|answer| answer.field("sandbox_id")).collect();
    assert_eq!(ids.len(), 1);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_may_have_a_new_sandbox_once_the_last_is_gone() {
    let bench = Bench::real().await;
    let first = bench.sandbox("c1").await;
    let going = bench.delete(&format!("/sandbox/{first}?wait=no")).await;
    assert!(going.status.is_success(), "{}", going.text);
    let body = json!({ "user_id": "bob", "conversation_id": "c1" });
    let second = bench.post("/sandbox?wait=running", body).await;
    assert_eq!(second.status, StatusCode::CREATED, "{}", second.text);
    assert_ne!(second.field("sandbox_id"), first);
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_is_compared_with_the_sandbox_and_with_nothing_that_changed_since() {
    let bench = Bench::real().await;
    assert_eq!(bench.put("/templates/small", json!({ "operations": [] })).await.status, StatusCode::CREATED);
    let body = |more: Value| {
        let mut body = json!({ "user_id": "alice", "conversation_id": "c1", "template": "small" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        body
    };
    let made = bench.post("/sandbox?wait=running", body(json!({ "operations": [] }))).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    assert_eq!(bench.delete("/templates/small").await.status, StatusCode::NO_CONTENT);
    let again = bench.post("/sandbox", body(json!({}))).await;
    assert_eq!((again.status, again.field("sandbox_id")), (StatusCode::OK, made.field("sandbox_id")));
    for (more, differs) in [
        (json!({ "template": "unheard" }), "/template"),
        (json!({ "operations": ["desk/unheard"] }), "/operations"),
    ] {
        let refused = bench.post("/sandbox", body(more)).await;
        assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "sandbox-differs"));
        assert_eq!(refused.json()["errors"][0]["pointer"], differs, "{}", refused.text);
    }
    let mut of_bob = body(json!({ "template": "unheard" }));
    of_bob["user_id"] = json!("bob");
    assert_eq!(bench.post("/sandbox", of_bob).await.code(), "conversation-of-another-user");
    let mut new = body(json!({}));
    new["conversation_id"] = json!("c2");
    assert_eq!(bench.post("/sandbox", new).await.code(), "invalid-input", "a new one needs its template");
    bench.close().await;
}

async fn keyed(bench: &Bench, key: &str, body: &Value) -> crate::bench::Answer {
    let bearer = format!("Bearer {}", bench.key);
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", key)];
    bench.send(http::Method::POST, "/sandbox?wait=running", &headers, &body.to_string()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_gets_the_same_sandbox_even_after_its_end() {
    let bench = Bench::real().await;
    let body = json!({ "user_id": "alice", "conversation_id": "c1", "labels": { "a": "1", "b": "2" } });
    let made = keyed(&bench, "\"key-1\"", &body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    assert!(!made.headers.contains_key("idempotency-replayed"));
    let again = keyed(&bench, "key-1", &body).await;
    assert_eq!((again.status, again.field("sandbox_id")), (StatusCode::CREATED, made.field("sandbox_id")));
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_ne!(again.field("token"), made.field("token"), "a token is never stored: it is a fresh one");
    let found = keyed(&bench, "key-2", &body).await;
    assert_eq!((found.status, found.field("sandbox_id")), (StatusCode::OK, made.field("sandbox_id")));

    bench.delete(&format!("/sandbox/{}", made.field("sandbox_id"))).await;
    for (key, status) in [("key-1", StatusCode::CREATED), ("key-2", StatusCode::OK)] {
        let late = keyed(&bench, key, &body).await;
        assert_eq!((late.status, late.field("sandbox_id")), (status, made.field("sandbox_id")));
        assert_eq!(late.field("status"), "destroyed");
        assert!(late.json().get("token").is_none(), "{}", late.text);
    }
    let fresh = keyed(&bench, "key-3", &body).await;
    assert_eq!(fresh.status, StatusCode::CREATED);
    assert_ne!(fresh.field("sandbox_id"), made.field("sandbox_id"));
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_with_another_wish_is_refused_and_one_of_another_tenant_is_not() {
    let bench = Bench::real().await;
    let body = json!({ "user_id": "alice", "conversation_id": "c1" });
    let made = keyed(&bench, "key", &body).await;
    let spelled = json!({ "conversation_id": "c1", "user_id": "alice" });
    assert_eq!(keyed(&bench, "key", &spelled).await.field("sandbox_id"), made.field("sandbox_id"));
    for other in [
        json!({ "user_id": "alice", "conversation_id": "c2" }),
        json!({ "user_id": "bob", "conversation_id": "c1" }),
    ] {
        let refused = keyed(&bench, "key", &other).await;
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused")
        );
        assert!(refused.field("hint").contains("fresh key"), "{}", refused.text);
        assert!(!refused.text.contains(&made.field("sandbox_id")));
    }
    assert_eq!(keyed(&bench, "not one", &body).await.code(), "request-malformed");
    assert_eq!(bench.post("/tenants", json!({ "name": "other" })).await.status, StatusCode::CREATED);
    let (key, text) = (bench.key("developer", "other").await, body.to_string());
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", "key")];
    let theirs = bench.send(http::Method::POST, "/sandbox?wait=running", &headers, &text).await;
    assert_eq!(theirs.status, StatusCode::CREATED, "{}", theirs.text);
    assert_ne!(theirs.field("sandbox_id"), made.field("sandbox_id"));
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_or_did_not_start_may_be_tried_again_with_its_key() {
    let bench = Bench::without_sandboxes().await;
    let body = json!({ "user_id": "alice", "conversation_id": "c1" });
    for _ in 0..2 {
        let refused = keyed(&bench, "key", &body).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.text);
    }
    let folder = bench.stop().await;
    let bench = Bench::open(folder, true, |_| {}).await;
    let made = keyed(&bench, "key", &body).await;
    assert_eq!(
        (made.status, made.field("status").as_str()),
        (StatusCode::CREATED, "running"),
        "{}",
        made.text
    );
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_with_one_key_and_different_wishes_one_gets_a_sandbox() {
    let bench = Bench::real().await;
    let body = |number: usize| json!({ "user_id": "alice", "conversation_id": format!("c{number}") });
    let bodies: Vec<Value> = (0..6).map(body).collect();
    let answers = futures_util::future::join_all(bodies.iter().map(|body| keyed(&bench, "key", body))).await;
    let made = answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count();
    let refused = answers.iter().filter(|answer| answer.status == StatusCode::UNPROCESSABLE_ENTITY).count();
    assert_eq!((made, refused), (1, 5), "{answers:?}");
    assert_eq!(bench.get("/sandbox").await.json()["sandboxes"].as_array().expect("a list").len(), 1);
    bench.close().await;
}
