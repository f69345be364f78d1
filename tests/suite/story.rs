// SPDX-License-Identifier: Apache-2.0
//! The story of `make demo`, played by the same program.

use crate::running::{postern, project};
use serde_json::Value;

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
