// SPDX-License-Identifier: Apache-2.0
//! Requests that look like one thing to us and like another to a backend: refused, or passed on as
//! what we took them for. Each attack stands beside a harmless twin that must reach the backend.

use crate::world::{Sandbox, World, exchange};
use postern_common::control::Applied;
use serde_json::json;

const JSON: (&str, &str) = ("content-type", "application/json");
const PLAIN: (&str, &str) = ("content-type", "text/plain");
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

/// Operations that the desk's own document does not have.
const RANGES: &str = r#"{"openapi": "3.1.0", "paths": {
    "/any": {"post": {"operationId": "sendAny", "requestBody": {"content": {"*/*": {}}}}},
    "/ranged": {"post": {"operationId": "sendRanged", "requestBody": {"content": {"*/*": {"schema": {
        "type": "object", "required": ["amount"], "properties": {"amount": {"type": "integer", "maximum": 5}}}}}}}},
    "/file": {"post": {"operationId": "sendFile", "requestBody": {"content": {"*/*": {
        "schema": {"type": "string", "format": "binary"}}}}}},
    "/text-json": {"post": {"operationId": "sendTextJson", "requestBody": {"content": {"text/json": {"schema": {
        "type": "object", "required": ["amount"]}}}}}},
    "/named": {"post": {"operationId": "sendNamed", "requestBody": {"content": {"application/x-named": {}}}}},
    "/tunnel": {"post": {"operationId": "tunnel",
        "parameters": [{"name": "_method", "in": "query", "schema": {"type": "string"}}],
        "requestBody": {"content": {"application/json": {"schema": {"type": "object", "properties": {
            "_method": {"type": "string"}}}}}}}},
    "/priced": {"get": {"operationId": "priced", "parameters": [
        {"name": "X-Amount", "in": "header", "required": true, "schema": {"type": "integer", "maximum": 5}}]}}
}}"#;

/// A gateway with the backends `desk`, `ranges` (its document is above) and `files` (without one).
async fn world() -> World {
    let world = World::empty().await;
    let mut files = world.plain();
    files["credential"] = json!({ "secret": "desk-key", "header": "X-Api-Key" });
    let backends = [("desk", world.described()), ("ranges", world.described()), ("files", files)];
    let mut config = world.config("acme", &backends, None);
    for (name, backend) in &mut config.backends {
        if name.as_str() == "ranges" {
            backend.document = Some(RANGES.into());
        }
    }
    config.default_backend = Some("desk".parse().expect("a name"));
    assert_eq!(world.put(config).await, Applied::InForce);
    world
}

async fn open() -> (World, Sandbox) {
    let world = world().await;
    let sandbox = world.sandbox("alice", &["*"]).await;
    (world, sandbox)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_header_cannot_switch_judgement_off() {
    let (world, sandbox) = open().await;
    let forged = br#"{"order":"1","amount":-1,"user_id":"mallory","extra":{}}"#;
    for listed in ["content-type", "Content-Type", "content_type", "x, content-type ,y", "content-encoding"] {
        let answer = sandbox.call("POST", "/refunds", &[JSON, ("connection", listed)], forged).await;
        assert_eq!((answer.status, answer.code()), (400, "request-malformed"), "{listed}: {:?}", answer.body);
    }
    for listed in ["host", "content-length", "transfer-encoding", "authorization"] {
        let answer = sandbox.call("GET", "/orders", &[("connection", listed)], b"").await;
        assert_eq!((answer.status, answer.code()), (400, "request-malformed"), "{listed}: {:?}", answer.body);
    }
    let answer = sandbox.call("POST", "/refunds", &[JSON, ("connection", "x-hop")], forged).await;
    assert_eq!(answer.code(), "schema-violation", "it is judged: {:?}", answer.body);
    world.recorded.assert_untouched("a body whose type is taken away");
    let good = br#"{"order":"1","amount":1}"#;
    let twin = [JSON, ("connection", "x-hop"), ("x-hop", "1")];
    let answer = sandbox.call("POST", "/refunds", &twin, good).await;
    assert_eq!(answer.status, 200, "the twin: {:?}", answer.body);
    assert_eq!(answer.seen_body()["user_id"], "alice");
    assert_eq!(answer.seen_header("content-type"), ["application/json"]);
    assert!(answer.seen_header("x-hop").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn json_in_another_encoding_hides_no_identity() {
    let (world, sandbox) = open().await;
    let text = r#"{"user_id":"mallory"}"#;
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let widest: Vec<u8> = text.chars().flat_map(|character| u32::from(character).to_be_bytes()).collect();
    let marked = |mark: &[u8], rest: &[u8]| [mark, rest].concat();
    let types = [None, Some("text/plain"), Some("application/x-unknown"), Some("image/png")];
    for body in [
        marked(b"\xef\xbb\xbf", text.as_bytes()),
        marked(b"\xff\xfe", &little),
        marked(b"\xfe\xff", &big),
        little,
        big,
        widest,
        marked(b"\n\n  ", text.as_bytes()),
    ] {
        for target in ["/files/x", "/ranges/any", "/ranges/file"] {
            for media in types {
                let headers: Vec<_> = media.map(|media| ("content-type", media)).into_iter().collect();
                let answer = sandbox.call("POST", target, &headers, &body).await;
                let is_refused = matches!(
                    (answer.status, answer.code()),
                    (400, "request-malformed") | (403, "identity-mismatch") | (415, "content-type-refused")
                );
                assert!(is_refused, "{target} {media:?} {body:?}: {:?}", answer.body);
            }
        }
    }
    world.recorded.assert_untouched("hidden JSON");
    for target in ["/files/x", "/ranges/any", "/ranges/file"] {
        for (media, body) in [
            ("text/plain", &b"hello, [world] {1}"[..]),
            ("image/png", b"\x89PNG\r\n\x1a\n\0\0"),
            ("video/mp4", b"\0\0\0\x20ftypisom"),
            ("application/octet-stream", b"{\x93\0\xff"),
        ] {
            let answer = sandbox.call("POST", target, &[("content-type", media)], body).await;
            assert_eq!(answer.status, 200, "the twin: {target} {media}: {:?}", answer.body);
        }
    }
    // A type that the document names is the backend's own affair: this is how such a body gets there.
    let answer = sandbox
        .call(
            "POST",
            "/ranges/named",
            &[("content-type", "application/x-named")],
            &marked(b"\xef\xbb\xbf", text.as_bytes()),
        )
        .await;
    assert!(answer.status == 200 && world.recorded.text().contains("mallory"), "{:?}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_that_comes_in_small_pieces_is_found() {
    let (world, sandbox) = open().await;
    let send = async |media: &str, pieces: &[&[u8]]| {
        let rest = format!("{media}transfer-encoding: chunked\r\nconnection: close\r\n");
        let mut bytes = sandbox.head("POST", "/files/x", &rest).into_bytes();
        for piece in pieces {
            bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            bytes.extend_from_slice(&[piece, &b"\r\n"[..]].concat());
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        exchange(sandbox.connect().await, &bytes).await
    };
    let typed = "content-type: image/png\r\n";
    for media in ["", typed, "content-type: text/plain\r\n"] {
        for pieces in [
            &[&b"\xef"[..], b"\xbb\xbf", br#"{"user_id":"mallory"}"#][..],
            &[b"{", br#""user_id":"mallory"}"#],
            &[b" ", b"\n", b"{", br#""user_id":"mallory"}"#],
            &[b"[", b"{", br#""user_id":"mallory"}]"#],
        ] {
            let answer = send(media, pieces).await;
            assert!(matches!(answer.status, 400 | 403 | 415), "{media} {pieces:?}: {:?}", answer.body);
        }
    }
    world.recorded.assert_untouched("identity in pieces");
    let answer = send(typed, &[b"\x89", b"PNG", b"\r\n\x1a\n"]).await;
    assert_eq!(answer.status, 200, "the twin: {:?}", answer.body);
    let answer = send("", &[b"h", b"ello"]).await;
    assert_eq!(answer.body["body"], "hello", "the twin: {:?}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_none_is_refused_and_a_good_one_is_written_anew() {
    let (world, sandbox) = open().await;
    for media in [
        "application/x-www-form-urlencoded,x",
        "application/json,text/plain",
        "application/json; charset=utf-8; charset=utf-16",
        "json",
        "*/*",
        "text/plain; charset",
    ] {
        for target in ["/files/x", "/ranges/any", "/forms"] {
            let answer = sandbox.call("POST", target, &[("content-type", media)], b"user_id=mallory").await;
            assert_eq!((answer.status, answer.code()), (415, "content-type-refused"), "{target} {media}");
        }
    }
    for media in
        ["text/plain; charset=utf-16", "application/json; charset=utf-7", "text/plain; charset=ebcdic"]
    {
        let answer = sandbox.call("POST", "/files/x", &[("content-type", media)], b"{}").await;
        assert_eq!((answer.status, answer.code()), (415, "content-type-refused"), "{media}");
    }
    let zipped = [("content-type", "image/png"), ("content-encoding", "gzip")];
    assert_eq!(sandbox.call("POST", "/files/x", &zipped, b"\x1f\x8b\x08").await.status, 415);
    world.recorded.assert_untouched("a bad type");
    for (sent, seen) in [
        ("Text/Plain;  Charset=\"utf-8\"", "text/plain; charset=utf-8"),
        ("application/X-www-form-urlencoded; charset=utf-8", "application/x-www-form-urlencoded"),
        ("IMAGE/png; x=\"a b\";", "image/png; x=\"a b\""),
    ] {
        let answer = sandbox
            .call("POST", "/files/x", &[("content-type", sent), ("content_type", "evil/x")], b"hello")
            .await;
        assert_eq!(answer.seen_header("content-type"), [seen], "the twin: {:?}", answer.body);
        assert!(answer.seen_header("content_type").is_empty(), "another spelling of it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_on_a_range_judges_whatever_type_is_sent() {
    let (world, sandbox) = open().await;
    for media in ["application/json", "text/json", "application/x+json", "application/x-www-form-urlencoded"]
    {
        for target in ["/ranges/ranged", "/ranges/text-json"] {
            let body: &[u8] = if media.contains("form") { b"amount=6" } else { br#"{"a":6}"# };
            let answer = sandbox.call("POST", target, &[("content-type", media)], body).await;
            assert!(
                matches!(answer.code(), "schema-violation" | "content-type-refused"),
                "{target} {media}: {:?}",
                answer.body
            );
        }
    }
    for media in ["text/plain", "image/png", "application/octet-stream"] {
        let answer =
            sandbox.call("POST", "/ranges/ranged", &[("content-type", media)], br#"{"amount":6}"#).await;
        assert_eq!(answer.code(), "content-type-refused", "{media}: {:?}", answer.body);
    }
    assert_eq!(
        sandbox.call("POST", "/ranges/ranged", &[], br#"{"amount":6}"#).await.code(),
        "content-type-refused"
    );
    assert_eq!(
        sandbox
            .call("POST", "/ranges/any", &[("content-type", "multipart/mixed; boundary=x")], b"--x--")
            .await
            .code(),
        "content-type-refused"
    );
    world.recorded.assert_untouched("what the schema refuses");
    for (target, media, body) in [
        ("/ranges/ranged", "application/json", &br#"{"amount":5}"#[..]),
        ("/ranges/ranged", "application/x-www-form-urlencoded", b"amount=5"),
        ("/ranges/text-json", "text/json", br#"{"amount":6}"#),
    ] {
        let answer = sandbox.call("POST", target, &[("content-type", media)], body).await;
        assert_eq!(answer.status, 200, "the twin: {target} {media}: {:?}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn undeclared_headers_and_parameters_go_where_the_backend_says() {
    let world = World::empty().await;
    let sent = [("x-extra", "1"), ("accept", "text/html"), ("x-amount", "5"), ("x-user-id", "mallory")];
    for (way, seen) in [(None, true), (Some("pass"), true), (Some("drop"), false)] {
        let mut file = world.described();
        if let Some(way) = way {
            file["additional_headers"] = json!(way);
            file["additional_query"] = json!(way);
        }
        let mut config = world.config("acme", &[("ranges", file)], None);
        config.backends.values_mut().next().expect("one").document = Some(RANGES.into());
        assert_eq!(world.put(config).await, Applied::InForce);
        let sandbox = world.sandbox("alice", &["*"]).await;
        let answer = sandbox.call("GET", "/priced", &sent, b"").await;
        assert_eq!(answer.status, 200, "{way:?}: {:?}", answer.body);
        assert_eq!(!answer.seen_header("x-extra").is_empty(), seen, "{way:?}");
        assert_eq!(answer.seen_header("accept"), ["text/html"], "{way:?}");
        assert_eq!(answer.seen_header("x-amount"), ["5"], "{way:?}: declared");
        assert_eq!(answer.seen_header("x-user-id"), ["alice"], "{way:?}: identity is ours");
        let answer = sandbox.call("GET", "/priced?extra=1", &sent, b"").await;
        match way {
            None => assert_eq!(answer.code(), "schema-violation", "the query's default is to refuse"),
            Some(_) => assert_eq!(answer.target().contains("extra"), seen, "{way:?}: {:?}", answer.body),
        }
    }
    let mut file = world.described();
    file["additional_headers"] = json!("refuse");
    let mut config = world.config("acme", &[("ranges", file)], None);
    config.backends.values_mut().next().expect("one").document = Some(RANGES.into());
    assert_eq!(world.put(config).await, Applied::InForce);
    let sandbox = world.sandbox("alice", &["*"]).await;
    let answer = sandbox.call("GET", "/priced", &sent, b"").await;
    assert_eq!((answer.status, answer.code()), (422, "schema-violation"), "{:?}", answer.body);
    assert_eq!(answer.body["errors"][0]["pointer"], "/header/x-extra");
    let answer = sandbox.call("GET", "/priced", &sent[1..], b"").await;
    assert_eq!(answer.status, 200, "the twin: {:?}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_cannot_change_the_method() {
    let (world, sandbox) = open().await;
    for (target, headers, body) in [
        ("/files/x?_method=DELETE", &[][..], ""),
        ("/files/x?%5Fmethod=DELETE", &[], ""),
        ("/files/x?.method=DELETE", &[], ""),
        ("/files/x?X-HTTP-Method-Override=DELETE", &[], ""),
        ("/files/x", &[FORM], "a=1&_METHOD=DELETE"),
        ("/files/x", &[JSON], r#"{"_method":"DELETE"}"#),
        ("/files/x", &[], "_method=DELETE"),
        ("/files/x", &[], "a b=1&_method=DELETE"),
        ("/ranges/any", &[PLAIN], "_method=DELETE"),
        ("/forms", &[FORM], "text=1&_method=DELETE"),
        ("/refunds", &[JSON], r#"{"order":"1","amount":1,"_method":"DELETE"}"#),
    ] {
        let answer = sandbox.call("POST", target, headers, body.as_bytes()).await;
        assert_eq!(
            (answer.status, answer.code()),
            (400, "request-malformed"),
            "{target} {body}: {:?}",
            answer.body
        );
    }
    world.recorded.assert_untouched("a changed method");
    let declared = sandbox.call("POST", "/ranges/tunnel?_method=x", &[JSON], br#"{"_method":"y"}"#).await;
    assert_eq!(declared.status, 200, "the operation declares it: {:?}", declared.body);
    let twin = sandbox.call("POST", "/files/x?payment_method=card", &[FORM], b"method=1").await;
    assert_eq!(twin.status, 200, "the twin: {:?}", twin.body);
    let headers = [
        ("x-http-method", "DELETE"),
        ("X_HTTP_Method_Override", "DELETE"),
        ("x-original-anything", "/"),
        ("x-rewrite-target", "/"),
        ("x-accel-redirect", "/"),
        ("x-sendfile-type", "/"),
    ];
    let answer = sandbox.call("POST", "/files/x", &headers, b"").await;
    for (name, _) in headers {
        assert!(answer.seen_header(&name.to_ascii_lowercase()).is_empty(), "{name}: {:?}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_spellings_of_declared_and_credential_headers_do_not_arrive() {
    let (world, sandbox) = open().await;
    let good = ("X-Amount", "5");
    for other in ["X_Amount", "x.amount", "XAmount"] {
        let answer = sandbox.call("GET", "/ranges/priced", &[good, (other, "500")], b"").await;
        assert_eq!((answer.status, answer.code()), (400, "request-malformed"), "{other}: {:?}", answer.body);
    }
    world.recorded.assert_untouched("a second amount");
    let answer = sandbox.call("GET", "/ranges/priced", &[good], b"").await;
    assert_eq!(answer.seen_header("x-amount"), ["5"], "the twin: {:?}", answer.body);
    let forged = [("X-Api-Key", "forged"), ("X_Api_Key", "forged"), ("x.api.key", "forged")];
    let answer = sandbox.call("GET", "/files/x", &forged, b"").await;
    assert_eq!(answer.seen_header("x-api-key"), ["hunter2"], "ours: {:?}", answer.body);
    assert!(!answer.body.to_string().contains("forged"), "{:?}", answer.body);
    let answer = sandbox.call("GET", "/files/x", &[("x_other", "kept")], b"").await;
    assert_eq!(answer.seen_header("x_other"), ["kept"], "the twin");
}
