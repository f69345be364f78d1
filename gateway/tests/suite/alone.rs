// SPDX-License-Identifier: Apache-2.0
//! A gateway that stands alone: a folder, a backend, and tokens of an issuer of the test's.

use crate::world::{Answer, DOCUMENT, PATIENCE, Recorded, eventually, exchange, parse, start_backend};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use postern_common::clock::{now, unix_seconds};
use postern_common::control::link;
use postern_common::id::TenantId;
use postern_common::tasks::Tasks;
use postern_common::token::issuer::{IssuerAlgorithm, IssuerKeys, IssuerRules};
use postern_gateway::alone::{self, Alone, AloneError};
use postern_gateway::issuer::{Issuer, KeySource};
use postern_gateway::{AccessLog, Config, Gateway, Settings, UpstreamRules};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const LONG_SECRET: &str = "a-secret-of-ours";

/// An issuer's key pair.
struct Pair {
    signs: EncodingKey,
    public: Vec<u8>,
}

impl Pair {
    fn new() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("random");
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key");
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            STANDARD.encode(pkcs8.as_ref())
        );
        Self {
            signs: EncodingKey::from_ed_pem(pem.as_bytes()).expect("a key"),
            public: pair.public_key().as_ref().to_vec(),
        }
    }

    fn jwk(&self, kid: &str) -> Value {
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": URL_SAFE_NO_PAD.encode(&self.public) })
    }

    fn keys(&self) -> KeySource {
        let set = json!({ "keys": [self.jwk("k")] }).to_string();
        KeySource::Given(IssuerKeys::of_set(IssuerAlgorithm::EdDsa, set.as_bytes()).expect("a set"))
    }

    fn token(&self, kid: &str, user: &str, jti: &str, changes: &Value) -> String {
        let mut claims = json!({
            "iss": "https://login.example", "aud": "agents", "sub": user, "conversation_id": "c1",
            "jti": jti, "exp": unix_seconds(now()) + 600, "operations": ["desk/read"],
        });
        for (name, value) in changes.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, &claims, &self.signs).expect("is signed")
    }
}

/// A running gateway with its folder and backend.
struct World {
    folder: tempfile::TempDir,
    recorded: Arc<Recorded>,
    tcp: SocketAddr,
    admin: SocketAddr,
    tasks: Tasks,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

fn write_backend(folder: &std::path::Path, port: u16, more: &str) {
    let backend = folder.join("config/backends/desk");
    fs::create_dir_all(&backend).expect("makes it");
    let text = format!("url = \"http://127.0.0.1:{port}/api\"\nopenapi = \"openapi.yaml\"\n{more}");
    fs::write(backend.join("backend.toml"), text).expect("writes");
    fs::write(backend.join("openapi.yaml"), DOCUMENT).expect("writes");
}

impl World {
    async fn new(keys: KeySource, more: &str) -> Self {
        Self::try_new(keys, more).await.unwrap_or_else(|error| panic!("{error}"))
    }

    async fn try_new(keys: KeySource, more: &str) -> Result<Self, AloneError> {
        Self::with(keys, more, |_settings| {}).await
    }

    async fn with(
        keys: KeySource,
        more: &str,
        adjust: impl FnOnce(&mut Settings),
    ) -> Result<Self, AloneError> {
        let (folder, tasks) = (tempfile::tempdir().expect("a folder"), Tasks::new());
        let (port, recorded) = start_backend(&tasks).await;
        write_backend(folder.path(), port, more);
        fs::create_dir(folder.path().join("secrets")).expect("makes it");
        fs::write(folder.path().join("secrets/desk-key"), "hunter2\n").expect("writes");
        fs::write(folder.path().join("secrets/long-key"), LONG_SECRET).expect("writes");
        let upstreams = UpstreamRules::default();
        let alone = Alone::open(alone::Settings {
            folder: folder.path().join("config"),
            tenant: TenantId::parse("acme").expect("a name"),
            secrets: Some(folder.path().join("secrets")),
            compiler: PathBuf::from("/nowhere"),
            allowed: Vec::new(),
            upstreams: upstreams.clone(),
        });
        let alone = alone.await?;
        let rules = IssuerRules {
            issuer: "https://login.example".to_owned(),
            audience: "agents".to_owned(),
            algorithm: IssuerAlgorithm::EdDsa,
            tenant: TenantId::parse("acme").expect("a name"),
            user_claim: "sub".to_owned(),
            conversation_claim: "conversation_id".to_owned(),
            operations_claim: "operations".to_owned(),
            operations: Vec::new(),
        };
        let mut settings = Settings::new(Vec::new(), upstreams);
        settings.issuer = Some(Issuer::new(rules, keys).expect("a name"));
        settings.tcp = Some(([127, 0, 0, 1], 0).into());
        settings.admin = settings.tcp;
        settings.access_log = Some(AccessLog::File(folder.path().join("access.log")));
        settings.artefact_key = Some(alone.artefact_key());
        adjust(&mut settings);
        let (publisher, follower) = link();
        let running = Gateway::start(Config::check(settings).expect("is right"), follower, &tasks).await;
        let running = running.expect("starts");
        let (tcp, admin) = (running.tcp.expect("listens"), running.admin.expect("listens"));
        alone.serve(publisher, running, &tasks).await?;
        Ok(Self { folder, recorded, tcp, admin, tasks })
    }

    async fn call(&self, method: &str, target: &str, token: &str) -> Answer {
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
        );
        exchange(TcpStream::connect(self.tcp).await.expect("listens"), request.as_bytes()).await
    }

    async fn get(&self, target: &str, token: &str) -> Answer {
        self.call("GET", target, token).await
    }

    async fn admin(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin).await.expect("listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("reads");
        (parse(text.as_bytes()).status, text)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.folder.path().join("config").join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("makes it");
        fs::write(path, text).expect("writes");
    }

    /// Waits until the token is answered like this.
    async fn until(&self, target: &str, token: &str, wanted: (u16, &str)) {
        let waiting = async {
            loop {
                let answer = self.get(target, token).await;
                if (answer.status, answer.code()) == wanted {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_late| panic!("{wanted:?} never came"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_the_issuer_are_believed_and_no_others() {
    let (pair, other) = (Pair::new(), Pair::new());
    let world = World::new(pair.keys(), "credential = \"desk-key\"\n").await;
    let good = pair.token("k", "alice", "t1", &json!({}));
    let answer = world.get("/orders", &good).await;
    assert_eq!((answer.status, answer.seen_header("x-user-id")), (200, vec!["alice".to_owned()]));
    assert_eq!(answer.seen_header("authorization"), ["Bearer hunter2"], "the secret's file");
    let before = world.recorded.text();
    let past = unix_seconds(now()) - 10;
    for (name, token, wanted) in [
        ("another's key", other.token("k", "alice", "t1", &json!({})), (401, "token-forged")),
        ("expired", pair.token("k", "alice", "t2", &json!({ "exp": past })), (401, "token-expired")),
        ("for others", pair.token("k", "alice", "t3", &json!({ "aud": "others" })), (401, "token-forged")),
        ("no token", "nonsense".to_owned(), (401, "token-malformed")),
        ("an unknown key", pair.token("new", "alice", "t4", &json!({})), (401, "token-forged")),
    ] {
        let answer = world.get("/orders", &token).await;
        assert_eq!((answer.status, answer.code()), wanted, "{name}");
    }
    let less = pair.token("k", "alice", "t5", &json!({ "operations": [] }));
    assert_eq!(world.get("/orders", &less).await.status, 403, "a token of the session that may less");
    assert_eq!(world.recorded.text(), before, "nothing more reached the backend");
    assert_eq!(world.get("/orders", &good).await.status, 200, "the first token goes on");
    let (status, text) = world.admin("/readyz").await;
    assert!(status == 200 && text.contains("binding: none"), "{text}");
    world.tasks.shut_down(PATIENCE).await.expect("ends");
    let log = fs::read_to_string(world.folder.path().join("access.log")).expect("is there");
    assert!(
        log.lines().count() >= 8 && log.contains("\"token-forged\"") && !log.contains("hunter2"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_the_backend_echoes_is_covered() {
    let pair = Pair::new();
    let world = World::new(pair.keys(), "credential = \"long-key\"\n").await;
    let token = pair.token("k", "alice", "t1", &json!({}));
    let answer = world.get("/orders", &token).await;
    assert_eq!(answer.seen_header("authorization"), ["Bearer ****************"]);
    assert!(world.recorded.text().contains(LONG_SECRET), "the control: the backend got it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_can_tell_our_identity_headers_from_anybodys() {
    let pair = Pair::new();
    let world = World::new(pair.keys(), "credential = { assertion = \"desk\" }\n").await;
    let token = pair.token("k", "alice", "t1", &json!({}));
    let answer = world.get("/orders?limit=5", &token).await;
    let seen = answer.seen_header("authorization");
    let assertion = seen.first().and_then(|value| value.strip_prefix("Bearer ")).expect("an assertion");
    let (_, set) = world.admin("/.well-known/jwks.json").await;
    let set: Value = serde_json::from_str(set.split("\r\n\r\n").nth(1).expect("a body")).expect("is JSON");
    let key = serde_json::from_value(set["keys"][0].clone()).expect("a key");
    let mut wanted = jsonwebtoken::Validation::new(Algorithm::EdDSA);
    wanted.set_audience(&["acme/desk"]);
    wanted.set_issuer(&["postern-gateway"]);
    let key = jsonwebtoken::DecodingKey::from_jwk(&key).expect("a key");
    let read = jsonwebtoken::decode::<Value>(assertion, &key, &wanted).expect("is ours");
    assert_eq!(read.header.kid.as_deref(), set["keys"][0]["kid"].as_str());
    let claims = read.claims;
    assert_eq!(
        (&claims["user_id"], &claims["conversation_id"], &claims["tenant"]),
        (&json!("alice"), &json!("c1"), &json!("acme"))
    );
    assert_eq!((claims["method"].as_str(), claims["path"].as_str()), (Some("GET"), Some(answer.target())));
    assert_eq!(claims["exp"].as_u64().zip(claims["iat"].as_u64()).map(|(exp, iat)| exp - iat), Some(60));
    assert_eq!(claims["jti"].as_str(), answer.headers["x-request-id"].to_str().ok());
    let other = jsonwebtoken::decode::<Value>(&token, &key, &wanted);
    assert!(other.is_err(), "the sandbox's own token is no assertion");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_is_obeyed_and_a_mistake_leaves_the_last_good_one() {
    let pair = Pair::new();
    let world = World::new(pair.keys(), "").await;
    let token = pair.token("k", "alice", "t1", &json!({}));
    assert_eq!(world.get("/orders", &token).await.status, 200);
    world.write("policies/desk.cedar", "@id(\"none\") forbid (principal, action, resource);\n");
    world.until("/orders", &token, (403, "policy-denied")).await;
    world.write("policies/desk.cedar", "@id(\"none\") forbid (principal, action, resource)\n");
    world.write("limits.toml", "[session]\nper_second = 1000\n");
    // The mistake is noticed and changes nothing; mended, the next is in force.
    assert_eq!(world.get("/orders", &token).await.status, 403);
    world.write("policies/desk.cedar", "@id(\"all\") permit (principal, action, resource);\n");
    world.until("/orders", &token, (200, "")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_the_deny_list_names_is_refused_and_cut_off() {
    let pair = Pair::new();
    let world = World::new(pair.keys(), "").await;
    let (alice, again) =
        (pair.token("k", "alice", "t1", &json!({})), pair.token("k", "alice", "t2", &json!({})));
    let bob = pair.token("k", "bob", "t3", &json!({}));
    let mut stream = TcpStream::connect(world.tcp).await.expect("listens");
    let request = format!("GET /events HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {alice}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut other = TcpStream::connect(world.tcp).await.expect("listens");
    let request = format!("GET /events HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {again}\r\n\r\n");
    other.write_all(request.as_bytes()).await.expect("writes");
    eventually("the streams", || world.recorded.open_streams() == 2).await;
    world.write("denied.toml", "tokens = [\"t1\"]\n");
    world.until("/orders", &alice, (401, "token-revoked")).await;
    let mut rest = Vec::new();
    drop(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("is cut off"));
    assert_eq!(world.get("/orders", &again).await.status, 200, "another token of hers is good");
    eventually("the denied stream's end", || world.recorded.open_streams() == 1).await;
    assert_eq!(world.get("/orders", &bob).await.status, 200);
    world.write("denied.toml", "users = [\"alice\"]\n");
    world.until("/orders", &again, (401, "token-revoked")).await;
    assert_eq!(world.get("/orders", &bob).await.status, 200);
    world.write("denied.toml", "");
    world.until("/orders", &alice, (200, "")).await;
    // Whatever else is wrong in the folder.
    world.write("limits.toml", "[session]\nper_secnod = 1\n");
    world.write("denied.toml", "conversations = [\"c1\"]\n");
    world.until("/orders", &bob, (401, "token-revoked")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_folder_lacks_is_told_at_the_start() {
    let pair = Pair::new();
    let refused =
        World::try_new(pair.keys(), "credential = \"other-key\"\n").await.err().expect("is refused");
    assert!(refused.to_string().contains("`other-key`"), "{refused}");
    let refused = World::try_new(pair.keys(), "crediential = 1\n").await.err().expect("is refused");
    assert!(refused.to_string().contains("backend.toml:3"), "{refused}");
}

/// A collector that keeps what it is sent.
struct Collected {
    endpoint: String,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Collected {
    async fn start(tasks: &Tasks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let seen = Arc::<Mutex<Vec<(String, Value)>>>::default();
        let kept = Arc::clone(&seen);
        tasks.spawn(async move |stop: postern_common::tasks::Stop| {
            while let Some(Ok((mut stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                let (mut read, mut part) = (Vec::new(), [0; 4096]);
                let body = loop {
                    let length = stream.read(&mut part).await.expect("reads");
                    read.extend_from_slice(&part[..length]);
                    let text = String::from_utf8_lossy(&read).into_owned();
                    if let Some((head, body)) = text.split_once("\r\n\r\n")
                        && let Ok(body) = serde_json::from_str(body)
                    {
                        break (head.to_owned(), body);
                    }
                    assert!(length > 0, "cut off: {text}");
                };
                kept.lock().expect("no panic").push(body);
                drop(
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
                        .await,
                );
            }
        });
        Self { endpoint, seen }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_a_span_of_the_trace_that_the_backend_sees() {
    let (pair, tasks) = (Pair::new(), Tasks::new());
    let collected = Collected::start(&tasks).await;
    let said = postern_common::settings::Sources {
        environment: [
            ("POSTERN_OTLP_ENDPOINT".to_owned(), collected.endpoint.clone()),
            ("POSTERN_OTLP_HEADERS".to_owned(), "x-key=of-the-collector".to_owned()),
        ]
        .into(),
        ..Default::default()
    };
    let said = postern_common::settings::Settings::resolve(&said).expect("resolves");
    let world = World::with(pair.keys(), "", |settings| settings.observed_as(&said).expect("is right")).await;
    let world = world.expect("serves");
    let token = pair.token("k", "alice", "t1", &json!({}));
    let seen = world.get("/orders", &token).await.seen_header("traceparent");
    let (trace, span) = seen[0].strip_prefix("00-").and_then(|rest| rest.split_once('-')).expect("a trace");
    eventually("the span", || !collected.seen.lock().expect("no panic").is_empty()).await;
    let (head, body) = collected.seen.lock().expect("no panic")[0].clone();
    assert!(head.starts_with("POST /v1/traces ") && head.contains("x-key: of-the-collector"), "{head}");
    let told = &body["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    assert_eq!((told["traceId"].as_str(), told["name"].as_str()), (Some(trace), Some("GET /orders")));
    assert_eq!(told["spanId"].as_str(), span.split('-').next(), "the backend's parent");
    assert!(!body.to_string().contains("alice"), "who asked is not told");
    tasks.stop();
}

/// An issuer's key set over HTTP, as the test says it is now.
struct KeySet {
    url: String,
    text: Arc<Mutex<String>>,
    asked: Arc<Mutex<u32>>,
}

impl KeySet {
    async fn start(tasks: &Tasks, keys: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/keys", listener.local_addr().expect("bound"));
        let set = Self { url, text: Arc::default(), asked: Arc::default() };
        set.says(keys);
        let (text, asked) = (Arc::clone(&set.text), Arc::clone(&set.asked));
        tasks.spawn(async move |stop: postern_common::tasks::Stop| {
            while let Some(Ok((mut stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                *asked.lock().expect("no panic") += 1;
                let body = text.lock().expect("no panic").clone();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let mut head = [0; 1024];
                drop(stream.read(&mut head).await);
                drop(stream.write_all(answer.as_bytes()).await);
            }
        });
        set
    }

    fn says(&self, keys: &[Value]) {
        *self.text.lock().expect("no panic") = json!({ "keys": keys }).to_string();
    }

    fn asked(&self) -> u32 {
        *self.asked.lock().expect("no panic")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuers_key_set_is_fetched_and_unknown_keys_do_not_flood_it() {
    let (tasks, old, new) = (Tasks::new(), Pair::new(), Pair::new());
    let set = KeySet::start(&tasks, &[old.jwk("old")]).await;
    let world = World::new(KeySource::Set(set.url.parse().expect("a URL")), "").await;
    let token = old.token("old", "alice", "t1", &json!({}));
    world.until("/orders", &token, (200, "")).await;
    let looks = set.asked();
    for number in 0..20 {
        let unknown = new.token(&format!("k{number}"), "alice", "t2", &json!({}));
        assert_eq!(world.get("/orders", &unknown).await.code(), "token-forged");
    }
    assert!(set.asked() <= looks + 1, "twenty unknown keys in a moment are one look at most");
    tasks.stop();
}

#[test]
fn keys_come_over_https_or_from_this_machine() {
    use postern_gateway::issuer::JwksUrl;
    for good in
        ["https://login.example/keys", "http://127.0.0.1:9/keys", "http://localhost/keys", "http://[::1]/k"]
    {
        assert!(good.parse::<JwksUrl>().is_ok(), "{good}");
    }
    for bad in [
        "http://login.example/keys",
        "ftp://127.0.0.1/",
        "https://me:secret@login.example/",
        "file:///etc/passwd",
        "x",
    ] {
        let refused = bad.parse::<JwksUrl>().expect_err(bad).to_string();
        assert!(!refused.contains("secret"), "{refused}");
    }
}
