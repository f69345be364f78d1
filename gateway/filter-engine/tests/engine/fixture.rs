// SPDX-License-Identifier: Apache-2.0
//! An engine, filters in it, and requests.

pub(crate) use crate::plugins::{compiled, key, manifest, sign};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use jiff::Timestamp;
use postern_common::id::{
    BackendName, ConversationId, FilterName, OperationId, SandboxId, TemplateName, TenantId, UserId,
};
use postern_common::session::{Isolation, Peer, Session};
use postern_filter_engine::artefact::Expected;
use postern_filter_engine::{
    Called, ConfiguredFilter, Context, Engine, EngineSettings, LoadFilterError, LoadedFilter, RequestView,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) fn engine() -> Engine {
    let settings = EngineSettings {
        instances: 64,
        instances_per_tenant: 4,
        ..EngineSettings::new(key().verifying_key())
    };
    Engine::new(settings).expect("an engine")
}

pub(crate) fn load_with(
    engine: &Engine,
    plugin: &'static str,
    tenant: &str,
    manifest: &str,
) -> Result<LoadedFilter, LoadFilterError> {
    let artefact = sign(&compiled(plugin), (tenant, plugin), 1, manifest);
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
        headers: Arc::new(map),
        body: Some(Bytes::copy_from_slice(body.as_bytes())),
    }
}

pub(crate) fn context(view: RequestView) -> Context {
    Context { session: Arc::new(session()), request: Arc::new(view) }
}

pub(crate) async fn call(filter: &ConfiguredFilter, headers: &[(&'static str, &str)], body: &str) -> Called {
    filter.on_request(context(view(headers, body))).await
}
