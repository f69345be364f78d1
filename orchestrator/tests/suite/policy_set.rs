// SPDX-License-Identifier: Apache-2.0
//! Policy sets as a whole: versions, shadow, promotion, going back; and requests of the past,
//! explained and decided again.

use crate::bench::{Bench, until};
use http::{Method, StatusCode};
use postern_common::clock;
use postern_common::decision::{DecisionRecord, ShadowPart, ShadowScope, Verdict, Versions};
use postern_common::id::{DecisionId, RequestId};
use postern_common::problem::Code;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const READS: &str = "@id(\"reads\") permit (principal, action in desk::Action::\"read\", resource);";
const WRITES: &str =
    "@id(\"writes\") @reason(\"as agreed\") permit (principal, action in desk::Action::\"write\", resource);";
const DOCUMENT: &str = r#"{"openapi": "3.1.0", "info": {"title": "desk", "version": "1"}, "paths": {
    "/orders": {"get": {"operationId": "listOrders", "responses": {}}},
    "/refunds": {"post": {"operationId": "createRefund", "responses": {}, "requestBody": {"content": {
        "application/json": {"schema": {"type": "object", "properties": {"amount": {"type": "integer"}}}}}}}}}}"#;

async fn desk() -> Bench {
    let bench = Bench::without_sandboxes().await;
    let backend = json!({ "backend": { "url": "http://127.0.0.1:9000", "openapi": "openapi.json" }, "document": DOCUMENT });
    let put = bench.put("/backends/desk", backend).await;
    assert_eq!(put.status, StatusCode::CREATED, "{}", put.text);
    bench
}

fn set(policies: &[(&str, &str)]) -> Value {
    let texts: BTreeMap<&str, &str> = policies.iter().copied().collect();
    json!({ "policies": texts })
}

/// What gateways were told last: the set in force and the one in shadow.
fn told(bench: &Bench) -> (Option<Vec<String>>, Vec<String>) {
    let told = bench.told();
    let tenant = told.tenants.last().expect("was told");
    let texts = |texts: &BTreeMap<_, String>| texts.values().cloned().collect::<Vec<_>>();
    (tenant.policies.as_ref().map(texts), texts(&tenant.shadow_policies))
}

async fn ok(bench: &Bench, method: Method, path: &str, body: Value) -> Value {
    let answer = bench.call(method, path, body).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
    answer.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_is_pushed_watched_promoted_and_rolled_back_by_version() {
    let bench = desk().await;
    let pushed = ok(&bench, Method::PUT, "/policy-set", set(&[("one", READS)])).await;
    assert_eq!(pushed["policy_version"]["number"], 2, "the first is what was there before: {pushed}");
    assert_eq!(told(&bench), (Some(vec![READS.to_owned()]), vec![]));

    let mut watch = set(&[("two", READS), ("three", WRITES)]);
    watch["mode"] = json!("shadow");
    let watched = ok(&bench, Method::PUT, "/policy-set", watch).await;
    assert_eq!(watched["policy_version"]["number"], 2, "nothing else is in force: {watched}");
    assert_eq!(told(&bench).0, Some(vec![READS.to_owned()]));
    assert_eq!(told(&bench).1.len(), 2);

    let tried = ok(&bench, Method::POST, "/policy-set/promote?dry_run=true", json!({})).await;
    assert_eq!((&tried["dry_run"], told(&bench).1.len()), (&json!(true), 2), "only tried");
    let promoted = ok(&bench, Method::POST, "/policy-set/promote", json!({})).await;
    assert_eq!(promoted["policy_version"]["number"], 3);
    assert_eq!(told(&bench), (Some(vec![WRITES.to_owned(), READS.to_owned()]), vec![]));

    let back = ok(&bench, Method::POST, "/policy-set/rollback", json!({})).await;
    assert_eq!(
        (&back["policy_version"]["number"], &back["policy_version"]["how"]),
        (&json!(4), &json!("rolled-back"))
    );
    assert_eq!(told(&bench).0, Some(vec![READS.to_owned()]));
    ok(&bench, Method::POST, "/policy-set/rollback", json!({ "version": 1 })).await;
    assert_eq!(told(&bench).0, None, "there was no set of its own at first");

    let versions = ok(&bench, Method::GET, "/policy-set/versions", Value::Null).await;
    let how: Vec<&str> =
        versions["versions"].as_array().expect("a list").iter().filter_map(|it| it["how"].as_str()).collect();
    assert_eq!(how, ["rolled-back", "rolled-back", "promoted", "pushed", "before"]);
    assert!(versions["versions"][1]["author"].as_str().expect("text").starts_with("key:"));
    assert_eq!(
        versions["versions"][1]["digest"], versions["versions"][3]["digest"],
        "the same set has the same digest"
    );
    let third = ok(&bench, Method::GET, "/policy-set/versions/3", Value::Null).await;
    assert_eq!(third["policies"]["three"], WRITES);
    assert_eq!(bench.get("/policy-set/versions/99").await.code(), "not-found");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_is_in_force_whole_or_not_at_all_and_says_what_is_wrong() {
    let bench = desk().await;
    ok(&bench, Method::PUT, "/policy-set", set(&[("one", READS)])).await;
    let wrong = WRITES.replace("\"write\"", "\"wrote\"");
    for mode in ["enforce", "shadow"] {
        let mut body = set(&[("good", READS), ("wrong", &wrong)]);
        body["mode"] = json!(mode);
        let refused = bench.put("/policy-set", body).await;
        assert_eq!(refused.code(), "invalid-input", "{}", refused.text);
        let error = refused.json()["errors"][0].clone();
        assert!(error["pointer"].as_str().expect("text").ends_with("/wrong"), "{error}");
        assert!(error["message"].as_str().expect("text").contains("wrong.cedar:1:"), "{error}");
        assert_eq!(told(&bench), (Some(vec![READS.to_owned()]), vec![]), "what was in force still is");
    }
    assert_eq!(bench.put("/policy-set", json!({})).await.code(), "invalid-input");
    assert_eq!(bench.post("/policy-set/promote", json!({})).await.code(), "invalid-input", "nothing watches");
    let watching = WRITES.replace("permit", "@mode(\"shadow\")\npermit");
    ok(&bench, Method::PUT, "/policy-set", set(&[("one", READS), ("two", &watching)])).await;
    ok(&bench, Method::POST, "/policy-set/promote", json!({ "policies": ["writes"] })).await;
    assert_eq!(told(&bench).0, Some(vec![READS.to_owned(), WRITES.to_owned()]), "the rest of the text stays");
    bench.close().await;
}

/// A decision of the tenant `default` about a refund, as a gateway sends it.
fn record(amount: Option<i64>, digest: &str, routes: &str) -> DecisionRecord {
    let id = DecisionId::generate();
    let evidence = json!({
        "decision": id, "session": {"sandbox_id": "sandbox-aaaaaaaaaaaa", "user_id": "alice", "conversation_id": "c",
            "operations": ["*"], "template": "default", "isolation": "gvisor"},
        "backend": "desk", "operation": "createRefund", "body": {"amount": amount},
        "peer": "socket", "now": "2026-01-02T03:04:05Z",
    });
    DecisionRecord {
        id,
        at: clock::now(),
        request_id: RequestId::generate(),
        trace_id: None,
        tenant: Some("default".parse().expect("a name")),
        sandbox_id: Some("sandbox-aaaaaaaaaaaa".parse().expect("an id")),
        user_id: Some("alice".parse().expect("an id")),
        conversation_id: None,
        backend: Some("desk".parse().expect("a name")),
        operation: Some("createRefund".parse().expect("an id")),
        method: "POST".to_owned(),
        path_template: None,
        verdict: Verdict::Deny,
        code: Some(if amount.is_some() { Code::PolicyDenied } else { Code::RateLimited }),
        policies: Vec::new(),
        shadow: vec![ShadowPart {
            scope: ShadowScope::Set,
            verdict: Verdict::Allow,
            policies: vec!["writes".to_owned()],
        }],
        filters: Vec::new(),
        overridden: Vec::new(),
        versions: Versions { routes: routes.to_owned(), policies: digest.to_owned(), filters: String::new() },
        upstream: None,
        microseconds: BTreeMap::new(),
        evidence: amount.map(|_| evidence.to_string().into_boxed_str()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_the_past_are_explained_and_decided_again() {
    let bench = desk().await;
    ok(&bench, Method::PUT, "/policy-set", set(&[("one", READS)])).await;
    let mut watch = set(&[("one", WRITES)]);
    watch["mode"] = json!("shadow");
    ok(&bench, Method::PUT, "/policy-set", watch).await;
    let versions = bench.told().tenants.last().expect("was told").versions.clone();
    let (refund, early) = (record(Some(5), &versions.policies, &versions.routes), record(None, "", ""));
    for sent in [refund.clone(), early.clone()] {
        bench.decisions.send(sent).await.expect("is taken");
    }
    until("both are kept", async || {
        bench.get("/decisions").await.json()["decisions"].as_array().is_some_and(|all| all.len() == 2)
    })
    .await;
    let listed = bench.get("/decisions").await.text;
    assert!(!listed.contains("evidence") && !listed.contains("amount"), "a record holds no body: {listed}");

    let explained =
        ok(&bench, Method::GET, &format!("/decisions/{}/explanation", refund.id), Value::Null).await;
    assert_eq!(explained["explanation"]["verdict"], "deny");
    assert_eq!(explained["notes"], json!([]), "{explained}");
    assert_eq!(explained["request"]["body"]["amount"], 5);
    let text = explained["text"].as_str().expect("text");
    assert!(
        text.contains("denied: no policy permits it") && text.contains("the set in shadow would allow"),
        "{text}"
    );
    let none = ok(&bench, Method::GET, &format!("/decisions/{}/explanation", early.id), Value::Null).await;
    assert!(none["text"].as_str().expect("text").contains("no policy was asked"), "{none}");
    assert_eq!(
        bench.get(&format!("/decisions/{}/explanation", DecisionId::generate())).await.code(),
        "not-found"
    );

    let diff = ok(&bench, Method::POST, "/policy-set/diff", set(&[("one", WRITES)])).await;
    assert_eq!((&diff["decided"], &diff["policies"]["writes"]["allowed"]), (&json!(1), &json!(1)), "{diff}");
    assert!(diff["text"].as_str().expect("text").contains("1 of 1 requests would be answered differently"));
    let wrong = bench.post("/policy-set/diff", set(&[("one", "permit (principal);")])).await;
    assert_eq!(wrong.code(), "invalid-input");

    let status = ok(&bench, Method::GET, "/policy-set", Value::Null).await;
    let recent = &status["shadow_set"]["of_recent_requests"];
    assert_eq!((&recent["would_allow"], &recent["would_change"]), (&json!(1), &json!(1)), "{status}");

    ok(&bench, Method::POST, "/policy-set/promote", json!({})).await;
    let later = ok(&bench, Method::GET, &format!("/decisions/{}/explanation", refund.id), Value::Null).await;
    assert_eq!(later["explanation"]["verdict"], "deny", "as it was decided then");
    assert!(later["notes"][0].as_str().expect("text").contains("version 2"), "{later}");
    bench.post("/tenants", json!({ "name": "acme" })).await;
    let stranger = bench.key("admin", "acme").await;
    let path = format!("/decisions/{}/explanation", refund.id);
    assert_eq!(bench.call_as(&stranger, Method::GET, &path, Value::Null).await.code(), "not-found");
    bench.close().await;
}
