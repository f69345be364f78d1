// SPDX-License-Identifier: Apache-2.0
//! What every test begins with: an orchestrator of its own in a folder of its own, a caller, and
//! a gateway's end of the control stream that remembers what it was told.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use postern_common::control::{Applied, Change, EndedSession, Follower, State, TenantConfig, link};
use postern_common::id::SandboxId;
use postern_common::secret::Secret;
use postern_common::session::Session;
use postern_common::tasks::{Stop, Tasks};
use postern_orchestrator::runtime::Isolation;
use postern_orchestrator::runtime::local::{LocalRuntime, LocalSettings};
use postern_orchestrator::{Config, Orchestrator, Prepared};
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An answer of the API.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    pub(crate) fn field(&self, name: &str) -> String {
        let json = self.json();
        json[name].as_str().unwrap_or_else(|| panic!("no `{name}` in {json}")).to_owned()
    }

    /// The problem's code, which must go with the status.
    pub(crate) fn code(&self) -> String {
        let json = self.json();
        assert_eq!(self.headers["content-type"], "application/problem+json", "{json}");
        assert_eq!(json["status"], self.status.as_u16());
        self.field("code")
    }

    pub(crate) fn etag(&self) -> String {
        self.headers["etag"].to_str().expect("text").to_owned()
    }

    /// The events of a stream, in order: kind and data.
    pub(crate) fn events(&self) -> Vec<(String, Value)> {
        let event = |text: &str| {
            let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            Some((line("event: ")?, serde_json::from_str(&line("data: ")?).expect("JSON")))
        };
        self.text.split("\n\n").filter_map(event).collect()
    }
}

/// What a gateway was told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) sessions: Vec<Session>,
    pub(crate) ended: Vec<EndedSession>,
    pub(crate) tenants: Vec<Arc<TenantConfig>>,
    pub(crate) snapshots: Vec<State>,
    pub(crate) versions: Vec<(u64, u64)>,
    /// What it says to a configuration that it is to judge, if it refuses.
    pub(crate) refuses: Option<Vec<String>>,
}

impl Told {
    pub(crate) fn last_session(&self, sandbox: &str) -> Session {
        let of = |session: &&Session| session.sandbox_id.as_str() == sandbox;
        let in_snapshots = self.snapshots.iter().flat_map(|state| &state.sessions);
        in_snapshots.chain(&self.sessions).rfind(of).expect("was told of it").clone()
    }

    /// Whether a token of the sandbox may be accepted.
    pub(crate) fn accepts(&self, sandbox: &str) -> bool {
        let of = |session: &&Session| session.sandbox_id.as_str() == sandbox;
        let in_snapshots = self.snapshots.iter().flat_map(|state| &state.sessions);
        in_snapshots.chain(&self.sessions).rfind(of).is_some_and(|session| !session.tokens.is_empty())
    }

    pub(crate) fn has_ended(&self, sandbox: &str) -> bool {
        self.ended.iter().any(|ended| ended.sandbox_id.as_str() == sandbox)
    }
}

/// An orchestrator with a caller and a gateway.
pub(crate) struct Bench {
    pub(crate) orchestrator: Orchestrator,
    pub(crate) told: Arc<Mutex<Told>>,
    pub(crate) key: String,
    pub(crate) folder: Arc<TempDir>,
    pub(crate) decisions: tokio::sync::mpsc::Sender<postern_common::decision::DecisionRecord>,
    address: SocketAddr,
    tasks: Tasks,
    is_real: bool,
}

impl Bench {
    /// With a runtime that makes real sandboxes.
    pub(crate) async fn real() -> Self {
        Self::open(new_folder(), true, |_| {}).await
    }

    /// With a runtime that has nothing to run sandboxes with.
    pub(crate) async fn without_sandboxes() -> Self {
        Self::open(new_folder(), false, |_| {}).await
    }

    pub(crate) async fn open(folder: Arc<TempDir>, is_real: bool, adjust: impl FnOnce(&mut Config)) -> Self {
        let tasks = Tasks::new();
        let mut config = Config::new(folder.path().join("data"));
        config.isolation = Some(Isolation::Namespaces);
        adjust(&mut config);
        let prepared = Prepared::open(config).await.expect("opens");
        let (shim, sandboxd) = if is_real {
            (programs().join("postern-shim"), programs().join("postern-sandboxd"))
        } else {
            ("/bin/false".into(), "/bin/false".into())
        };
        let settings = LocalSettings {
            installation: prepared.installation().clone(),
            run_root: folder.path().join("run"),
            slot_root: folder.path().join("slots"),
            images: folder.path().join("images"),
            unpacked: folder.path().join("unpacked"),
            shim,
            sandboxd,
            // There is no gateway here that could carry it.
            sync: None,
            runsc: runsc().filter(|_| is_real),
            search_path: if is_real { vec!["/usr/bin".into()] } else { Vec::new() },
        };
        let runtime = LocalRuntime::open(settings, tasks.clone()).expect("opens");
        let orchestrator = prepared.start(Arc::new(runtime), &tasks).await.expect("starts");
        let (publisher, follower) = link();
        let told = Arc::new(Mutex::new(Told::default()));
        let decisions = follower.decisions.clone();
        follow(&tasks, follower, Arc::clone(&told));
        orchestrator.connect(publisher).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        orchestrator.serve(listener);
        let key = orchestrator.admin_key(&folder.path().join("key")).await.expect("makes a key");
        let key = key.reveal().clone();
        Self { orchestrator, told, key, folder, decisions, address, tasks, is_real }
    }

    /// Stops as SIGTERM does: sandboxes stay. Returns the folder for the next one.
    pub(crate) async fn stop(self) -> Arc<TempDir> {
        self.tasks.shut_down(PATIENCE).await.expect("ends in time");
        self.orchestrator.close().await;
        self.folder
    }

    /// Destroys every sandbox and ends.
    pub(crate) async fn close(self) {
        if self.is_real {
            assert_eq!(self.orchestrator.destroy_all(PATIENCE).await.expect("asks"), 0, "some were left");
        }
        self.stop().await;
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        self.call_as(&self.key, method, path, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, body).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, Value::Null).await
    }

    pub(crate) async fn call_as(&self, key: &str, method: Method, path: &str, body: Value) -> Answer {
        let bearer = format!("Bearer {key}");
        let headers: &[(&str, &str)] = if key.is_empty() { &[] } else { &[("authorization", &bearer)] };
        self.send(method, path, headers, &body_text(&body)).await
    }

    /// A request with exactly these headers, and `Host` and `Content-Type` unless they are there.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let exchange = async {
            let (parts, body) = self.open_stream(method, path, headers, body).await.into_parts();
            let bytes = body.collect().await.expect("is whole").to_bytes();
            let text = String::from_utf8(bytes.to_vec()).expect("is text");
            Answer { status: parts.status, headers: parts.headers, text }
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("in time")
    }

    /// [`Bench::send`] to where the answer begins.
    pub(crate) async fn open_stream(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(path);
        let has = |name: &str| headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
        if !has("host") {
            request = request.header("host", self.address.to_string());
        }
        if !has("content-type") && !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
        let exchange = async {
            let stream = TcpStream::connect(self.address).await.expect("connects");
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("speaks HTTP");
            self.tasks.spawn(async |_stop| drop(connection.await));
            sender.send_request(request).await.expect("is answered")
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("in time")
    }

    /// A running sandbox of `alice` for this conversation; returns its id.
    pub(crate) async fn sandbox(&self, conversation: &str) -> String {
        let body = serde_json::json!({ "user_id": "alice", "conversation_id": conversation });
        let made = self.post("/sandbox?wait=running", body).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        made.field("sandbox_id")
    }

    /// Runs a shell command inside and returns its output; it must end well.
    pub(crate) async fn shell(&self, sandbox: &str, command: &str) -> String {
        let body = serde_json::json!({ "command": command, "collect": true, "timeout": "30s" });
        let ran = self.post(&format!("/sandbox/{sandbox}/exec"), body).await;
        assert_eq!(ran.status, StatusCode::OK, "{}", ran.text);
        assert_eq!(ran.json()["exit_code"], 0, "{}", ran.text);
        ran.field("stdout")
    }

    /// Makes a key with this role for a tenant and returns it.
    pub(crate) async fn key(&self, role: &str, tenant: &str) -> String {
        let made = self.post("/keys", serde_json::json!({ "role": role, "tenant": tenant })).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        made.field("key")
    }

    pub(crate) fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().expect("not poisoned")
    }

    /// Where its API listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

fn body_text(body: &Value) -> String {
    if body.is_null() { String::new() } else { body.to_string() }
}

/// Follows the control stream as a gateway does that refuses nothing but what it is told to.
fn follow(tasks: &Tasks, mut follower: Follower, told: Arc<Mutex<Told>>) {
    tasks.spawn(async move |stop: Stop| {
        while let Some(Some(delivery)) = stop.run_until_cancelled(follower.deliveries.recv()).await {
            let mut answer = Applied::InForce;
            {
                let mut told = told.lock().expect("not poisoned");
                told.versions.push((delivery.message.epoch, delivery.message.version));
                match delivery.message.change {
                    Change::Snapshot(state) => told.snapshots.push(*state),
                    Change::Session(session) => told.sessions.push(*session),
                    Change::SessionEnded(ended) => told.ended.push(ended),
                    Change::Tenant(tenant) => told.tenants.push(tenant),
                    Change::Try(_) => answer = told.refuses.clone().map_or(answer, Applied::Refused),
                    Change::TenantRemoved(_) => {}
                }
            }
            let _ = delivery.applied.send(answer).is_ok();
        }
    });
}

pub(crate) fn new_folder() -> Arc<TempDir> {
    let folder = tempfile::Builder::new().prefix("postern-").tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).expect("ours");
    Arc::new(folder)
}

/// Waits until `is_so`, within [`PATIENCE`].
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The claims of a token, unverified.
pub(crate) fn claims(orchestrator: &Orchestrator, token: &str) -> postern_common::token::Claims {
    let verifier = orchestrator.keys().verifier();
    let token = Secret::new(token.to_owned());
    verifier.verify(token.reveal(), postern_common::clock::now()).expect("a token of ours")
}

pub(crate) fn id(text: &str) -> SandboxId {
    SandboxId::parse(text).expect("an id")
}

/// gVisor, of `make gvisor`. Without it tests of gVisor fail, unless `POSTERN_ALLOW_SKIP=1` leaves
/// them out: then there is none, and that is said.
pub(crate) fn runsc() -> Option<PathBuf> {
    let cache = std::env::var_os("POSTERN_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache/postern")));
    let runsc = cache.expect("a home folder").join("gvisor/runsc");
    if runsc.is_file() {
        return Some(runsc);
    }
    let is_allowed = std::env::var_os("POSTERN_ALLOW_SKIP").is_some_and(|value| value == "1");
    assert!(is_allowed, "there is no {}; `make gvisor` builds it", runsc.display());
    println!("LEFT OUT, a test of gVisor: there is no {}", runsc.display());
    None
}

/// Builds the real programs once and returns their folder.
fn programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
        let built = std::process::Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--message-format=json",
                "-p",
                "postern-shim",
                "-p",
                "postern-sandboxd",
            ])
            // As scripts/build.sh does: what only pods need has parts in C, which want a compiler for musl.
            .args(["--no-default-features", "--target", &target])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let messages = String::from_utf8_lossy(&built.stdout).into_owned();
        let executable = messages.lines().find_map(|line| {
            let message: Value = serde_json::from_str(line).ok()?;
            message.get("executable")?.as_str().map(PathBuf::from)
        });
        executable.expect("an executable").parent().expect("a folder").to_owned()
    })
}

/// Makes one test per isolation out of each function of a module.
macro_rules! on_each_level {
    ($($name:ident),* $(,)?) => {
        mod gvisor {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if $crate::bench::runsc().is_some() {
                    super::$name(postern_orchestrator::runtime::Isolation::Gvisor).await;
                }
            }
        )*}
        mod namespaces {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(postern_orchestrator::runtime::Isolation::Namespaces).await;
            }
        )*}
    };
}
pub(crate) use on_each_level;
