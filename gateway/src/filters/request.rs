// SPDX-License-Identifier: Apache-2.0
//! The chain of filters of an operation before a request is forwarded: each may continue, change,
//! or reject.
//!
//! A filter never forwards anything: what it changes comes back as an unjudged request, which
//! passes identity, schema and policies again. Filters run once; a later one sees what an
//! earlier one changed.

use super::{AttachedFilter, Called, Failure, session_of};
use crate::Gateway;
use crate::authorize::Granted;
use crate::body::{Admitted, AdmittedBody, read_again};
use crate::decision::Draft;
use crate::headers;
use crate::identify::Caller;
use crate::reject::Reject;
use crate::route::Call;
use bytes::Bytes;
use http::Method;
use http::header::CONTENT_TYPE;
use postern_common::decision::FilterPart;
use postern_filter_engine::manifest::Phase;
use postern_filter_engine::{Changes, Outcome, RequestView};
use postern_openapi::{Lookup, Query, RequestPath};
use std::sync::Arc;
use std::time::Duration;

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
/// verdict, unless the tenant lets requests pass then.
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
    let mut state = State::Granted(Box::new(granted));
    // What one filter saw the next sees too, until something changes.
    let mut seen: Option<Arc<RequestView>> = None;
    for filter in operation.filters.iter().filter(|filter| filter.has(Phase::Request)) {
        let view = match &seen {
            Some(view) => Arc::clone(view),
            None => Arc::clone(seen.insert(Arc::new(view(&operation.filters, &state)?))),
        };
        if !fits(filter, &view)? {
            draft.filter(unread(filter));
            continue;
        }
        let called = filter.call(&gateway.reports, session_of(caller), view, None).await;
        draft.filter(filter.part(&called));
        if let Outcome::Changed(changes) = filter.decide(called.outcome)? {
            seen = None;
            state = State::Changed(Box::new(apply(filter, state.into_unjudged(), &changes)?));
        }
    }
    draft.stage("filters");
    Ok(match state {
        State::Granted(granted) => Filtered::Same(granted),
        State::Changed(request) => Filtered::Changed(request),
    })
}

/// A request on its way through the chain.
enum State {
    Granted(Box<Granted>),
    Changed(Box<Admitted>),
}

impl State {
    fn parts(&self) -> (&Call, &AdmittedBody) {
        match self {
            Self::Granted(granted) => (granted.call(), granted.body()),
            Self::Changed(request) => (&request.call, &request.body),
        }
    }

    fn into_unjudged(self) -> Admitted {
        match self {
            Self::Granted(granted) => granted.into_unjudged(),
            Self::Changed(request) => *request,
        }
    }
}

/// Whether the filter can see what it asks for.
///
/// # Errors
/// [`Reject::BodyTooLarge`] for a body longer than the filter takes: what it cannot see whole does
/// not pass.
fn fits(filter: &AttachedFilter, view: &RequestView) -> Result<bool, Reject> {
    let Some(limit) = filter.body_limit() else { return Ok(true) };
    match &view.body {
        Some(body) if body.len() as u64 <= limit => Ok(true),
        _ if filter.is_shadow() => Ok(false),
        Some(_) => Err(Reject::BodyTooLarge { limit }),
        None => Err(filter.failed("the body that it reads was not held")),
    }
}

/// What the record says of a filter in shadow that could not see the body.
pub(super) fn unread(filter: &AttachedFilter) -> FilterPart {
    let outcome = Err(Failure::new("unread", String::new()));
    let part = filter.part(&Called { outcome, took: Duration::ZERO, phase: Phase::Request });
    FilterPart { verdict: "unread".to_owned(), code: None, ..part }
}

/// What filters see: the request as it would be forwarded, without credentials. The body is there
/// if one of them reads it; the engine shows it to those alone.
fn view(filters: &[Arc<AttachedFilter>], state: &State) -> Result<RequestView, Reject> {
    let (call, body) = state.parts();
    let is_read = filters.iter().any(|filter| filter.has(Phase::Request) && filter.body_limit().is_some());
    view_of(call, if is_read { written(body) } else { None })
}

/// A call as filters see it.
pub(super) fn view_of(call: &Call, body: Option<Bytes>) -> Result<RequestView, Reject> {
    let operation = &call.operation.operation;
    let parameters = call.parameters.iter();
    Ok(RequestView {
        method: Method::from_bytes(operation.method.as_str().as_bytes())
            .map_err(|_unreadable| Reject::Internal("a known method is none"))?,
        backend: call.backend.name.clone(),
        operation: operation.id.clone(),
        path: call.forwarded_path()?,
        path_template: Arc::clone(&call.operation.path_template),
        path_parameters: parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        query: call.query.pairs().to_vec(),
        headers: Arc::clone(&call.headers),
        body,
    })
}

/// A body as it would be forwarded, unless it is streamed.
fn written(body: &AdmittedBody) -> Option<Bytes> {
    match body {
        AdmittedBody::None => Some(Bytes::new()),
        AdmittedBody::Json(body) => Some(body.text().clone()),
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
    let content_type = call.headers.get(CONTENT_TYPE).cloned();
    let headers = Arc::make_mut(&mut call.headers);
    changes.apply_to_headers(headers);
    headers::clean_request(headers);
    let mut pairs = call.query.pairs().to_vec();
    changes.apply_to_query(&mut pairs);
    call.query = Query::from_pairs(pairs);
    if let Some(path) = changes.path() {
        move_to(&mut call, path).ok_or_else(|| filter.failed("it moved the request to another operation"))?;
    }
    let is_retyped = call.headers.get(CONTENT_TYPE) != content_type.as_ref();
    match (changes.body(), is_retyped) {
        (Some(bytes), _) => read_again(call, bytes.clone()),
        (None, false) => Ok(Admitted { call, body, content }),
        (None, true) => {
            let bytes = written(&body);
            let bytes =
                bytes.ok_or_else(|| filter.failed("it changed the type of a body that it does not read"))?;
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
