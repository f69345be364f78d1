// SPDX-License-Identifier: Apache-2.0
//! Two orchestrators on one Postgres: each tells its gateways what the other has changed, a gateway
//! follows either, and restarting both in turn fails no request.

use crate::running::{Answer, Backend, follow, http, programs, project, wait_for};
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

/// A Postgres of the test's own, which ends with it; `None` where it is not installed.
fn postgres(folder: &Path) -> Option<(Running, String)> {
    let bin = ["/usr/lib/postgresql/15/bin", "/usr/local/bin", "/usr/bin"].map(Path::new);
    let bin = bin.into_iter().find(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file())?;
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
    control: String,
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
        Self { running, data, control: control.to_owned() }
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
        http(
            &self.listens(),
            "GET",
            "/support-desk/orders",
            &[("Authorization", &format!("Bearer {token}"))],
            None,
        )
    }

    fn until(&self, token: &str, status: u16) {
        wait_for(&format!("{status}"), || (self.ask(token).status == status).then_some(()));
    }
}

/// An address that is free, for an orchestrator that comes back to it.
fn free() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.expect("a port").to_string()
}

#[test]
fn each_tells_its_gateways_what_the_other_changes_and_restarting_both_fails_no_request() {
    let folder = tempfile::Builder::new().prefix("postern-test-").tempdir().expect("a folder");
    let folder = folder.path();
    let Some((_server, url)) = postgres(folder) else {
        println!("left out: Postgres is not installed");
        return;
    };
    let backend = Backend::start();
    let (one, two) = (free(), free());
    let first = Orchestrator::start(folder, "first", &url, &backend, &one);
    let second = Orchestrator::start(folder, "second", &url, &backend, &two);
    let here = Gateway::start(folder, "here", &first, &one, &backend);
    let there = Gateway::start(folder, "there", &first, &two, &backend);
    let either = Gateway::start(folder, "either", &second, &format!("{one},{two}"), &backend);
    first.put_backend(&backend);
    let (token, id) = first.session("c1");
    for gateway in [&here, &there, &either] {
        gateway.until(&token, 200);
    }
    // What one ends, the other's gateways refuse, and by the other way round.
    assert!(second.call("DELETE", &format!("/sessions/{id}"), None).status < 300);
    for gateway in [&here, &there, &either] {
        gateway.until(&token, 401);
    }

    // Under load, each orchestrator in turn ends and comes back; what is ended meanwhile stays so.
    let (token, _) = second.session("c2");
    for gateway in [&here, &there, &either] {
        gateway.until(&token, 200);
    }
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for gateway in [&here, &there, &either] {
            let (stop, asked, token) = (&stop, &asked, &token);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let answer = gateway.ask(token);
                    assert_eq!(answer.status, 200, "{answer:?}\n{}", gateway.0.log());
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (mut first, mut second) = (first, second);
        for round in 0..2 {
            let (revoked, id) = second.session(&format!("r{round}"));
            either.until(&revoked, 200);
            first.stop();
            assert!(second.call("DELETE", &format!("/sessions/{id}"), None).status < 300);
            either.until(&revoked, 401);
            first = Orchestrator::start(folder, "first", &url, &backend, &one);
            here.until(&revoked, 401);
            let control = second.control.clone();
            second.stop();
            second = Orchestrator::start(folder, "second", &url, &backend, &control);
            for gateway in [&here, &there, &either] {
                gateway.until(&revoked, 401);
            }
        }
        stop.store(true, Ordering::Relaxed);
        first.stop();
        second.stop();
    });
    assert!(asked.load(Ordering::Relaxed) > 100, "there was a load");
}
