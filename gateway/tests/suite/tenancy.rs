// SPDX-License-Identifier: Apache-2.0
//! Configurations: whole or not at all, each tenant's its own; where requests may go.

use crate::world::World;
use postern_common::control::{Applied, Change, Message};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn mistakes(applied: Applied) -> Vec<String> {
    match applied {
        Applied::InForce => Vec::new(),
        Applied::Refused(mistakes) => mistakes,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_leaves_the_last_good_one_and_names_every_mistake() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let mut file = world.described();
    file["url"] = json!("http://elsewhere.example:80/");
    let policies = "@id(\"typo\") permit (principal, action == desk::Action::\"listOrder\", resource);";
    let bad = world.config("acme", &[("desk", world.described()), ("other", file.clone())], Some(policies));
    let told = mistakes(world.put(bad).await);
    assert!(told.iter().any(|mistake| mistake.contains("gateway.upstreams.allow")), "{told:?}");
    assert!(told.iter().any(|mistake| mistake.contains("policies/desk.cedar:1")), "{told:?}");
    let fits = "@id(\"reads\") permit (principal, action == other::Action::\"listOrders\", resource);";
    let unreachable = world.config("acme", &[("other", file)], Some(fits));
    let told = mistakes(world.put(unreachable).await);
    let [only] = told.as_slice() else { panic!("the policies are right, only the backend is not: {told:?}") };
    assert!(only.ends_with("POSTERN_UPSTREAMS_ALLOW=elsewhere.example:80"), "{only}");
    assert_eq!(sandbox.get("/orders").await.status, 200, "the last good one is in force");
    let good = world.config("acme", &[("desk", world.described())], Some(""));
    assert_eq!(world.put(good).await, Applied::InForce);
    let answer = sandbox.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (403, "policy-denied"), "an empty set permits nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_reaches_its_own_backends_only() {
    let world = World::desk().await;
    let other = world.config("other", &[("vault", world.described())], None);
    assert_eq!(world.put(other).await, Applied::InForce);
    let alice = world.sandbox_of("acme", "alice", &["*"]).await;
    let eve = world.sandbox_of("other", "eve", &["*"]).await;
    assert_eq!(alice.get("/vault/orders").await.code(), "route-unknown");
    assert_eq!(eve.get("/desk/orders").await.code(), "route-unknown");
    assert_eq!(eve.get("/vault/orders").await.status, 200);
    let removed = world.send(Change::TenantRemoved(alice.session.tenant.clone())).await;
    assert_eq!(removed, Applied::InForce);
    assert_eq!(alice.get("/desk/orders").await.code(), "route-unknown");
    assert_eq!(eve.get("/vault/orders").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_several_backends_a_path_must_name_one() {
    let world = World::empty().await;
    let mut config = world.config("acme", &[("desk", world.described()), ("files", world.plain())], None);
    assert_eq!(world.put(config.clone()).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    assert_eq!(sandbox.get("/orders").await.code(), "route-unknown");
    assert_eq!(sandbox.get("/desk/orders").await.status, 200);
    assert_eq!(sandbox.get("/files/any/where").await.target(), "/any/where");
    config.default_backend = Some("files".parse().expect("a name"));
    assert_eq!(world.put(config.clone()).await, Applied::InForce);
    assert_eq!(sandbox.get("/orders").await.target(), "/orders", "the default backend's");
    assert_eq!(sandbox.get("/desk/orders").await.target(), "/api/orders?user_id=alice", "a name still wins");
    config.default_backend = Some("desk".parse().expect("a name"));
    config.backends.insert("orders".parse().expect("a name"), config.backends["files"].clone());
    let told = mistakes(world.put(config).await);
    assert!(
        told.iter().any(|mistake| mistake.contains("begins with the name of another backend")),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bare_grants_count_only_where_there_is_one_backend() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["listOrders"]).await;
    assert_eq!(sandbox.get("/orders").await.status, 200);
    let config = world.config("acme", &[("desk", world.described()), ("files", world.plain())], None);
    assert_eq!(world.put(config).await, Applied::InForce);
    assert_eq!(sandbox.get("/desk/orders").await.code(), "policy-denied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_attached_last_and_a_missing_one_closes_that_backend() {
    let world = World::empty().await;
    for (credential, header, value) in [
        (json!("desk-key"), "authorization", "Bearer hunter2"),
        (json!({ "secret": "desk-key", "scheme": "basic" }), "authorization", "Basic ************"),
        (json!({ "secret": "desk-key", "header": "X-Api-Key" }), "x-api-key", "hunter2"),
    ] {
        let mut file = world.described();
        file["credential"] = credential;
        assert_eq!(world.put(world.config("acme", &[("desk", file)], None)).await, Applied::InForce);
        let sandbox = world.sandbox("alice", &["*"]).await;
        let answer = sandbox.call("GET", "/orders", &[("X-Api-Key", "forged")], b"").await;
        assert_eq!(answer.seen_header(header), [value]);
    }
    assert!(world.recorded.text().contains("Basic aHVudGVyMg=="), "its echo was covered on the way back");
    let mut file = world.described();
    file["credential"] = json!("no-such-secret");
    assert_eq!(world.put(world.config("acme", &[("desk", file)], None)).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    let before = world.recorded.text().len();
    let answer = sandbox.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (503, "state-stale"));
    assert_eq!(world.recorded.text().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_checked_again_when_it_is_connected_to() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    world.rules.replace(&["10.0.0.0/8:80".to_owned()], &[]).expect("rules");
    let answer = sandbox.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (403, "upstream-refused-address"));
    world.recorded.assert_untouched("an address that is no longer allowed");
    world.rules.replace(&[format!("127.0.0.1:{}", world.port)], &[]).expect("rules");
    assert_eq!(sandbox.get("/orders").await.status, 200, "the control");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_closed_name_stands_for_is_closed_under_every_other_name() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let (allow, never) = (format!("127.0.0.1:{}", world.port), format!("localhost:{}", world.port));
    world.rules.replace(std::slice::from_ref(&allow), &[never]).expect("rules");
    let answer = sandbox.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (403, "upstream-refused-address"), "{:?}", answer.body);
    world.rules.replace(&[allow], &["localhost:1".to_owned()]).expect("rules");
    assert_eq!(sandbox.get("/orders").await.status, 200, "another port of it is another thing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_sets_stays_below_the_operators_ceilings() {
    let world = World::with(|settings| settings.ceilings.concurrent = 10).await;
    let mut limits = world.described();
    limits["limits"] = json!({ "timeout": "8000000h", "concurrent": 11 });
    let mut config = world.config("acme", &[("desk", limits)], None);
    let rate = |concurrent| serde_json::from_value(json!({ "per_second": 1, "concurrent": concurrent }));
    config.limits.tenant = Some(rate(11).expect("a rate"));
    config.limits.session = Some(rate(10).expect("a rate"));
    let found = mistakes(world.put(config).await);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().any(|mistake| mistake.contains("timeout")), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_listeners_are_never_a_backend() {
    let world = World::empty().await;
    let admin = world.running.admin.expect("listens");
    world.rules.replace(&["127.0.0.0/8".to_owned()], &[]).expect("rules");
    let file = json!({ "url": format!("http://{admin}/") });
    let told = mistakes(world.put(world.config("acme", &[("desk", file)], None)).await);
    assert!(told.iter().any(|mistake| mistake.contains("can never be a backend")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_not_there_is_told_from_one_that_is_slow() {
    let world = World::empty().await;
    let mut file = world.described();
    file["limits"] = json!({ "timeout": "100ms" });
    assert_eq!(world.put(world.config("acme", &[("desk", file)], None)).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    assert_eq!(sandbox.get("/orders").await.status, 200);
    world.rules.replace(&["127.0.0.1:1".to_owned()], &[]).expect("rules");
    let gone = json!({ "url": "http://127.0.0.1:1/" });
    assert_eq!(world.put(world.config("acme", &[("desk", gone)], None)).await, Applied::InForce);
    let answer = sandbox.get("/any").await;
    assert_eq!((answer.status, answer.code()), (502, "upstream-unreachable"));
    assert!(!answer.body.to_string().contains("127.0.0.1"), "{:?}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_message_is_refused() {
    let world = World::desk().await;
    let message =
        Message { epoch: 0, version: 99, change: Change::TenantRemoved("acme".parse().expect("a tenant")) };
    let told = mistakes(world.send_as(message).await);
    assert!(told[0].contains("older"), "{told:?}");
    let sandbox = world.sandbox("alice", &["*"]).await;
    assert_eq!(sandbox.get("/orders").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_only_fails_is_left_alone_for_a_while() {
    let world = World::empty().await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = closed.local_addr().expect("bound").port();
    drop(closed);
    world.rules.replace(&[format!("127.0.0.1:{port}")], &[]).expect("rules");
    let file = json!({ "url": format!("http://127.0.0.1:{port}"), "openapi": "openapi.yaml" });
    let config = world.config("acme", &[("desk", file)], None);
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    for _ in 0..10 {
        assert_eq!(sandbox.get("/orders").await.code(), "upstream-unreachable");
    }
    let answer = sandbox.get("/orders").await;
    assert_eq!((answer.status, answer.code()), (503, "circuit-open"), "{:?}", answer.body);
    assert_eq!(answer.headers["retry-after"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_nothing_is_asked_once_more_when_no_answer_came() {
    let world = World::empty().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    world.rules.replace(&[format!("127.0.0.1:{port}")], &[]).expect("rules");
    // Every other connection breaks off after the head of the request.
    world.tasks.spawn(move |stop| async move {
        let mut breaks_off = true;
        while let Some(Ok((mut stream, _))) = stop.run_until_cancelled(listener.accept()).await {
            drop(stream.read(&mut [0; 4096]).await);
            if !breaks_off {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
                drop(stream.write_all(answer).await);
            }
            breaks_off = !breaks_off;
        }
    });
    let file = json!({ "url": format!("http://127.0.0.1:{port}"), "openapi": "openapi.yaml" });
    let config = world.config("acme", &[("desk", file)], None);
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    assert_eq!(sandbox.get("/orders").await.status, 200, "repeated");
    let refund = sandbox.post("/refunds", &json!({ "order": "1", "amount": 1 })).await;
    assert_eq!((refund.status, refund.code()), (502, "upstream-unreachable"), "never repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_configuration_never_replaces_a_newer_one() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let revised = |revision, policies| {
        let mut config = world.config("acme", &[("desk", world.described())], policies);
        config.revision = revision;
        config
    };
    assert_eq!(world.put(revised(7, None)).await, Applied::InForce);
    let told = mistakes(world.put(revised(6, Some(""))).await);
    assert!(told[0].contains("revision 6") && told[0].contains("older"), "{told:?}");
    assert_eq!(sandbox.get("/orders").await.status, 200);
    assert_eq!(world.put(revised(7, Some(""))).await, Applied::InForce, "the same again is fine");
    assert_eq!(sandbox.get("/orders").await.status, 403);
    let removed = world.send(Change::TenantRemoved("acme".parse().expect("a tenant"))).await;
    assert_eq!(removed, Applied::InForce);
    assert!(!mistakes(world.put(revised(9, None)).await).is_empty(), "a removed tenant stays so");
    assert_eq!(sandbox.get("/orders").await.code(), "route-unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_can_be_tried_without_being_put_in_force() {
    let world = World::desk().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    let tried = |policies, url: Option<&str>| {
        let mut file = world.described();
        if let Some(url) = url {
            file["url"] = json!(url);
        }
        let mut config = world.config("acme", &[("desk", file)], policies);
        config.revision = 9;
        Change::Try(std::sync::Arc::new(config))
    };
    assert_eq!(world.send(tried(Some(""), None)).await, Applied::InForce);
    assert_eq!(sandbox.get("/orders").await.status, 200, "what permits nothing was only tried");
    let told = mistakes(world.send(tried(None, Some("http://elsewhere.example:80/"))).await);
    assert!(told[0].contains("gateway.upstreams.allow"), "{told:?}");
    let older = world.config("acme", &[("desk", world.described())], None);
    assert_eq!(world.put(older).await, Applied::InForce, "a trial is no revision that was told");
}
