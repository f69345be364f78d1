// SPDX-License-Identifier: Apache-2.0
//! Builds this workspace's plugins once, compiles and signs them. The gateway's suite uses it too.

use postern_common::id::{FilterName, TenantId};
use postern_filter_engine::artefact::{Compiled, SigningKey};
use postern_filter_engine::{Digest, Fingerprint, compile, settings};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Compiled plugins by name.
type CompiledPlugins = BTreeMap<&'static str, Arc<[u8]>>;

/// The compiled form of each plugin, made once for all tests.
static COMPILED: LazyLock<Mutex<CompiledPlugins>> = LazyLock::new(Mutex::default);

fn workspace() -> &'static Path {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders.find(|folder| folder.join("plugins").is_dir()).expect("a folder above has the plugins")
}

/// The plugin's `filter.toml`.
pub(crate) fn manifest(plugin: &str) -> String {
    let path = workspace().join("plugins").join(plugin).join("filter.toml");
    std::fs::read_to_string(path).expect("a manifest")
}

/// The plugin's core module, as cargo builds it.
pub(crate) fn module(plugin: &str) -> Vec<u8> {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(["build", "--profile", "filter", "--target", "wasm32-unknown-unknown", "--message-format=json"])
        .args(["--package", &format!("postern-plugin-{plugin}")])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file: PathBuf = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|name| name.as_str().map(PathBuf::from))
        .find(|name| name.extension().is_some_and(|ending| ending == "wasm"))
        .expect("cargo names the module");
    std::fs::read(file).expect("reads")
}

/// What the compiler makes of the plugin.
pub(crate) fn compiled(plugin: &'static str) -> Arc<[u8]> {
    let mut all = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(all.entry(plugin).or_insert_with(|| {
        let module = module(plugin);
        compile::compile(&module).expect("compiles").into()
    }))
}

/// The orchestrator's key for artefacts.
pub(crate) fn key() -> SigningKey {
    SigningKey::from_seed(&[1; 32]).expect("a key")
}

/// An artefact of compiled code, as the orchestrator makes it.
pub(crate) fn sign(compiled: &[u8], of: (&str, &str), version: u64, manifest: &str) -> Vec<u8> {
    sign_for(settings::fingerprint(), compiled, of, version, manifest)
}

pub(crate) fn sign_for(
    fingerprint: Fingerprint,
    compiled: &[u8],
    (tenant, name): (&str, &str),
    version: u64,
    manifest: &str,
) -> Vec<u8> {
    let compiled = Compiled {
        fingerprint,
        component: Digest::of(b"component"),
        code: compiled.get(72..).expect("a header and code"),
    };
    let tenant = TenantId::parse(tenant).expect("a name");
    let name = FilterName::parse(name).expect("a name");
    key().sign(&compiled, (&tenant, &name), version, manifest)
}
