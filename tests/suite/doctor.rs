// SPDX-License-Identifier: Apache-2.0
//! `postern doctor` on this machine: what it says must be so.

use crate::running::postern;
use serde_json::Value;
use std::net::TcpListener;

#[test]
fn what_works_is_ok_and_a_port_that_is_taken_fails() {
    let folder = tempfile::tempdir().expect("a folder");
    let held = TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = held.local_addr().expect("has one").to_string();
    let output = postern(folder.path())
        .args(["--json", "doctor"])
        .env("POSTERN_API_LISTEN", &address)
        .output()
        .expect("postern runs");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    let find = |check: &str| {
        let all = told["findings"].as_array().expect("a list");
        all.iter().find(|finding| finding["check"] == check).expect(check)
    };
    assert_eq!(find("port API")["verdict"], "fail");
    assert!(find("port API")["what"].as_str().is_some_and(|what| what.contains(&address)));
    assert_eq!(
        (told["failed"].clone(), find("isolation namespaces")["verdict"].clone()),
        (1.into(), "ok".into())
    );
    for check in ["settings", "programs", "clock", "sandboxes", "data folder"] {
        assert_eq!(find(check)["verdict"], "ok", "{told}");
    }
    for check in ["pausing", "landlock"] {
        assert_ne!(find(check)["verdict"], "fail", "sandboxes do without it");
    }
    assert!(!folder.path().join("data").exists(), "looking makes nothing");
}

#[test]
fn wrong_settings_are_among_the_findings() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = postern(folder.path()).arg("doctor").env("TOKEN_TTL", "2h").output().expect("postern runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let line = told.lines().find(|line| line.starts_with("fail  settings")).unwrap_or_default();
    assert!(line.contains("TOKEN_TTL") && line.contains("from 1m to 1h"), "{told}");
}
