// SPDX-License-Identifier: Apache-2.0
//! The rest of the author's kit: what measures and describes a filter without a server, and what
//! tells of one that was pushed.

use crate::running::{Backend, Up, follow, postern, programs, project, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::{Arc, Mutex};

const CASES: &str = r#"
[[case]]
name = "decent"

[[case]]
name = "slow"
config = { way = "loop" }
"#;

/// The folder of the tests' enemy, whose manifest ends with `more`.
fn hostile(place: &Path, more: &str) -> PathBuf {
    let folder = place.join("hostile");
    fs::create_dir_all(folder.join("tests")).expect("makes folders");
    let manifest = fs::read_to_string(project().join("plugins/hostile/filter.toml")).expect("reads");
    fs::write(folder.join("filter.toml"), format!("{manifest}\n{more}")).expect("writes");
    fs::write(folder.join("tests/cases.toml"), CASES).expect("writes");
    fs::copy(programs().join("filters/hostile.wasm"), folder.join("hostile.wasm")).expect("is built");
    folder
}

fn kit(folder: &Path, arguments: &[&str]) -> Output {
    postern(folder).args(arguments).output().expect("postern runs")
}

fn told(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).expect("is JSON")
}

#[test]
fn calls_are_measured_for_as_long_as_was_asked_and_progress_is_shown() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = hostile(place.path(), "");
    let measured = kit(&folder, &["--json", "filter", "bench", "--seconds", "2"]);
    let cases = told(&measured)["cases"].clone();
    let names: Vec<_> = cases.as_array().expect("a list").iter().map(|it| it["case"].clone()).collect();
    assert_eq!(names, ["decent", "slow"]);
    for case in cases.as_array().expect("a list") {
        assert!(case["microseconds"].as_f64().is_some_and(|cost| cost > 0.0), "{case}");
        assert!(case["calls"].as_u64().is_some_and(|calls| calls >= 5), "{case}");
    }
    // Each of its calls takes 20 ms: all 5,000 would be far beyond the time.
    assert!(cases[1]["calls"].as_u64().is_some_and(|calls| calls < 5_000), "{cases}");
    let progress = String::from_utf8_lossy(&measured.stderr);
    for line in ["compiling", "measuring 1 of 2: decent", "measuring 2 of 2: slow"] {
        assert!(progress.contains(line), "{progress}");
    }
    let one = kit(&folder, &["filter", "bench", "--seconds", "1", "--only", "dec"]);
    let shown = String::from_utf8_lossy(&one.stdout);
    assert!(one.status.success() && shown.contains("decent") && !shown.contains("slow"), "{shown}");
    assert!(shown.contains("CPU µs") && shown.contains("verified and loaded in"), "{shown}");
    let none = kit(&folder, &["filter", "bench", "--only", "no such case"]);
    assert_eq!(none.status.code(), Some(2), "{}", String::from_utf8_lossy(&none.stderr));
}

#[test]
fn what_a_filter_may_do_is_shown_before_it_is_pushed() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = hostile(place.path(), "");
    let shown = told(&kit(&folder, &["--json", "filter", "inspect"]));
    assert_eq!(shown["filter"], "hostile", "{shown}");
    assert_eq!(shown["phases"], json!(["request", "response"]), "{shown}");
    let mut host: Vec<_> = shown["host"].as_array().expect("a list").iter().map(Value::to_string).collect();
    host.sort();
    assert_eq!(host, [r#""counter""#, r#""log""#, r#""rate-limit""#, r#""session""#]);
    let limits =
        json!({ "time_milliseconds": 20, "memory_bytes": 2 << 20, "host_calls": 2000, "log_bytes": 4096 });
    assert_eq!(shown["limits"], limits);
    let bodies = json!([{ "of": "request", "bytes": 65_536 }, { "of": "response", "bytes": 65_536 }]);
    assert_eq!((&shown["bodies"], &shown["counters"]), (&bodies, &json!(["known"])));
    let component = fs::read(folder.join("hostile.wasm")).expect("reads");
    assert_eq!(shown["component_bytes"], component.len());
    for field in ["component", "engine"] {
        assert!(shown[field].as_str().is_some_and(|digest| digest.len() == 64), "{field}: {shown}");
    }
    let text = kit(&folder, &["filter", "inspect"]);
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("sees bodies request up to 64 KiB, response up to 64 KiB"), "{text}");
    fs::write(folder.join("hostile.wasm"), "no component").expect("writes");
    let refused = kit(&folder, &["filter", "inspect"]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("this is no WebAssembly"), "{why}");
}

/// A command that goes on until it is dropped, and what it has printed.
struct Running {
    child: Child,
    printed: Arc<Mutex<String>>,
}

impl Running {
    fn start(up: &Up, arguments: &[&str]) -> Self {
        let mut command = postern(up.folder.path());
        let mut child =
            command.arg("--json").args(arguments).stdout(Stdio::piped()).spawn().expect("postern starts");
        let printed = Arc::default();
        follow(child.stdout.take().expect("is piped"), &printed);
        Self { child, printed }
    }

    /// Lines that the filter logged for a sandbox.
    fn lines_of(&self, sandbox: &str) -> usize {
        let printed = self.printed.lock().expect("no panic");
        let is_of = |line: &&str| line.contains(sandbox) && line.contains("a line and a forged one");
        printed.lines().filter(is_of).count()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().expect("ends");
        self.child.wait().expect("has ended");
    }
}

/// The same filter where it does no more than log, with time enough on any machine.
fn talkative(up: &Up) -> PathBuf {
    let folder = hostile(up.folder.path(), "[config]\nway = \"some-logs\"\n");
    let manifest = folder.join("filter.toml");
    let text = fs::read_to_string(&manifest).expect("reads");
    fs::write(&manifest, text.replace("\"20ms\"", "\"1s\"")).expect("writes");
    folder
}

#[test]
fn a_filter_is_pushed_put_in_force_attached_widened_and_followed() {
    let backend = Backend::start();
    let up = Up::by_api(&backend);
    let sandbox = up.sandbox("alice", "c1");
    let id = sandbox["sandbox_id"].as_str().expect("an id");
    let folder = talkative(&up);
    let at = folder.to_str().expect("is text");
    let chain = || up.told_by("GET", "/backends/support-desk")["backend"]["filters"].clone();
    let before = chain();

    let pushed = up.told(&["filter", "push", at, "--no-activate"]);
    assert_eq!((&pushed["version"], &pushed["in_force"]), (&json!(1), &json!(false)), "{pushed}");
    let status = up.told(&["filter", "status", "hostile"]);
    assert_eq!(
        (&status["in_force"], &status["versions"][0]["version"]),
        (&Value::Null, &json!(1)),
        "{status}"
    );
    let listed = |name: &str| {
        let all = up.told(&["filter", "list"])["filters"].clone();
        all.as_array().expect("a list").iter().find(|it| it["name"] == name).cloned()
    };
    assert!(listed("card-guard").is_some(), "the control");
    assert_eq!(listed("hostile"), None, "it is no part of the configuration yet");

    let attached = up.told(&["filter", "push", at, "--attach", "support-desk", "--operation", "listOrders"]);
    assert_eq!(attached["attached_to"], json!(["support-desk"]), "{attached}");
    let of = |operations: &[&str]| json!({ "name": "hostile", "operations": operations });
    assert_eq!(chain(), json!([before[0], of(&["listOrders"])]));
    let shown = listed("hostile").expect("is listed");
    let stands = ["filter_version", "gateways", "gateways_in_force"].map(|field| shown[field].clone());
    assert_eq!(stands, [1, 1, 1], "{shown}");
    let status = up.told(&["filter", "status", "hostile"]);
    assert_eq!(status["in_force"], 1, "{status}");
    assert_eq!(status["gateways"][0]["state"], "in-force", "{status}");

    let following = Running::start(&up, &["filter", "logs", "hostile", "-f"]);
    let other = up.sandbox("bob", "c2");
    let other = other["sandbox_id"].as_str().expect("an id");
    for sandbox in [id, other] {
        assert_eq!(following.lines_of(sandbox), 0, "nothing yet");
        assert_eq!(up.agent(sandbox, &["GET", "/orders"])["status"], 200);
        wait_for("lines of what follows", || (following.lines_of(sandbox) > 0).then_some(()));
    }
    drop(following);

    up.told(&["filter", "push", at, "--attach", "support-desk", "--operation", "getOrder"]);
    assert_eq!(chain(), json!([before[0], of(&["listOrders", "getOrder"])]), "widened");
    // Narrowing what is attached to everything would take it from somebody.
    let mut all = up.told_by("GET", "/backends/support-desk");
    all["backend"]["filters"] = json!([before[0], "hostile"]);
    assert_eq!(up.call("PUT", "/backends/support-desk", Some(&all)).status, 200);
    let text = fs::read_to_string(folder.join("filter.toml")).expect("reads");
    fs::write(folder.join("filter.toml"), text + "# 2\n").expect("writes");
    let narrowed = up.postern(&["filter", "push", at, "--attach", "support-desk", "--operation", "getOrder"]);
    let why = String::from_utf8_lossy(&narrowed.stderr);
    assert!(narrowed.status.code() == Some(2) && why.contains("for every operation"), "{why}");
    let status = up.told(&["filter", "status", "hostile"]);
    assert_eq!(status["versions"].as_array().map(Vec::len), Some(1), "nothing was uploaded: {status}");
}

#[test]
fn what_a_gateway_refuses_is_not_said_to_be_in_force() {
    let backend = Backend::start();
    let up = Up::by_api(&backend);
    let folder = hostile(up.folder.path(), "");
    let manifest = fs::read_to_string(folder.join("filter.toml")).expect("reads");
    // It compiles, and would call what its manifest does not ask for.
    let narrow = manifest.replace("\"session\", \"log\"", "\"session\"");
    assert_ne!(narrow, manifest);
    fs::write(folder.join("filter.toml"), narrow).expect("writes");
    let output = kit(up.folder.path(), &["filter", "push", folder.to_str().expect("is text")]);
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success() && why.contains("uses `log`"), "{why}");
    assert!(!said.contains("in force"), "{said}");
    assert_eq!(up.told(&["filter", "status", "hostile"])["in_force"], Value::Null);
}
