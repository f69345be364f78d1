// SPDX-License-Identifier: Apache-2.0
//! The chain of filters of an operation: each may continue, change, or reject.
//!
//! A filter never forwards anything: what it changes comes back as an unjudged request, which
//! passes identity, schema and policies again. Filters run once; a later one sees what an
//! earlier one changed. Filters of the response phase are refused until they are served.

use crate::Gateway;
use crate::authorize::Granted;
use crate::body::{Admitted, AdmittedBody, read_again};
use crate::decision::Draft;
use crate::headers;
use crate::identify::Caller;
use crate::reject::{FilterRefusal, Reject};
use crate::route::Call;
use bytes::Bytes;
use http::Method;
use http::header::CONTENT_TYPE;
use postern_common::control::FilterArtefact;
use postern_common::decision::FilterPart;
use postern_common::folder::FilterAttachment;
use postern_common::id::{FilterName, OperationId, TenantId};
use postern_filter_engine::artefact::{Expected, VerifyingKey};
use postern_filter_engine::manifest::{OnFailure, Phase};
use postern_filter_engine::{
    Changes, ConfiguredFilter, Context, Engine, EngineSettings, LoadedFilter, LogLevel, Outcome, RequestView,
};
use postern_openapi::{Document, Lookup, Operation, Query, RequestPath, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The engines that run filters. There is one kind now; a chain may hold filters of several.
#[derive(Debug, Clone)]
pub(crate) struct Engines {
    component: Option<Engine>,
}

/// A filter that was verified.
#[derive(Debug, Clone)]
pub(crate) enum Loaded {
    Component(LoadedFilter),
}

impl Engines {
    /// Makes the engines; none without a key to verify artefacts with.
    pub(crate) fn new(key: Option<[u8; 32]>) -> Result<Self, String> {
        let settings = key.map(|key| EngineSettings::new(VerifyingKey::from_bytes(key)));
        let component = settings.map(Engine::new).transpose();
        component.map(|component| Self { component }).map_err(|error| causes(&error))
    }

    pub(crate) fn load(
        &self,
        tenant: &TenantId,
        name: &FilterName,
        artefact: &FilterArtefact,
    ) -> Result<Loaded, String> {
        let engine =
            self.component.as_ref().ok_or("this gateway has no artefact key, so it loads no filter")?;
        let expected = Expected { tenant, name, version: artefact.version, manifest: &artefact.manifest };
        let loaded = engine.load(&artefact.artefact, &expected).map_err(|error| causes(&error))?;
        if loaded.manifest().has(Phase::Response) {
            return Err("filters of the response phase are not served yet; leave it out of `phases`".into());
        }
        Ok(Loaded::Component(loaded))
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
        let (applies_to, settings) = match attachment {
            FilterAttachment::Name(_) => (Vec::new(), serde_json::Map::new()),
            FilterAttachment::Configured(own) => (own.operations.clone(), own.config.clone()),
        };
        let exists =
            |id: &&OperationId| document.operations().iter().any(|operation| is_named(operation, id));
        if let Some(unknown) = applies_to.iter().find(|id| !exists(id)) {
            return Err(format!(
                "filter `{name}` is attached to `{unknown}`, which is no operation or group"
            ));
        }
        let runner = match loaded {
            Loaded::Component(filter) => {
                Runner::Component(filter.configure(&settings).map_err(|mistakes| mistakes.to_string())?)
            }
        };
        Ok(Self { name: name.clone(), applies_to, runner })
    }

    pub(crate) fn name(&self) -> &str {
        self.name.as_str()
    }

    pub(crate) fn applies_to(&self, operation: &Operation) -> bool {
        self.applies_to.is_empty() || self.applies_to.iter().any(|id| is_named(operation, id))
    }

    /// The longest body that it takes whole, if it takes any.
    fn body_limit(&self) -> Option<u64> {
        match &self.runner {
            Runner::Component(filter) => filter.filter().manifest().request_body,
        }
    }

    pub(crate) fn needs_body(&self) -> bool {
        self.body_limit().is_some()
    }

    fn digest(&self) -> String {
        match &self.runner {
            Runner::Component(filter) => filter.filter().statement().component.to_string(),
        }
    }

    fn fails_open(&self) -> bool {
        match &self.runner {
            Runner::Component(filter) => filter.filter().manifest().on_failure == OnFailure::Open,
        }
    }
}

fn is_named(operation: &Operation, id: &OperationId) -> bool {
    operation.id == *id
        || operation.group().as_str() == id.as_str()
        || operation.tags.iter().any(|tag| tag == id.as_str())
}

/// What came out of the chain.
#[derive(Debug)]
pub(crate) enum Filtered {
    /// Nothing was changed.
    Same(Box<Granted>),
    /// A filter changed the request, which must be judged again.
    Changed(Box<Admitted>),
}

/// Runs the operation's filters in order.
///
/// # Errors
/// [`Reject::FilterRejected`] as a filter says, [`Reject::FilterFailed`] where one came to no
/// verdict, unless its manifest lets requests pass then.
pub(crate) async fn on_request(
    gateway: &Gateway,
    caller: &Caller,
    granted: Granted,
    draft: &mut Draft,
) -> Result<Filtered, Reject> {
    let operation = Arc::clone(&granted.call().operation);
    if operation.filters.is_empty() {
        return Ok(Filtered::Same(Box::new(granted)));
    }
    let mut changed: Option<Admitted> = None;
    let mut granted = Some(granted);
    for filter in &operation.filters {
        let (call, body) = match (&changed, &granted) {
            (Some(request), _) => (&request.call, &request.body),
            (None, Some(granted)) => (granted.call(), granted.body()),
            (None, None) => return Err(Reject::Internal("a request was lost between filters")),
        };
        let view = view(filter, call, body)?;
        let begun = Instant::now();
        let outcome = run(filter, caller, view).await;
        let took = begun.elapsed();
        gateway.metrics.filter(filter.name.as_str(), took);
        draft.filter(part(filter, &outcome, took));
        match outcome {
            Ok(Outcome::Continue) => {}
            Ok(Outcome::Changed(changes)) => {
                let request = changed.take().or_else(|| granted.take().map(Granted::into_unjudged));
                let request = request.ok_or(Reject::Internal("a request was lost between filters"))?;
                changed = Some(apply(filter, request, &changes)?);
            }
            Ok(Outcome::Reject(rejection)) => {
                return Err(Reject::FilterRejected(FilterRefusal {
                    filter: filter.name.to_string(),
                    status: rejection.status(),
                    code: rejection.code().to_owned(),
                    message: rejection.message().to_owned(),
                }));
            }
            Err(failure) => {
                gateway.metrics.filter_failure(filter.name.as_str(), failure.cause);
                if !filter.fails_open() {
                    return Err(Reject::FilterFailed {
                        filter: filter.name.to_string(),
                        cause: failure.message,
                    });
                }
            }
        }
    }
    draft.stage("filters");
    match (changed, granted) {
        (Some(request), _) => Ok(Filtered::Changed(Box::new(request))),
        (None, Some(granted)) => Ok(Filtered::Same(Box::new(granted))),
        (None, None) => Err(Reject::Internal("a request was lost between filters")),
    }
}

/// A filter that came to no verdict.
struct Failure {
    cause: &'static str,
    message: String,
}

async fn run(filter: &AttachedFilter, caller: &Caller, view: RequestView) -> Result<Outcome, Failure> {
    let context = Context { session: Arc::clone(&caller.session.session), request: Arc::new(view) };
    let called = match &filter.runner {
        Runner::Component(component) => component.on_request(context).await,
    };
    let (tenant, sandbox) = (&caller.session.session.tenant, &caller.session.session.sandbox_id);
    for line in called.logs {
        // A tenant's own words: in a field of their own, never as the message.
        match line.level {
            LogLevel::Debug => {
                tracing::debug!(%tenant, %sandbox, filter = %filter.name, said = line.message, "filter log");
            }
            LogLevel::Info => {
                tracing::info!(%tenant, %sandbox, filter = %filter.name, said = line.message, "filter log");
            }
            LogLevel::Warn => {
                tracing::warn!(%tenant, %sandbox, filter = %filter.name, said = line.message, "filter log");
            }
        }
    }
    called.outcome.map_err(|failure| Failure { cause: failure.cause(), message: failure.to_string() })
}

fn part(filter: &AttachedFilter, outcome: &Result<Outcome, Failure>, took: Duration) -> FilterPart {
    let verdict = match outcome {
        Ok(Outcome::Continue) => "continue",
        Ok(Outcome::Changed(_)) => "changed",
        Ok(Outcome::Reject(_)) => "reject",
        Err(_) => "failed",
    };
    FilterPart {
        name: filter.name.clone(),
        digest: filter.digest(),
        verdict: verdict.to_owned(),
        microseconds: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
    }
}

/// What the filter sees: the request as it would be forwarded, without credentials.
fn view(filter: &AttachedFilter, call: &Call, body: &AdmittedBody) -> Result<RequestView, Reject> {
    let operation = &call.operation.operation;
    let body = match filter.body_limit() {
        None => None,
        Some(limit) => {
            let bytes = written(body);
            if bytes.as_ref().is_some_and(|bytes| bytes.len() as u64 > limit) {
                return Err(Reject::BodyTooLarge { limit });
            }
            bytes
        }
    };
    Ok(RequestView {
        method: Method::from_bytes(operation.method.as_str().as_bytes())
            .map_err(|_unreadable| Reject::Internal("a known method is none"))?,
        backend: call.backend.name.clone(),
        operation: operation.id.clone(),
        path: call.forwarded_path()?,
        path_template: call.operation.path_template.as_str().into(),
        path_parameters: call
            .parameters
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        query: call.query.pairs().to_vec(),
        headers: call.headers.clone(),
        body,
    })
}

/// A body as it would be forwarded, unless it is streamed.
fn written(body: &AdmittedBody) -> Option<Bytes> {
    match body {
        AdmittedBody::None => Some(Bytes::new()),
        AdmittedBody::Json(value) => Some(json::write(value).into()),
        AdmittedBody::Form(form) => Some(form.rebuild().into()),
        AdmittedBody::Multipart(multipart) => Some(multipart.rebuild()),
        AdmittedBody::Doubtful(text) => Some(text.clone().into()),
        AdmittedBody::Whole(bytes) => Some(bytes.clone()),
        AdmittedBody::Stream(_) => None,
    }
}

/// Makes a filter's changes. What they come to is read as strictly as a client's request.
fn apply(filter: &AttachedFilter, request: Admitted, changes: &Changes) -> Result<Admitted, Reject> {
    let Admitted { mut call, body, content } = request;
    let failed =
        |cause: &str| Reject::FilterFailed { filter: filter.name.to_string(), cause: cause.to_owned() };
    let content_type = call.headers.get(CONTENT_TYPE).cloned();
    changes.apply_to_headers(&mut call.headers);
    headers::clean_request(&mut call.headers);
    let mut pairs = call.query.pairs().to_vec();
    changes.apply_to_query(&mut pairs);
    call.query = Query::from_pairs(pairs);
    if let Some(path) = changes.path() {
        move_to(&mut call, path).ok_or_else(|| failed("it moved the request to another operation"))?;
    }
    let is_retyped = call.headers.get(CONTENT_TYPE) != content_type.as_ref();
    match (changes.body(), is_retyped) {
        (Some(bytes), _) => read_again(call, bytes.clone()),
        (None, false) => Ok(Admitted { call, body, content }),
        (None, true) => {
            let bytes = written(&body);
            let bytes = bytes.ok_or_else(|| failed("it changed the type of a body that it does not read"))?;
            read_again(call, bytes)
        }
    }
}

/// Moves a request to another path of the same operation.
fn move_to(call: &mut Call, path: &str) -> Option<()> {
    let path = RequestPath::parse(path).ok()?;
    let backend = Arc::clone(&call.backend);
    let Lookup::Found(found) = backend.document.routes().lookup(Some(call.operation.operation.method), &path)
    else {
        return None;
    };
    let operation = backend.operations.get(found.operation)?;
    if !Arc::ptr_eq(operation, &call.operation) {
        return None;
    }
    call.parameters = found.parameters;
    call.path = path;
    Some(())
}
