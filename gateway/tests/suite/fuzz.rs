// SPDX-License-Identifier: Apache-2.0
//! Random input, made of the pieces that attacks are made of: tokens, heads of requests, OpenAPI
//! documents, and identity wherever a request can hold it. Each must be refused or understood, never
//! passed on as something else, and nothing of ours may panic. `make test` runs a few hundred cases of
//! each, `make fuzz` as many as `CASES=` says. What is found becomes a test by name elsewhere.

use crate::world::{Answer, DOCUMENT, Sandbox, World, claims, exchange, key, mint, session};
use http::HeaderName;
use postern_common::clock::now;
use postern_common::control::Applied;
use postern_common::id::{BackendName, SandboxId, TenantId};
use postern_common::session::Peer;
use postern_common::token::Verifier;
use postern_openapi::Document;
use postern_policies::{TenantSchema, schema_from_openapi};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{TestError, TestRunner};
use serde_json::{Value, json};
use std::sync::{Mutex, Once, PoisonError};

/// Where our own code panicked.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn watch_panics() {
    static WATCHING: Once = Once::new();
    WATCHING.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            if !place.contains("tests/") {
                PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(place);
            }
            before(info);
        }));
    });
}

fn assert_no_panic() {
    assert_eq!(*PANICS.lock().expect("no panic"), Vec::<String>::new(), "places that panicked");
}

/// Runs `case` for inputs of `strategy`: `PROPTEST_CASES` of them, else 256.
fn run<S: Strategy>(strategy: &S, case: impl Fn(S::Value) -> Result<(), TestCaseError>)
where
    S::Value: std::fmt::Debug,
{
    watch_panics();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match TestRunner::new(config).run(strategy, case) {
        Ok(()) => assert_no_panic(),
        Err(TestError::Fail(why, input)) => panic!("{why}: {input:#?}"),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

/// A change of a text at some place of it.
#[derive(Debug, Clone)]
enum Change {
    Remove(usize),
    Repeat(usize),
    Insert(usize, &'static str),
    Cut(usize),
}

fn changes(pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<Change>> {
    let place = 0..4096usize;
    let one = prop_oneof![
        place.clone().prop_map(Change::Remove),
        place.clone().prop_map(Change::Repeat),
        (place.clone(), select(pieces)).prop_map(|(place, piece)| Change::Insert(place, piece)),
        place.prop_map(Change::Cut),
    ];
    proptest::collection::vec(one, 1..5)
}

/// Applies changes to the parts that `text` falls into at `by`.
fn changed(text: &str, by: &str, changes: &[Change]) -> String {
    let mut parts: Vec<&str> = text.split(by).collect();
    for change in changes {
        let length = parts.len().max(1);
        match *change {
            Change::Remove(place) if !parts.is_empty() => {
                parts.remove(place % length);
            }
            Change::Repeat(place) if !parts.is_empty() => parts.insert(place % length, parts[place % length]),
            Change::Insert(place, piece) => parts.insert(place % length, piece),
            Change::Cut(place) if place % 16 == 0 => parts.truncate(place % length),
            Change::Remove(_) | Change::Repeat(_) | Change::Cut(_) => {}
        }
    }
    parts.join(by)
}

const TOKEN_PIECES: &[&str] =
    &[".", "..", "=", "e30", "eyJhbGciOiJub25lIn0", "\0", "\u{e9}", " ", "-", "_", "AAAA", "A"];

#[test]
fn no_changed_token_says_anything_else() {
    let verifier = Verifier::new([&key()]);
    let bound =
        session("acme", "alice", &["desk/read"], SandboxId::from_random([5; 12]), Peer::Socket("/x".into()));
    let good = claims(&bound);
    let token = mint(&good);
    run(&(changes(TOKEN_PIECES), any::<bool>()), |(changes, by_letter)| {
        let forged = changed(&token, if by_letter { "" } else { "." }, &changes);
        if let Ok(read) = verifier.verify(&forged, now()) {
            let same = serde_json::to_value(&read).ok() == serde_json::to_value(&good).ok();
            prop_assert!(same, "{forged} was believed");
        }
        Ok(())
    });
}

const DOCUMENT_PIECES: &[&str] = &[
    "  /{a}:",
    "  /x/{a\n}:",
    "    $ref: '#/paths/~1orders'",
    "          $ref: '#/components/schemas/A'",
    "      operationId: \"x\\\"y\"",
    "      operationId: read",
    "      tags: [a, \"b\\nc\"]",
    "        - { name: \"a\\nb\", in: query, schema: { type: string } }",
    "        - { name: \"}\\\"];\", in: query, schema: { type: [string, \"null\"] } }",
    "            schema: { type: object, properties: { \"a\\\"b\": { type: integer } } }",
    "            schema: { oneOf: [ { type: string }, { type: array } ] }",
    "            schema: { pattern: '(a+)+$', type: string }",
    "          '*/*': { schema: { type: object } }",
    "          multipart/form-data: { encoding: { a: { contentType: 'x/y, z' } } }",
    "components: { schemas: { A: { $ref: '#/components/schemas/A' } } }",
    "&a [*a, *a]",
    "\u{feff}",
    "? - x",
];

#[test]
fn a_document_is_refused_or_its_policies_type_check() {
    let (tenant, backend) =
        (TenantId::parse("acme").expect("a tenant"), BackendName::parse("desk").expect("a name"));
    run(&changes(DOCUMENT_PIECES), |changes| {
        let text = changed(DOCUMENT, "\n", &changes);
        match Document::parse(&text) {
            Ok(document) => {
                let schema = TenantSchema::build(&tenant, &[schema_from_openapi(&backend, &document)]);
                prop_assert!(schema.is_ok(), "{:?} of {}", schema.err(), text);
            }
            Err(mistakes) => {
                let gave_up = mistakes.iter().any(|mistake| mistake.message.contains("gave up"));
                prop_assert!(!gave_up && !mistakes.is_empty(), "{:?} of {}", mistakes, text);
            }
        }
        Ok(())
    });
}

const HEAD_PIECES: &[&str] = &[
    "content-length: 5",
    "content-length: 0",
    "transfer-encoding: chunked",
    "Transfer-Encoding: identity",
    "host: b",
    "connection: close, content-type",
    "connection: x-user-id",
    "upgrade: websocket",
    "expect: 100-continue",
    "content-type: application/json",
    "content-type: a/b; c",
    " folded",
    "x\t: 1",
    "x: \0",
    "X_User_Id: mallory",
    "x-user-id: mallory",
    "GET /orders HTTP/1.1",
    "GET /%2e%2e/orders?user_id=mallory HTTP/1.1",
    "PUT /uploads HTTP/1.1",
    "PRI * HTTP/2.0",
    "",
    "0",
    "5;x",
    "hello",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_head_is_refused_or_means_what_it_says() {
    let world = World::desk().await;
    let alice = world.sandbox("alice", &["*"]).await;
    let head =
        alice.head("GET", "/orders?limit=5", "x-user-id: mallory\r\naccept: */*\r\nconnection: close\r\n");
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        run(&(changes(HEAD_PIECES), any::<bool>()), |(changes, by_letter)| {
            let text =
                if by_letter { changed(&head, "\r", &changes) } else { changed(&head, "\r\n", &changes) };
            let bytes = text + "\r\n\r\n";
            let answer = handle.block_on(raw(&alice, bytes.as_bytes()));
            let status = answer.status;
            prop_assert!(status == 0 || (100..600).contains(&status), "{status} of {bytes:?}");
            prop_assert!(!world.recorded.text().contains("mallory"), "{bytes:?} brought identity through");
            Ok(())
        });
    });
    for line in world.recorded.text().lines().filter(|line| line.ends_with("HTTP/1.1")) {
        let is_known = ["GET /api/orders?", "PUT /api/uploads "].iter().any(|known| line.starts_with(known));
        assert!(is_known, "the backend was asked for {line}");
    }
    assert_eq!(world.sandbox("bob", &["*"]).await.get("/orders").await.status, 200, "the control");
}

/// Sends bytes and a last request behind them, so that the connection ends whatever they mean.
async fn raw(sandbox: &Sandbox, bytes: &[u8]) -> Answer {
    let last = sandbox.head("GET", "/last", "connection: close\r\n");
    exchange(sandbox.connect().await, &[bytes, last.as_bytes()].concat()).await
}

const NAMES: &[&str] = &[
    "user_id",
    "User-Id",
    "USERID",
    "user.id",
    "user%5Fid",
    "user[id]",
    "order[user_id]",
    "a.user_id",
    "\u{ff55}ser_id",
    "\\u0075ser_id",
    "x-user-id",
    "X_User_Id",
    "text",
    "a",
];
const JOINTS: &[&str] = &[
    "=", "&", ";", ":", ",", "{", "}", "[", "]", "\"", "\"", "\"", " ", "\r\n", "\u{feff}", "+", "--b", "--",
];
const TYPES: &[&str] = &[
    "",
    "application/json",
    "text/json; charset=utf-8",
    "application/x-www-form-urlencoded",
    "text/plain",
    "image/png",
    "application/octet-stream",
    "multipart/form-data; boundary=b",
    "application/x-www-form-urlencoded,x",
    "*/*",
    "application/vnd.x+json",
    "text/x-form",
];
/// Bodies, in which `N` stands for a name, and the type that fits each.
const SHAPES: &[(&str, &str)] = &[
    ("{\"N\":\"mallory\"}", "application/json"),
    ("[{\"a\":{\"N\":\"mallory\"}}]", "application/json"),
    ("N=mallory", "application/x-www-form-urlencoded"),
    ("a=1&N=mallory&text=2", "application/x-www-form-urlencoded"),
    ("a b=1;N=mallory", ""),
    (
        "--b\r\ncontent-disposition: form-data; name=\"N\"\r\n\r\nmallory\r\n--b--\r\n",
        "multipart/form-data; boundary=b",
    ),
    (
        "--b\r\ncontent-disposition: form-data; name=a\r\ncontent-type: text/json\r\n\r\n{\"N\":\"mallory\"}\r\n--b--",
        "multipart/form-data; boundary=b",
    ),
];

/// As a forgiving reader of pairs takes a name.
fn is_identity(name: &str) -> bool {
    is_identity_key(&percent_encoding::percent_decode_str(name).decode_utf8_lossy())
}

/// As a forgiving reader of JSON takes a key, which is not encoded either.
fn is_identity_key(name: &str) -> bool {
    let read = name.replace('\u{ff55}', "u");
    read.split(['[', ']', '.']).chain([read.as_str()]).any(is_identity_plain)
}

/// As a forgiving reader of headers takes one, which is not encoded.
fn is_identity_plain(name: &str) -> bool {
    let plain: String = name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    plain == "userid" || plain == "xuserid"
}

/// Whether a backend that forgives everything would read another identity from what it saw.
fn leaks(answer: &Answer) -> bool {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        is_identity(name) && value.contains("mallory")
    };
    let headers = answer.body["headers"].as_object().cloned().unwrap_or_default();
    let in_headers =
        headers.iter().any(|(name, value)| is_identity_plain(name) && value.to_string().contains("mallory"));
    let query = answer.target().split_once('?').map_or("", |(_, query)| query);
    let body = answer.body["body"].as_str().unwrap_or_default();
    let media = headers.get("content-type").map(Value::to_string).unwrap_or_default();
    let in_form = (media.is_empty() || media.contains("form-urlencoded")) && body.split(['&', ';']).any(pair);
    let in_json = serde_json::from_str(body.trim_start_matches('\u{feff}').trim())
        .is_ok_and(|value| json_leaks(&value));
    let in_parts = media.contains("multipart")
        && body.split("--b").any(|part| {
            let name = part.split_once("name=").map_or("", |(_, rest)| rest.trim_start_matches('"'));
            let name = name.split(['"', ';', '\r']).next().unwrap_or_default();
            is_identity(name) && part.contains("mallory")
        });
    in_headers || query.split('&').any(pair) || in_form || in_json || in_parts
}

fn json_leaks(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(name, value)| {
            (is_identity_key(name) && value.to_string().contains("mallory")) || json_leaks(value)
        }),
        Value::Array(items) => items.iter().any(json_leaks),
        _ => false,
    }
}

#[derive(Debug, Clone)]
struct Attempt {
    target: &'static str,
    query: Option<&'static str>,
    header: Option<&'static str>,
    media: &'static str,
    body: String,
}

fn attempts() -> impl Strategy<Value = Attempt> {
    let body = (
        select(SHAPES),
        select(NAMES),
        prop_oneof![3 => Just(Vec::new()), 1 => changes(JOINTS)],
        proptest::option::of(select(TYPES)),
    )
        .prop_map(|((shape, fitting), name, changes, media)| {
            (changed(&shape.replace('N', name), "", &changes), media.unwrap_or(fitting))
        });
    let place = || proptest::option::weighted(0.2, select(NAMES));
    let targets = &["/files/x", "/desk/refunds", "/desk/forms"][..];
    (select(targets), place(), place(), body).prop_map(|(target, query, header, (body, media))| Attempt {
        target,
        query,
        header,
        media,
        body,
    })
}

async fn attempt(sandbox: &Sandbox, attempt: &Attempt) -> Answer {
    let query = attempt.query.filter(|name| name.is_ascii());
    let target = query.map_or(attempt.target.to_owned(), |name| format!("{}?{name}=mallory", attempt.target));
    let header = attempt.header.filter(|name| HeaderName::try_from(*name).is_ok());
    let mut headers: Vec<_> = header.map(|name| (name, "mallory")).into_iter().collect();
    headers.extend((!attempt.media.is_empty()).then_some(("content-type", attempt.media)));
    sandbox.call("POST", &target, &headers, attempt.body.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_mixture_of_spellings_brings_another_identity_through() {
    let worlds = [json!({}), json!({ "user": [] })].map(|identity| async move {
        let world = World::empty().await;
        let (mut desk, mut files) = (world.described(), world.plain());
        for file in [&mut desk, &mut files] {
            file["identity"] = identity.clone();
            file["additional_query"] = json!("pass");
        }
        let mut config = world.config("acme", &[("desk", desk), ("files", files)], None);
        let unlimited = json!({ "per_second": 1e6, "burst": 1_000_000 });
        config.limits =
            serde_json::from_value(json!({ "session": unlimited, "tenant": unlimited })).expect("limits");
        assert_eq!(world.put(config).await, Applied::InForce);
        let sandbox = world.sandbox("alice", &["*"]).await;
        (world, sandbox)
    });
    let [guarded, open] = worlds;
    let ((_guarded, alice), (_open, control)) = (guarded.await, open.await);
    let reached = std::sync::atomic::AtomicUsize::new(0);
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        run(&attempts(), |tried| {
            let answer = handle.block_on(attempt(&alice, &tried));
            prop_assert!(!(answer.status == 200 && leaks(&answer)), "{:?}", answer.body);
            let answer = handle.block_on(attempt(&control, &tried));
            if answer.status == 200 && leaks(&answer) {
                reached.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            Ok(())
        });
    });
    // The control: with the stage off, many of the same attempts do come through.
    assert!(reached.into_inner() > 10, "the attempts are too tame to prove anything");
}
