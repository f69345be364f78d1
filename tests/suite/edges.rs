// SPDX-License-Identifier: Apache-2.0
//! The architecture as a test: who may depend on whom, what may be linked, where third-party
//! types stop (docs/architecture.md; the table here is the one that counts).

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every workspace crate and the workspace crates that it may use in what it ships.
const ALLOWED: &[(&str, &[&str])] = &[
    ("postern-common", &[]),
    ("postern-openapi", &["postern-common"]),
    ("postern-policies", &["postern-common", "postern-openapi"]),
    ("postern-filter-engine", &["postern-common", "postern-openapi"]),
    ("postern-compile", &["postern-common", "postern-filter-engine"]),
    ("postern-gateway", &["postern-common", "postern-openapi", "postern-policies", "postern-filter-engine"]),
    (
        "postern-orchestrator",
        &["postern-common", "postern-openapi", "postern-policies", "postern-filter-engine", "postern-shim"],
    ),
    ("postern-sandboxd", &["postern-common"]),
    ("postern-shim", &["postern-common"]),
    ("postern-sync", &["postern-common"]),
    ("postern-sdk-wasm", &[]),
    (
        "postern",
        &[
            "postern-common",
            "postern-openapi",
            "postern-policies",
            "postern-filter-engine",
            "postern-gateway",
            "postern-orchestrator",
        ],
    ),
];
/// What may use everything: it ships nothing.
const SUITES: &str = "postern-tests";
/// Filters see the SDK and nothing else of ours.
const PLUGIN_PREFIX: &str = "postern-plugin-";

/// What a package must not link, by the beginning of the crate's name.
const NEVER_LINKED: &[(&str, &[&str])] = &[
    (
        "postern-gateway",
        &["sqlx", "libsqlite3", "kube", "k8s-openapi", "cranelift-codegen", "wasmtime-internal-cranelift"],
    ),
    // In a pod it has keys and TLS; a local sandbox has neither.
    ("postern-sandboxd --no-default-features", &["rustls", "aws-lc", "sqlx", "wasmtime", "cedar", "axum"]),
    ("postern-sandboxd", &["sqlx", "wasmtime", "cedar", "axum", "kube"]),
    ("postern-shim", &["rustls", "aws-lc", "sqlx", "wasmtime", "cedar", "axum"]),
    // It reaches nothing but a socket: no TLS, no store, no database.
    ("postern-sync", &["rustls", "object_store", "sqlx", "wasmtime", "cedar", "axum", "reqwest"]),
    ("postern", &["ring v", "openssl-sys", "native-tls"]),
];

/// Where a third-party crate's types may be named: its own room and nowhere else.
const ROOMS: &[(&str, &[&str])] = &[
    ("sqlx::", &["orchestrator/src/store"]),
    ("wasmtime::", &["gateway/filter-engine/", "gateway/compile/"]),
    ("cedar_policy", &["policies/"]),
    ("kube::", &["orchestrator/src/runtime/kubernetes", "orchestrator/src/setup/cluster"]),
    ("k8s_openapi::", &["orchestrator/src/runtime/kubernetes", "orchestrator/src/setup/cluster"]),
    ("rcgen::", &["orchestrator/src/stream/authority", "gateway/src/listener/tls"]),
    ("object_store::", &["orchestrator/src/storage"]),
    ("landlock::", &["sandbox/"]),
    ("seccompiler::", &["sandbox/", "gateway/compile/"]),
    ("tar::", &["common/src/tree", "orchestrator/src/api/sieve", "orchestrator/src/runtime/local/images"]),
    ("flate2::", &["sandbox/sandboxd/src/files", "orchestrator/src/runtime/local/images"]),
    ("tokio_tungstenite::", &["cli/src/client", "cli/src/commands/sandbox/shell"]),
    ("jsonschema::", &["openapi/"]),
    ("jsonwebtoken::", &["common/src/token"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn cargo(arguments: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().expect("cargo starts");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

/// The dependencies that each workspace crate ships with, by name.
fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version=1", "--locked", "--no-deps"]))
            .expect("JSON");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    let shipped = |package: &Value| {
        let dependencies = package["dependencies"].as_array().expect("dependencies");
        dependencies.iter().filter(|one| one["kind"].as_str() != Some("dev")).map(name).collect()
    };
    packages.iter().map(|package| (name(package), shipped(package))).collect()
}

#[test]
fn crates_depend_on_each_other_in_the_allowed_direction_only() {
    let edges = edges();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    for (from, to) in &edges {
        let ours = to.iter().filter(|name| edges.contains_key(*name));
        for to in ours.filter(|_| from != SUITES) {
            let is_allowed = if from.starts_with(PLUGIN_PREFIX) {
                to == "postern-sdk-wasm"
            } else {
                let listed = allowed.get(from.as_str());
                listed
                    .unwrap_or_else(|| panic!("`{from}` is new: give it a line in ALLOWED"))
                    .contains(&to.as_str())
            };
            assert!(is_allowed, "`{from}` may not depend on `{to}`");
        }
    }
}

#[test]
fn a_package_built_alone_links_nothing_that_it_must_not() {
    for (package, never) in NEVER_LINKED {
        let mut arguments = vec!["tree", "--locked", "-e", "normal", "--prefix", "none", "-p"];
        arguments.extend(package.split(' '));
        let tree = cargo(&arguments);
        for line in tree.lines() {
            let linked = never.iter().find(|start| line.starts_with(**start));
            // `postern` itself is the beginning of every name of ours.
            assert!(
                linked.is_none(),
                "`{package}` links {line}, which begins with `{}`",
                linked.expect("found")
            );
        }
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    let relative = |path: &Path| path.strip_prefix(root()).expect("within").to_string_lossy().into_owned();
    found.iter().map(|path| (relative(path), fs::read_to_string(path).expect("UTF-8"))).collect()
}

#[test]
fn third_party_types_stop_at_their_room() {
    for (path, text) in all_sources() {
        if path.starts_with("tests/") || path.contains("/tests") || path.contains("/benches/") {
            continue;
        }
        for (crate_name, rooms) in ROOMS {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let named = code.filter(|line| line.contains(crate_name)).count();
            let is_at_home = rooms.iter().any(|room| path.starts_with(room));
            assert!(
                named == 0 || is_at_home,
                "`{crate_name}` is named in {path}; it may only be in {rooms:?}"
            );
        }
    }
}

#[test]
fn every_source_file_names_its_licence_and_its_job() {
    for (path, text) in all_sources() {
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("// SPDX-License-Identifier: Apache-2.0"), "{path}");
        // A file of tests is explained by its parent.
        let is_tests = path.ends_with("tests.rs") || path.contains("/tests/");
        let is_explained = lines.next().is_some_and(|line| line.starts_with("//!"));
        assert!(is_explained || is_tests, "{path} does not say what it is for");
    }
}

#[test]
fn no_file_or_function_has_grown_beyond_what_fits() {
    const LINES: usize = 600;
    for (path, text) in all_sources() {
        let lines = text.lines().count();
        let is_argued =
            text.lines().take_while(|line| line.starts_with("//")).any(|line| line.contains("long because"));
        assert!(
            lines <= LINES || is_argued,
            "{path} has {lines} lines: find a seam, or say `long because` in its header"
        );
    }
}
