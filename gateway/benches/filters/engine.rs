// SPDX-License-Identifier: Apache-2.0
//! The engine alone: loading, what is loaded, what is in flight.

use crate::plugins::{compiled, key, sign};
use crate::report::{Report, median, resident_bytes};
use crate::serving::thread_time;
use crate::{CALL, IN_FLIGHT, LOADED};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, Method};
use postern_common::id::{
    BackendName, ConversationId, FilterName, OperationId, SandboxId, TemplateName, TenantId, UserId,
};
use postern_common::session::{Isolation, Peer, Session};
use postern_filter_engine::artefact::Expected;
use postern_filter_engine::{Context, Engine, EngineSettings, LoadedFilter, RequestView};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

/// Filters that are loaded at once.
const FILTERS: usize = 1_000;
/// Calls that are in flight at once.
const CALLS: u32 = 200;
const GUEST: &str = "bench-guest";
/// Calls of one round of the engine's own cost, and rounds, of which the median counts.
const CALLS_OF_ROUND: u32 = 5_000;
const ROUNDS: usize = 9;
pub(crate) const HEADER_MANIFEST: &str = "phases = [\"request\"]";

/// Loads the guest under a name of its own, as another artefact than every other.
fn load(engine: &Engine, name: &str, manifest: &str) -> Result<LoadedFilter> {
    let tenant = TenantId::parse("acme")?;
    let artefact = sign_as(name, manifest);
    let name = FilterName::parse(name)?;
    let expected = Expected { tenant: &tenant, name: &name, version: 1, manifest };
    Ok(engine.load(&artefact, &expected)?)
}

fn sign_as(name: &str, manifest: &str) -> Vec<u8> {
    sign(&compiled(GUEST), ("acme", name), 1, manifest)
}

fn engine() -> Result<Engine> {
    Ok(Engine::new(EngineSettings::new(key().verifying_key()))?)
}

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let engine = engine()?;
    let mut times = Vec::new();
    for number in 0..50 {
        let name = format!("filter-{number}");
        let artefact = sign_as(&name, HEADER_MANIFEST);
        let (tenant, name) = (TenantId::parse("acme")?, FilterName::parse(&name)?);
        let expected = Expected { tenant: &tenant, name: &name, version: 1, manifest: HEADER_MANIFEST };
        let begun = Instant::now();
        let loaded = engine.load(&artefact, &expected)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        drop(loaded);
    }
    report.add("load_one", median(times), "ms", None, "bar: 1 ms");
    let microseconds = child(CALL)?;
    report.add("header_filter.engine", microseconds, "µs", None, "the call alone, in its engine");
    let megabytes = child(LOADED)?;
    report.add("loaded_1000", megabytes, "MB", None, "bar: 300 MB");
    let kibibytes = child(IN_FLIGHT)?;
    report.add("resident_per_instance", kibibytes, "KiB", None, "bar: 128 KiB");
    Ok(())
}

/// Runs a part in a process of its own, in which nothing was freed before.
fn child(word: &str) -> Result<f64> {
    let output = Command::new(std::env::current_exe()?).arg(word).output()?;
    if !output.status.success() {
        bail!("{word}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().lines().next_back().context("a figure")?.parse().context("a figure")
}

/// Microseconds of processor for one call of a header filter, in a fresh instance.
pub(crate) fn call() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let engine = engine()?;
        let loaded = load(&engine, "header", HEADER_MANIFEST)?;
        let filter = loaded.configure(json!({"way": "read"}).as_object().context("an object")?)?;
        let context = context()?;
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let before = thread_time();
            for _ in 0..CALLS_OF_ROUND {
                let called = filter.on_request(context.clone()).await;
                let _verdict = called.outcome?;
            }
            let took = thread_time().saturating_sub(before);
            rounds.push(took.as_secs_f64() * 1e6 / f64::from(CALLS_OF_ROUND));
        }
        writeln!(std::io::stdout(), "{}", median(rounds))?;
        Ok(())
    })
}

/// The process's resident memory with 1,000 filters, in MB. The compiler is in this process, so
/// its memory counts against us.
pub(crate) fn loaded() -> Result<()> {
    let engine = engine()?;
    let mut filters = Vec::with_capacity(FILTERS);
    for number in 0..FILTERS {
        filters.push(load(&engine, &format!("filter-{number}"), HEADER_MANIFEST)?);
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure to read")]
    let megabytes = resident_bytes()? as f64 / 1e6;
    drop(filters);
    writeln!(std::io::stdout(), "{megabytes}")?;
    Ok(())
}

/// What each call in flight adds to the process's resident memory, in KiB.
pub(crate) fn in_flight() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let settings =
            EngineSettings { instances_per_tenant: CALLS + 1, ..EngineSettings::new(key().verifying_key()) };
        let engine = Engine::new(settings)?;
        let loaded = load(&engine, "spin", "phases = [\"request\"]\nlimits = { time = \"1s\" }")?;
        let spins = loaded.configure(json!({"way": "spin"}).as_object().context("an object")?)?;
        let reads = loaded.configure(json!({"way": "read"}).as_object().context("an object")?)?;
        let context = context()?;
        // A whole call, so that what is made once is made. One that was broken off would count as a failure,
        // after which calls take turns.
        let _verdict = reads.on_request(context.clone()).await.outcome?;
        let before = resident_bytes()?;
        let mut calls = Vec::new();
        for _ in 0..CALLS {
            let mut call = Box::pin(spins.on_request(context.clone()));
            // Polled once: it runs to its first tick and stays in flight.
            if (&mut call).now_or_never().is_some() {
                bail!("a call that never ends has ended");
            }
            calls.push(call);
        }
        #[expect(clippy::cast_precision_loss, reason = "a figure to read")]
        let grown = (resident_bytes()?.saturating_sub(before)) as f64 / 1024.0 / f64::from(CALLS);
        if grown < 1.0 {
            bail!("{CALLS} calls in flight take no memory: they are not in flight");
        }
        drop(calls);
        writeln!(std::io::stdout(), "{grown}")?;
        Ok(())
    })
}

fn context() -> Result<Context> {
    let session = Session {
        sandbox_id: SandboxId::from_random([0; 12]),
        tenant: TenantId::parse("acme")?,
        user_id: UserId::parse("alice")?,
        conversation_id: ConversationId::parse("c-1")?,
        operations: Vec::new(),
        tokens: Vec::new(),
        peer: Peer::Address(std::net::Ipv4Addr::LOCALHOST.into()),
        expires_at: jiff::Timestamp::MAX,
        template: TemplateName::parse("default")?,
        isolation: Isolation::Namespaces,
        labels: BTreeMap::new(),
        claims: serde_json::Map::new(),
    };
    let view = RequestView {
        method: Method::GET,
        backend: BackendName::parse("desk")?,
        operation: OperationId::parse("getOrder")?,
        path: "/orders/7".to_owned(),
        path_template: "/orders/{id}".into(),
        path_parameters: Vec::new(),
        query: Vec::new(),
        headers: Arc::new(HeaderMap::new()),
        body: Some(Bytes::new()),
    };
    Ok(Context { session: Arc::new(session), request: Arc::new(view) })
}
