// SPDX-License-Identifier: Apache-2.0
//! The package `e2b`, as it is on the registry, works with a sandbox of ours through the port that the
//! orchestrator opens to it; and what that port does not give.

use crate::running::{Answer, Backend, Up, http, project};
use serde_json::json;
use std::path::PathBuf;
use std::process::Command;

/// The interpreter that has the package, of `make test`'s own set-up. Without it this fails, unless
/// `POSTERN_ALLOW_SKIP=1` leaves it out, which is said.
fn interpreter() -> Option<PathBuf> {
    let cache = std::env::var_os("POSTERN_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache/postern")));
    let python = cache.expect("a home folder").join("e2b/bin/python");
    if python.is_file() {
        return Some(python);
    }
    let is_allowed = std::env::var_os("POSTERN_ALLOW_SKIP").is_some_and(|value| value == "1");
    assert!(is_allowed, "there is no {}; `scripts/setup.sh test` installs it", python.display());
    println!("LEFT OUT, the SDK: there is no {}", python.display());
    None
}

fn curl(arguments: &[&str]) -> String {
    let output =
        Command::new("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}"]).args(arguments).output();
    String::from_utf8(output.expect("curl runs").stdout).expect("is text")
}

#[test]
fn an_agent_works_with_an_unchanged_sdk_and_the_port_gives_no_more_than_that() {
    let Some(python) = interpreter() else { return };
    let backend = Backend::start();
    let up = Up::start(&backend);
    let made = up.sandbox("alice", "sdk");
    let ports = format!("/sandbox/{}/ports", made["sandbox_id"].as_str().expect("an id"));
    let opened = up.call("POST", &ports, Some(&json!({ "ttl": "5m" })));
    assert_eq!(opened.status, 201, "{opened:?}");
    let opened = opened.json();
    let url = opened["url"].as_str().expect("a URL");
    let worked = Command::new(python)
        .arg("-I")
        .arg(project().join("tests/sdk/agent.py"))
        .env_clear()
        .envs([("E2B_DEBUG", "true"), ("E2B_SANDBOX_URL", url), ("PATH", "/usr/bin:/bin")])
        .output()
        .expect("starts");
    let (said, failed) = (String::from_utf8_lossy(&worked.stdout), String::from_utf8_lossy(&worked.stderr));
    assert!(worked.status.success(), "{}: {said}\n{failed}", worked.status);
    assert_eq!(said.lines().count(), 6, "{said}");

    // The control, and then what is not given.
    assert_eq!(curl(&[&format!("{url}/health")]), "204");
    let (base, secret) = url.rsplit_once('/').expect("a secret");
    for wrong in [
        format!("{base}/health"),
        format!("{base}/{}/health", "0".repeat(secret.len())),
        format!("{url}/shim/status"),
        format!("{url}/tree?path=/"),
        format!("{url}/init"),
    ] {
        assert_eq!(curl(&[&wrong]), "404", "{wrong}");
    }
    for method in
        ["postern.Control/Token", "postern.Control/Identify", "shim/stop", "process.Process/../shim/stop"]
    {
        assert_eq!(curl(&["--path-as-is", "-X", "POST", &format!("{url}/{method}")]), "404", "{method}");
    }
    assert_eq!(curl(&["-H", "Host: attacker.example", &format!("{url}/health")]), "403");
    assert_eq!(up.call("POST", &ports, Some(&json!({ "ttl": "2h" }))).code(), "invalid-input");
    assert_eq!(up.call("DELETE", &ports, None).status, 204);
    assert_eq!(curl(&["--max-time", "10", &format!("{url}/health")]), "000", "it is closed");
}

#[test]
fn an_open_port_wakes_what_is_stopped_and_says_of_it_that_it_does_not_run() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let made = up.sandbox("alice", "port");
    let sandbox = made["sandbox_id"].as_str().expect("an id");
    let at = |what: &str| format!("/sandbox/{sandbox}{what}");
    let body = json!({ "command": "echo kept > /data/user/note", "collect": true });
    assert_eq!(up.call("POST", &at("/exec"), Some(&body)).json()["exit_code"], 0);
    let opened = up.call("POST", &at("/ports"), Some(&json!({}))).json();
    let (base, secret) = opened["url"].as_str().expect("a URL").rsplit_once('/').expect("a secret");
    let through = |method: &str, path: &str, body: Option<&serde_json::Value>| -> Answer {
        http(base, method, &format!("/{secret}{path}"), &[], body)
    };
    let status = || up.told_by("GET", &at(""))["status"].as_str().expect("text").to_owned();
    let stop = || assert_eq!(up.call("POST", &at("/stop"), None).json()["status"], "stopped");
    assert_eq!(through("GET", "/health", None).status, 204, "the control");

    stop();
    assert_eq!(through("GET", "/health", None).status, 502, "is asked of clients whether it runs");
    assert_eq!(status(), "stopped", "and wakes nothing");
    let read = through("GET", "/files?path=/data/user/note", None);
    assert_eq!((read.status, read.text.as_str()), (200, "kept\n"));
    assert_eq!(status(), "running");

    stop();
    let listed = through("POST", "/process.Process/List", Some(&json!({})));
    assert_eq!(listed.status, 200, "{listed:?}");
    assert_eq!(status(), "running");
    let events = up.told_by("GET", &format!("/events?sandbox_id={sandbox}")).to_string();
    assert!(events.contains("\"waking\""), "{events}");

    if up.call("POST", &at("/pause"), None).status == 200 {
        let refused = through("GET", "/files?path=/data/user/note", None);
        assert_eq!(refused.status, 409, "what was paused on purpose stays so: {refused:?}");
        assert_eq!(status(), "paused");
    }
    assert_eq!(up.call("DELETE", &at(""), None).json()["status"], "destroyed");
    assert_eq!(through("GET", "/files?path=/data/user/note", None).status, 502, "it is no more");
}
