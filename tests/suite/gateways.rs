// SPDX-License-Identifier: Apache-2.0
//! `postern-gateway` as a process of its own beside `postern up`: it follows, obeys, sends decisions
//! home, is cut off, and survives the orchestrator.

use crate::running::{Answer, Backend, Up, configured, follow, http, postern, programs, project, wait_for};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

const KEY: (&str, &str) = ("TOKEN_SIGNING_KEY", "0123456789abcdef0123456789abcdef-a-test");
/// Short enough to wait for, longer than a heartbeat may be late on a busy machine.
const STALENESS: &str = "4s";

/// `postern-gateway` as a child of the test.
struct Gateway {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Gateway {
    fn start(folder: &Path, control: &str, backend: &Backend, more: &[(&str, &str)]) -> Self {
        let mut child = Command::new(programs().join("postern-gateway"))
            .env_clear()
            .envs([KEY, ("POSTERN_LOG_FORMAT", "json"), ("POSTERN_GATEWAY_STALENESS", STALENESS)])
            .env("POSTERN_GATEWAY_CREDENTIAL_FILE", folder.join("credential"))
            .env("POSTERN_ORCHESTRATOR", control)
            .env("POSTERN_UPSTREAMS_ALLOW", format!("127.0.0.1:{}", backend.port))
            .envs(more.iter().copied())
            .current_dir(folder)
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"])
            .arg(folder.join("edge"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("postern-gateway starts");
        let log = Arc::new(Mutex::new(String::new()));
        follow(child.stderr.take().expect("is piped"), &log);
        let gateway = Self { child, log };
        gateway.logged("listen");
        gateway
    }

    /// A field of the line that says that it is up.
    fn logged(&self, field: &str) -> String {
        wait_for("postern-gateway", || {
            let log = self.log.lock().expect("no panic").clone();
            let line = log.lines().find(|line| line.contains("postern-gateway is up"))?;
            let line: Value = serde_json::from_str(line).expect("is JSON");
            Some(line[field].as_str().expect(field).to_owned())
        })
    }

    fn ask(&self, token: &str) -> Answer {
        let url = format!("http://{}", self.logged("listen"));
        let authorization = format!("Bearer {token}");
        http(&url, "GET", "/support-desk/orders", &[("Authorization", &authorization)], None)
    }

    fn admin(&self, path: &str) -> Answer {
        http(&format!("http://{}", self.logged("admin")), "GET", path, &[], None)
    }

    /// Waits until requests with the token are answered like this.
    fn until(&self, token: &str, status: u16, code: &str) {
        wait_for(&format!("{status} {code}"), || {
            let answer = self.ask(token);
            (answer.status == status && (code.is_empty() || answer.code() == code)).then_some(())
        });
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Asks it to drain, and waits for a good end.
    fn stop(mut self) {
        self.signal("-TERM");
        let status = wait_for("the gateway's end", || self.child.try_wait().expect("can be asked"));
        assert!(status.success(), "{status}\n{}", self.log.lock().expect("no panic"));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `up`, its backend, and a credential in the folder.
struct World {
    up: Up,
    backend: Backend,
}

impl World {
    fn new() -> Self {
        let backend = Backend::start();
        // A port of its own: it must be free again for the orchestrator that comes after this one.
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let control = port.expect("a port").to_string();
        let up = Up::start_with(&backend, &[KEY, ("POSTERN_CONTROL_LISTEN", &control)]);
        let world = Self { up, backend };
        let made = world.up.told(&["gateways", "add", "edge"]);
        let file = world.folder().join("credential");
        fs::write(&file, made["credential"].as_str().expect("a credential")).expect("writes");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("is ours");
        world
    }

    fn folder(&self) -> PathBuf {
        self.up.folder.path().to_owned()
    }

    fn gateway(&self) -> Gateway {
        Gateway::start(&self.folder(), &self.up.written("control"), &self.backend, &[])
    }

    /// Id and token of a session for this machine's address.
    fn session(&self) -> (String, String) {
        let made = self.up.told(&[
            "sessions",
            "add",
            "--peer",
            "127.0.0.1",
            "--user",
            "alice",
            "--conversation",
            "c1",
            "--operation",
            "support-desk/read",
        ]);
        let text = |field: &str| made[field].as_str().expect(field).to_owned();
        (text("session_id"), text("token"))
    }
}

#[test]
fn a_second_gateway_obeys_and_sends_its_decisions_home() {
    let world = World::new();
    let gateway = world.gateway();
    let (id, token) = world.session();
    gateway.until(&token, 200, "");
    assert_eq!(gateway.admin("/readyz").status, 200);
    let listed = world.up.told(&["gateways", "ls"]);
    assert_eq!(listed["gateways"][0]["connected"], 1, "{listed}");
    // POST answers only when every gateway knows the session, so the first request finds it.
    let (_, second) = world.session();
    assert_eq!(gateway.ask(&second).status, 200);
    world.up.done(&["sessions", "rm", &id]);
    let answer = gateway.ask(&token);
    assert_eq!((answer.status, answer.code().as_str()), (401, "token-revoked"), "at once, when rm is done");
    assert_eq!(gateway.ask(&second).status, 200, "the control: another session goes on");
    wait_for("every gateway's key for assertions", || {
        let set = gateway.admin("/.well-known/jwks.json").json();
        (set["keys"].as_array()?.len() == 2).then_some(())
    });
    let reached = world.backend.reached();
    wait_for("the decisions of the gateway", || {
        let told = world.up.call("GET", "/decisions", None).json();
        let all = told["decisions"].as_array().expect("a list").clone();
        let is = |record: &Value, verdict: &str| {
            record["verdict"] == verdict && record["path_template"] != "" && record["method"] == "GET"
        };
        (all.iter().any(|it| is(it, "allow")) && all.iter().any(|it| it["code"] == "token-revoked"))
            .then_some(())
    });
    assert!(reached >= 3);
    gateway.stop();
}

#[test]
fn a_revoked_gateway_is_cut_off_and_turns_stale() {
    let world = World::new();
    let gateway = world.gateway();
    let (_, token) = world.session();
    gateway.until(&token, 200, "");
    world.up.done(&["gateways", "rm", "edge"]);
    gateway.until(&token, 503, "state-stale");
    assert_eq!((gateway.admin("/healthz").status, gateway.admin("/readyz").status), (200, 503));
    assert!(gateway.log.lock().expect("no panic").contains("revoked"), "its log says why");
    let answer = world.up.postern(&["gateways", "rm", "edge"]);
    assert_eq!(answer.status.code(), Some(4), "there is none any more");
}

#[test]
fn a_gateway_outlives_its_orchestrator_and_finds_it_again() {
    let world = World::new();
    let gateway = world.gateway();
    let (_, token) = world.session();
    gateway.until(&token, 200, "");
    let control = world.up.written("control");
    let World { up, backend } = world;
    let folder: Arc<TempDir> = up.crash();
    gateway.until(&token, 503, "state-stale");
    assert!(gateway.ask(&token).text.contains("orchestrator"), "it says why");
    // A gateway that is started now, with nobody to follow: alive, not ready.
    gateway.stop();
    let gateway = Gateway::start(folder.path(), &control, &backend, &[]);
    assert_eq!((gateway.admin("/healthz").status, gateway.admin("/readyz").status), (200, 503));
    gateway.until(&token, 503, "state-stale");
    // One whose operator accepts older state serves from what is on its disk.
    gateway.stop();
    let patient = Gateway::start(folder.path(), &control, &backend, &[("POSTERN_GATEWAY_STALENESS", "1h")]);
    patient.until(&token, 200, "");
    let up = Up::on_with(folder, &[KEY, ("POSTERN_CONTROL_LISTEN", &control)]);
    wait_for("the gateway's return", || {
        (up.told(&["gateways", "ls"])["gateways"][0]["connected"] == 1).then_some(())
    });
    patient.until(&token, 200, "");
}

/// `postern-orchestrator` as a child of the test.
struct Orchestrator(Child);

impl Orchestrator {
    fn start(folder: &Path, control: &str) -> Self {
        let mut command = Command::new(programs().join("postern-orchestrator"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let child = command
            .env_clear()
            .env("PATH", path)
            .envs([KEY])
            .current_dir(folder)
            .args([
                "--listen",
                "127.0.0.1:0",
                "--control-listen",
                control,
                "--admin-listen",
                "off",
                "--data-dir",
            ])
            .arg(folder.join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("postern-orchestrator starts");
        let mut orchestrator = Self(child);
        let pid = u64::from(orchestrator.0.id());
        wait_for("postern-orchestrator", || {
            let ended = orchestrator.0.try_wait().expect("can be asked");
            assert!(ended.is_none(), "it ended: {ended:?}");
            (written(folder)?["pid"].as_u64()? == pid).then_some(())
        });
        orchestrator
    }

    fn stop(mut self) {
        let sent = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
        let status = wait_for("its end", || self.0.try_wait().expect("can be asked"));
        assert!(status.success(), "{status}");
    }
}

impl Drop for Orchestrator {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn written(folder: &Path) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(folder.join("data/connection.json")).ok()?).ok()
}

/// Runs `postern` against the orchestrator of the folder.
fn told(folder: &Path, arguments: &[&str]) -> Value {
    let output = postern(folder).arg("--json").args(arguments).output().expect("postern runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

#[test]
fn an_orchestrator_is_replaced_without_ending_a_conversation() {
    let backend = Backend::start();
    let folder = configured(&backend);
    let folder = folder.path();
    let config = folder.join("config");
    let orchestrator = Orchestrator::start(folder, "127.0.0.1:0");
    let made = told(folder, &["gateways", "add", "edge"]);
    fs::write(folder.join("credential"), made["credential"].as_str().expect("a credential")).expect("writes");
    let control = written(folder).expect("is written")["control"].as_str().expect("an address").to_owned();
    let gateway = Gateway::start(folder, &control, &backend, &[("POSTERN_GATEWAY_SOCKETS", "true")]);
    told(folder, &["apply", config.to_str().expect("UTF-8")]);
    let sandbox = told(folder, &["sandbox", "create", "--user", "alice", "--conversation", "c1"]);
    let id = sandbox["sandbox_id"].as_str().expect("an id");
    let script = fs::read_to_string(project().join("examples/support-desk/agent.py")).expect("reads");
    let agent =
        || told(folder, &["sandbox", "exec", id, "--", "python3", "-I", "-c", &script, "GET", "/orders"]);
    assert_eq!(agent()["status"], 200, "through the door that the gateway opened");
    orchestrator.stop();
    let orchestrator = Orchestrator::start(folder, &control);
    assert_eq!(told(folder, &["sandbox", "show", id])["status"], "running", "it was adopted");
    assert_eq!(agent()["status"], 200);
    told(folder, &["sandbox", "rm", id]);
    gateway.stop();
    orchestrator.stop();
}

#[test]
fn what_a_gateway_lacks_is_told_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |settings: &[(&str, &str)]| {
        let output = Command::new(programs().join("postern-gateway"))
            .env_clear()
            .envs(settings.iter().copied())
            .current_dir(folder.path())
            .output()
            .expect("runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(run(&[]).contains("POSTERN_ORCHESTRATOR"));
    let told = run(&[("POSTERN_ORCHESTRATOR", "127.0.0.1:1")]);
    assert!(told.contains("postern gateways add"), "{told}");
    let told = run(&[("POSTERN_GATEWAY_CREDENTIAL", "s3cret-nonsense")]);
    assert!(told.contains("postern gateways add") && !told.contains("s3cret"), "{told}");
}
