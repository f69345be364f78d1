// SPDX-License-Identifier: Apache-2.0
//! WebSockets through the gateway, with real clients and backends: judged like every request,
//! carried both ways, ended with their session, and nothing is smuggled through them.

use crate::filters::{chain, world as filtered_world};
use crate::refusals::admin;
use crate::world::{PATIENCE, Sandbox, World, eventually, exchange, read_until};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Method, Request};
use http_body_util::Empty;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_common::control::Applied;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio_tungstenite::tungstenite::handshake::server::{Request as Asking, Response as Agreeing};
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async, client_async};

/// A backend that echoes messages, and what it saw.
struct Feed {
    port: u16,
    heads: Arc<Mutex<Vec<(String, HeaderMap)>>>,
    open: Arc<AtomicUsize>,
}

impl Feed {
    fn seen(&self) -> (String, HeaderMap) {
        self.heads.lock().expect("no panic").last().cloned().expect("a handshake")
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

#[expect(clippy::result_large_err, reason = "the callback's type is the crate's")]
async fn echo(
    stream: tokio::net::TcpStream,
    heads: Arc<Mutex<Vec<(String, HeaderMap)>>>,
    open: Arc<AtomicUsize>,
) {
    let agree = |asking: &Asking, mut agreeing: Agreeing| {
        heads.lock().expect("no panic").push((asking.uri().to_string(), asking.headers().clone()));
        if asking.headers().contains_key("sec-websocket-protocol") {
            agreeing.headers_mut().insert("sec-websocket-protocol", "chat".parse().expect("a value"));
        }
        agreeing.headers_mut().insert("set-cookie", "session=backend".parse().expect("a value"));
        Ok(agreeing)
    };
    let Ok(mut socket) = accept_hdr_async(stream, agree).await else { return };
    open.fetch_add(1, Ordering::SeqCst);
    while let Some(Ok(message)) = socket.next().await {
        if message.is_text() || message.is_binary() {
            drop(socket.send(message).await);
        }
    }
    open.fetch_sub(1, Ordering::SeqCst);
}

/// A backend by WebSocket, to which requests may go.
async fn feed(world: &World) -> Feed {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (heads, open) = (Arc::default(), Arc::default());
    let (seen, opened, owner) = (Arc::clone(&heads), Arc::clone(&open), world.tasks.clone());
    world.tasks.spawn(move |stop| async move {
        while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
            let echoing = echo(stream, Arc::clone(&seen), Arc::clone(&opened));
            owner.spawn(move |stop| async move {
                let _ended = stop.run_until_cancelled(echoing).await;
            });
        }
    });
    allow(world, port);
    Feed { port, heads, open }
}

fn allow(world: &World, port: u16) {
    let allowed = [format!("127.0.0.1:{}", world.port), format!("127.0.0.1:{port}")];
    world.rules.replace(&allowed, &[]).expect("rules");
}

fn described(port: u16) -> Value {
    json!({ "url": format!("http://127.0.0.1:{port}/api"), "openapi": "openapi.yaml", "websockets": ["feed"] })
}

/// A gateway in front of such a backend.
async fn fed(world: &World, policies: Option<&str>) -> Feed {
    let feed = feed(world).await;
    let config = world.config("acme", &[("desk", described(feed.port))], policies);
    assert_eq!(world.put(config).await, Applied::InForce);
    feed
}

fn handshake(sandbox: &Sandbox, target: &str) -> Request<()> {
    Request::builder()
        .uri(format!("ws://gateway{target}"))
        .header("host", "gateway")
        .header("authorization", format!("Bearer {}", sandbox.token))
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(())
        .expect("a request")
}

async fn open(sandbox: &Sandbox) -> WebSocketStream<UnixStream> {
    let opening = client_async(handshake(sandbox, "/feed"), sandbox.connect().await);
    tokio::time::timeout(PATIENCE, opening).await.expect("in time").expect("opens").0
}

async fn is_echoed<Io>(socket: &mut WebSocketStream<Io>, text: &str) -> bool
where
    Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let echoed = async {
        socket.send(Message::text(text)).await?;
        socket.next().await.unwrap_or(Err(Error::ConnectionClosed))
    };
    let echoed = tokio::time::timeout(PATIENCE, echoed).await.expect("in time");
    echoed.is_ok_and(|message| message == Message::text(text))
}

/// Waits until the socket ends, in whatever way.
async fn ends(socket: &mut WebSocketStream<UnixStream>) {
    let ending = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(PATIENCE, ending).await.expect("it ends in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_judged_like_a_request_and_then_carries_both_ways() {
    let world = World::empty().await;
    let feed = fed(&world, None).await;
    let alice = world.sandbox("alice", &["desk/feed"]).await;
    let mut asking = handshake(&alice, "/feed");
    for (name, value) in [("x-user-id", "bob"), ("cookie", "a=b"), ("sec-websocket-protocol", "chat, other")]
    {
        asking.headers_mut().insert(name, value.parse().expect("a value"));
    }
    let (mut socket, agreed) = client_async(asking, alice.connect().await).await.expect("opens");
    assert_eq!(agreed.headers()["sec-websocket-protocol"], "chat");
    assert!(!agreed.headers().contains_key("set-cookie") && agreed.headers().contains_key("x-request-id"));
    let long = "x".repeat(1024 * 1024);
    for text in ["one", "two", &long] {
        assert!(is_echoed(&mut socket, text).await, "{text:.10}");
    }
    let (target, headers) = feed.seen();
    assert_eq!(target, "/api/feed?user_id=alice");
    assert_eq!(headers["x-user-id"], "alice");
    assert!(!headers.contains_key("authorization") && !headers.contains_key("cookie"), "{headers:?}");
    assert_ne!(headers["sec-websocket-key"], "dGhlIHNhbXBsZSBub25jZQ==", "the key is ours");
    let records = world.decisions();
    let record = records.last().expect("a record");
    assert_eq!(record.upstream.as_ref().map(|upstream| upstream.status), Some(101));
    let metrics = admin(&world, "/metrics").await;
    assert!(metrics.contains("postern_gateway_websockets 1\n"), "{metrics}");
    let carried =
        metrics.lines().find_map(|line| line.strip_prefix("postern_gateway_websocket_sent_bytes_total "));
    assert!(carried.and_then(|bytes| bytes.parse::<u64>().ok()).is_some_and(|bytes| bytes > 1024 * 1024));
    socket.close(None).await.expect("closes");
    ends(&mut socket).await;
    eventually("the backend's end is closed too", || feed.open() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_ends_with_its_session_and_others_go_on() {
    let world = World::empty().await;
    let feed = fed(&world, None).await;
    let (alice, bob) = (world.sandbox("alice", &["*"]).await, world.sandbox("bob", &["*"]).await);
    let (mut hers, mut his) = (open(&alice).await, open(&bob).await);
    assert!(is_echoed(&mut hers, "one").await && is_echoed(&mut his, "one").await);
    world.end(&alice).await;
    ends(&mut hers).await;
    eventually("the backend's end is closed too", || feed.open() == 1).await;
    assert!(is_echoed(&mut his, "two").await);
    // A gateway that stops lets it go on for its drain time, no longer.
    world.gateway_tasks.stop();
    assert!(is_echoed(&mut his, "three").await);
    ends(&mut his).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_carries_nothing_ends_and_gives_its_permit_back() {
    let world = World::with(|settings| settings.waits.websocket = Duration::from_millis(500)).await;
    let feed = feed(&world).await;
    let mut config = world.config("acme", &[("desk", described(feed.port))], None);
    config.limits = serde_json::from_value(json!({ "session": { "per_second": 1000.0, "concurrent": 1 } }))
        .expect("limits");
    assert_eq!(world.put(config).await, Applied::InForce);
    let alice = world.sandbox("alice", &["*"]).await;
    let mut socket = open(&alice).await;
    assert!(is_echoed(&mut socket, "one").await);
    let refused = client_async(handshake(&alice, "/feed"), alice.connect().await).await;
    assert_eq!(status(refused.expect_err("one at a time")), 429);
    ends(&mut socket).await;
    eventually("the backend's end is closed too", || feed.open() == 0).await;
    let again =
        async { while client_async(handshake(&alice, "/feed"), alice.connect().await).await.is_err() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("the permit comes back");
}

fn status(error: Error) -> u16 {
    match error {
        Error::Http(response) => response.status().as_u16(),
        other => panic!("no answer: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_a_websocket_is_refused_and_reaches_no_backend() {
    let world = World::empty().await;
    let policies = r#"@id("all") permit(principal, action, resource);
        @id("no-bob") forbid(principal, action == desk::Action::"feed", resource) when { context.query has user_id && context.query.user_id == "bob" };"#;
    let feed = fed(&world, Some(policies)).await;
    let (alice, bob) = (world.sandbox("alice", &["*"]).await, world.sandbox("bob", &["*"]).await);
    let stranger = world.sandbox("carol", &["desk/listOrders"]).await;
    let with = |name: &'static str, value: &'static str| {
        let mut asking = handshake(&alice, "/feed");
        asking.headers_mut().insert(name, value.parse().expect("a value"));
        asking
    };
    let mut without = handshake(&alice, "/feed");
    without.headers_mut().remove("authorization");
    for (what, asking, code) in [
        ("no token", without, 401),
        ("a policy forbids it", handshake(&bob, "/feed"), 403),
        ("the session may not", handshake(&stranger, "/feed"), 403),
        ("another's name", handshake(&alice, "/feed?user_id=alice&user-id=bob"), 403),
        ("an unknown parameter", handshake(&alice, "/feed?more=1"), 422),
        ("an operation that takes none", handshake(&alice, "/orders"), 400),
        ("another version", with("sec-websocket-version", "8"), 400),
        ("another protocol", with("upgrade", "h2c"), 400),
        ("several protocols", with("upgrade", "websocket, h2c"), 400),
        ("a key that is none", with("sec-websocket-key", "short"), 400),
        ("a connection that stays", with("connection", "keep-alive"), 400),
        ("a body", with("content-length", "5"), 400),
    ] {
        let mut head = format!("GET {} HTTP/1.1\r\n", asking.uri().path_and_query().expect("a path"));
        for (name, value) in asking.headers() {
            head.push_str(&format!("{name}: {}\r\n", value.to_str().expect("text")));
        }
        let door = match what {
            "a policy forbids it" => &bob,
            "the session may not" => &stranger,
            _ => &alice,
        };
        let answer = exchange_head(door.connect().await, &format!("{head}\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{what}: {answer}");
        assert!(!answer.contains("sec-websocket-accept"), "{what}: {answer}");
    }
    assert!(feed.heads.lock().expect("no panic").is_empty(), "nothing reached the backend");
    assert!(is_echoed(&mut open(&alice).await, "the control").await);
}

/// The head of the first answer to some bytes.
async fn exchange_head(mut stream: UnixStream, bytes: &str) -> String {
    drop(stream.write_all(bytes.as_bytes()).await);
    read_until(&mut stream, "\r\n\r\n").await
}

/// A backend that answers every connection with the same bytes, and keeps what it gets.
async fn stubborn(world: &World, answer: &'static str) -> (u16, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let seen = Arc::<Mutex<String>>::default();
    let (kept, owner) = (Arc::clone(&seen), world.tasks.clone());
    world.tasks.spawn(move |stop| async move {
        while let Some(Ok((mut stream, _))) = stop.run_until_cancelled(listener.accept()).await {
            let kept = Arc::clone(&kept);
            owner.spawn(move |stop| async move {
                let mut buffer = [0; 4096];
                while let Some(Ok(count @ 1..)) = stop.run_until_cancelled(stream.read(&mut buffer)).await {
                    let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                    let is_asked = text.contains("\r\n\r\n");
                    kept.lock().expect("no panic").push_str(&text);
                    if is_asked {
                        drop(stream.write_all(answer.as_bytes()).await);
                    }
                }
            });
        }
    });
    allow(world, port);
    (port, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_does_not_agree_gets_nothing_of_what_follows() {
    const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
    let wrong: &'static str =
        format!("{SWITCH}sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n").leak();
    let missing: &'static str = format!("{SWITCH}\r\n").leak();
    for (what, answer, status) in [
        ("it wants an upgrade", "HTTP/1.1 426 Upgrade Required\r\ncontent-length: 4\r\n\r\nnope", 426),
        ("it answers", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200),
        ("the answer to another key", wrong, 502),
        ("no answer to our key", missing, 502),
    ] {
        let world = World::empty().await;
        let (port, seen) = stubborn(&world, answer).await;
        let config = world.config("acme", &[("desk", described(port))], None);
        assert_eq!(world.put(config).await, Applied::InForce);
        let alice = world.sandbox("alice", &["*"]).await;
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
            sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let asking = alice.head("GET", "/feed", upgrade);
        // What a backend that stayed with HTTP would take for a request of somebody else.
        let hidden = "GET /admin HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-user-id: bob\r\n\r\n";
        let mut stream = alice.connect().await;
        stream.write_all(format!("{asking}{hidden}").as_bytes()).await.expect("writes");
        let mut read = Vec::new();
        drop(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("closes in time"));
        let read = String::from_utf8_lossy(&read);
        assert!(read.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {read}");
        assert!(read.contains("token-missing") || status == 502, "{what}: the hidden one is judged: {read}");
        let seen = seen.lock().expect("no panic");
        assert!(seen.contains("GET /api/feed?user_id=alice"), "{what}: the handshake was sent: {seen}");
        assert!(!seen.contains("admin") && !seen.contains("bob"), "{what}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_request_to_the_same_operation_stays_one() {
    let world = World::empty().await;
    let config = world.config("acme", &[("desk", described(world.port))], None);
    assert_eq!(world.put(config).await, Applied::InForce);
    let alice = world.sandbox("alice", &["*"]).await;
    let answer = alice.get("/feed").await;
    assert_eq!((answer.status, answer.target()), (200, "/api/feed?user_id=alice"));
    assert!(answer.seen_header("upgrade").is_empty() && answer.seen_header("sec-websocket-key").is_empty());
    // And a backend that has never heard of WebSockets answers as it likes.
    let upgrade = "connection: upgrade, close\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let answer = exchange(alice.connect().await, alice.head("GET", "/feed", upgrade).as_bytes()).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    assert_eq!(answer.seen_header("upgrade"), ["websocket"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http2_a_websocket_is_an_extended_connect() {
    let world = World::empty().await;
    let feed = fed(&world, None).await;
    let alice = world.sandbox("alice", &["*"]).await;
    let stream = TokioIo::new(alice.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .handshake(stream)
        .await
        .expect("HTTP/2");
    world.tasks.spawn(move |stop| async move { drop(stop.run_until_cancelled(connection).await) });
    let ask = |protocol: &'static str, path: &str| {
        Request::builder()
            .method(Method::CONNECT)
            .uri(format!("http://gateway{path}"))
            .header("authorization", format!("Bearer {}", alice.token))
            .header("sec-websocket-version", "13")
            .extension(Protocol::from_static(protocol))
            .body(Empty::<Bytes>::new())
            .expect("a request")
    };
    // The gateway says at the start that it serves these.
    let mut refused = sender.send_request(ask("connect-udp", "/feed")).await.expect("an answer");
    assert_eq!(refused.status(), 400);
    refused = sender.send_request(ask("websocket", "/orders")).await.expect("an answer");
    assert_eq!(refused.status(), 400, "an operation that takes none");
    let response = sender.send_request(ask("websocket", "/feed")).await.expect("an answer");
    assert_eq!(response.status(), 200);
    let upgraded = TokioIo::new(hyper::upgrade::on(response).await.expect("a stream"));
    let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
    assert!(is_echoed(&mut socket, "by HTTP/2").await);
    assert_eq!(feed.seen().1["x-user-id"], "alice");
    world.end(&alice).await;
    let ending = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(PATIENCE, ending).await.expect("it ends in time");
    eventually("the backend's end is closed too", || feed.open() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_that_cannot_be_are_refused_with_their_configuration() {
    let world = filtered_world().await;
    for (websockets, wanted) in [
        (json!(["nothing"]), "`nothing` of `websockets` is no operation by GET"),
        (json!(["createRefund"]), "`createRefund` of `websockets` is no operation by GET"),
    ] {
        let mut file = described(world.port);
        file["websockets"] = websockets;
        let Applied::Refused(mistakes) = world.put(world.config("acme", &[("desk", file)], None)).await
        else {
            panic!("{wanted}: in force");
        };
        assert!(mistakes.iter().any(|mistake| mistake.contains(wanted)), "{mistakes:?}");
    }
    let blind = |websockets: Value| {
        let mut config = chain(&world, "acme", &["card-guard"], &json!(["card-guard"]));
        for backend in config.backends.values_mut() {
            backend.file.websockets = serde_json::from_value(websockets.clone()).expect("names");
        }
        config
    };
    let Applied::Refused(mistakes) = world.put(blind(json!(["feed"]))).await else { panic!("in force") };
    assert!(mistakes.iter().any(|mistake| mistake.contains("sees nothing of WebSockets")), "{mistakes:?}");
    assert_eq!(world.put(blind(json!([]))).await, Applied::InForce, "the control");
}
