// SPDX-License-Identifier: Apache-2.0
//! A loaded filter, and calling it.
//!
//! Calls are `async` although a header filter takes microseconds: one that loops must not hold a
//! worker of the runtime until its deadline. It yields at each tick and then takes turns with the
//! other slow calls of its tenant. A call that has only just begun when a tick comes does not yield, so
//! quick ones never do. Calls of a filter that failed lately begin with their turn, on a thread of their
//! own (`aside`).

use crate::artefact::Statement;
use crate::bindings::FilterPre;
use crate::bindings::Verdict;
use crate::buckets::Buckets;
use crate::call::{Call, Subject, by_the_clock};
use crate::engine::Engine;
use crate::failure::FilterFailure;
use crate::gauge::{Gauge, Turn};
use crate::manifest::{Manifest, Phase};
use crate::outcome::{LogLine, Outcome, Rejection};
use crate::suspicion::Suspicion;
use crate::view::{RequestView, ResponseView};
use postern_common::id::SandboxId;
use postern_common::session::Session;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wasmtime::Store;

/// A filter that was verified and linked. Cheap to clone; all clones are one filter.
#[derive(Clone)]
pub struct LoadedFilter(Arc<Shared>);

/// What all calls of a filter share.
pub(crate) struct Shared {
    engine: Engine,
    ready: FilterPre<Call>,
    statement: Statement,
    gauge: Arc<Gauge>,
    pub(crate) manifest: Manifest,
    pub(crate) buckets: Buckets,
    counters: BTreeMap<String, AtomicU64>,
    dropped_logs: AtomicU64,
    suspicion: Suspicion,
}

/// A filter with the settings of one attachment.
#[derive(Debug, Clone)]
pub struct ConfiguredFilter {
    filter: LoadedFilter,
    config: Arc<str>,
}

/// Settings that the manifest's `[config_schema]` does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the settings of filter `{name}` are refused by its config_schema: {}", mistakes.join("; "))]
pub struct ConfigMistakes {
    /// The filter.
    pub name: String,
    /// Each with its JSON pointer.
    pub mistakes: Vec<String>,
}

/// Who calls, of what request.
#[derive(Debug, Clone)]
pub struct Context {
    /// The session.
    pub session: Arc<Session>,
    /// The request; its body is there if the manifest asks for it.
    pub request: Arc<RequestView>,
}

/// What a call came to.
#[derive(Debug)]
pub struct Called {
    /// The verdict; or why there is none, which refuses the request unless the tenant has it
    /// otherwise.
    pub outcome: Result<Outcome, FilterFailure>,
    /// What the filter logged, bounded by the manifest's `limits.log`.
    pub logs: Vec<LogLine>,
    /// The largest that the instance's linear memory was.
    pub memory_bytes: usize,
}

impl Called {
    /// One that never began.
    const fn failed(failure: FilterFailure) -> Self {
        Self { outcome: Err(failure), logs: Vec::new(), memory_bytes: 0 }
    }
}

impl fmt::Debug for LoadedFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("LoadedFilter").field(&self.0.statement).finish()
    }
}

impl Shared {
    /// Adds to a counter, if the manifest declares it.
    pub(crate) fn add(&self, counter: &str, amount: u32) -> bool {
        self.counters
            .get(counter)
            .map(|count| count.fetch_add(u64::from(amount), Ordering::Relaxed))
            .is_some()
    }

    /// Waits for the turn of a call that has not begun, at most for as long as it may take. It takes
    /// no place among the calls in flight meanwhile, so that those of others do not run out.
    async fn first_turn(&self) -> Result<Turn, FilterFailure> {
        let turn = Turn::default();
        let waiting = self.gauge.wait().ok_or(FilterFailure::Concurrency)?;
        let patience = by_the_clock(&self.manifest.limits);
        let came = tokio::time::timeout(patience, self.gauge.next_turn(&turn)).await;
        drop(waiting);
        came.map(|()| turn).map_err(|_late| FilterFailure::Deadline)
    }

    pub(crate) fn count_dropped_log(&self) {
        self.dropped_logs.fetch_add(1, Ordering::Relaxed);
    }
}

impl LoadedFilter {
    pub(crate) fn new(
        engine: Engine,
        ready: FilterPre<Call>,
        manifest: Manifest,
        statement: Statement,
        gauge: Arc<Gauge>,
    ) -> Self {
        let counters = manifest.counters.iter().map(|name| (name.clone(), AtomicU64::new(0)));
        Self(Arc::new(Shared {
            engine,
            ready,
            statement,
            gauge,
            counters: counters.collect(),
            buckets: Buckets::new(manifest.buckets.clone()),
            manifest,
            dropped_logs: AtomicU64::new(0),
            suspicion: Suspicion::default(),
        }))
    }

    /// What was signed: tenant, name, version and digests.
    #[must_use]
    pub fn statement(&self) -> &Statement {
        &self.0.statement
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// The counters that the manifest declares, since the filter was loaded.
    pub fn counters(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.counters.iter().map(|(name, count)| (name.as_str(), count.load(Ordering::Relaxed)))
    }

    /// Lines of log that were cut or dropped, since the filter was loaded.
    #[must_use]
    pub fn dropped_logs(&self) -> u64 {
        self.0.dropped_logs.load(Ordering::Relaxed)
    }

    /// Calls of this filter's tenant that are in flight.
    #[must_use]
    pub fn tenant_in_flight(&self) -> u32 {
        self.0.gauge.in_flight()
    }

    /// The filter with the settings of one attachment, laid over the manifest's `[config]`.
    ///
    /// # Errors
    /// [`ConfigMistakes`] lists what the manifest's `[config_schema]` refuses.
    pub fn configure(&self, settings: &Map<String, Value>) -> Result<ConfiguredFilter, ConfigMistakes> {
        let mut config = self.0.manifest.config.clone();
        config.extend(settings.clone());
        let config = Value::Object(config);
        let schema = self.0.manifest.config_schema.as_ref();
        let mistakes: Vec<String> = schema
            .map(|schema| schema.mistakes(&config))
            .into_iter()
            .flatten()
            .map(|mistake| format!("{}: {}", mistake.pointer, mistake.message))
            .collect();
        if !mistakes.is_empty() {
            return Err(ConfigMistakes { name: self.0.statement.name.to_string(), mistakes });
        }
        Ok(ConfiguredFilter { filter: self.clone(), config: config.to_string().into() })
    }
}

impl ConfiguredFilter {
    /// The filter itself.
    #[must_use]
    pub const fn filter(&self) -> &LoadedFilter {
        &self.filter
    }

    /// Calls the filter for a request, in a fresh instance.
    ///
    /// Must be polled within a tokio runtime with time. Dropping the future ends the call.
    pub async fn on_request(&self, context: Context) -> Called {
        self.call(context, None).await
    }

    /// Calls the filter for the response to a request, or for one part of its body, in a fresh
    /// instance.
    ///
    /// Must be polled within a tokio runtime with time. Dropping the future ends the call.
    pub async fn on_response(&self, context: Context, response: Arc<ResponseView>) -> Called {
        self.call(context, Some(response)).await
    }

    async fn call(&self, context: Context, response: Option<Arc<ResponseView>>) -> Called {
        let shared = &self.filter.0;
        let subject = Subject { session: context.session, request: context.request, response };
        if !shared.suspicion.falls_on(&subject.session.sandbox_id) {
            return self.run(subject, None).await;
        }
        let turn = match shared.first_turn().await {
            Ok(turn) => turn,
            Err(failure) => return Called::failed(failure),
        };
        let (filter, within) = (self.clone(), by_the_clock(&shared.manifest.limits));
        let run = shared.engine.aside().run(async move { filter.run(subject, Some(turn)).await });
        match tokio::time::timeout(within, run).await {
            Ok(Some(called)) => called,
            // The thread had no time for it, or the host itself panicked.
            Err(_) | Ok(None) => Called::failed(FilterFailure::Deadline),
        }
    }

    /// Calls it on the thread that polls this; who is suspected has its turn.
    async fn run(&self, subject: Subject, first_turn: Option<Turn>) -> Called {
        let shared = &self.filter.0;
        let Some(place) = shared.gauge.enter() else {
            return Called::failed(FilterFailure::Concurrency);
        };
        let session = Arc::clone(&subject.session);
        let session = &session.sandbox_id;
        let is_trusted = first_turn.is_none();
        let place = (place, first_turn.unwrap_or_default());
        let call = Call::new(Arc::clone(shared), Arc::clone(&self.config), subject, place);
        let phase = call.phase;
        let mut store = Store::new(shared.engine.wasmtime(), call);
        store.limiter(|call| call);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().tick()?));
        let mut unfinished = Unfinished(is_trusted.then_some((&shared.suspicion, session)));
        let verdict = verdict(&shared.ready, &mut store, phase).await;
        unfinished.0 = None;
        let mut call = store.into_data();
        let changes = std::mem::take(&mut call.changes);
        let outcome = match verdict {
            Ok(Verdict::Continue) if changes.is_empty() => Ok(Outcome::Continue),
            Ok(Verdict::Continue) => Ok(Outcome::Changed(changes)),
            Ok(Verdict::Reject(it)) => Rejection::new(it.status, it.code, it.message).map(Outcome::Reject),
            Err(error) => Err(FilterFailure::of(&error)),
        };
        match &outcome {
            Ok(_) => shared.suspicion.ended_well(session),
            Err(failure) if call.is_to_blame(failure) => shared.suspicion.failed(session),
            Err(_starved) => {}
        }
        Called { outcome, logs: call.logs, memory_bytes: call.memory_bytes }
    }
}

/// A call that has begun. Dropped, whoever asked has left while it took turns, so it was no quick one;
/// what it would have come to nobody knows. Who leaves each time gets no ticks for nothing. Of one
/// that was suspected before this says nothing new: it may be the thread beside that had no time for it.
struct Unfinished<'a>(Option<(&'a Suspicion, &'a SandboxId)>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some((suspicion, session)) = self.0 {
            suspicion.failed(session);
        }
    }
}

async fn verdict(
    ready: &FilterPre<Call>,
    store: &mut Store<Call>,
    phase: Phase,
) -> wasmtime::Result<Verdict> {
    let filter = ready.instantiate_async(&mut *store).await?;
    match phase {
        Phase::Request => filter.call_on_request(store).await,
        Phase::Response => filter.call_on_response(store).await,
    }
}
