// SPDX-License-Identifier: Apache-2.0
//! The door over TLS: both protocols, certificates that change while it serves, client certificates.

use crate::certificates::{Authority, Pair};
use crate::refusals::admin;
use crate::world::{Answer, PATIENCE, Sandbox, World, eventually, exchange, key};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_common::control::{Applied, link};
use postern_common::session::Peer;
use postern_common::tasks::Tasks;
use postern_gateway::{Clients, Config, Gateway, Settings, Tls, UpstreamRules};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Writes a pair into a folder as Kubernetes mounts a secret: behind a link that is swapped.
fn mount(folder: &Path, version: &str, certificate: &str, key: &str) {
    let data = folder.join(version);
    std::fs::create_dir(&data).expect("a folder");
    std::fs::write(data.join("tls.crt"), certificate).expect("writes");
    std::fs::write(data.join("tls.key"), key).expect("writes");
    std::os::unix::fs::symlink(&data, folder.join("..new")).expect("a link");
    std::fs::rename(folder.join("..new"), folder.join("..data")).expect("swaps");
    for name in ["tls.crt", "tls.key"] {
        if !folder.join(name).exists() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), folder.join(name)).expect("a link");
        }
    }
}

fn files(folder: &Path, clients: Option<Clients>) -> Tls {
    Tls {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        clients,
        look_every: Duration::from_millis(20),
    }
}

/// A gateway whose door speaks TLS, with the folder of its files.
async fn secured(pair: &Pair, clients: Option<Clients>) -> (World, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    mount(folder.path(), "first", &pair.certificate_pem, &pair.key_pem);
    let world = World::with(|settings| {
        settings.tls = Some(files(folder.path(), clients));
        settings.waits.head = Duration::from_millis(500);
    })
    .await;
    let config = world.config("acme", &[("desk", world.described())], None);
    assert_eq!(world.put(config).await, Applied::InForce);
    (world, folder)
}

async fn sandbox(world: &World, user: &str) -> Sandbox {
    let peer = Peer::Address([127, 0, 0, 1].into());
    world.sandbox_with("acme", user, &["*"], |session| session.peer = peer).await
}

async fn connect(world: &World, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(world.running.tcp.expect("listens")).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    tokio::time::timeout(PATIENCE, connecting).await.expect("in time")
}

async fn get(stream: TlsStream<TcpStream>, sandbox: &Sandbox) -> Answer {
    exchange(stream, sandbox.head("GET", "/orders", "connection: close\r\n").as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_and_both_versions_are_served_over_tls() {
    let authority = Authority::new();
    let (world, _folder) = secured(&authority.sign("gateway"), None).await;
    let alice = sandbox(&world, "alice").await;
    let stream = connect(&world, authority.client("http/1.1", None)).await.expect("shakes hands");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(get(stream, &alice).await.seen_header("x-user-id"), ["alice"]);

    let stream = connect(&world, authority.client("h2", None)).await.expect("shakes hands");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let http2 = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = http2.expect("HTTP/2");
    world.tasks.spawn(move |stop| async move { drop(stop.run_until_cancelled(connection).await) });
    let request =
        Request::get("https://localhost/orders").header("authorization", format!("Bearer {}", alice.token));
    let request = request.body(Empty::<Bytes>::new()).expect("a request");
    let answer = sender.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("/api/orders?user_id=alice"), "{body:?}");

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut authorities = rustls::RootCertStore::empty();
    authorities.add(authority.certificate.clone()).expect("an authority");
    let old = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("a version")
        .with_root_certificates(authorities)
        .with_no_client_auth();
    assert_eq!(get(connect(&world, old).await.expect("TLS 1.2"), &alice).await.status, 200);

    // Whoever speaks no TLS is answered nothing.
    let plain = TcpStream::connect(world.running.tcp.expect("listens")).await.expect("connects");
    assert_eq!(exchange(plain, alice.head("GET", "/orders", "").as_bytes()).await.status, 0);
}

/// Which certificate new connections get.
async fn shown(world: &World, authority: &Authority) -> Vec<u8> {
    let stream = connect(world, authority.client("http/1.1", None)).await.expect("shakes hands");
    stream.get_ref().1.peer_certificates().and_then(<[_]>::first).expect("a certificate").to_vec()
}

async fn reloads(world: &World, line: &str) {
    let waiting = async { while !admin(world, "/metrics").await.contains(line) {} };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {line}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_read_again_and_a_bad_one_leaves_the_last_good_one() {
    let authority = Authority::new();
    let (first, second, third) = (authority.sign("one"), authority.sign("two"), authority.sign("three"));
    let (world, folder) = secured(&first, None).await;
    let alice = sandbox(&world, "alice").await;
    let before = connect(&world, authority.client("http/1.1", None)).await.expect("shakes hands");
    assert_eq!(shown(&world, &authority).await, *first.certificate);
    mount(folder.path(), "second", &second.certificate_pem, &second.key_pem);
    reloads(&world, "postern_cert_reloads_total{result=\"ok\"} 1\n").await;
    assert_eq!(shown(&world, &authority).await, *second.certificate);
    assert_eq!(get(before, &alice).await.status, 200, "connections that exist go on");
    for (number, certificate, key) in [
        (1, third.certificate_pem.as_str(), second.key_pem.as_str()),
        (2, "no certificate", &second.key_pem),
        (3, &third.certificate_pem, "no key"),
        (4, &third.key_pem, &third.certificate_pem),
    ] {
        mount(folder.path(), &format!("bad-{number}"), certificate, key);
        reloads(&world, &format!("postern_cert_reloads_total{{result=\"refused\"}} {number}\n")).await;
        assert_eq!(shown(&world, &authority).await, *second.certificate, "{number}");
    }
    std::fs::remove_file(folder.path().join("..data")).expect("removes");
    reloads(&world, "postern_cert_reloads_total{result=\"refused\"} 5\n").await;
    assert_eq!(shown(&world, &authority).await, *second.certificate, "without files");
    mount(folder.path(), "third", &third.certificate_pem, &third.key_pem);
    reloads(&world, "postern_cert_reloads_total{result=\"ok\"} 2\n").await;
    assert_eq!(shown(&world, &authority).await, *third.certificate);
    let metrics = admin(&world, "/metrics").await;
    let left = metrics
        .lines()
        .find_map(|line| line.strip_prefix("postern_cert_expiry_seconds{certificate=\"gateway\"} "));
    assert!(left.and_then(|left| left.parse::<f64>().ok()).is_some_and(|left| left > 86_400.0), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_lets_in_and_says_nothing_of_who_a_sandbox_is() {
    let (authority, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("clients.pem");
    std::fs::write(&path, &clients.pem).expect("writes");
    for are_required in [true, false] {
        let wanted = Clients { authorities: path.clone(), are_required };
        let (world, _folder) = secured(&authority.sign("gateway"), Some(wanted)).await;
        let (alice, bob) = (sandbox(&world, "alice").await, sandbox(&world, "bob").await);
        let hers = clients.sign("alice");
        let mutual = || connect(&world, authority.client("http/1.1", Some(&hers)));
        assert_eq!(get(mutual().await.expect("in"), &alice).await.seen_header("x-user-id"), ["alice"]);
        let answer = get(mutual().await.expect("in"), &bob).await;
        assert_eq!(answer.seen_header("x-user-id"), ["bob"], "the token says who it is");
        let nobody = Sandbox { token: String::new(), ..alice.clone() };
        assert_eq!(get(mutual().await.expect("in"), &nobody).await.status, 401, "no token, nobody");
        // By TLS 1.3 a client hears of a refusal only when it reads.
        let without = match connect(&world, authority.client("http/1.1", None)).await {
            Ok(stream) => get(stream, &alice).await.status,
            Err(_) => 0,
        };
        assert_eq!(without, if are_required { 0 } else { 200 }, "without a certificate");
        let stranger = others.sign("alice");
        let strange = match connect(&world, authority.client("http/1.1", Some(&stranger))).await {
            Ok(stream) => get(stream, &alice).await.status,
            Err(_) => 0,
        };
        assert_eq!(strange, 0, "another authority's");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_shakes_no_hands_is_let_go_while_others_are_served() {
    let authority = Authority::new();
    let (world, _folder) = secured(&authority.sign("gateway"), None).await;
    let alice = sandbox(&world, "alice").await;
    // Nothing at all; the beginning of a record that never ends.
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00"] {
        let mut silent = TcpStream::connect(world.running.tcp.expect("listens")).await.expect("connects");
        silent.write_all(begun).await.expect("writes");
        let served = connect(&world, authority.client("http/1.1", None)).await.expect("shakes hands");
        assert_eq!(get(served, &alice).await.status, 200, "others are served");
        let mut read = Vec::new();
        drop(tokio::time::timeout(PATIENCE, silent.read_to_end(&mut read)).await.expect("it is closed"));
    }
    let dropped = "postern_gateway_connections_dropped_total{how=\"handshake\"} 2\n";
    let metrics = admin(&world, "/metrics").await;
    assert!(metrics.contains(dropped), "{metrics}");
    eventually("nothing reached the backend of them", || world.recorded.text().matches("GET").count() == 2)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_does_not_start_with_files_that_it_cannot_use() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().expect("a folder"));
    let pair = authority.sign("gateway");
    let start = async |tls| {
        let mut settings = Settings::new(vec![key()], UpstreamRules::default());
        settings.tls = Some(tls);
        let config = Config::check(settings).expect("good settings");
        let (_publisher, follower) = link();
        Gateway::start(config, follower, &Tasks::new()).await.expect_err("cannot start")
    };
    let missing = start(files(folder.path(), None)).await.to_string();
    assert!(missing.contains("tls.crt` cannot be read"), "{missing}");
    mount(folder.path(), "first", &pair.certificate_pem, &authority.sign("other").key_pem);
    let mixed = start(files(folder.path(), None)).await.to_string();
    assert!(mixed.contains("cannot be used together"), "{mixed}");
    mount(folder.path(), "second", &pair.certificate_pem, &pair.key_pem);
    let clients = Clients { authorities: folder.path().join("tls.key"), are_required: true };
    let unusable = start(files(folder.path(), Some(clients))).await.to_string();
    assert!(unusable.contains("holds no certificate in PEM"), "{unusable}");
}
