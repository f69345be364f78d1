// SPDX-License-Identifier: Apache-2.0
//! `postern filter new`: a folder with a filter that builds, its cases, and the SDK.
//!
//! The SDK is in this program and is written into the folder, so that a filter needs no checkout
//! of Postern, and no registry knows of it. What it depends on (serde, and the small runtime of the
//! contract's bindings) cargo has, or fetches once.

use crate::failure::Failure;
use crate::output::Output;
use anyhow::Context as _;
use postern_common::id::FilterName;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

macro_rules! sdk {
    ($($path:literal)*) => {
        &[$(($path, include_str!(concat!("../../../../sdk-wasm/", $path)))),*]
    };
}

/// The SDK's files, but for its `Cargo.toml`, which belongs to our workspace.
static SDK: &[(&str, &str)] = sdk![
    "src/allocator.rs"
    "src/guest.rs"
    "src/guest/abi.rs"
    "src/harness.rs"
    "src/harness/host.rs"
    "src/headers.rs"
    "src/lib.rs"
    "src/region.rs"
    "src/request.rs"
    "src/response.rs"
    "src/services.rs"
    "src/verdict.rs"
    "wit/filter.wit"
];

/// The filter's own files; `NAME` becomes the filter's name, `TYPE` its type's.
static FILTER: &[(&str, &str)] = &[
    (".gitignore", "/target\n"),
    (".cargo/config.toml", include_str!("new/cargo-config.toml")),
    ("Cargo.toml", include_str!("new/package.toml")),
    ("filter.toml", include_str!("new/filter.toml")),
    ("src/lib.rs", include_str!("new/lib.rs.txt")),
    ("tests/cases.toml", include_str!("new/cases.toml")),
    ("sdk/Cargo.toml", include_str!("new/sdk-package.toml")),
];

pub(super) fn run(name: &str, folder: Option<PathBuf>, output: Output) -> Result<(), Failure> {
    let name = FilterName::parse(name).map_err(|error| Failure::Usage(error.to_string()))?;
    if name.as_str().starts_with(|first: char| first.is_ascii_digit()) {
        return Err(Failure::Usage(format!("`{name}` cannot name a Rust package: begin with a letter")));
    }
    let folder = folder.unwrap_or_else(|| PathBuf::from(name.as_str()));
    let is_empty = fs::read_dir(&folder).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty {
        let place = folder.display();
        return Err(Failure::Usage(format!("`{place}` is not empty; name another with --folder")));
    }
    for (path, text) in FILTER {
        let text = text.replace("NAME", name.as_str()).replace("TYPE", &type_of(&name));
        write(&folder, path, &text)?;
    }
    for (path, text) in SDK {
        write(&folder.join("sdk"), path, text)?;
    }
    output.answer(&json!({ "name": name, "folder": folder }), || {
        let place = folder.display();
        format!(
            "made filter {name} in {place}\n  src/lib.rs        the filter: edit it\n  filter.toml       what it needs of the host\n  tests/cases.toml  requests in, verdicts and changes out\nnext:\n  cd {place}\n  postern filter build && postern filter test\n  postern filter push --attach BACKEND"
        )
    });
    Ok(())
}

fn write(folder: &Path, path: &str, text: &str) -> Result<(), Failure> {
    let path = folder.join(path);
    let parent = path.parent().context("a file in a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("`{}` cannot be made", parent.display()))?;
    fs::write(&path, text).with_context(|| format!("`{}` cannot be written", path.display()))?;
    Ok(())
}

/// `no-browsers` as `NoBrowsers`.
fn type_of(name: &FilterName) -> String {
    let words = name.as_str().split('-');
    words
        .flat_map(|word| {
            let mut letters = word.chars();
            letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files_below(folder: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).expect("reads") {
            let entry = entry.expect("reads");
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().expect("has one").is_dir() {
                files_below(&entry.path(), &format!("{name}/"), found);
            } else {
                found.push(name);
            }
        }
    }

    #[test]
    fn the_whole_sdk_is_carried() {
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder above").join("sdk-wasm");
        let mut found = Vec::new();
        for part in ["src", "wit"] {
            files_below(&sdk.join(part), &format!("{part}/"), &mut found);
        }
        found.sort();
        let mut carried: Vec<_> = SDK.iter().map(|(path, _)| (*path).to_owned()).collect();
        carried.sort();
        assert_eq!(found, carried);
    }

    #[test]
    fn the_sdk_asks_for_the_versions_that_we_use() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder above");
        let ours = fs::read_to_string(workspace.join("Cargo.toml")).expect("reads");
        let package = include_str!("new/sdk-package.toml");
        for line in ["wit-bindgen = { version = \"0.60.0\"", "edition = \"2024\"", "rust-version = \"1.95\""]
        {
            assert!(ours.contains(line) && package.contains(line), "{line}");
        }
    }

    #[test]
    fn a_folder_is_made_whole_and_never_over_another() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = place.path().join("mine");
        run("no-browsers", Some(folder.clone()), Output::new(true)).expect("is made");
        let code = fs::read_to_string(folder.join("src/lib.rs")).expect("is there");
        assert!(code.contains("register!(NoBrowsers)"), "{code}");
        assert!(!code.contains("TYPE") && !code.contains("NAME"), "{code}");
        assert!(folder.join("sdk/wit/filter.wit").is_file());
        let again = run("other", Some(folder), Output::new(true)).expect_err("is not empty");
        assert!(again.to_string().contains("is not empty"), "{again}");
        for bad in ["Not-A-Name", "../up", "7up"] {
            assert!(matches!(run(bad, None, Output::new(true)), Err(Failure::Usage(_))), "{bad}");
        }
    }
}
