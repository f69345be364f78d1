// SPDX-License-Identifier: Apache-2.0
//! Builds the plugins once, signs them, and makes requests.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use jiff::Timestamp;
use postern_common::id::{
    BackendName, ConversationId, FilterName, OperationId, SandboxId, TemplateName, TenantId, UserId,
};
use postern_common::session::{Isolation, Peer, Session};
use postern_filter_engine::artefact::{Compiled, Expected, SigningKey};
use postern_filter_engine::{
    Called, ConfiguredFilter, Context, Engine, EngineSettings, LoadFilterError, LoadedFilter, RequestView,
    compile,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Compiled plugins by name.
type CompiledPlugins = BTreeMap<&'static str, Arc<[u8]>>;

/// The compiled form of each plugin, made once for all tests.
static COMPILED: LazyLock<Mutex<CompiledPlugins>> = LazyLock::new(Mutex::default);

pub(crate) fn workspace() -> &'static Path {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders.nth(2).expect("two folders above")
}

pub(crate) fn manifest(plugin: &str) -> String {
    let path = workspace().join("plugins").join(plugin).join("filter.toml");
    std::fs::read_to_string(path).expect("a manifest")
}

/// The plugin's core module, as cargo builds it.
pub(crate) fn module(plugin: &str) -> Vec<u8> {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(["build", "--release", "--target", "wasm32-unknown-unknown", "--message-format=json"])
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

pub(crate) fn compiled(plugin: &'static str) -> Arc<[u8]> {
    let mut all = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(all.entry(plugin).or_insert_with(|| {
        let module = module(plugin);
        compile::compile(&module).expect("compiles").into()
    }))
}

pub(crate) fn key() -> SigningKey {
    SigningKey::from_seed(&[1; 32]).expect("a key")
}

pub(crate) fn engine() -> Engine {
    let settings = EngineSettings {
        instances: 64,
        instances_per_tenant: 4,
        ..EngineSettings::new(key().verifying_key())
    };
    Engine::new(settings).expect("an engine")
}

pub(crate) fn sign(compiled: &[u8], tenant: &str, name: &str, manifest: &str) -> Vec<u8> {
    let (fingerprint, component, code) = (
        postern_filter_engine::settings::fingerprint(),
        postern_filter_engine::Digest::of(b"component"),
        compiled.get(72..).expect("a header and code"),
    );
    let compiled = Compiled { fingerprint, component, code };
    let tenant = TenantId::parse(tenant).expect("a name");
    let name = FilterName::parse(name).expect("a name");
    key().sign(&compiled, (&tenant, &name), 1, manifest)
}

pub(crate) fn load_with(
    engine: &Engine,
    plugin: &'static str,
    tenant: &str,
    manifest: &str,
) -> Result<LoadedFilter, LoadFilterError> {
    let artefact = sign(&compiled(plugin), tenant, plugin, manifest);
    let tenant = TenantId::parse(tenant).expect("a name");
    let name = FilterName::parse(plugin).expect("a name");
    engine.load(&artefact, &Expected { tenant: &tenant, name: &name, version: 1, manifest })
}

pub(crate) fn load(engine: &Engine, plugin: &'static str) -> LoadedFilter {
    load_with(engine, plugin, "acme", &manifest(plugin)).expect("loads")
}

pub(crate) fn configured(filter: &LoadedFilter, config: Value) -> ConfiguredFilter {
    let config: Map<String, Value> = serde_json::from_value(config).expect("an object");
    filter.configure(&config).expect("takes the config")
}

pub(crate) fn session() -> Session {
    Session {
        sandbox_id: SandboxId::from_random([0; 12]),
        tenant: TenantId::parse("acme").expect("a name"),
        user_id: UserId::parse("alice").expect("an id"),
        conversation_id: ConversationId::parse("c-1").expect("an id"),
        operations: Vec::new(),
        tokens: Vec::new(),
        peer: Peer::Socket(PathBuf::from("/none")),
        expires_at: Timestamp::MAX,
        template: TemplateName::parse("default").expect("a name"),
        isolation: Isolation::Namespaces,
        labels: BTreeMap::new(),
        claims: match json!({"plan": "free", "seats": 7}) {
            Value::Object(claims) => claims,
            other => panic!("{other}"),
        },
    }
}

pub(crate) fn view(headers: &[(&'static str, &str)], body: &str) -> RequestView {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_str(value).expect("a value"));
    }
    RequestView {
        method: Method::POST,
        backend: BackendName::parse("desk").expect("a name"),
        operation: OperationId::parse("addNote").expect("an id"),
        path: "/orders/7/notes".to_owned(),
        path_template: "/orders/{id}/notes".into(),
        path_parameters: vec![("id".to_owned(), "7".to_owned())],
        query: vec![("notify".to_owned(), "true".to_owned())],
        headers: map,
        body: Some(Bytes::copy_from_slice(body.as_bytes())),
    }
}

pub(crate) fn context(view: RequestView) -> Context {
    Context { session: Arc::new(session()), request: Arc::new(view) }
}

pub(crate) async fn call(filter: &ConfiguredFilter, headers: &[(&'static str, &str)], body: &str) -> Called {
    filter.on_request(context(view(headers, body))).await
}
