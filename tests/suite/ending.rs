// SPDX-License-Identifier: Apache-2.0
//! Ctrl-C and SIGTERM, also while `up` starts.

use crate::running::{postern, wait_for};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

#[test]
fn a_start_that_takes_long_ends_when_it_is_told_to_and_leaves_nothing() {
    for signal in ["-INT", "-TERM"] {
        let folder = tempfile::Builder::new().prefix("postern-test-").tempdir().expect("a folder");
        // Trying this out never comes to its end by itself, within the time that a trial gets.
        let hangs = folder.path().join("runsc");
        fs::write(&hangs, "#!/bin/sh\nexec sleep 600\n").expect("writes");
        fs::set_permissions(&hangs, fs::Permissions::from_mode(0o755)).expect("ours");
        let child = postern(folder.path())
            .args(["up", "--isolation", "gvisor"])
            .env("POSTERN_RUNSC", &hangs)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("postern starts");
        let database = folder.path().join("data/postern.db");
        wait_for("the start to be under way", || database.exists().then_some(()));
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
        let ended = child.wait_with_output().expect("ends");
        let told = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && told.contains("before it was up"), "{signal}: {told}");
        assert!(!folder.path().join("data/connection.json").exists());
        let processes = Command::new("ps").args(["-eo", "args"]).output().expect("ps runs");
        let processes = String::from_utf8_lossy(&processes.stdout).into_owned();
        let name = folder.path().to_str().expect("UTF-8");
        let left: Vec<&str> = processes.lines().filter(|line| line.contains(name)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
