// SPDX-License-Identifier: Apache-2.0
//! `kill -9` of an `up` that has settled, and what the next start makes of it; and two installations side by side.

use crate::running::{Backend, Up, postern, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Processes, mounts, loop devices and cgroups whose name or command line holds `text`.
pub(crate) fn bearing(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("is there").flatten() {
        let is_process = entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if is_process && command.contains(text) {
            found.push(format!("process {command}"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("is there");
    found.extend(mounts.lines().filter(|line| line.contains(text)).map(|line| format!("mount {line}")));
    for entry in fs::read_dir("/sys/block").expect("is there").flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        found.extend(backing.contains(text).then(|| format!("loop device {backing}")));
    }
    let cgroups =
        Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", &format!("*{text}*")]).output();
    let cgroups = String::from_utf8_lossy(&cgroups.expect("find runs").stdout).into_owned();
    found.extend(cgroups.lines().map(|line| format!("cgroup {line}")));
    found
}

fn status(up: &Up, id: &str) -> Value {
    up.call("GET", &format!("/sandbox/{id}"), None).json()
}

fn nothing_left(folder: &Path, ids: &[String]) {
    wait_for("the end of everything", || {
        let left: Vec<_> = ids.iter().flat_map(|id| bearing(id)).collect();
        let left: Vec<_> = left.into_iter().chain(bearing(&folder.to_string_lossy())).collect();
        left.is_empty().then_some(())
    });
}

fn id(sandbox: &Value) -> String {
    sandbox["sandbox_id"].as_str().expect("an id").to_owned()
}

#[test]
fn after_a_crash_each_sandbox_runs_or_is_reported_with_its_end() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let ids: Vec<String> = (0..3).map(|number| id(&up.sandbox("alice", &format!("c{number}")))).collect();
    up.agent(&ids[0], &["remember", "before the crash"]);
    let folder = up.crash();

    let up = Up::on(folder);
    for id in &ids {
        let found = wait_for("an answer about each sandbox", || {
            let found = status(&up, id);
            (found["status"] != "creating").then_some(found)
        });
        let has_end = found["reason"].as_str().is_some_and(|reason| !reason.is_empty());
        assert!(found["status"] == "running" || has_end, "{found}");
        if found["status"] == "running" {
            let asked = up.agent(id, &["GET", "/orders"]);
            assert_eq!(asked["status"], 200, "an adopted sandbox has its door again: {asked}");
        } else {
            assert_eq!(bearing(id), Vec::<String>::new());
        }
    }
    let folder = up.stop();
    nothing_left(folder.path(), &ids);
}

#[test]
fn two_installations_live_side_by_side() {
    let backend = Backend::start();
    let (first, second) = (Up::start(&backend), Up::start(&backend));
    assert_ne!(first.written("url"), second.written("url"));
    let (one, other) = (id(&first.sandbox("alice", "c1")), id(&second.sandbox("alice", "c1")));
    assert_eq!(second.call("GET", &format!("/sandbox/{one}"), None).status, 404);
    let refused = crate::running::http(
        &second.written("url"),
        "GET",
        &format!("/sandbox/{other}"),
        &[("Authorization", &format!("Bearer {}", first.key()))],
        None,
    );
    assert_eq!((refused.status, refused.code().as_str()), (401, "key-invalid"));
    // A sync begins when its sandbox runs; one that has carried a file is there whole.
    let write = json!({ "command": "echo kept > /data/user/kept", "collect": true });
    assert_eq!(second.call("POST", &format!("/sandbox/{other}/exec"), Some(&write)).json()["exit_code"], 0);
    wait_for("the neighbour's sync", || {
        (second.call("GET", "/users/alice/files/kept", None).status == 200).then_some(())
    });
    // A database that lost everything: its sweep ends all that it finds of its own.
    let before = bearing(&other);
    let folder = first.crash();
    let forget = Command::new("/usr/bin/python3")
        .args(["-c", "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('delete from sessions'); c.execute('delete from sandboxes'); c.commit()"])
        .arg(folder.path().join("data/postern.db"))
        .status();
    assert!(forget.expect("python runs").success());
    let first = Up::on(folder);
    assert_eq!(bearing(&one), Vec::<String>::new(), "its own is swept away");
    let third = id(&first.sandbox("alice", "c1"));
    assert_eq!(bearing(&other), before, "a sweep touches nothing of a neighbour's");
    assert_eq!(second.agent(&other, &["GET", "/orders"])["status"], 200);
    let folder = first.stop();
    assert_eq!(bearing(&third), Vec::<String>::new());
    nothing_left(folder.path(), &[third]);
    assert_eq!(
        second.agent(&other, &["GET", "/orders"])["status"],
        200,
        "the end of one leaves the other alone"
    );
}

#[test]
fn a_data_folder_has_one_up_at_a_time() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let second = postern(up.folder.path()).arg("up").output().expect("postern runs");
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    let pid = fs::read_to_string(up.data().join("lock")).expect("is there");
    assert_eq!(second.status.code(), Some(1), "{told}");
    assert!(told.contains(&format!("process {pid}")), "{told}");
}
