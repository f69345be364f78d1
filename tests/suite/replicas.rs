// SPDX-License-Identifier: Apache-2.0
//! Two orchestrators on one Postgres: each tells its gateways what the other has changed, a gateway
//! follows either, and neither restarting both in turn nor killing one fails a request. Sandboxes of
//! one machine are the other's to see and to end, and nothing else.

use crate::running::{
    Answer, Backend, follow, http, leave_out, postgres_programs, programs, project, try_http, wait_for,
};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What both are told, so that one's tokens and secrets are the other's.
const SHARED: [(&str, &str); 3] = [
    ("TOKEN_SIGNING_KEY", "0123456789abcdef0123456789abcdef-replicas"),
    ("POSTERN_MASTER_KEY", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="),
    ("POSTERN_LOG_FORMAT", "json"),
];
const NOBODY: u32 = 65534;

/// A process of the test, with what it writes.
struct Running {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let log = Arc::new(Mutex::new(String::new()));
        follow(child.stdout.take().expect("is piped"), &log);
        follow(child.stderr.take().expect("is piped"), &log);
        Self { child, log }
    }

    fn log(&self) -> String {
        self.log.lock().expect("no panic").clone()
    }

    /// Asks for a good end, and waits for it.
    fn stop(mut self) {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
        let status = wait_for("its end", || self.child.try_wait().expect("can be asked"));
        assert!(status.success(), "{status}\n{}", self.log());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A Postgres of the test's own, which ends with it; `None` where it is left out on purpose.
fn postgres(folder: &Path) -> Option<(Running, String)> {
    let Some(bin) = postgres_programs() else {
        leave_out("Postgres is not installed (`scripts/setup.sh test` does so)");
        return None;
    };
    let is_root =
        fs::metadata("/proc/self").is_ok_and(|about| std::os::unix::fs::MetadataExt::uid(&about) == 0);
    let as_nobody = |program: &str| {
        let mut command = Command::new(bin.join(program));
        command.current_dir("/");
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    };
    let home = folder.join("postgres");
    fs::create_dir(&home).expect("makes");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("sets");
    if is_root {
        std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
    let data = home.join("data");
    let mut init = as_nobody("initdb");
    init.args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"]).arg(&data).stdout(Stdio::null());
    assert!(init.status().expect("runs").success());
    let socket = home.display().to_string();
    let mut server = as_nobody("postgres");
    server.args(["-c", "listen_addresses=", "-c", "fsync=off", "-k", &socket, "-D"]).arg(&data);
    let server = Running::start(server);
    let url = format!("postgres://postgres@localhost/postgres?host={}", socket.replace('/', "%2F"));
    wait_for("Postgres", || server.log().contains("ready to accept connections").then_some(()));
    Some((server, url))
}

/// An orchestrator with a data folder and ports of its own.
struct Orchestrator {
    running: Running,
    data: PathBuf,
}

impl Orchestrator {
    fn start(folder: &Path, name: &str, url: &str, backend: &Backend, control: &str) -> Self {
        let data = folder.join(name);
        let mut command = Command::new(programs().join("postern-orchestrator"));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs(SHARED)
            .env("DATABASE_URL", url)
            .env("POSTERN_MIGRATE", "auto")
            .env("POSTERN_ISOLATION", "namespaces")
            .env("POSTERN_UPSTREAMS_ALLOW", format!("127.0.0.1:{}", backend.port))
            .current_dir(folder)
            .args([
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--control-listen",
                control,
                "--data-dir",
            ])
            .arg(&data);
        drop(fs::remove_file(data.join("connection.json")));
        let mut running = Running::start(command);
        wait_for("the orchestrator", || {
            let ended = running.child.try_wait().expect("can be asked");
            assert!(ended.is_none(), "{ended:?}\n{}", running.log());
            data.join("connection.json").exists().then_some(())
        });
        Self { running, data }
    }

    fn written(&self, field: &str) -> String {
        let text = fs::read_to_string(self.data.join("connection.json")).expect("is there");
        let written: Value = serde_json::from_str(&text).expect("is JSON");
        written[field].as_str().expect(field).to_owned()
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let key = fs::read_to_string(self.written("key_file")).expect("is there");
        let authorization = format!("Bearer {}", key.trim());
        http(&self.written("url"), method, path, &[("Authorization", &authorization)], body)
    }

    /// The token and the id of a session for this machine's address.
    fn session(&self, conversation: &str) -> (String, String) {
        let wish = json!({ "peer": "127.0.0.1", "user_id": "alice", "conversation_id": conversation, "operations": ["support-desk/read"] });
        let made = self.call("POST", "/sessions", Some(&wish));
        assert_eq!(made.status, 201, "{made:?}");
        let made = made.json();
        let text = |field: &str| made[field].as_str().expect(field).to_owned();
        (text("token"), text("session_id"))
    }

    fn put_backend(&self, backend: &Backend) {
        let file = json!({ "url": format!("http://127.0.0.1:{}", backend.port), "openapi": "openapi.yaml" });
        let document = fs::read_to_string(
            project().join("examples/support-desk/config/backends/support-desk/openapi.yaml"),
        );
        let body = json!({ "backend": file, "document": document.expect("reads") });
        let put = self.call("PUT", "/backends/support-desk", Some(&body));
        assert!(put.status < 300, "{put:?}");
    }

    fn stop(self) {
        self.running.stop();
    }

    /// Ends it as a power cut would.
    fn kill(mut self) {
        self.running.child.kill().expect("is ours");
        self.running.child.wait().expect("ends");
    }
}

/// A gateway that follows either.
struct Gateway(Running);

impl Gateway {
    fn start(folder: &Path, name: &str, from: &Orchestrator, controls: &str, backend: &Backend) -> Self {
        let made = from.call("POST", "/gateways", Some(&json!({ "name": name })));
        let made = made.json();
        let file = folder.join(format!("{name}.credential"));
        fs::write(&file, made["credential"].as_str().expect("a credential")).expect("writes");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("is ours");
        let mut command = Command::new(programs().join("postern-gateway"));
        command
            .env_clear()
            .envs(SHARED.into_iter().filter(|(name, _)| *name != "POSTERN_MASTER_KEY"))
            .env("POSTERN_GATEWAY_CREDENTIAL_FILE", file)
            .env("POSTERN_ORCHESTRATOR", controls)
            // A start takes its time on a busy machine.
            .env("POSTERN_GATEWAY_STALENESS", "2m")
            .env("POSTERN_UPSTREAMS_ALLOW", format!("127.0.0.1:{}", backend.port))
            .current_dir(folder)
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"])
            .arg(folder.join(name));
        let gateway = Self(Running::start(command));
        gateway.listens();
        gateway
    }

    fn listens(&self) -> String {
        wait_for("postern-gateway", || {
            let log = self.0.log();
            let line = log.lines().find(|line| line.contains("postern-gateway is up"))?;
            let line: Value = serde_json::from_str(line).expect("is JSON");
            Some(format!("http://{}", line["listen"].as_str().expect("an address")))
        })
    }

    fn ask(&self, token: &str) -> Answer {
        self.try_ask(token).expect("is answered")
    }

    fn try_ask(&self, token: &str) -> std::io::Result<Answer> {
        let bearer = format!("Bearer {token}");
        try_http(&self.listens(), "GET", "/support-desk/orders", &[("Authorization", &bearer)], None)
    }

    /// What is in flight for a session that ends is cut off: then it is asked again.
    fn until(&self, token: &str, status: u16) {
        let is_so = || self.try_ask(token).is_ok_and(|answer| answer.status == status);
        wait_for(&format!("{status}"), || is_so().then_some(()));
    }
}

/// An address that is free, for an orchestrator that comes back to it.
fn free() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.expect("a port").to_string()
}

#[test]
fn each_tells_its_gateways_what_the_other_changes_and_restarting_both_fails_no_request() {
    let Some(stage) = Stage::set() else { return };
    let Stage { folder, url, backend, ports: (one, two), .. } = &stage;
    let folder = folder.path();
    let first = Orchestrator::start(folder, "first", url, backend, one);
    let second = Orchestrator::start(folder, "second", url, backend, two);
    let here = Gateway::start(folder, "here", &first, one, backend);
    let there = Gateway::start(folder, "there", &first, two, backend);
    let either = Gateway::start(folder, "either", &second, &format!("{one},{two}"), backend);
    first.put_backend(backend);
    let (token, id) = first.session("c1");
    for gateway in [&here, &there, &either] {
        gateway.until(&token, 200);
    }
    // What one ends, the other's gateways refuse, and by the other way round.
    assert!(second.call("DELETE", &format!("/sessions/{id}"), None).status < 300);
    for gateway in [&here, &there, &either] {
        gateway.until(&token, 401);
    }

    let (first, second) = under_load(&[&here, &there, &either], (first, second), |mut first, mut second| {
        for round in 0..2 {
            let (revoked, id) = second.session(&format!("r{round}"));
            either.until(&revoked, 200);
            first.stop();
            assert!(second.call("DELETE", &format!("/sessions/{id}"), None).status < 300);
            either.until(&revoked, 401);
            first = Orchestrator::start(folder, "first", url, backend, one);
            here.until(&revoked, 401);
            second.stop();
            second = Orchestrator::start(folder, "second", url, backend, two);
            for gateway in [&here, &there, &either] {
                gateway.until(&revoked, 401);
            }
        }
        (first, second)
    });
    first.stop();
    second.stop();
}

/// Asks every gateway all the time, with a good token, while `what` happens: each request is served.
fn under_load(
    gateways: &[&Gateway],
    (first, second): (Orchestrator, Orchestrator),
    what: impl FnOnce(Orchestrator, Orchestrator) -> (Orchestrator, Orchestrator),
) -> (Orchestrator, Orchestrator) {
    let (token, _) = second.session("load");
    for gateway in gateways {
        gateway.until(&token, 200);
    }
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let both = std::thread::scope(|scope| {
        // Also if `what` panics: the threads must not be waited for for ever.
        let _stopping = Stopping(&stop);
        for gateway in gateways {
            let (stop, asked, token) = (&stop, &asked, &token);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let answer = gateway.ask(token);
                    assert_eq!(answer.status, 200, "{answer:?}\n{}", gateway.0.log());
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let both = what(first, second);
        // On a machine that is slow that took long; a load goes on after it too.
        wait_for("a load", || (asked.load(Ordering::Relaxed) > 30).then_some(()));
        both
    });
    let asked = asked.load(Ordering::Relaxed);
    println!("{asked} requests, none failed");
    both
}

struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn killing_one_fails_no_request_and_its_gateways_hear_from_the_other() {
    let Some(stage) = Stage::set() else { return };
    let Stage { folder, url, backend, ports: (one, two), .. } = &stage;
    let first = Orchestrator::start(folder.path(), "first", url, backend, one);
    let second = Orchestrator::start(folder.path(), "second", url, backend, two);
    let either = Gateway::start(folder.path(), "either", &first, &format!("{one},{two}"), backend);
    let there = Gateway::start(folder.path(), "there", &second, two, backend);
    first.put_backend(backend);
    let (first, second) = under_load(&[&either, &there], (first, second), |first, second| {
        let (revoked, id) = first.session("r");
        either.until(&revoked, 200);
        there.until(&revoked, 200);
        first.kill();
        assert!(second.call("DELETE", &format!("/sessions/{id}"), None).status < 300);
        for gateway in [&there, &either] {
            gateway.until(&revoked, 401);
        }
        // What it was to watch is the other's in time; what it knows when it is back is all.
        let first = Orchestrator::start(folder.path(), "first", url, backend, one);
        let (token, _) = first.session("after");
        for gateway in [&there, &either] {
            gateway.until(&token, 200);
            gateway.until(&revoked, 401);
        }
        (first, second)
    });
    first.stop();
    second.stop();
}

/// A database, a backend and two ports of the control stream.
struct Stage {
    _server: Running,
    folder: tempfile::TempDir,
    url: String,
    backend: Backend,
    ports: (String, String),
}

impl Stage {
    /// `None` where Postgres is left out on purpose.
    fn set() -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("postern-test-").tempdir().expect("a folder");
        let (server, url) = postgres(folder.path())?;
        Some(Self { _server: server, folder, url, backend: Backend::start(), ports: (free(), free()) })
    }
}

#[test]
fn a_machines_sandboxes_outlive_both_and_are_driven_by_its_own_orchestrator() {
    let Some(stage) = Stage::set() else { return };
    let Stage { folder, url, backend, ports: (one, two), .. } = &stage;
    let first = Orchestrator::start(folder.path(), "first", url, backend, one);
    let create = |at: &Orchestrator, conversation: &str| {
        let wish = json!({ "user_id": "alice", "conversation_id": conversation });
        let made = at.call("POST", "/sandbox?wait=running", Some(&wish));
        assert_eq!(made.status, 201, "{made:?}\n{}", at.running.log());
        made.json()["sandbox_id"].as_str().expect("an id").to_owned()
    };
    let status = |at: &Orchestrator, id: &str| {
        let shown = at.call("GET", &format!("/sandbox/{id}"), None);
        assert_eq!(shown.status, 200, "{shown:?}");
        shown.json()["status"].as_str().expect("a status").to_owned()
    };
    let run = json!({ "command": "echo here", "collect": true });
    // While the second starts, the first is making one.
    let (second, made) = std::thread::scope(|scope| {
        let making = scope.spawn(|| create(&first, "made-meanwhile"));
        let second = Orchestrator::start(folder.path(), "second", url, backend, two);
        (second, making.join().expect("is made"))
    });
    let kept = create(&first, "kept");
    for id in [&made, &kept] {
        assert_eq!((status(&first, id), status(&second, id)), ("running".to_owned(), "running".to_owned()));
        let ran = first.call("POST", &format!("/sandbox/{id}/exec"), Some(&run));
        assert_eq!(ran.status, 200, "{ran:?}");
        let ran = second.call("POST", &format!("/sandbox/{id}/exec"), Some(&run));
        assert_eq!((ran.status, ran.json()["code"].as_str()), (409, Some("owned-elsewhere")), "{ran:?}");
    }
    // A repeat elsewhere would need its door: it says where to ask.
    let wish = json!({ "user_id": "alice", "conversation_id": "kept" });
    let again = second.call("POST", "/sandbox", Some(&wish));
    assert_eq!((again.status, again.json()["code"].as_str()), (409, Some("owned-elsewhere")), "{again:?}");
    // Both restart, one of them by force: what runs runs on.
    first.kill();
    second.stop();
    let second = Orchestrator::start(folder.path(), "second", url, backend, two);
    assert_eq!(status(&second, &kept), "running", "it is not the second's to miss");
    let first = Orchestrator::start(folder.path(), "first", url, backend, one);
    let ran = first.call("POST", &format!("/sandbox/{kept}/exec"), Some(&run));
    assert_eq!(ran.status, 200, "{ran:?}\n{}", first.running.log());
    // Anybody ends it, and its own machine does the work.
    let ended = second.call("DELETE", &format!("/sandbox/{kept}"), None);
    assert_eq!((ended.status, ended.json()["status"].as_str()), (200, Some("destroyed")), "{ended:?}");
    let ran = first.call("POST", &format!("/sandbox/{kept}/exec"), Some(&run));
    assert_eq!(ran.status, 409, "{ran:?}");
    let own = create(&second, "of-the-second");
    for (at, id) in [(&first, &made), (&second, &own)] {
        assert_eq!(at.call("DELETE", &format!("/sandbox/{id}"), None).status, 200);
    }
    first.stop();
    second.stop();
}

/// Changes the database so that no notice is given, and ends the connections on which they are heard.
fn changed_unheard(url: &str, change: &str) {
    let bin = ["/usr/lib/postgresql/15/bin/psql", "/usr/local/bin/psql", "/usr/bin/psql"].map(Path::new);
    let psql = bin.into_iter().find(|psql| psql.is_file()).expect("comes with the server");
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    let script = format!("SET session_replication_role = replica; {change}; {cut}");
    let ran = Command::new(psql).args(["-qtA", "-v", "ON_ERROR_STOP=1", "-c", &script]).arg(url).output();
    let ran = ran.expect("runs");
    assert!(ran.status.success(), "{ran:?}");
    let cut = String::from_utf8_lossy(&ran.stdout).trim().to_owned();
    assert_ne!(cut, "0", "somebody listened");
}

#[test]
fn what_changed_while_nobody_listened_is_told_when_somebody_does() {
    let Some(stage) = Stage::set() else { return };
    let Stage { folder, url, backend, ports: (one, _), .. } = &stage;
    let first = Orchestrator::start(folder.path(), "first", url, backend, one);
    let here = Gateway::start(folder.path(), "here", &first, one, backend);
    first.put_backend(backend);
    let ((ended, id), (good, _)) = (first.session("c1"), first.session("c2"));
    here.until(&ended, 200);
    let end = format!("UPDATE peer_sessions SET ended_at_micros = expires_at_micros - 1 WHERE id = '{id}'");
    changed_unheard(url, &end);
    here.until(&ended, 401);
    assert_eq!(here.ask(&good).status, 200, "the control");
    changed_unheard(url, "DELETE FROM gateways WHERE name = 'here'");
    wait_for("its end", || here.0.log().contains("has revoked the credential").then_some(()));
    first.stop();
}
