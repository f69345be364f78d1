// SPDX-License-Identifier: Apache-2.0
//! Filters end to end: really compiled and signed, in the chain of a backend. What one refuses
//! reaches no backend, what one changes is judged again, and one that fails hurts its tenant only.

use crate::plugins::{compiled, key, manifest, sign, sign_for};
use crate::refusals::admin;
use crate::world::{Answer, Sandbox, World, read_until};
use postern_common::control::{Applied, Change, FilterArtefact, Message, TenantConfig};
use postern_common::id::FilterName;
use postern_filter_engine::Fingerprint;
use postern_filter_engine::settings::fingerprint;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::AsyncWriteExt as _;

const JSON: (&str, &str) = ("content-type", "application/json");
const BYTES: (&str, &str) = ("content-type", "application/octet-stream");
const REFUND: &[u8] = br#"{"order":"1","amount":1}"#;

/// A gateway that believes the suite's artefact key.
pub(crate) async fn world() -> World {
    World::with(|settings| settings.artefact_key = Some(*key().verifying_key().as_bytes())).await
}

pub(crate) fn name(text: &str) -> FilterName {
    FilterName::parse(text).expect("a name")
}

/// A plugin's manifest as these tests use it: requests only, and time enough on any machine so
/// that the bounds under test are the ones that are met.
pub(crate) fn patient(plugin: &str) -> String {
    let manifest = manifest(plugin).replace(r#"["request", "response"]"#, r#"["request"]"#);
    manifest.replace(r#"time = "20ms""#, r#"time = "1s""#)
}

pub(crate) fn artefact(plugin: &'static str, tenant: &str, version: u64, manifest: &str) -> FilterArtefact {
    FilterArtefact {
        manifest: Arc::from(manifest),
        artefact: sign(&compiled(plugin), (tenant, plugin), version, manifest).into(),
        version,
    }
}

/// A tenant's configuration with these plugins attached, as `backend.toml` attaches them.
pub(crate) fn chain(world: &World, tenant: &str, plugins: &[&'static str], attached: &Value) -> TenantConfig {
    let mut file = world.described();
    file["filters"] = attached.clone();
    let mut config = world.config(tenant, &[("desk", file)], None);
    for plugin in plugins {
        config.filters.insert(name(plugin), artefact(plugin, tenant, 1, &patient(plugin)));
    }
    config
}

/// A gateway whose tenant `acme` has one plugin attached to everything, and a sandbox of alice's.
async fn filtered(plugin: &'static str) -> (World, Sandbox) {
    let world = world().await;
    assert_eq!(world.put(chain(&world, "acme", &[plugin], &json!([plugin]))).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    (world, sandbox)
}

fn said(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_reach_the_backend_as_headers_whatever_the_sandbox_sent() {
    let (world, _) = filtered("claim-injection").await;
    let sandbox = world
        .sandbox_with("acme", "bob", &["*"], |session| {
            session.claims.insert("plan".into(), json!("free"));
        })
        .await;
    let forged = [("x-user-plan", "enterprise"), ("x-user-locale", "forged")];
    let answer = sandbox.call("GET", "/orders", &forged, b"").await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    assert_eq!(answer.seen_header("x-user-plan"), ["free"]);
    assert!(answer.seen_header("x-user-locale").is_empty(), "a claim that the session has not");
    let records = world.decisions();
    let ran = &records.last().expect("a record").filters;
    assert_eq!((ran.len(), ran[0].verdict.as_str()), (1, "changed"));
    assert_eq!(ran[0].digest.len(), 64, "the component's own: {}", ran[0].digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filters_refusal_has_its_own_status_and_code_and_reaches_nobody() {
    let (world, sandbox) = filtered("card-guard").await;
    let note = |note: &str| json!({ "order": "1", "amount": 1, "note": note });
    let answer = sandbox.post("/refunds", &note("it is 4111 1111 1111 1111")).await;
    assert_eq!(said(&answer), (422, "filter-rejected"), "{:?}", answer.body);
    let detail = answer.body["detail"].as_str().expect("a detail");
    assert!(detail.contains("`card-guard`") && detail.contains("(card-number)"), "{detail}");
    world.recorded.assert_untouched("a card number");
    let answer = sandbox.post("/refunds", &note("it ends in 1111")).await;
    assert_eq!(answer.status, 200, "the control: {:?}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_refused_at_its_last_byte_reaches_nobody() {
    let (world, sandbox) = filtered("card-guard").await;
    let rest = "content-type: application/octet-stream\r\ncontent-length: 16\r\nconnection: close\r\n";
    let mut stream = sandbox.connect().await;
    stream.write_all(sandbox.head("PUT", "/uploads", rest).as_bytes()).await.expect("writes");
    stream.write_all(b"411111111111111").await.expect("writes");
    // The gateway has answered others since: it had all the time to forward what it has.
    assert_eq!(sandbox.get("/nothing").await.status, 404);
    world.recorded.assert_untouched("a body without its last byte");
    stream.write_all(b"1").await.expect("writes");
    let answer = read_until(&mut stream, "decision_id").await;
    assert!(answer.starts_with("HTTP/1.1 422 ") && answer.contains("filter-rejected"), "{answer}");
    world.recorded.assert_untouched("a card number at the last byte");
    let answer = sandbox.call("PUT", "/uploads", &[BYTES], b"4111111111111112").await;
    assert_eq!(answer.status, 200, "the control: {:?}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_longer_than_the_manifest_takes_is_refused_not_cut() {
    let (world, sandbox) = filtered("card-guard").await;
    let fits = "a".repeat(64 * 1024);
    let long = format!("{fits}4111111111111111");
    let answer = sandbox.call("PUT", "/uploads", &[BYTES], long.as_bytes()).await;
    assert_eq!(said(&answer), (413, "body-too-large"), "{:?}", answer.body);
    world.recorded.assert_untouched("a body that the filter could not see whole");
    assert_eq!(sandbox.call("PUT", "/uploads", &[BYTES], fits.as_bytes()).await.status, 200, "the control");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_runs_for_the_operations_that_it_is_attached_to() {
    let world = world().await;
    let attached =
        json!([{ "name": "hostile", "operations": ["createRefund"], "config": { "way": "trap" } }]);
    assert_eq!(world.put(chain(&world, "acme", &["hostile"], &attached)).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    assert_eq!(said(&sandbox.call("POST", "/refunds", &[JSON], REFUND).await), (500, "filter-failed"));
    world.recorded.assert_untouched("a refund");
    assert_eq!(sandbox.get("/orders").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_filter_sees_what_an_earlier_one_changed() {
    let world = world().await;
    let config = chain(&world, "acme", &["hostile", "card-guard"], &json!(["hostile", "card-guard"]));
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    let send = async |body| {
        let headers = [JSON, ("x-hostile", "rewrite"), ("x-new-body", body)];
        sandbox.call("POST", "/refunds", &headers, REFUND).await
    };
    let answer = send(r#"{"order":"1","amount":1,"note":"4111111111111111"}"#).await;
    assert_eq!(said(&answer), (422, "filter-rejected"));
    world.recorded.assert_untouched("a card number that a filter put in");
    assert_eq!(send(r#"{"order":"1","amount":1,"note":"no card"}"#).await.status, 200, "the control");
}

/// Sends a request that the filter rewrites.
async fn rewritten(sandbox: &Sandbox, target: &str, change: (&str, &str)) -> Answer {
    let headers = [("x-hostile", "rewrite"), change];
    match target {
        "/refunds" => sandbox.call("POST", target, &[&headers[..], &[JSON]].concat(), REFUND).await,
        _ => sandbox.call("GET", target, &headers, b"").await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_that_a_filter_writes_is_overwritten_where_it_is_declared() {
    let (_world, sandbox) = filtered("hostile").await;
    let answer = rewritten(&sandbox, "/orders", ("x-new-header", "X-User-Id=bob")).await;
    assert_eq!(answer.seen_header("x-user-id"), ["alice"], "{:?}", answer.body);
    let answer = rewritten(&sandbox, "/orders", ("x-new-query", "user_id=bob")).await;
    assert_eq!(answer.target(), "/api/orders?user_id=alice");
    let body = r#"{"order":"1","amount":2,"user_id":"bob"}"#;
    let answer = rewritten(&sandbox, "/refunds", ("x-new-body", body)).await;
    assert_eq!(answer.seen_body(), json!({ "order": "1", "amount": 2, "user_id": "alice" }));
    let answer = rewritten(&sandbox, "/orders/7", ("x-new-path", "/orders/8")).await;
    assert_eq!(answer.target(), "/api/orders/8", "a change that is no harm is made");
}

/// What the backend saw, but for what the client asked the filter to do.
fn seen(answer: &Answer) -> String {
    let mut body = answer.body.clone();
    if let Some(headers) = body["headers"].as_object_mut() {
        headers.retain(|name, _| !name.starts_with("x-new-"));
    }
    body.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_identity_that_a_filter_writes_reaches_the_backend() {
    let identity = json!({ "user": [] });
    let spellings = [
        ("/orders", ("x-new-header", "X-User-Id=mallory")),
        ("/orders", ("x-new-header", "X_User_Id=mallory")),
        ("/orders", ("x-new-query", "user_id=mallory")),
        ("/refunds", ("x-new-body", r#"{"order":"1","amount":1,"user_id":"mallory"}"#)),
        (
            "/refunds",
            ("x-new-body", r#"{"order":"1","amount":1,"user_id":"x","extra":{"a":[{"userId":"mallory"}]}}"#),
        ),
        ("/users/alice/profile", ("x-new-path", "/users/mallory/profile")),
    ];
    let (guarded, alice) = filtered("hostile").await;
    let open = world().await;
    let mut config = chain(&open, "acme", &["hostile"], &json!(["hostile"]));
    for backend in config.backends.values_mut() {
        backend.file.identity = serde_json::from_value(identity.clone()).expect("identity");
    }
    assert_eq!(open.put(config).await, Applied::InForce);
    let control = open.sandbox("alice", &["*"]).await;
    // A refund that fits with the identity stage on and off.
    let refund = br#"{"order":"1","amount":1,"user_id":"x"}"#;
    let asked = async |sandbox: &Sandbox, target: &str, change: (&str, &str)| match target {
        "/refunds" => sandbox.call("POST", target, &[("x-hostile", "rewrite"), change, JSON], refund).await,
        _ => rewritten(sandbox, target, change).await,
    };
    for (target, change) in spellings {
        let answer = asked(&alice, target, change).await;
        let is_held = match answer.status {
            200 => !seen(&answer).contains("mallory"),
            _ => answer.code() == "identity-mismatch",
        };
        assert!(is_held, "{target} {change:?}: {:?}", answer.body);
        let answer = asked(&control, target, change).await;
        let reached = answer.status == 200 && seen(&answer).contains("mallory");
        assert!(reached, "does not count: {target} {change:?}: {:?}", answer.body);
    }
    drop(guarded);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_filter_writes_is_judged_like_a_clients_own_request() {
    let world = world().await;
    let mut config = chain(&world, "acme", &["hostile"], &json!(["hostile"]));
    let policies = r#"
        @id("all") permit (principal, action, resource);
        @id("refund-limit") forbid (principal, action == desk::Action::"createRefund", resource)
        when { context.body.amount > 100 };
        @id("closed-order") forbid (principal, action == desk::Action::"getOrder", resource)
        when { context.path.orderId == "closed" };
        @id("short-lists") forbid (principal, action == desk::Action::"listOrders", resource)
        when { context.query has limit && context.query.limit > 50 };
    "#;
    config.policies = world.config("acme", &[], Some(policies)).policies;
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    for (target, change, status, code) in [
        ("/orders", ("x-new-header", "X_User_Id=bob"), 403, "identity-mismatch"),
        ("/orders/7", ("x-new-query", "user_id=bob"), 403, "identity-mismatch"),
        ("/users/alice/profile", ("x-new-path", "/users/bob/profile"), 403, "identity-mismatch"),
        (
            "/refunds",
            ("x-new-body", r#"{"order":"1","amount":1,"extra":{"userId":"bob"}}"#),
            403,
            "identity-mismatch",
        ),
        ("/orders", ("x-new-query", "limit=5000"), 422, "schema-violation"),
        ("/refunds", ("x-new-body", r#"{"order":"1","amount":0}"#), 422, "schema-violation"),
        ("/refunds", ("x-new-body", r#"{"order":"1","amount":1,"amount":2}"#), 400, "request-malformed"),
        ("/refunds", ("x-new-body", r#"{"order":"1","amount":101}"#), 403, "policy-denied"),
        ("/orders/7", ("x-new-path", "/orders/closed"), 403, "policy-denied"),
        ("/orders", ("x-new-query", "limit=51"), 403, "policy-denied"),
        ("/refunds", ("x-new-header", "content-type=text/plain"), 415, "content-type-refused"),
        ("/orders/7", ("x-new-path", "/users/alice/profile"), 500, "filter-failed"),
        ("/orders/7", ("x-new-path", "/orders/8/../../refunds"), 500, "filter-failed"),
    ] {
        let answer = rewritten(&sandbox, target, change).await;
        assert_eq!(said(&answer), (status, code), "{target} {change:?}: {:?}", answer.body);
    }
    world.recorded.assert_untouched("a rewritten request");
    for (target, change) in [
        ("/refunds", ("x-new-body", r#"{"order":"1","amount":100}"#)),
        ("/orders/7", ("x-new-path", "/orders/open")),
        ("/orders", ("x-new-query", "limit=50")),
    ] {
        let answer = rewritten(&sandbox, target, change).await;
        assert_eq!(answer.status, 200, "the control: {target} {change:?}: {:?}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hostile_filter_fails_its_own_request_and_the_gateway_serves_on() {
    let (world, sandbox) = filtered("hostile").await;
    let fails = async |way: &str| {
        let answer = sandbox.call("POST", "/refunds", &[JSON, ("x-hostile", way)], REFUND).await;
        assert_eq!(said(&answer), (500, "filter-failed"), "{way}: {:?}", answer.body);
        let shown = answer.body.to_string();
        assert!(!shown.contains("wasm") && !shown.contains("trap"), "the cause is the operator's: {shown}");
    };
    for way in ["loop", "loop-in-host", "allocate", "recurse", "trap", "divide", "flood-log", "many-changes"]
    {
        fails(way).await;
    }
    for way in ["set-authorization", "set-host", "set-length", "split-header", "relative-path", "long-body"] {
        fails(way).await;
    }
    for way in ["ok-status", "split-code", "long-message", "lying-length"] {
        fails(way).await;
    }
    world.recorded.assert_untouched("a filter that failed");
    let answer = sandbox.call("POST", "/refunds", &[JSON, ("x-hostile", "read-secrets")], REFUND).await;
    assert_eq!(said(&answer), (403, "filter-rejected"), "{:?}", answer.body);
    assert!(
        answer.body["detail"].as_str().is_some_and(|detail| detail.contains("no-claim")),
        "no secret seen"
    );
    assert_eq!(sandbox.call("POST", "/refunds", &[JSON], REFUND).await.status, 200, "the gateway serves on");
    let metrics = admin(&world, "/metrics").await;
    for cause in ["deadline", "memory", "stack", "trap", "host_calls", "changes", "forbidden", "verdict"] {
        let line = format!("filter_failures_total{{filter=\"hostile\",cause=\"{cause}\"}}");
        assert!(metrics.contains(&line), "{cause}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenant_is_served_while_one_tenants_filter_loops() {
    let world = world().await;
    let looping = json!([{ "name": "hostile", "config": { "way": "loop" } }]);
    assert_eq!(world.put(chain(&world, "evil", &["hostile"], &looping)).await, Applied::InForce);
    let config = chain(&world, "acme", &["claim-injection"], &json!(["claim-injection"]));
    assert_eq!(world.put(config).await, Applied::InForce);
    let evil = world.sandbox_of("evil", "eve", &["*"]).await;
    let alice = world.sandbox("alice", &["*"]).await;
    let mut loops = Vec::new();
    for _ in 0..8 {
        let mut stream = evil.connect().await;
        stream.write_all(evil.head("GET", "/orders", "").as_bytes()).await.expect("writes");
        loops.push(stream);
    }
    for _ in 0..5 {
        assert_eq!(alice.get("/orders").await.status, 200);
    }
    let connections = world.recorded.connections.load(Ordering::SeqCst);
    for stream in &mut loops {
        let answer = read_until(stream, "decision_id").await;
        assert!(answer.contains("filter-failed"), "{answer}");
    }
    assert_eq!(world.recorded.connections.load(Ordering::SeqCst), connections, "no loop reached the backend");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_may_fail_open_is_passed_by_and_the_record_says_so() {
    let world = world().await;
    let attached = json!([{ "name": "hostile", "on_failure": "open" }]);
    let config = chain(&world, "acme", &["hostile"], &attached);
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    let answer = sandbox.call("GET", "/orders", &[("x-hostile", "trap")], b"").await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    assert_eq!(answer.seen_header("x-user-id"), ["alice"], "everything else was judged");
    assert_eq!(world.decisions().last().expect("a record").filters[0].verdict, "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artefact_that_is_not_what_was_signed_is_refused_and_the_last_good_one_stays() {
    let (world, _) = filtered("claim-injection").await;
    let sandbox = world
        .sandbox_with("acme", "bob", &["*"], |session| {
            session.claims.insert("plan".into(), json!("free"));
        })
        .await;
    let text = patient("claim-injection");
    let code = compiled("claim-injection");
    let good = || sign(&code, ("acme", "claim-injection"), 2, &text);
    let flipped = |index: usize| {
        let mut bytes = good();
        bytes[index] ^= 1;
        bytes
    };
    let last = good().len() - 1;
    // The signature begins after the magic, the statement's length and the statement.
    let statement =
        usize::try_from(u32::from_be_bytes(good()[8..12].try_into().expect("four"))).expect("small");
    let cases = [
        ("unsigned code", code.to_vec(), "form"),
        ("a changed signature", flipped(12 + statement), "signature"),
        ("a changed statement", flipped(12 + statement / 2), "signature"),
        ("changed code", flipped(last), "code has been changed"),
        ("another tenant's", sign(&code, ("evil", "claim-injection"), 2, &text), "tenant `evil`"),
        ("another filter's", sign(&code, ("acme", "card-guard"), 2, &text), "filter `card-guard`"),
        ("an older version", sign(&code, ("acme", "claim-injection"), 1, &text), "version 1"),
        ("another manifest's", sign(&code, ("acme", "claim-injection"), 2, "phases = []"), "manifest"),
    ];
    for (what, bytes, words) in cases {
        let mut config = chain(&world, "acme", &[], &json!(["claim-injection"]));
        let artefact = FilterArtefact { manifest: Arc::from(&*text), artefact: bytes.into(), version: 2 };
        config.filters.insert(name("claim-injection"), artefact);
        let Applied::Refused(told) = world.put(config).await else { panic!("{what} was taken") };
        assert!(told.len() == 1 && told[0].contains(words), "{what}: {told:?}");
        let answer = sandbox.get("/orders").await;
        assert_eq!(answer.seen_header("x-user-plan"), ["free"], "{what}: the last good one is in force");
    }
    let mut config = chain(&world, "acme", &[], &json!(["claim-injection"]));
    let artefact = FilterArtefact { manifest: Arc::from(&*text), artefact: good().into(), version: 2 };
    config.filters.insert(name("claim-injection"), artefact);
    assert_eq!(world.put(config).await, Applied::InForce, "the control");
    let older = chain(&world, "acme", &["claim-injection"], &json!(["claim-injection"]));
    let Applied::Refused(told) = world.put(older.clone()).await else { panic!("it went back") };
    assert!(told[0].contains("version 1 is older than version 2"), "{told:?}");
    let restored = Message { epoch: 2, version: 1, change: Change::Tenant(Arc::new(older)) };
    assert_eq!(world.send_as(restored).await, Applied::InForce, "a restored database may");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_of_another_engine_leave_the_last_good_ones_serving_and_the_gateway_not_ready() {
    let (world, _) = filtered("claim-injection").await;
    let sandbox = world
        .sandbox_with("acme", "bob", &["*"], |session| {
            session.claims.insert("plan".into(), json!("free"));
        })
        .await;
    let text = patient("claim-injection");
    let version = |engine: Fingerprint, version: u64| {
        let mut config = chain(&world, "acme", &[], &json!(["claim-injection"]));
        let of = ("acme", "claim-injection");
        let bytes = sign_for(engine, &compiled("claim-injection"), of, version, &text);
        let artefact = FilterArtefact { manifest: Arc::from(&*text), artefact: bytes.into(), version };
        config.filters.insert(name("claim-injection"), artefact);
        config
    };
    assert!(admin(&world, "/readyz").await.starts_with("HTTP/1.1 200"), "the control");
    let Applied::Refused(told) = world.put(version(Fingerprint::of(b"another release"), 2)).await else {
        panic!("it was taken")
    };
    assert!(told[0].contains("engine with fingerprint"), "{told:?}");
    let answer = sandbox.get("/orders").await;
    assert_eq!(answer.seen_header("x-user-plan"), ["free"], "the last good one is in force");
    let ready = admin(&world, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("filters of 1 tenants"), "{ready}");
    assert!(admin(&world, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert_eq!(world.put(version(fingerprint(), 3)).await, Applied::InForce);
    assert!(admin(&world, "/readyz").await.starts_with("HTTP/1.1 200"), "it is served again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_an_artefact_key_loads_no_filter() {
    let world = World::desk().await;
    let config = chain(&world, "acme", &["card-guard"], &json!(["card-guard"]));
    let Applied::Refused(told) = world.put(config).await else { panic!("it was taken") };
    assert!(told[0].contains("no artefact key"), "{told:?}");
    assert_eq!(world.sandbox("alice", &["*"]).await.get("/orders").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_is_replaced_again_and_again_fails_no_request() {
    // The short form of `make prove-reload`.
    const REPLACEMENTS: u64 = 60;
    let world = Arc::new(world().await);
    let put = async |version: u64| {
        let text = format!("# version {version}\n{}", patient("claim-injection"));
        let mut config = chain(&world, "acme", &[], &json!(["claim-injection"]));
        let artefact = artefact("claim-injection", "acme", version, &text);
        config.filters.insert(name("claim-injection"), artefact);
        // Requests are made as fast as they are answered.
        let rate = json!({ "per_second": 1e6, "burst": 1_000_000, "concurrent": 100 });
        config.limits = serde_json::from_value(json!({ "session": rate, "tenant": rate })).expect("limits");
        assert_eq!(world.put(config).await, Applied::InForce, "version {version}");
    };
    put(1).await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let asking = async {
        let mut served = 0_u64;
        while !*stopped.borrow() {
            let answer = sandbox.get("/orders").await;
            assert_eq!(answer.status, 200, "{:?}", answer.body);
            served += 1;
        }
        served
    };
    let replacing = async {
        for version in 2..=REPLACEMENTS {
            put(version).await;
        }
        stop.send_replace(true);
    };
    let (served, ()) = tokio::join!(asking, replacing);
    assert!(served > 0, "requests went on meanwhile");
}
