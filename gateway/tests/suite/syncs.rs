// SPDX-License-Identifier: Apache-2.0
//! The built-in route of sandboxes' syncs: who may use it, for what, and what of a call arrives.

use crate::certificates::{Authority, Pair};
use crate::world::{Recorded, Sandbox, World, start_backend};
use postern_common::stream::SERVER_NAME;
use postern_common::tasks::Tasks;
use postern_gateway::FilesApi;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// TLS with this certificate, before what is on a port of this machine; its own port.
async fn before(port: u16, pair: &Pair, tasks: &Tasks) -> u16 {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("speaks it")
        .with_no_client_auth()
        .with_single_cert(vec![pair.certificate.clone()], pair.private_key())
        .expect("a pair");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (own, group) = (listener.local_addr().expect("bound").port(), tasks.clone());
    tasks.spawn(move |stop| async move {
        while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
            let acceptor = acceptor.clone();
            group.spawn(move |stop| async move {
                let carried = async {
                    let mut near = acceptor.accept(stream).await?;
                    let mut far = TcpStream::connect(("127.0.0.1", port)).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                };
                drop(stop.run_until_cancelled(carried).await);
            });
        }
    });
    own
}

/// A gateway with tenant `acme`, its backend, and a files API that echoes what it gets.
async fn world() -> (World, Arc<Recorded>, Tasks) {
    let authority = Authority::new();
    let pair = authority.sign_for(&[SERVER_NAME], "orchestrator");
    world_with(&authority, Some(&pair)).await
}

/// The same with a gateway that believes this authority, and a files API that shows this certificate.
async fn world_with(authority: &Authority, shown: Option<&Pair>) -> (World, Arc<Recorded>, Tasks) {
    let tasks = Tasks::new();
    let (port, recorded) = start_backend(&tasks).await;
    let port = match shown {
        Some(pair) => before(port, pair, &tasks).await,
        None => port,
    };
    let hosts = vec!["127.0.0.1:1".to_owned(), format!("127.0.0.1:{port}")];
    let authority = authority.certificate.to_vec();
    let world = World::with(|settings| settings.files = Some(FilesApi::Hosts { hosts, authority })).await;
    let config = world.config("acme", &[("desk", world.described())], None);
    assert_eq!(world.put(config).await, postern_common::control::Applied::InForce);
    (world, recorded, tasks)
}

async fn sync_of(world: &World) -> Sandbox {
    world.sandbox("alice", &["files:sync"]).await
}

#[tokio::test]
async fn a_sync_makes_its_calls_and_reaches_nothing_else() {
    let (world, recorded, _tasks) = world().await;
    let sync = sync_of(&world).await;
    for call in ["list", "get", "put", "changes"] {
        let answer = sync.call("POST", &format!("/files:sync/{call}"), &[], b"content").await;
        assert_eq!((answer.status, answer.target()), (200, &*format!("/files:sync/{call}")), "{answer:?}");
        assert_eq!(answer.body["body"], "content");
    }
    assert_eq!(
        sync.call("POST", "/files%3Async/list", &[], b"").await.status,
        200,
        "one spelling or the other"
    );
    let reached = recorded.text().len();
    for (method, target, status) in [
        ("POST", "/files:sync", 404),
        ("POST", "/files:sync/", 404),
        ("POST", "/files:sync/erase", 404),
        ("POST", "/files:sync/list/more", 404),
        ("POST", "/files:sync/../sandbox", 400),
        ("POST", "/files:sync/%2e%2e/sandbox", 400),
        ("POST", "/FILES:SYNC/list", 404),
        ("POST", "/sandbox", 404),
        ("GET", "/files:sync/list", 405),
        ("DELETE", "/files:sync/list", 405),
        ("GET", "/desk/orders/7", 404),
        ("GET", "/orders/7", 404),
    ] {
        let answer = sync.call(method, target, &[], b"").await;
        assert_eq!(answer.status, status, "{method} {target}: {answer:?}");
    }
    assert_eq!(recorded.text().len(), reached, "what is refused does not arrive");
    world.recorded.assert_untouched("a sync");
}

#[tokio::test]
async fn whoever_stands_in_the_orchestrators_place_gets_and_gives_nothing() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    for (what, shown) in [
        ("plain HTTP", None),
        ("another authority's certificate", Some(theirs.sign_for(&[SERVER_NAME], "orchestrator"))),
        ("a certificate of ours for somebody else", Some(ours.sign("backend"))),
    ] {
        let (world, recorded, _tasks) = world_with(&ours, shown.as_ref()).await;
        let sync = sync_of(&world).await;
        let answer = sync.call("POST", "/files:sync/put", &[], b"content").await;
        assert_eq!((answer.status, answer.code()), (502, "upstream-unreachable"), "{what}: {answer:?}");
        assert!(!recorded.text().contains("content"), "{what}");
    }
}

#[tokio::test]
async fn nobody_else_reaches_the_files_api() {
    let (world, recorded, _tasks) = world().await;
    // `*` is everything that backends offer, and the files API is none.
    for operations in [&["*"][..], &["desk/read"], &[]] {
        let sandbox = world.sandbox("alice", operations).await;
        let answer = sandbox.call("POST", "/files:sync/list", &[], b"").await;
        assert_eq!(answer.status, 404, "{operations:?}: {answer:?}");
    }
    // A token that claims the operation without its session having it.
    let sandbox = world.sandbox("alice", &["*"]).await;
    let mut claims = crate::world::claims(&sandbox.session);
    claims.operations = vec!["files:sync".parse().expect("a grant")];
    let forged = Sandbox { token: crate::world::mint(&claims), ..sandbox.clone() };
    let answer = forged.call("POST", "/files:sync/list", &[], b"").await;
    assert_eq!((answer.status, answer.code()), (401, "token-forged"), "{answer:?}");
    // A sync's own token from another door.
    let sync = sync_of(&world).await;
    let elsewhere = Sandbox { path: sandbox.path.clone(), ..sync.clone() };
    let answer = elsewhere.call("POST", "/files:sync/list", &[], b"").await;
    assert_eq!((answer.status, answer.code()), (403, "token-wrong-peer"), "{answer:?}");
    recorded.assert_untouched("somebody else");
    assert_eq!(sync.call("POST", "/files:sync/list", &[], b"").await.status, 200, "the control");
}

#[tokio::test]
async fn what_arrives_is_made_anew_and_bears_the_gateways_word() {
    let (world, recorded, _tasks) = world().await;
    let sync = sync_of(&world).await;
    let hostile = [
        ("x-user-id", "bob"),
        ("x-tenant", "other"),
        ("x-postern-decision", "dec_00000000000000000000000000000000"),
        ("x-request-id", "mine"),
        ("cookie", "a=b"),
        ("x-forwarded-for", "10.0.0.1"),
    ];
    let answer = sync.call("POST", "/files:sync/list?user=bob", &hostile, b"").await;
    assert_eq!((answer.status, answer.target()), (200, "/files:sync/list"), "{answer:?}");
    for name in ["x-user-id", "x-tenant", "cookie", "x-forwarded-for"] {
        assert!(answer.seen_header(name).is_empty(), "{name} arrived");
    }
    assert_ne!(answer.seen_header("x-request-id"), ["mine"]);
    assert_ne!(answer.seen_header("x-postern-decision"), ["dec_00000000000000000000000000000000"]);
    let authorization = answer.seen_header("authorization").concat();
    assert!(!recorded.text().contains(&sync.token), "the token itself arrived");
    let claims = authorization.split('.').nth(1).expect("a token");
    let claims =
        base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims).expect("base64");
    let claims: serde_json::Value = serde_json::from_slice(&claims).expect("JSON");
    assert_eq!((&claims["aud"], &claims["tenant"]), (&"files:sync".into(), &"acme".into()));
    assert_eq!(
        (&claims["user_id"], &claims["sub"]),
        (&"alice".into(), &sync.session.sandbox_id.as_str().into())
    );
    assert!(answer.headers.get("set-cookie").is_none() && answer.headers.get("x-user-id").is_none());
}

#[tokio::test]
async fn a_sync_whose_session_ended_is_refused() {
    let (world, recorded, _tasks) = world().await;
    let sync = sync_of(&world).await;
    assert_eq!(sync.call("POST", "/files:sync/list", &[], b"").await.status, 200);
    let stream = sync.connect().await;
    world.end(&sync).await;
    let head = sync.head("POST", "/files:sync/list", "content-length: 0\r\nconnection: close\r\n");
    let reached = recorded.text().len();
    let answer = crate::world::exchange(stream, head.as_bytes()).await;
    assert_eq!((answer.status, answer.code()), (401, "token-revoked"), "{answer:?}");
    assert_eq!(recorded.text().len(), reached);
}

#[tokio::test]
async fn without_a_files_api_syncs_are_refused() {
    let world = World::desk().await;
    let sync = sync_of(&world).await;
    assert_eq!(sync.call("POST", "/files:sync/list", &[], b"").await.status, 404);
    world.recorded.assert_untouched("a sync");
}
