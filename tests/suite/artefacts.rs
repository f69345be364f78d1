// SPDX-License-Identifier: Apache-2.0
//! The folder of compiled filters is a cache and nothing more: who can write there gets nothing
//! signed, and so nothing run.

use crate::running::{Backend, Up, programs, project};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a compiler's answer begins with: magic, engine, and the component that it is of.
const HEAD_BYTES: usize = 8 + 32 + 32;
const NOTE: &str = r#"{"order_id": "ord-1001", "amount": 1.0, "note": "4111 1111 1111 1111"}"#;

/// The file that keeps what a filter was compiled to.
fn kept(up: &Up, filter: &str) -> PathBuf {
    let versions = up.told_by("GET", &format!("/filters/{filter}/versions"));
    let digest = versions["versions"][0]["component"].as_str().expect("a digest").to_owned();
    let files = fs::read_dir(up.data().join("artefacts")).expect("is there").flatten();
    let mut files = files.filter(|file| file.file_name().to_string_lossy().starts_with(&digest));
    files.next().expect("is kept").path()
}

/// What the example's backend gets to see of a refund with a card number in it.
fn refund(up: &Up, conversation: &str) -> Option<u64> {
    let sandbox = up.sandbox("alice", conversation);
    up.agent(sandbox["sandbox_id"].as_str().expect("an id"), &["POST", "/refunds", NOTE])["status"].as_u64()
}

/// Copies a first-party filter beside the one that the example has.
fn add_filter(folder: &Path, name: &str) {
    let to = folder.join("config/filters").join(name);
    fs::create_dir_all(&to).expect("makes folders");
    fs::copy(project().join(format!("plugins/{name}/filter.toml")), to.join("filter.toml")).expect("copies");
    let component = programs().join("filters").join(format!("{name}.wasm"));
    fs::copy(component, to.join(format!("{name}.wasm"))).expect("is built");
}

#[test]
fn code_that_somebody_puts_into_the_folder_is_never_signed() {
    let backend = Backend::start();
    let folder = Up::start(&backend).stop();
    add_filter(folder.path(), "secret-redaction");
    let up = Up::on(Arc::clone(&folder));
    assert_eq!(refund(&up, "c1"), Some(422), "card-guard is in force");
    let (guard, other) = (kept(&up, "card-guard"), kept(&up, "secret-redaction"));
    let folder = up.stop();

    let whole = fs::read(&guard).expect("reads");
    let lenient = fs::read(&other).expect("reads");
    // Says that it is of card-guard's component, in the form that the compiler writes.
    let forged = [&whole[..HEAD_BYTES], &lenient[HEAD_BYTES..]].concat();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (round, put) in [forged, flipped, whole[..HEAD_BYTES].to_vec(), Vec::new()].iter().enumerate() {
        fs::write(&guard, put).expect("writes");
        let up = Up::on(Arc::clone(&folder));
        assert_eq!(refund(&up, &format!("t{round}")), Some(422), "{round}: what was put there ran");
        assert_eq!(fs::read(&guard).expect("reads"), whole, "{round}: it was compiled again");
        up.stop();
    }
}
