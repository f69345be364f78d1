// SPDX-License-Identifier: Apache-2.0
//! The story of `make demo`, played by the same program.

use crate::crash::bearing;
use crate::running::{postern, project, wait_for};
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

/// Plays the story with one isolation; every step must do what it must.
fn plays_with(isolation: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let played = postern(folder.path())
        .args(["--json", "demo", "--isolation", isolation, "--example"])
        .arg(project().join("examples/support-desk"))
        .output()
        .expect("postern runs");
    let told = String::from_utf8_lossy(&played.stderr);
    let steps: Vec<Value> =
        serde_json::from_slice(&played.stdout).unwrap_or_else(|error| panic!("{error}\n{told}"));
    let failed: Vec<_> = steps.iter().filter(|step| step["passed"] != true).collect();
    assert!(failed.is_empty() && played.status.success(), "{failed:#?}\n{told}");
    assert!(steps.len() >= 20, "the story has only {} steps", steps.len());
}

#[test]
fn the_story_is_played_whole() {
    plays_with("auto");
}

#[test]
fn the_story_is_played_whole_with_namespaces() {
    plays_with("namespaces");
}

/// The child of `parent` that is `postern up`, and its data folder.
fn up_of(parent: u32) -> Option<(String, String)> {
    // Each thread lists the children that it made itself.
    let threads = fs::read_dir(format!("/proc/{parent}/task")).ok()?.flatten();
    let children: String =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok()).collect();
    children.split_whitespace().find_map(|pid| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let mut words = command.split('\0').skip_while(|word| *word != "--data-dir");
        Some((pid.to_owned(), words.nth(1)?.to_owned()))
    })
}

#[test]
fn a_story_whose_up_is_killed_fails_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut story = postern(folder.path())
        .args(["demo", "--isolation", "namespaces", "--example"])
        .arg(project().join("examples/support-desk"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("postern runs");
    let mut lines = BufReader::new(story.stderr.take().expect("is piped")).lines().map_while(Result::ok);
    lines.find(|line| line.contains("asks for another customer's")).expect("the story is told");
    let (pid, data) = up_of(story.id()).expect("`up` is its child");
    assert!(Command::new("kill").args(["-KILL", &pid]).status().expect("kill runs").success());
    let told: Vec<String> = lines.collect();
    let status = story.wait().expect("ends");
    assert_eq!(status.code(), Some(1), "{told:#?}");
    assert!(told.iter().any(|line| line.contains("what it left was removed")), "{told:#?}");
    wait_for("the end of everything", || bearing(&data).is_empty().then_some(()));
}
