// SPDX-License-Identifier: Apache-2.0
//! What a call costs: a fresh instance for each, on one thread.
//!
//! `cargo run --release -p postern-filter-engine --features compile --example call_cost -- FILTER.wasm FILTER.toml [BODY_BYTES]`
//!
//! Prints microseconds of the process's CPU for each call, the median of five rounds; the ticker's
//! thread is in it. The header `x-user-plan` and the claim `plan` are there.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use postern_common::id::{
    BackendName, ConversationId, FilterName, OperationId, SandboxId, TemplateName, TenantId, UserId,
};
use postern_common::session::{Isolation, Peer, Session};
use postern_filter_engine::artefact::{Compiled, Expected, SigningKey};
use postern_filter_engine::{Context, Engine, EngineSettings, RequestView, compile};
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Instant;

const ROUNDS: usize = 5;
const CALLS: u32 = 2_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let component = std::fs::read(arguments.next().context("first: the component's path")?)?;
    let manifest = std::fs::read_to_string(arguments.next().context("second: its filter.toml")?)?;
    let body_bytes: usize = arguments.next().map_or(Ok(0), |text| text.parse())?;

    let key = SigningKey::from_seed(&[1; 32])?;
    let engine = Engine::new(EngineSettings::new(key.verifying_key()))?;
    let (tenant, name) = (TenantId::parse("bench")?, FilterName::parse("bench")?);
    let begin = Instant::now();
    let compiled = compile::compile(&component)?;
    let compiling = begin.elapsed();
    let artefact = key.sign(&Compiled::parse(&compiled, &component)?, (&tenant, &name), 1, &manifest);
    let begin = Instant::now();
    let expected = Expected { tenant: &tenant, name: &name, version: 1, manifest: &manifest };
    let loaded = engine.load(&artefact, &expected)?;
    let loading = begin.elapsed();
    let filter = loaded.configure(&serde_json::Map::new())?;
    let context = Context { session: Arc::new(session()?), request: Arc::new(request(body_bytes)?) };

    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let before = cpu_nanoseconds();
        for _ in 0..CALLS {
            let _verdict = filter.on_request(context.clone()).await.outcome?;
        }
        rounds.push(cpu_nanoseconds().saturating_sub(before) / i64::from(CALLS));
    }
    rounds.sort_unstable();
    let median = rounds.get(ROUNDS / 2).copied().unwrap_or_default();
    let mut out = std::io::stdout();
    writeln!(out, "compile {compiling:?}, {} bytes of artefact, load {loading:?}", artefact.len())?;
    writeln!(out, "fresh instance and call: {}.{:03} us", median / 1000, median % 1000)?;
    Ok(())
}

fn cpu_nanoseconds() -> i64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

fn request(body_bytes: usize) -> Result<RequestView> {
    let mut headers = HeaderMap::new();
    for name in
        ["accept", "content-type", "traceparent", "user-agent", "x-a", "x-b", "x-c", "x-d", "x-user-plan"]
    {
        headers.insert(name, HeaderValue::from_static("some value of a usual length"));
    }
    let filler = "x".repeat(body_bytes.saturating_sub(11));
    let body = if body_bytes == 0 { String::new() } else { format!("{{\"note\":\"{filler}\"}}") };
    Ok(RequestView {
        method: Method::POST,
        backend: BackendName::parse("desk")?,
        operation: OperationId::parse("addNote")?,
        path: "/orders/7/notes".to_owned(),
        path_template: "/orders/{id}/notes".into(),
        path_parameters: vec![("id".to_owned(), "7".to_owned())],
        query: Vec::new(),
        headers: Arc::new(headers),
        body: Some(Bytes::from(body)),
    })
}

fn session() -> Result<Session> {
    let mut claims = serde_json::Map::new();
    claims.insert("plan".to_owned(), "free".into());
    Ok(Session {
        sandbox_id: SandboxId::from_random([0; 12]),
        tenant: TenantId::parse("bench")?,
        user_id: UserId::parse("alice")?,
        conversation_id: ConversationId::parse("c-1")?,
        operations: Vec::new(),
        tokens: Vec::new(),
        peer: Peer::Address(std::net::Ipv4Addr::LOCALHOST.into()),
        expires_at: jiff::Timestamp::MAX,
        template: TemplateName::parse("default")?,
        isolation: Isolation::Namespaces,
        labels: BTreeMap::new(),
        claims,
    })
}
