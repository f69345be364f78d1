// SPDX-License-Identifier: Apache-2.0
//! Backends by HTTP/2: found by ALPN or known before, one connection for many, bodies and trailers
//! both ways, gRPC; and `Expect: 100-continue`, which no backend hears of.

use crate::certificates::Authority;
use crate::world::{PATIENCE, Sandbox, World, eventually, exchange, read_until};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use postern_common::control::Applied;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What a backend saw.
#[derive(Debug, Default)]
struct Seen {
    connections: AtomicUsize,
    requests: Mutex<Vec<(Version, HeaderMap)>>,
    trailers: Mutex<Vec<HeaderMap>>,
}

impl Seen {
    fn last(&self) -> (Version, HeaderMap) {
        self.requests.lock().expect("no panic").last().cloned().expect("a request")
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn trailers() -> HeaderMap {
    let fields =
        [("grpc-status", "0"), ("x-sum", "backend's"), ("x-user-id", "somebody"), ("content-length", "7")];
    fields
        .iter()
        .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
        .collect()
}

/// Echoes bodies part by part, then some trailers; `…/flood` sends without end.
fn answer(request: Request<Incoming>, seen: Arc<Seen>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    seen.requests.lock().expect("no panic").push((head.version, head.headers));
    if head.uri.path().ends_with("/feed") {
        let endless =
            futures_util::stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![b'x'; 16 * 1024]))));
        return Ok(Response::new(StreamBody::new(endless).boxed_unsync()));
    }
    let parts = BodyStream::new(body).filter_map(move |frame| {
        let seen = Arc::clone(&seen);
        async move {
            match frame.ok()?.into_data() {
                Ok(data) => Some(Ok(Frame::data(data))),
                Err(frame) => {
                    let trailers = frame.into_trailers().ok()?;
                    seen.trailers.lock().expect("no panic").push(trailers);
                    None
                }
            }
        }
    });
    let last = futures_util::stream::once(async { Ok(Frame::trailers(trailers())) });
    let mut response = Response::new(StreamBody::new(parts.chain(last)).boxed_unsync());
    response.headers_mut().insert("trailer", "grpc-status, x-sum, x-user-id".parse().expect("a value"));
    Ok(response)
}

async fn serve<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: Io, seen: Arc<Seen>) {
    let service = service_fn(move |request| std::future::ready(answer(request, Arc::clone(&seen))));
    let server = Builder::new(TokioExecutor::new());
    drop(server.serve_connection(TokioIo::new(io), service).await);
}

/// Starts a backend, by TLS if it is given a way to, to which requests may go.
async fn start(world: &World, tls: Option<TlsAcceptor>) -> (u16, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let seen = Arc::<Seen>::default();
    let (kept, owner) = (Arc::clone(&seen), world.tasks.clone());
    world.tasks.spawn(move |stop| async move {
        while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
            kept.connections.fetch_add(1, Ordering::SeqCst);
            let (seen, tls) = (Arc::clone(&kept), tls.clone());
            owner.spawn(move |stop| async move {
                let serving = async {
                    match tls {
                        None => serve(stream, seen).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, seen).await;
                            }
                        }
                    }
                };
                let _ended = stop.run_until_cancelled(serving).await;
            });
        }
    });
    world.rules.replace(&[format!("127.0.0.1:{port}")], &[]).expect("rules");
    (port, seen)
}

async fn put(world: &World, url: &str, protocol: Value) {
    let file = json!({ "url": format!("{url}/api"), "openapi": "openapi.yaml", "protocol": protocol });
    assert_eq!(world.put(world.config("acme", &[("desk", file)], None)).await, Applied::InForce);
}

/// A gateway in front of a backend that speaks HTTP/2 without TLS.
async fn prior() -> (World, Arc<Seen>) {
    let world = World::empty().await;
    let (port, seen) = start(&world, None).await;
    put(&world, &format!("http://127.0.0.1:{port}"), json!("http2")).await;
    (world, seen)
}

const STREAM: &[(&str, &str)] = &[("content-type", "application/octet-stream")];

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_by_prior_knowledge_carries_many_requests() {
    let (world, seen) = prior().await;
    let (alice, bob) = (world.sandbox("alice", &["*"]).await, world.sandbox("bob", &["*"]).await);
    for _ in 0..5 {
        let (one, other) = tokio::join!(alice.get("/orders"), bob.call("PUT", "/uploads", STREAM, b"1"));
        assert_eq!((one.status, other.status), (200, 200));
    }
    let (version, headers) = seen.last();
    assert_eq!((version, seen.requests.lock().expect("no panic").len()), (Version::HTTP_2, 10));
    assert!(!headers.contains_key("host") && !headers.contains_key("authorization"), "{headers:?}");
    assert!(seen.connections() <= 2, "two may be opened at once at the start: {}", seen.connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_both_agree_on_what_they_speak() {
    let authority = Authority::new();
    let believed = authority.certificate.clone();
    let world = World::with(|settings| settings.extra_authorities = vec![believed]).await;
    let alice = world.sandbox("alice", &["*"]).await;
    let pair = authority.sign("backend");
    for (offered, protocol, version) in [
        (&["h2", "http/1.1"][..], "auto", Some(Version::HTTP_2)),
        (&["http/1.1"], "auto", Some(Version::HTTP_11)),
        (&[], "auto", Some(Version::HTTP_11)),
        (&["h2", "http/1.1"], "http1", Some(Version::HTTP_11)),
        (&["h2", "http/1.1"], "http2", Some(Version::HTTP_2)),
        (&["http/1.1"], "http2", None),
    ] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![pair.certificate.clone()], pair.private_key())
            .expect("a pair");
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let (port, seen) = start(&world, Some(TlsAcceptor::from(Arc::new(config)))).await;
        put(&world, &format!("https://127.0.0.1:{port}"), json!(protocol)).await;
        let answer = alice.get("/orders").await;
        let wanted = if version.is_some() { 200 } else { 502 };
        assert_eq!(answer.status, wanted, "{offered:?} {protocol}: {:?}", answer.body);
        let spoken = seen.requests.lock().expect("no panic").last().map(|(version, _)| *version);
        assert_eq!(spoken, version, "{offered:?} {protocol}");
    }
}

/// A client of a sandbox's own by HTTP/2.
async fn client<Sent>(world: &World, sandbox: &Sandbox) -> http2::SendRequest<Sent>
where
    Sent: http_body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let stream = TokioIo::new(sandbox.connect().await);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.expect("HTTP/2");
    world.tasks.spawn(move |stop| async move { drop(stop.run_until_cancelled(connection).await) });
    sender
}

fn asking(sandbox: &Sandbox, method: &str, path: &str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(format!("http://gateway{path}"))
        .header("authorization", format!("Bearer {}", sandbox.token))
        .header("te", "trailers")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_streams_and_ends_with_trailers_in_both_directions_at_once() {
    let (world, seen) = prior().await;
    let alice = world.sandbox("alice", &["*"]).await;
    let mut sender = client(&world, &alice).await;
    let (parts, receiver) = mpsc::channel::<Frame<Bytes>>(1);
    let body = futures_util::stream::unfold(receiver, async |mut receiver| {
        let frame = receiver.recv().await?;
        Some((Ok::<_, Infallible>(frame), receiver))
    });
    let request = asking(&alice, "POST", "/desk.Orders/Watch").header("content-type", "application/grpc");
    let request = request.body(StreamBody::new(Box::pin(body))).expect("a request");
    parts.send(Frame::data(Bytes::from_static(b"one"))).await.expect("takes");
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("in time");
    let mut answer = answer.expect("an answer").into_body();
    let mut next = async || tokio::time::timeout(PATIENCE, answer.frame()).await.expect("in time");
    // Each part comes back before the next one goes out.
    assert_eq!(next().await.expect("a part").expect("whole").into_data().expect("data"), "one");
    parts.send(Frame::data(Bytes::from_static(b"two"))).await.expect("takes");
    assert_eq!(next().await.expect("a part").expect("whole").into_data().expect("data"), "two");
    let fields =
        [("x-sum", "alice's"), ("x-user-id", "bob"), ("user_id", "bob"), ("authorization", "Bearer x")];
    let sent =
        fields.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")));
    parts.send(Frame::trailers(sent.collect())).await.expect("takes");
    drop(parts);
    let last = next().await.expect("trailers").expect("whole").into_trailers().expect("trailers");
    assert_eq!((last["grpc-status"].as_bytes(), last["x-sum"].as_bytes()), (&b"0"[..], &b"backend's"[..]));
    assert_eq!(last.len(), 2, "identity and framing are left out: {last:?}");
    let (version, headers) = seen.last();
    assert_eq!((version, headers["te"].as_bytes()), (Version::HTTP_2, &b"trailers"[..]));
    assert_eq!(
        (headers["x-user-id"].as_bytes(), headers["content-type"].as_bytes()),
        (&b"alice"[..], &b"application/grpc"[..])
    );
    let came = seen.trailers.lock().expect("no panic").pop().expect("trailers");
    assert_eq!((came.len(), came["x-sum"].as_bytes()), (1, &b"alice's"[..]), "{came:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_cross_from_one_protocol_to_the_other() {
    for protocol in ["http1", "http2"] {
        let world = World::empty().await;
        let (port, seen) = start(&world, None).await;
        put(&world, &format!("http://127.0.0.1:{port}"), json!(protocol)).await;
        let alice = world.sandbox("alice", &["*"]).await;
        let rest = "content-type: application/octet-stream\r\ntransfer-encoding: chunked\r\nte: trailers\r\n\
            trailer: x-sum, x-user-id\r\nconnection: te\r\n";
        let mut stream = alice.connect().await;
        let body = "3\r\none\r\n0\r\nx-sum: alice's\r\nx-user-id: bob\r\n\r\n";
        let head = alice.head("PUT", "/uploads", rest);
        stream.write_all(format!("{head}{body}").as_bytes()).await.expect("writes");
        let answer = read_until(&mut stream, "\r\n0\r\n").await;
        let answer = if answer.ends_with("\r\n\r\n") {
            answer
        } else {
            answer + &read_until(&mut stream, "\r\n\r\n").await
        };
        assert!(
            answer.contains("x-sum: backend's") && answer.contains("grpc-status: 0"),
            "{protocol}: {answer}"
        );
        assert!(!answer.contains("somebody") && !answer.contains("x-user-id"), "{protocol}: {answer}");
        let came = seen.trailers.lock().expect("no panic").pop().expect("trailers");
        assert_eq!((came.len(), came["x-sum"].as_bytes()), (1, &b"alice's"[..]), "{protocol}: {came:?}");
        // A client that takes none gets none.
        let answer = exchange(
            alice.connect().await,
            alice.head("PUT", "/uploads", "connection: close\r\n").as_bytes(),
        )
        .await;
        assert_eq!(answer.status, 200, "{protocol}");
        // Trailers of a judged body are nobody's.
        let refund = json!({ "order": "1", "amount": 1 }).to_string();
        let rest = "content-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\ntrailer: x-sum\r\n";
        let body = format!("{:x}\r\n{refund}\r\n0\r\nx-sum: 1\r\n\r\n", refund.len());
        let head = alice.head("POST", "/refunds", rest);
        assert_eq!(exchange(alice.connect().await, format!("{head}{body}").as_bytes()).await.status, 200);
        assert!(seen.trailers.lock().expect("no panic").is_empty(), "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_stop_no_others_of_their_connection() {
    let (world, seen) = prior().await;
    let (alice, bob) = (world.sandbox("alice", &["*"]).await, world.sandbox("bob", &["*"]).await);
    let mut unread = Vec::new();
    for _ in 0..60 {
        let mut stream = alice.connect().await;
        stream.write_all(alice.head("GET", "/feed", "").as_bytes()).await.expect("writes");
        read_until(&mut stream, "HTTP/1.1 200").await;
        unread.push(stream);
    }
    let large = vec![b'y'; 1024 * 1024];
    for _ in 0..3 {
        let answer = bob.raw(&[bob.head("PUT", "/uploads", "content-type: application/octet-stream\r\nconnection: close\r\ncontent-length: 1048576\r\n").as_bytes(), &large].concat()).await;
        assert_eq!(answer.status, 200);
    }
    assert!(seen.connections() <= 2, "they share one: {}", seen.connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_goes_away_is_connected_to_again() {
    let (world, seen) = prior().await;
    let alice = world.sandbox("alice", &["*"]).await;
    let mut sender = client::<Full<Bytes>>(&world, &alice).await;
    let request = asking(&alice, "GET", "/feed").body(Full::default()).expect("a request");
    let answer = sender.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    world.end(&alice).await;
    let mut body = answer.into_body();
    let ending = async { while let Some(Ok(_)) = body.frame().await {} };
    tokio::time::timeout(PATIENCE, ending).await.expect("it ends with its session");
    let bob = world.sandbox("bob", &["*"]).await;
    assert_eq!(bob.get("/orders").await.status, 200, "its connection serves others");
    eventually("one connection", || seen.connections() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_asked_for_only_after_what_can_be_judged_without_it() {
    let world = World::desk().await;
    let (alice, reader) = (world.sandbox("alice", &["*"]).await, world.sandbox("bob", &["desk/read"]).await);
    let nobody = Sandbox { token: "none".into(), ..alice.clone() };
    let expecting = |sandbox: &Sandbox, method: &str, target: &str, rest: &str| {
        sandbox.head(method, target, &format!("expect: 100-continue\r\n{rest}"))
    };
    let json = "content-type: application/json\r\ncontent-length: 24\r\n";
    let bytes = "content-type: application/octet-stream\r\n";
    for (what, sandbox, head, code) in [
        ("no token", &nobody, expecting(&nobody, "POST", "/refunds", json), 401),
        ("no route", &alice, expecting(&alice, "POST", "/nothing", json), 404),
        ("no grant", &reader, expecting(&reader, "POST", "/refunds", json), 403),
        (
            "too long",
            &alice,
            expecting(
                &alice,
                "POST",
                "/refunds",
                "content-type: application/json\r\ncontent-length: 9999999\r\n",
            ),
            413,
        ),
        (
            "a wrong type",
            &alice,
            expecting(&alice, "POST", "/refunds", "content-type: text/plain\r\ncontent-length: 24\r\n"),
            415,
        ),
        (
            "a stream that is refused",
            &alice,
            expecting(&alice, "PUT", "/uploads?more=1", &format!("{bytes}content-length: 5\r\n")),
            422,
        ),
    ] {
        let mut stream = sandbox.connect().await;
        stream.write_all(head.as_bytes()).await.expect("writes");
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{what}: {answer}");
    }
    world.recorded.assert_untouched("what was expected to be refused");
    for (head, body) in [
        (expecting(&alice, "PUT", "/uploads", &format!("{bytes}content-length: 5\r\n")), "whole"),
        (expecting(&alice, "POST", "/refunds", json), r#"{"order":"1","amount":1}"#),
    ] {
        let mut stream = alice.connect().await;
        stream.write_all(head.as_bytes()).await.expect("writes");
        let asked = read_until(&mut stream, "\r\n\r\n").await;
        assert_eq!(asked, "HTTP/1.1 100 Continue\r\n\r\n", "{body}");
        stream.write_all(body.as_bytes()).await.expect("writes");
        assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 200 "), "{body}");
    }
    assert!(!world.recorded.text().to_lowercase().contains("expect:"), "no backend hears of it");
}
