// SPDX-License-Identifier: Apache-2.0
//! Bytes to compile.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The core module of a first-party filter, as cargo builds it.
pub(crate) fn module() -> Vec<u8> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two folders above");
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace)
        .args(["build", "--release", "--target", "wasm32-unknown-unknown", "--message-format=json"])
        .args(["--package", "postern-plugin-claim-injection"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file: PathBuf = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|name| name.as_str().map(PathBuf::from))
        .find(|name| name.extension().is_some_and(|ending| ending == "wasm"))
        .expect("cargo names the module");
    std::fs::read(file).expect("reads")
}
