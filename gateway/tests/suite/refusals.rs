// SPDX-License-Identifier: Apache-2.0
//! Every kind of refusal has its own code, and nothing of it reaches the backend.

use crate::world::{Sandbox, World, claims, eventually, mint, past, session};
use postern_common::clock::{now, unix_seconds};
use postern_common::control::{Applied, Change};
use postern_common::decision::Verdict;
use postern_common::id::{SandboxId, TenantId, UserId};
use postern_common::session::{AcceptedToken, Peer};
use postern_common::token::{Claims, SigningKey};
use serde_json::json;

const ALL: [&str; 1] = ["*"];

async fn refused(world: &World, sandbox: &Sandbox, claims: &Claims, status: u16, code: &str) {
    let sent = Sandbox { token: mint(claims), ..sandbox.clone() };
    let answer = sent.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (status, code), "{:?}", answer.body);
    world.recorded.assert_untouched(code);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_token_reaches_the_backend_with_the_gateways_identity() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &ALL).await;
    let answer = sandbox.get("/orders?limit=5").await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    assert_eq!(answer.target(), "/api/orders?limit=5&user_id=alice");
    assert_eq!(answer.seen_header("x-user-id"), ["alice"]);
    assert!(answer.seen_header("authorization").is_empty(), "the token stays here");
    assert!(answer.headers.get("set-cookie").is_none() && answer.headers.get("x-user-id").is_none());
    assert!(answer.headers.contains_key("x-request-id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_token_has_its_own_code_and_nothing_reaches_the_backend() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["desk/read"]).await;
    let good = claims(&sandbox.session);
    let missing = sandbox.bare("GET", "/orders", &[], b"").await;
    assert_eq!((missing.status, missing.code()), (401, "token-missing"));
    assert!(missing.headers.contains_key("www-authenticate"));
    for (token, code) in
        [("nonsense", "token-malformed"), ("a.b.c", "token-malformed"), ("", "token-malformed")]
    {
        let answer = Sandbox { token: token.into(), ..sandbox.clone() }.get("/orders").await;
        assert_eq!((answer.status, answer.code()), (401, code), "{token}");
    }
    let stranger = SigningKey::new(vec![8; 32]).expect("long").mint(&good).expect("mints").reveal().clone();
    let answer = Sandbox { token: stranger, ..sandbox.clone() }.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (401, "token-forged"));
    let seconds = unix_seconds(now());
    let expired = Claims { iat: seconds - 100, nbf: seconds - 100, exp: seconds - 1, ..good.clone() };
    refused(&world, &sandbox, &expired, 401, "token-expired").await;
    world.recorded.assert_untouched("bad tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_signing_key_forges_nothing() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["desk/read"]).await;
    let good = claims(&sandbox.session);
    let more = ["desk/read", "desk/write"].map(|grant| grant.parse().expect("a grant")).to_vec();
    let forgeries = [
        Claims { user_id: UserId::parse("bob").expect("a user"), ..good.clone() },
        Claims { tenant: TenantId::parse("other").expect("a tenant"), ..good.clone() },
        Claims { conversation_id: "talk-2".parse().expect("a conversation"), ..good.clone() },
        Claims { operations: more, ..good.clone() },
        Claims { operations: vec!["*".parse().expect("a grant")], ..good.clone() },
        Claims { jti: "made-up".into(), ..good.clone() },
    ];
    for forged in &forgeries {
        refused(&world, &sandbox, forged, 401, "token-forged").await;
    }
    // The control: what the session has, signed by the same key.
    assert_eq!(sandbox.get("/orders").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_from_its_own_socket_only() {
    let world = World::desk().await;
    let alice = world.sandbox("alice", &ALL).await;
    let bob = world.sandbox("bob", &ALL).await;
    let stolen = Sandbox { token: alice.token.clone(), ..bob.clone() };
    let answer = stolen.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (403, "token-wrong-peer"));
    let tcp = tokio::net::TcpStream::connect(world.running.tcp.expect("listens")).await.expect("connects");
    let request = alice.head("GET", "/orders", "connection: close\r\n");
    let answer = crate::world::exchange(tcp, request.as_bytes()).await;
    assert_eq!((answer.status, answer.code()), (403, "token-wrong-peer"), "a local token over TCP");
    world.recorded.assert_untouched("another's token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_bound_to_an_address_is_served_over_tcp() {
    let world = World::desk().await;
    let id = SandboxId::from_random([9; 12]);
    let bound = session("acme", "alice", &ALL, id, Peer::Address([127, 0, 0, 1].into()));
    assert_eq!(world.send(Change::Session(Box::new(bound.clone()))).await, Applied::InForce);
    let token = mint(&claims(&bound));
    let request = format!(
        "GET /orders HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    let tcp = tokio::net::TcpStream::connect(world.running.tcp.expect("listens")).await.expect("connects");
    let answer = crate::world::exchange(tcp, request.as_bytes()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.seen_header("x-forwarded-for"), ["127.0.0.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_sessions_token_is_revoked_wherever_it_comes_from() {
    let world = World::desk().await;
    let alice = world.sandbox("alice", &ALL).await;
    let bob = world.sandbox("bob", &ALL).await;
    let mut open = alice.connect().await;
    world.end(&alice).await;
    let replayed = Sandbox { token: alice.token.clone(), ..bob.clone() };
    let answer = replayed.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (401, "token-revoked"));
    let request = alice.head("GET", "/orders", "connection: close\r\n");
    let answer = crate::world::exchange(&mut open, request.as_bytes()).await;
    assert!(matches!(answer.code(), "token-revoked" | ""), "on a connection from before: {:?}", answer.body);
    eventually("the socket is gone", || !alice.path.exists()).await;
    world.recorded.assert_untouched("a revoked token");
    let reopened = world.send(Change::Session(Box::new(alice.session.clone()))).await;
    assert!(matches!(reopened, Applied::Refused(_)), "an ended session stays ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unheard_of_session_is_waited_for_and_then_unknown() {
    let world = World::desk().await;
    let alice = world.sandbox("alice", &ALL).await;
    let unknown =
        session("acme", "carol", &ALL, SandboxId::from_random([3; 12]), Peer::Socket("/nowhere".into()));
    let sent = Sandbox { token: mint(&claims(&unknown)), ..alice.clone() };
    let answer = sent.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (503, "session-unknown"));
    assert!(answer.headers.contains_key("retry-after"));
    world.recorded.assert_untouched("an unknown session");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_token_is_good_until_its_overlap_ends() {
    let world = World::desk().await;
    let alice = world.sandbox("alice", &ALL).await;
    let mut renewed = alice.session.clone();
    let second = AcceptedToken { jti: "second".into(), until: renewed.expires_at };
    renewed.tokens = vec![
        second.clone(),
        AcceptedToken { jti: "first".into(), until: now() + jiff::SignedDuration::from_secs(60) },
    ];
    assert_eq!(world.send(Change::Session(Box::new(renewed.clone()))).await, Applied::InForce);
    assert_eq!(alice.get("/orders").await.status, 200, "within the overlap");
    let newer =
        Sandbox { token: mint(&Claims { jti: "second".into(), ..claims(&renewed) }), ..alice.clone() };
    assert_eq!(newer.get("/orders").await.status, 200, "the new one");
    renewed.tokens = vec![second.clone(), AcceptedToken { jti: "first".into(), until: past(1) }];
    assert_eq!(world.send(Change::Session(Box::new(renewed.clone()))).await, Applied::InForce);
    assert_eq!(alice.get("/orders").await.code(), "token-expired");
    renewed.tokens = vec![second];
    assert_eq!(world.send(Change::Session(Box::new(renewed))).await, Applied::InForce);
    assert_eq!(alice.get("/orders").await.code(), "token-expired", "also when it is no longer listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_sends_bad_tokens_is_soon_not_listened_to_while_others_are() {
    let world = World::desk().await;
    let alice = world.sandbox("alice", &ALL).await;
    let bob = world.sandbox("bob", &ALL).await;
    let bad = Sandbox { token: "nonsense".into(), ..alice.clone() };
    let mut codes = Vec::new();
    for _ in 0..30 {
        codes.push(bad.get("/orders").await.code().to_owned());
    }
    assert!(codes.iter().any(|code| code == "rate-limited"), "{codes:?}");
    assert_eq!(bob.get("/orders").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_outside_the_session_are_denied_by_name() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["desk/listOrders"]).await;
    let answer = sandbox.post("/refunds", &json!({ "order": "1", "amount": 1 })).await;
    assert_eq!((answer.status, answer.code()), (403, "policy-denied"));
    let detail = answer.body["detail"].as_str().expect("a detail");
    assert!(
        detail.contains("postern-operations:desk/createRefund") && detail.contains("does not name"),
        "{detail}"
    );
    assert!(answer.body["decision_id"].as_str().is_some_and(|id| id.starts_with("dec_")));
    world.recorded.assert_untouched("an operation that was not granted");
    assert_eq!(sandbox.get("/orders").await.status, 200, "the control");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_decide_by_the_body_and_say_why() {
    let world = World::empty().await;
    let policies = r#"
        @id("read") permit (principal, action in desk::Action::"read", resource);
        @id("small-refunds") permit (principal, action == desk::Action::"createRefund", resource);
        @id("refund-limit") @reason("refunds over 100 need a person")
        forbid (principal, action == desk::Action::"createRefund", resource) when { context.body.amount > 100 };
    "#;
    let config = world.config("acme", &[("desk", world.described())], Some(policies));
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &ALL).await;
    let answer = sandbox.post("/refunds", &json!({ "order": "1", "amount": 101 })).await;
    assert_eq!((answer.status, answer.code()), (403, "policy-denied"));
    assert_eq!(answer.body["detail"], "policy `refund-limit`: refunds over 100 need a person");
    let answer = sandbox.call("PUT", "/uploads", &[("content-type", "application/octet-stream")], b"x").await;
    assert_eq!(answer.body["detail"], "no policy permits it");
    world.recorded.assert_untouched("a policy's denial");
    let answer = sandbox.post("/refunds", &json!({ "order": "1", "amount": 100 })).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    let records = world.decisions();
    let denied = records.iter().find(|record| record.verdict == Verdict::Deny).expect("a record");
    assert_eq!(denied.policies[0].id, "refund-limit");
    assert_eq!(denied.operation.as_ref().map(|id| id.as_str()), Some("createRefund"));
    let allowed = records.iter().find(|record| record.verdict == Verdict::Allow).expect("a record");
    assert_eq!(allowed.upstream.as_ref().map(|upstream| upstream.status), Some(200));
    assert!(allowed.overridden.contains(&"/body/user_id".to_owned()), "{:?}", allowed.overridden);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_evaluated_is_named_by_its_record() {
    let world = World::empty().await;
    let policies = r#"
        @id("all") permit (principal, action, resource);
        @id("overflow") forbid (principal, action == desk::Action::"createRefund", resource)
        when { context.body.amount * 9000000000000000000 > 1 };
    "#;
    let config = world.config("acme", &[("desk", world.described())], Some(policies));
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &ALL).await;
    let answer = sandbox.post("/refunds", &json!({ "order": "1", "amount": 100 })).await;
    assert_eq!((answer.status, answer.code()), (403, "policy-error"), "{:?}", answer.body);
    world.recorded.assert_untouched("a policy that cannot be evaluated");
    let named: Vec<_> =
        world.decisions().into_iter().flat_map(|record| record.policies).map(|policy| policy.id).collect();
    assert_eq!(named, ["overflow"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_through_the_gateway_and_into_the_record() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &ALL).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let sent = format!("00-{trace}-00f067aa0ba902b7-01");
    let answer = sandbox.call("GET", "/orders", &[("traceparent", &sent)], b"").await;
    let seen = answer.body["headers"]["traceparent"][0].as_str().unwrap_or_default();
    assert!(seen.starts_with(&format!("00-{trace}-")) && seen != sent, "{:?}", answer.body);
    assert_eq!(world.decisions()[0].trace_id.as_deref(), Some(trace));
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_two_servers_could_read_differently_are_refused() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &ALL).await;
    for target in [
        "/orders/../refunds",
        "/orders/%2e%2e/refunds",
        "/orders/.",
        "/orders//1",
        "/orders/a%2fb",
        "/orders/a%5cb",
        "/orders;x=1",
        "/orders/1;x",
        "/orders/%00",
        "/orders/%zz",
        "/orders/%c0%af",
        "/orders/%252e%252e",
        "//orders",
        "/orders?limit=1&limit=%zz",
        "/orders?a;b=1",
    ] {
        let answer = sandbox.get(target).await;
        assert_eq!((answer.status, answer.code()), (400, "request-malformed"), "{target}");
    }
    for target in ["/nothing", "/other/orders", "/orders/", "/ORDERS"] {
        let answer = sandbox.get(target).await;
        assert_eq!((answer.status, answer.code()), (404, "route-unknown"), "{target}");
    }
    let answer = sandbox.call("DELETE", "/orders", &[], b"").await;
    assert_eq!((answer.status, answer.code()), (405, "method-not-allowed"));
    assert_eq!(answer.headers.get("allow").expect("a header"), "GET");
    world.recorded.assert_untouched("a bad path");
    assert_eq!(
        sandbox.get("/desk/orders").await.target(),
        "/api/orders?user_id=alice",
        "by the backend's name"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_could_smuggle_are_refused() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &ALL).await;
    let auth = format!("authorization: Bearer {}\r\n", sandbox.token);
    for (what, request) in [
        (
            "two hosts",
            format!("GET /orders HTTP/1.1\r\nhost: a\r\nhost: b\r\n{auth}connection: close\r\n\r\n"),
        ),
        ("no host", format!("GET /orders HTTP/1.1\r\n{auth}connection: close\r\n\r\n")),
        (
            "absolute target",
            format!("GET http://evil/orders HTTP/1.1\r\nhost: a\r\n{auth}connection: close\r\n\r\n"),
        ),
        ("HTTP/1.0", format!("GET /orders HTTP/1.0\r\nhost: a\r\n{auth}\r\n")),
        (
            "upgrade",
            format!(
                "GET /orders HTTP/1.1\r\nhost: a\r\n{auth}connection: upgrade, close\r\nupgrade: h2c\r\n\r\n"
            ),
        ),
        (
            "connect",
            format!("CONNECT evil:443 HTTP/1.1\r\nhost: evil:443\r\n{auth}connection: close\r\n\r\n"),
        ),
        (
            "folded line",
            format!("GET /orders HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n{auth}connection: close\r\n\r\n"),
        ),
        ("bare CR", format!("GET /orders HTTP/1.1\r\nhost: a\r\nx: 1\r2\r\n{auth}connection: close\r\n\r\n")),
        (
            "space before colon",
            format!("GET /orders HTTP/1.1\r\nhost : a\r\n{auth}connection: close\r\n\r\n"),
        ),
        (
            "two lengths",
            format!(
                "POST /refunds HTTP/1.1\r\nhost: a\r\n{auth}content-length: 1\r\ncontent-length: 2\r\nconnection: close\r\n\r\nab"
            ),
        ),
        (
            "chunked is not last",
            format!(
                "POST /refunds HTTP/1.1\r\nhost: a\r\n{auth}transfer-encoding: chunked, gzip\r\nconnection: close\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "not ASCII",
            format!("GET /orders HTTP/1.1\r\nhost: a\r\nx: \u{e9}\r\n{auth}connection: close\r\n\r\n"),
        ),
    ] {
        let answer = sandbox.raw(request.as_bytes()).await;
        assert!(matches!(answer.status, 0 | 400), "{what}: {answer:?}");
    }
    let many = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    let answer = sandbox.raw(sandbox.head("GET", "/orders", &many).as_bytes()).await;
    assert_eq!(answer.status, 431);
    let long = format!("x: {}\r\n", "a".repeat(100_000));
    let answer = sandbox.raw(sandbox.head("GET", "/orders", &long).as_bytes()).await;
    assert!(matches!(answer.status, 0 | 431), "{answer:?}");
    world.recorded.assert_untouched("a bad head");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_change_or_relay_a_request_do_not_reach_the_backend() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &ALL).await;
    let sent = [
        ("X-HTTP-Method-Override", "DELETE"),
        ("X-Original-URL", "/admin"),
        ("X-Rewrite-URL", "/admin"),
        ("Forwarded", "for=1.2.3.4"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("X_Forwarded_Host", "evil"),
        ("Cookie", "user=bob"),
        ("Proxy-Authorization", "Basic x"),
        ("X-Request-Id", "mine"),
        ("X-Hop", "1"),
        ("Connection", "X-Hop"),
        ("X-Postern-Verdict", "allow"),
        ("X-Kept", "yes"),
    ];
    let answer = sandbox.call("GET", "/orders", &sent, b"").await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    let mut seen: Vec<_> =
        answer.body["headers"].as_object().expect("headers").keys().map(String::as_str).collect();
    seen.sort_unstable();
    let ours = ["traceparent", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
    assert_eq!(seen, [&["host"][..], &ours, &["x-kept", "x-request-id", "x-user-id"]].concat());
    assert_eq!(answer.seen_header("x-forwarded-for"), ["unknown"], "a unix socket has no address");
    assert_eq!(answer.seen_header("x-forwarded-host"), answer.seen_header("host"), "the backend's own");
    assert_eq!(answer.seen_header("x-forwarded-proto"), ["http"]);
    assert_ne!(answer.seen_header("x-request-id"), ["mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_orchestrator_the_gateway_is_not_ready_and_says_so() {
    let world = World::empty().await;
    let sandbox = world.sandbox("alice", &ALL).await;
    let answer = sandbox.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (404, "route-unknown"), "a tenant without configuration");
    let ready = admin(&world, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    assert!(admin(&world, "/healthz").await.starts_with("HTTP/1.1 200"));
    let metrics = admin(&world, "/metrics").await;
    assert!(metrics.contains("postern_gateway_refusals_total{code=\"route-unknown\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_never_become_a_request_are_counted_too() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let many: String = (0..101).map(|number| format!("x-{number}: 1\r\n")).collect();
    let long = format!("x-long: {}\r\n", "a".repeat(70 * 1024));
    for (rest, status) in [(many.as_str(), 431), (long.as_str(), 431), ("x-folded: a\r\n b\r\n", 400)] {
        let answer = sandbox.raw(sandbox.head("GET", "/orders", rest).as_bytes()).await;
        assert_eq!(answer.status, status, "{}", rest.get(..16).unwrap_or(rest));
    }
    world.recorded.assert_untouched("a head that is no request");
    let counted = async {
        let count = |code, count| format!("postern_gateway_refusals_total{{code=\"{code}\"}} {count}");
        let lines = [count("header-too-large", 2), count("request-malformed", 1)];
        loop {
            let metrics = admin(&world, "/metrics").await;
            if lines.iter().all(|line| metrics.contains(line)) {
                break;
            }
        }
    };
    tokio::time::timeout(crate::world::PATIENCE, counted).await.expect("each is counted by its code");
}

pub(crate) async fn admin(world: &World, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream =
        tokio::net::TcpStream::connect(world.running.admin.expect("listens")).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("reads");
    text
}
