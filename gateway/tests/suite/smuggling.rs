// SPDX-License-Identifier: Apache-2.0
//! Bytes that two servers could frame differently, floods, and peers that only trickle: each is
//! refused or bounded, answered at most once, reaches no backend, and others are served meanwhile.
//! (Uploads and answers that stall on their way are in `streams`.)

use crate::world::{PATIENCE, Sandbox, World};
use postern_common::control::Applied;
use postern_gateway::Waits;
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The statuses of all answers to `bytes` and to one last request for nothing behind them, after
/// which the gateway closes the connection.
async fn statuses(sandbox: &Sandbox, bytes: &[u8]) -> Vec<u16> {
    let last = sandbox.head("GET", "/nothing", "connection: close\r\n");
    let mut stream = sandbox.connect().await;
    // A gateway that refuses early may close before all is written.
    drop(stream.write_all(&[bytes, last.as_bytes()].concat()).await);
    let mut read = Vec::new();
    drop(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("closes in time"));
    let text = String::from_utf8_lossy(&read).into_owned();
    let after = text.split("HTTP/1.1 ").skip(1);
    after.filter_map(|rest| rest.get(..3).and_then(|code| code.parse().ok())).collect()
}

const CHUNKED: &str = "transfer-encoding: chunked\r\n";
const REFUND: &str = r#"{"order":"1","amount":1}"#;

/// Requests as alice sends them.
struct Writer(String);

impl Writer {
    fn of(sandbox: &Sandbox) -> Self {
        Self(format!("host: a\r\nauthorization: Bearer {}\r\n", sandbox.token))
    }

    fn get(&self, line: &str, more: &str) -> Vec<u8> {
        format!("{line}\r\n{}{more}\r\n", self.0).into()
    }

    /// A refund, whose body is judged, so that it is read whole before anything is forwarded.
    fn post(&self, framing: &str, body: &str) -> Vec<u8> {
        let auth = &self.0;
        format!("POST /refunds HTTP/1.1\r\n{auth}content-type: application/json\r\n{framing}\r\n{body}")
            .into()
    }

    /// A request that a body hides.
    fn inner(&self) -> String {
        format!("GET /orders HTTP/1.1\r\n{}\r\n", self.0)
    }
}

fn framings(writer: &Writer) -> Vec<(&'static str, Vec<u8>)> {
    let (inner, post) = (writer.inner(), |framing: &str, body: &str| writer.post(framing, body));
    let length = inner.len();
    let hidden = format!("0\r\n\r\n{inner}");
    let chunk = |size: &str| format!("{size}\r\nhello\r\n{hidden}");
    vec![
        ("two lengths", post(&format!("content-length: 0\r\ncontent-length: {length}\r\n"), &inner)),
        ("a list of lengths", post(&format!("content-length: 0, {length}\r\n"), &inner)),
        ("a signed length", post("content-length: +5\r\n", "hello")),
        ("a negative length", post("content-length: -5\r\n", "hello")),
        ("a hex length", post("content-length: 0x5\r\n", "hello")),
        ("a length beyond 64 bits", post("content-length: 99999999999999999999\r\n", "hello")),
        ("chunks twice", post("transfer-encoding: chunked, chunked\r\n", &hidden)),
        ("two encodings", post(&format!("{CHUNKED}transfer-encoding: identity\r\n"), &hidden)),
        ("compressed chunks", post("transfer-encoding: gzip, chunked\r\n", &hidden)),
        ("an unknown encoding", post("transfer-encoding: xchunked\r\n", &hidden)),
        ("chunks are not last", post("transfer-encoding: chunked, gzip\r\n", &hidden)),
        ("a blank before the colon", post("transfer-encoding : chunked\r\n", &hidden)),
        ("a vertical tab", post("transfer-encoding: \x0bchunked\r\n", &hidden)),
        ("a folded encoding", post("transfer-encoding:\r\n chunked\r\n", &hidden)),
        ("a chunk size beyond 64 bits", post(CHUNKED, &chunk("fffffffffffffffff"))),
        ("a signed chunk size", post(CHUNKED, &chunk("+5"))),
        ("a negative chunk size", post(CHUNKED, &chunk("-1"))),
        ("a chunk size with 0x", post(CHUNKED, &chunk("0x5"))),
        ("no line end after a chunk", post(CHUNKED, &format!("5\r\nhelloX{hidden}"))),
        ("a long chunk extension", post(CHUNKED, &chunk(&format!("5;{}", "a".repeat(100_000))))),
    ]
}

fn heads(writer: &Writer) -> Vec<(&'static str, Vec<u8>)> {
    const GET: &str = "GET /orders HTTP/1.1";
    let get = |line: &str, more: &str| writer.get(line, more);
    vec![
        ("a folded header", get(GET, "x: 1\r\n 2\r\n")),
        ("a bare CR", get(GET, "x: 1\rx-user-id: bob\r\n")),
        ("NUL in a value", get(GET, "x: a\0b\r\n")),
        ("NUL in a name", get(GET, "x\0y: 1\r\n")),
        ("a name of no length", get(GET, ": 1\r\n")),
        ("no colon", get(GET, "x\r\n")),
        ("no path", get("GET orders HTTP/1.1", "")),
        ("an asterisk", get("GET * HTTP/1.1", "")),
        ("an absolute target", get("GET http://evil/orders HTTP/1.1", "")),
        ("a blank in the target", get("GET /orders /x HTTP/1.1", "")),
        ("a tab in the target", get("GET /ord\ters HTTP/1.1", "")),
        ("NUL in the target", get("GET /orders\0 HTTP/1.1", "")),
        ("a dot segment before a fragment", get("GET /orders/..#x HTTP/1.1", "")),
        ("a method in lower case", get("get /orders HTTP/1.1", "")),
        ("a method that is none", get("G(T /orders HTTP/1.1", "")),
        ("version 0.9", b"GET /orders\r\n\r\n".to_vec()),
        ("version 1.0", get("GET /orders HTTP/1.0", "")),
        ("version 1.2", get("GET /orders HTTP/1.2", "")),
        ("a version in lower case", get("GET /orders http/1.1", "")),
        ("two hosts", get(GET, "host: b\r\n")),
        ("too many headers", get(GET, &"x: 1\r\n".repeat(101))),
        ("too long headers", get(GET, &format!("x: {}\r\n", "a".repeat(70_000)))),
        ("a too long target", get(&format!("GET /orders?{} HTTP/1.1", "a".repeat(70_000)), "")),
        ("CONNECT", get("CONNECT evil:443 HTTP/1.1", "")),
        (
            "an upgrade to h2c",
            get(GET, "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n"),
        ),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_servers_could_frame_differently_is_refused_and_serves_nothing_hidden() {
    let world = World::desk().await;
    let (alice, bob) = (world.sandbox("alice", &["*"]).await, world.sandbox("bob", &["*"]).await);
    let writer = Writer::of(&alice);
    let mut wrong = Vec::new();
    for (what, bytes) in framings(&writer).iter().chain(&heads(&writer)) {
        let seen = statuses(&alice, bytes).await;
        // At most its own refusal, and that of the last request.
        let is_refused = seen.len() <= 2 && seen.iter().all(|status| (400..500).contains(status));
        if !is_refused || !world.recorded.text().is_empty() {
            wrong.push(format!("{what}: {seen:?}, the backend saw {:?}", world.recorded.text()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    world.recorded.assert_untouched("a smuggled request");
    // The controls: the same parts, framed well.
    let length = format!("content-length: {}\r\n", REFUND.len());
    let chunks = format!("{:x};ext=1\r\n{REFUND}\r\n0\r\n\r\n", REFUND.len());
    for control in [
        writer.post(&length, REFUND),
        writer.post(CHUNKED, &chunks),
        writer.get("GET /orders HTTP/1.1", "x: 1\r\n"),
    ] {
        assert_eq!(statuses(&alice, &control).await, [200, 404], "{}", String::from_utf8_lossy(&control));
    }
    assert_eq!(bob.get("/orders").await.status, 200, "others are served");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_length_beside_chunks_nothing_reaches_the_backend_but_one_request_framed_anew() {
    let world = World::desk().await;
    let alice = world.sandbox("alice", &["*"]).await;
    let writer = Writer::of(&alice);
    let chunks = format!("{:x}\r\n{REFUND}\r\n0\r\n\r\n{}", REFUND.len(), writer.inner());
    for framing in [format!("content-length: 4\r\n{CHUNKED}"), format!("{CHUNKED}content-length: 4\r\n")] {
        // hyper goes by the chunks and closes the connection (RFC 9112 §6.3).
        let seen = statuses(&alice, &writer.post(&framing, &chunks)).await;
        assert!(matches!(seen[..], [200] | [400]), "{framing}: {seen:?}");
    }
    let text = world.recorded.text();
    assert!(!text.contains("GET /api/orders") && !text.contains("content-length: 4\r\n"), "{text}");
}

/// One frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HPACK: a literal field that is not indexed (RFC 7541 §6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        bytes.extend(length(text.len()));
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// HPACK: a length of seven bits; what is beyond them follows, seven bits a byte (RFC 7541 §5.1).
fn length(mut rest: usize) -> Vec<u8> {
    let byte = |value: usize| u8::try_from(value).expect("below 256");
    if rest < 127 {
        return vec![byte(rest)];
    }
    rest -= 127;
    let mut bytes = vec![127];
    while rest >= 128 {
        bytes.push(byte(rest % 128 + 128));
        rest /= 128;
    }
    bytes.push(byte(rest));
    bytes
}

fn begin() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat()
}

fn request() -> Vec<u8> {
    let fields = [(":method", "GET"), (":path", "/orders"), (":scheme", "http"), (":authority", "a")];
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// Whether the answer holds a GOAWAY that gives a reason.
fn goes_away(mut read: &[u8]) -> bool {
    while let [a, b, c, kind, _flags, _, _, _, _, rest @ ..] = read {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, after)) = rest.split_at_checked(length) else { return false };
        if *kind == 7 && payload.get(4..8).is_some_and(|code| code != [0; 4]) {
            return true;
        }
        read = after;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_http2_end_their_own_connection() {
    let world = World::desk().await;
    let (alice, bob) = (world.sandbox("alice", &["*"]).await, world.sandbox("bob", &["*"]).await);
    let mut resets = begin();
    for stream in (1..4000).step_by(2) {
        resets.extend(frame(1, 5, stream, &request()));
        resets.extend(frame(3, 0, stream, &8u32.to_be_bytes()));
    }
    let mut continued = [begin(), frame(1, 1, 1, &request())].concat();
    for number in 0..2000 {
        continued.extend(frame(9, 0, 1, &field(&format!("x-{number}"), &"a".repeat(100))));
    }
    let mut endless = [begin(), frame(1, 1, 1, &request())].concat();
    endless.extend((0..20_000).flat_map(|_| frame(9, 0, 1, &[])));
    for (what, bytes) in [("resets", resets), ("continuations", continued), ("empty continuations", endless)]
    {
        let mut stream = alice.connect().await;
        let flooding = async {
            // It may be closed before all is written.
            drop(stream.write_all(&bytes).await);
            let mut read = Vec::new();
            drop(stream.read_to_end(&mut read).await);
            read
        };
        let others = async {
            for _ in 0..5 {
                assert_eq!(bob.get("/orders").await.status, 200, "{what}: others are served");
            }
        };
        let both = async { tokio::join!(flooding, others) };
        let (read, ()) =
            tokio::time::timeout(PATIENCE, both).await.unwrap_or_else(|_| panic!("{what} are endured"));
        assert!(goes_away(&read) || read.is_empty(), "{what}: {read:?}");
    }
    // The control: one such request is answered, here for want of a token.
    let mut stream = alice.connect().await;
    stream.write_all(&[begin(), frame(1, 5, 1, &request())].concat()).await.expect("writes");
    let mut read = vec![0; 4096];
    let answered = async {
        let mut text = String::new();
        while !text.contains("token-missing") {
            let count = stream.read(&mut read).await.expect("reads");
            assert_ne!(count, 0, "an answer: {text}");
            text.push_str(&String::from_utf8_lossy(&read[..count]));
        }
    };
    tokio::time::timeout(Duration::from_secs(20), answered).await.expect("an answer in time");
}

/// A gateway that waits for nobody long, and others' requests are not limited.
async fn impatient() -> World {
    let wait = Duration::from_millis(300);
    let world = World::with(|settings| {
        settings.waits = Waits { head: wait, idle: wait, body: wait, stall: wait, ..Waits::default() }
    })
    .await;
    let mut config = world.config("acme", &[("desk", world.described())], None);
    let rate = json!({ "per_second": 100_000.0 });
    config.limits = serde_json::from_value(json!({ "session": rate, "tenant": rate })).expect("limits");
    assert_eq!(world.put(config).await, Applied::InForce);
    world
}

/// What comes back, until the gateway closes, to a peer that sends a little for each request of
/// another that is served meanwhile.
async fn trickled(slow: &Sandbox, other: &Sandbox, begun: &[u8], little: &[u8]) -> String {
    let (mut reader, mut writer) = slow.connect().await.into_split();
    writer.write_all(begun).await.expect("writes");
    let mut read = Vec::new();
    let trickling = async {
        loop {
            // It may be closed already.
            drop(writer.write_all(little).await);
            assert_eq!(other.get("/orders").await.status, 200, "others are served");
        }
    };
    tokio::select! {
        ended = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut read)) => {
            drop(ended.expect("a peer that trickles is let go"));
        }
        () = trickling => {}
    }
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_only_trickle_are_let_go_while_others_are_served() {
    let world = impatient().await;
    let (alice, bob) = (world.sandbox("alice", &["*"]).await, world.sandbox("bob", &["*"]).await);
    let writer = Writer::of(&alice);
    let head = b"GET /orders HTTP/1.1\r\nhost: a\r\nx: ".to_vec();
    let long = writer.post("content-length: 1000\r\n", "{\"order\":\"");
    let chunked = writer.post(CHUNKED, "2\r\n{\"\r\n");
    let http2_head = [begin(), frame(1, 1, 1, &request())].concat();
    let bearer = format!("Bearer {}", alice.token);
    let fields = [
        (":method", "POST"),
        (":path", "/refunds"),
        (":scheme", "http"),
        (":authority", "a"),
        ("content-type", "application/json"),
        ("authorization", &bearer),
    ];
    let fields: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value)).collect();
    let http2_body = [begin(), frame(1, 4, 1, &fields)].concat();
    let continuation = frame(9, 0, 1, &field("x", "1"));
    let data = frame(0, 0, 1, b" ");
    for (what, begun, little, answer) in [
        ("a head", head, &b"a"[..], ""),
        ("a connection without a request", Vec::new(), b"", ""),
        ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n".to_vec(), b"", ""),
        ("a head of HTTP/2", http2_head, &continuation, ""),
        ("a body of known length", long, b"a", "request-timeout"),
        ("a body in chunks", chunked, b"1\r\na\r\n", "request-timeout"),
        ("a body of HTTP/2", http2_body, &data, "request-timeout"),
    ] {
        let before = requests_of_others(&world);
        let read = trickled(&alice, &bob, &begun, little).await;
        assert!(read.contains(answer), "{what}: {read}");
        assert!(!read.contains("HTTP/1.1 200"), "{what}: {read}");
        assert!(requests_of_others(&world) > before, "{what}: others were served meanwhile");
    }
    assert!(!world.recorded.text().contains("/refunds"), "nothing of them reaches the backend");
    // The control: with the same bounds, a whole one is answered.
    let length = format!("content-length: {}\r\n", REFUND.len());
    assert_eq!(statuses(&alice, &writer.post(&length, REFUND)).await, [200, 404]);
}

/// How many requests of others have reached the backend.
fn requests_of_others(world: &World) -> usize {
    world.recorded.text().matches("GET /api/orders").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_whose_answers_nobody_reads_are_stopped_by_the_stall_time() {
    let world = impatient().await;
    let (alice, bob) = (world.sandbox("alice", &["*"]).await, world.sandbox("bob", &["*"]).await);
    for (what, one) in [("pings", frame(6, 0, 0, &[0; 8])), ("settings", frame(4, 0, 0, &[]))] {
        let mut stream = alice.connect().await;
        stream.write_all(&begin()).await.expect("writes");
        let many = one.repeat(1000);
        let flooding = async { while stream.write_all(&many).await.is_ok() {} };
        let others = async {
            loop {
                assert_eq!(bob.get("/orders").await.status, 200, "{what}: others are served");
            }
        };
        tokio::select! {
            ended = tokio::time::timeout(PATIENCE, flooding) => ended.unwrap_or_else(|_| panic!("{what} are endured")),
            () = others => {}
        }
    }
}
