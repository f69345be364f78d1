// SPDX-License-Identifier: Apache-2.0
//! The README's calls work as they stand there; only the data folder's name comes from the test.

use crate::running::{Backend, Up, project};
use serde_json::Value;
use std::fs;
use std::process::Command;

const MARK: &str = "<!-- tests/suite/readme.rs runs this block as it stands -->";

fn block() -> String {
    let readme = fs::read_to_string(project().join("README.md")).expect("reads");
    let after = readme.split_once(MARK).expect("the README marks the block").1;
    let block = after.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("a block follows the mark").to_owned()
}

/// The lines of the command that begins so, in the first block that has it.
fn command(beginning: &str) -> String {
    let readme = fs::read_to_string(project().join("README.md")).expect("reads");
    let mut lines = readme.lines().skip_while(|line| !line.starts_with(beginning));
    let mut command = String::new();
    loop {
        let line = lines.next().expect("the command comes to an end");
        command.push_str(line.trim_end_matches('\\'));
        if !line.ends_with('\\') {
            return command;
        }
    }
}

#[test]
fn the_readmes_release_is_taken_by_helm_as_written() {
    let Some(helm) = crate::chart::helm() else { return };
    let written = command("helm upgrade --install ");
    let home = tempfile::tempdir().expect("a folder");
    // What it would do is rendered; the rest stands there.
    let script = written.replacen("helm upgrade --install", "\"$HELM\" template", 1);
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", &script]).current_dir(project()).env("HELM", helm);
    bash.envs(["CACHE", "CONFIG", "DATA"].map(|of| (format!("HELM_{of}_HOME"), home.path())));
    bash.envs([
        ("REGISTRY", "registry.example/postern"),
        ("STORAGE_BUCKET", "bucket"),
        ("BACKEND_URL", "https://backend.example"),
        ("DATABASE_URL", "postgres://postern:word@database.example/postern"),
        ("TOKEN_SIGNING_KEY", "0123456789abcdef0123456789abcdef"),
    ]);
    let ran = bash.output().expect("bash runs");
    assert!(ran.status.success(), "{script}: {}", String::from_utf8_lossy(&ran.stderr));
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    for wanted in [
        "registry.example/postern/postern-gateway:",
        "name: agent-sandbox-kit-given",
        "runtimeClassName: gvisor",
    ] {
        assert!(said.contains(wanted), "{wanted} is not in what it renders");
    }
}

#[test]
fn the_readmes_calls_work_as_written() {
    let backend = Backend::start();
    let up = Up::start(&backend);
    let folder = up.folder.path();
    let block = block();
    assert!(!block.contains("127.0.0.1"), "the key goes where `up` is, never to whoever has a port");
    let script = block.replace(".postern/", "data/");
    let ran = Command::new("bash").args(["-euo", "pipefail", "-c", &script]).current_dir(folder).output();
    let ran = ran.expect("bash runs");
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    for wanted in ["\"conversation-of-another-user\"", "ord-1001", "\"running\""] {
        assert!(said.contains(wanted), "{wanted} is not in {said}");
    }
    assert!(!said.contains("ord-2001"), "nobody else's orders: {said}");
    let made: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("sandbox.json")).expect("is there"))
            .expect("is JSON");
    let path = format!("/sandbox/{}", made["sandbox_id"].as_str().expect("an id"));
    let status = up.call("GET", &path, None).json()["status"].clone();
    assert!(status == "destroyed" || status == "destroying", "{status}");
}
