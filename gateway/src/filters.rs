// SPDX-License-Identifier: Apache-2.0
//! Filters at their places in the chains of backends: what is attached, and calling it.
//!
//! The chain itself is in [`request`] and [`response`]. It knows filters by what [`AttachedFilter`]
//! tells of them and by [`Called`], never by the engine that runs them: another engine is another
//! variant of `Loaded` and `Runner` here (docs/decisions/0008-filter-engines.md).

mod request;
mod response;
mod stream;

pub(crate) use request::{Filtered, on_request};
pub(crate) use response::{answers_to, on_response};
pub(crate) use stream::FilteredBody;

use crate::identify::Caller;
use crate::metrics::FilterMetrics;
use crate::reject::{FilterRefusal, Reject};
use postern_common::clock;
use postern_common::control::FilterArtefact;
use postern_common::decision::{FilterLine, FilterPart, FilterPhase, Mode};
use postern_common::folder::{FilterAttachment, FilterMode, OnFailure};
use postern_common::id::{FilterName, OperationId, TenantId};
use postern_common::session::Session;
use postern_filter_engine::artefact::{Expected, VerifyingKey};
use postern_filter_engine::manifest::Phase;
use postern_filter_engine::{
    ConfiguredFilter, Context, Digest, Engine, EngineSettings, LoadedFilter, LogLevel, LogLine, Outcome,
    RequestView, ResponseView,
};
use postern_openapi::{Document, Operation};
use prometheus_client::metrics::histogram::Histogram;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// The engines that run filters. There is one kind now; a chain may hold filters of several.
#[derive(Debug, Clone)]
pub(crate) struct Engines {
    component: Option<Engine>,
}

/// A filter that was verified, and what it was loaded from.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    artefact: Digest,
    kind: LoadedKind,
}

#[derive(Debug, Clone)]
enum LoadedKind {
    Component(LoadedFilter),
}

impl Engines {
    /// Makes the engines; none without a key to verify artefacts with.
    pub(crate) fn new(key: Option<[u8; 32]>) -> Result<Self, String> {
        let settings = key.map(|key| EngineSettings::new(VerifyingKey::from_bytes(key)));
        let component = settings.map(Engine::new).transpose();
        component.map(|component| Self { component }).map_err(|error| causes(&error))
    }

    /// Verifies and loads a filter. One that is the same as `before` stays loaded: its buckets and
    /// counters go on.
    pub(crate) fn load(
        &self,
        tenant: &TenantId,
        name: &FilterName,
        artefact: &FilterArtefact,
        before: Option<&Loaded>,
    ) -> Result<Loaded, String> {
        let engine =
            self.component.as_ref().ok_or("this gateway has no artefact key, so it loads no filter")?;
        let digest = Digest::of(&artefact.artefact);
        if let Some(before) = before
            && before.artefact == digest
            && before.is_what_was_announced(artefact)
        {
            return Ok(before.clone());
        }
        let expected = Expected { tenant, name, version: artefact.version, manifest: &artefact.manifest };
        let loaded = engine.load(&artefact.artefact, &expected).map_err(|error| causes(&error))?;
        Ok(Loaded { artefact: digest, kind: LoadedKind::Component(loaded) })
    }

    /// Calls of filters that are under way.
    pub(crate) fn in_flight(&self) -> u32 {
        self.component.as_ref().map_or(0, Engine::in_flight)
    }
}

impl Loaded {
    /// The bytes are the same; are version and manifest that came with them, too?
    fn is_what_was_announced(&self, artefact: &FilterArtefact) -> bool {
        let LoadedKind::Component(filter) = &self.kind;
        let statement = filter.statement();
        statement.version == artefact.version
            && statement.manifest == Digest::of(artefact.manifest.as_bytes())
    }

    /// What the filter has counted since it was loaded.
    pub(crate) fn counters(&self) -> impl Iterator<Item = (&str, u64)> {
        let LoadedKind::Component(filter) = &self.kind;
        filter.counters()
    }
}

/// An error with its causes, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}

/// A filter at its place in a backend's chain.
#[derive(Debug)]
pub(crate) struct AttachedFilter {
    name: FilterName,
    /// Operations and groups; all if empty.
    applies_to: Vec<OperationId>,
    mode: FilterMode,
    on_failure: OnFailure,
    digest: String,
    /// Looked up at its first call.
    seconds: OnceLock<Histogram>,
    runner: Runner,
}

#[derive(Debug)]
enum Runner {
    Component(ConfiguredFilter),
}

impl AttachedFilter {
    /// Attaches a filter as a backend declares it.
    ///
    /// # Errors
    /// Settings that its schema refuses, and operations that do not exist.
    pub(crate) fn new(
        name: &FilterName,
        loaded: &Loaded,
        attachment: &FilterAttachment,
        document: &Document,
    ) -> Result<Self, String> {
        let (applies_to, settings, mode, on_failure) = match attachment {
            FilterAttachment::Name(_) => {
                (Vec::new(), serde_json::Map::new(), FilterMode::default(), OnFailure::default())
            }
            FilterAttachment::Configured(own) => {
                (own.operations.clone(), own.config.clone(), own.mode, own.on_failure)
            }
        };
        let exists =
            |id: &&OperationId| document.operations().iter().any(|operation| is_named(operation, id));
        if let Some(unknown) = applies_to.iter().find(|id| !exists(id)) {
            return Err(format!(
                "filter `{name}` is attached to `{unknown}`, which is no operation or group"
            ));
        }
        let LoadedKind::Component(filter) = &loaded.kind;
        let configured = filter.configure(&settings).map_err(|mistakes| mistakes.to_string())?;
        let digest = filter.statement().component.to_string();
        let runner = Runner::Component(configured);
        Ok(Self {
            name: name.clone(),
            applies_to,
            mode,
            on_failure,
            digest,
            seconds: OnceLock::new(),
            runner,
        })
    }

    pub(crate) fn name(&self) -> &str {
        self.name.as_str()
    }

    pub(crate) fn applies_to(&self, operation: &Operation) -> bool {
        self.applies_to.is_empty() || self.applies_to.iter().any(|id| is_named(operation, id))
    }

    fn has(&self, phase: Phase) -> bool {
        match &self.runner {
            Runner::Component(filter) => filter.filter().manifest().has(phase),
        }
    }

    /// The longest request body that it takes whole, if it takes any.
    fn body_limit(&self) -> Option<u64> {
        match &self.runner {
            Runner::Component(filter) => filter.filter().manifest().request_body,
        }
    }

    /// What it sees of a response's body.
    fn response_body(&self) -> ResponseBody {
        let Runner::Component(filter) = &self.runner;
        let manifest = filter.filter().manifest();
        match (manifest.response_body, manifest.response_chunk) {
            (Some(limit), _) => ResponseBody::Whole(limit),
            (None, Some(limit)) => ResponseBody::Parts(usize::try_from(limit).unwrap_or(usize::MAX)),
            (None, None) => ResponseBody::None,
        }
    }

    /// Whether request bodies are held for it. Not for one in shadow, which must not change what
    /// becomes of a request: it sees bodies that are held anyway.
    pub(crate) fn needs_body(&self) -> bool {
        !self.is_shadow() && self.has(Phase::Request) && self.body_limit().is_some()
    }

    /// Whether what a backend answers must come plain and whole: not compressed, not a range. One in
    /// shadow sees what comes anyway.
    pub(crate) fn needs_plain_response(&self) -> bool {
        !self.is_shadow() && self.has(Phase::Response) && self.response_body() != ResponseBody::None
    }

    fn is_shadow(&self) -> bool {
        self.mode == FilterMode::Shadow
    }
}

/// What a filter sees of a response's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResponseBody {
    None,
    /// All of it, at most so long.
    Whole(u64),
    /// Part after part, each at most so long.
    Parts(usize),
}

fn is_named(operation: &Operation, id: &OperationId) -> bool {
    operation.id == *id
        || operation.group().as_str() == id.as_str()
        || operation.tags.iter().any(|tag| tag == id.as_str())
}

/// Where it is told what filters did: metrics, and their authors' logs.
#[derive(Debug, Clone)]
pub(crate) struct Reports {
    pub(crate) metrics: FilterMetrics,
    pub(crate) lines: mpsc::Sender<FilterLine>,
}

impl Reports {
    /// A tenant's own words: in a field of their own, never as the message.
    fn log(&self, filter: &FilterName, session: &Session, logged: Vec<LogLine>) {
        for line in logged {
            let (tenant, sandbox, said) = (&session.tenant, &session.sandbox_id, &line.message);
            let level = match line.level {
                LogLevel::Debug => "debug",
                LogLevel::Info => "info",
                LogLevel::Warn => "warn",
            };
            tracing::debug!(%tenant, %sandbox, %filter, level, said, "filter log");
            let line = FilterLine {
                at: clock::now(),
                tenant: tenant.clone(),
                filter: filter.clone(),
                sandbox_id: sandbox.clone(),
                level: level.into(),
                message: line.message,
            };
            if self.lines.try_send(line).is_err() {
                self.metrics.lines_dropped.inc();
            }
        }
    }
}

/// A filter that came to no verdict.
#[derive(Debug)]
struct Failure {
    cause: &'static str,
    message: String,
}

impl Failure {
    const fn new(cause: &'static str, message: String) -> Self {
        Self { cause, message }
    }
}

/// What one call of a filter came to.
struct Called {
    outcome: Result<Outcome, Failure>,
    took: Duration,
    phase: Phase,
}

impl AttachedFilter {
    /// Calls the filter, for a response if there is one, and reports what it said.
    async fn call(
        &self,
        reports: &Reports,
        session: &Arc<Session>,
        request: Arc<RequestView>,
        response: Option<ResponseView>,
    ) -> Called {
        let phase = if response.is_some() { Phase::Response } else { Phase::Request };
        let context = Context { session: Arc::clone(session), request };
        let begun = Instant::now();
        let called = match (&self.runner, response) {
            (Runner::Component(component), None) => component.on_request(context).await,
            (Runner::Component(component), Some(response)) => {
                component.on_response(context, Arc::new(response)).await
            }
        };
        let took = begun.elapsed();
        reports.log(&self.name, session, called.logs);
        let seconds = self.seconds.get_or_init(|| reports.metrics.seconds_of(self.name.as_str()));
        seconds.observe(took.as_secs_f64());
        let outcome = called.outcome.map_err(|failure| {
            reports.metrics.failed(self.name.as_str(), failure.cause());
            Failure::new(failure.cause(), failure.to_string())
        });
        Called { outcome, took, phase }
    }

    /// What the decision record says of a call.
    fn part(&self, called: &Called) -> FilterPart {
        let (verdict, code) = match &called.outcome {
            Ok(Outcome::Continue) => ("continue", None),
            Ok(Outcome::Changed(_)) => ("changed", None),
            Ok(Outcome::Reject(rejection)) => ("reject", Some(rejection.code().to_owned())),
            Err(failure) => ("failed", Some(failure.cause.to_owned())),
        };
        FilterPart {
            name: self.name.clone(),
            digest: self.digest.clone(),
            verdict: verdict.to_owned(),
            code,
            mode: self.is_shadow().then_some(Mode::Shadow),
            phase: (called.phase == Phase::Response).then_some(FilterPhase::Response),
            microseconds: u64::try_from(called.took.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// What a call means for what it was about. A filter in shadow means nothing.
    ///
    /// # Errors
    /// [`Reject::FilterRejected`] as the filter says, [`Reject::FilterFailed`] where it came to no
    /// verdict, unless the tenant lets requests pass then.
    fn decide(&self, outcome: Result<Outcome, Failure>) -> Result<Outcome, Reject> {
        match outcome {
            _ if self.is_shadow() => Ok(Outcome::Continue),
            Ok(Outcome::Reject(rejection)) => Err(Reject::FilterRejected(FilterRefusal {
                filter: self.name.to_string(),
                status: rejection.status(),
                code: rejection.code().to_owned(),
                message: rejection.message().to_owned(),
            })),
            Ok(outcome) => Ok(outcome),
            Err(_) if self.on_failure == OnFailure::Open => Ok(Outcome::Continue),
            Err(failure) => Err(self.failed(failure.message)),
        }
    }

    fn failed(&self, cause: impl Into<String>) -> Reject {
        Reject::FilterFailed { filter: self.name.to_string(), cause: cause.into() }
    }
}

fn session_of(caller: &Caller) -> &Arc<Session> {
    &caller.session.session
}
