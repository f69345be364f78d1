// SPDX-License-Identifier: Apache-2.0
//! Passes a backend's answer back: headers cleaned, the body streamed as it comes or as its filters
//! leave it.
//!
//! The body holds the request's permit until its last byte, and breaks off when the session ends.

use crate::broker::REQUEST_ID;
use crate::echo::EchoGuard;
use crate::files::SyncBody;
use crate::filters::FilteredBody;
use crate::headers::{announce, announced, clean_response, clean_response_trailers};
use crate::limits::{Budget, Permit};
use crate::snapshot::Backend;
use crate::websocket::Opened;
use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderMap, HeaderName, HeaderValue, Response, response::Parts};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use postern_common::id::RequestId;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use url::Url;

/// What a backend answered: the head, and the body as it comes.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Parts,
    pub(crate) body: Body,
    pub(crate) backend: Arc<Backend>,
    /// Until the head was there.
    pub(crate) took: Duration,
    /// The backend's side of a WebSocket that was asked for.
    pub(crate) opened: Option<Opened>,
}

/// A response body that could not be passed on whole. The connection to the sandbox breaks off,
/// so that half an answer is never taken for a whole one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokenOff {
    #[error("the session has ended")]
    SessionEnded,
    #[error("the backend broke off its answer")]
    Backend(#[source] hyper::Error),
    #[error("a filter refused the rest of the answer")]
    Filter,
    #[error("the sandbox's sync sends too slowly")]
    TooSlow,
}

/// The body of a backend's answer on its way.
pub(crate) struct BackendBody {
    incoming: Incoming,
    backend: Arc<Backend>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Covers the backend's credential where it is echoed.
    guard: Option<EchoGuard>,
    trailers: Option<HeaderMap>,
    _permit: Permit,
}

impl std::fmt::Debug for BackendBody {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("BackendBody").field("incoming", &self.incoming).finish_non_exhaustive()
    }
}

impl BackendBody {
    pub(crate) fn new(
        incoming: Incoming,
        backend: Arc<Backend>,
        permit: Permit,
        ended: &CancellationToken,
    ) -> Self {
        let ended = Box::pin(ended.clone().cancelled_owned());
        let has_length = http_body::Body::size_hint(&incoming).exact().is_some();
        let guard = backend.needles().map(|needles| EchoGuard::new(needles, has_length));
        Self { incoming, backend, ended, guard, trailers: None, _permit: permit }
    }

    /// What is passed on of the next bytes, if anything is yet.
    fn guarded(&mut self, bytes: Bytes) -> Option<Bytes> {
        let Some(guard) = &mut self.guard else { return Some(bytes) };
        Some(guard.pass(bytes)).filter(|passed| !passed.is_empty())
    }

    /// What is left of the bytes, before trailers or at the end.
    fn rest(&mut self) -> Option<Bytes> {
        self.guard.as_mut().and_then(EchoGuard::rest)
    }

    /// Keeps trailers, cleaned as the head is, until the last byte is passed on.
    fn keep(&mut self, trailers: Frame<Bytes>) {
        let Ok(mut trailers) = trailers.into_trailers() else { return };
        clean_response_trailers(&mut trailers, |folded| self.backend.identity.has_folded(folded));
        if let Some(needles) = self.backend.needles() {
            needles.clean(&mut trailers);
        }
        self.trailers = Some(trailers);
    }
}

/// The body of an answer to a sandbox.
#[derive(Debug)]
pub(crate) enum Body {
    /// Ours, or a backend's that is here whole.
    Own(Bytes),
    /// A backend's.
    Backend(Box<BackendBody>),
    /// A backend's that turned out to be too long to be held.
    Joined { begun: Bytes, rest: Box<Self> },
    /// A backend's that filters see as it comes.
    Filtered(FilteredBody),
    /// The orchestrator's, to a sandbox's sync.
    Sync(Box<SyncBody>),
}

impl Body {
    /// The next bytes; nothing at the end.
    pub(crate) async fn next_data(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        loop {
            let next = poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut *self), context)).await?;
            match next.map(Frame::into_data) {
                Err(broken) => return Some(Err(broken)),
                Ok(Ok(data)) if !data.is_empty() => return Some(Ok(data)),
                Ok(_) => {}
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let body = match &mut *self {
            Self::Joined { begun, rest } if begun.is_empty() => {
                return Pin::new(&mut **rest).poll_frame(context);
            }
            Self::Own(bytes) | Self::Joined { begun: bytes, .. } => {
                let bytes = std::mem::take(bytes);
                return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
            }
            Self::Filtered(body) => return body.poll_frame(context),
            Self::Sync(body) => return Pin::new(&mut **body).poll_frame(context),
            Self::Backend(body) => body,
        };
        if body.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(BrokenOff::SessionEnded)));
        }
        loop {
            if let Some(trailers) = body.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            let passed = match ready!(Pin::new(&mut body.incoming).poll_frame(context)) {
                None => return Poll::Ready(body.rest().map(|rest| Ok(Frame::data(rest)))),
                Some(Err(error)) => return Poll::Ready(Some(Err(BrokenOff::Backend(error)))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => body.guarded(bytes),
                    Err(trailers) => {
                        body.keep(trailers);
                        body.rest()
                    }
                },
            };
            if let Some(bytes) = passed {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_empty(),
            Self::Backend(body) => {
                body.incoming.is_end_stream()
                    && body.trailers.is_none()
                    && body.guard.as_ref().is_none_or(EchoGuard::is_empty)
            }
            Self::Joined { begun, rest } => begun.is_empty() && rest.is_end_stream(),
            Self::Filtered(_) => false,
            Self::Sync(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Backend(body) => body.incoming.size_hint(),
            Self::Sync(body) => body.size_hint(),
            Self::Joined { .. } | Self::Filtered(_) => SizeHint::default(),
        }
    }
}

/// Makes the answer to the sandbox.
pub(crate) fn pass_on(answer: Answer, request_id: &RequestId, budget: &Budget) -> Response<Body> {
    let Answer { mut head, body, backend, .. } = answer;
    let is_identity = |folded: &str| backend.identity.has_folded(folded);
    let trailers = announced(&head.headers);
    clean_response(&mut head.headers, is_identity);
    if matches!(body, Body::Backend(_)) {
        announce(&mut head.headers, &trailers, |names| clean_response_trailers(names, is_identity));
    }
    relocate(&mut head.headers, &backend);
    mark(&mut head.headers, request_id);
    let (left, quota) = budget.session_level(Instant::now());
    let fields = [
        ("ratelimit", format!("\"session\";r={left}")),
        ("ratelimit-policy", format!("\"session\";q={quota}")),
    ];
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::from_str(&value) {
            head.headers.insert(HeaderName::from_static(name), value);
        }
    }
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}

/// Where a `Location` points to.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// The backend: the path under which the sandbox reaches it.
    Own(String),
    /// The backend's host, but nothing that requests may go to.
    Beside,
    /// Somewhere else, or relative to the request.
    Elsewhere,
}

/// Turns a `Location` on the backend's own host into a path that the sandbox can ask for: the
/// backend's host is none of its business, and not to be reached from there.
fn relocate(headers: &mut HeaderMap, backend: &Backend) {
    let Some(location) = headers.get(LOCATION).and_then(|value| value.to_str().ok()) else { return };
    let own = format!("{}://{}/", backend.scheme, backend.authority);
    match target(location, backend.name.as_str(), &own, &backend.base_path) {
        Target::Elsewhere => {}
        Target::Own(path) => match HeaderValue::try_from(path) {
            Ok(path) => drop(headers.insert(LOCATION, path)),
            Err(_unreadable) => drop(headers.remove(LOCATION)),
        },
        Target::Beside => drop(headers.remove(LOCATION)),
    }
}

fn target(location: &str, name: &str, own: &str, base_path: &str) -> Target {
    let Ok(own) = Url::parse(own) else { return Target::Elsewhere };
    let is_relative = !location.starts_with(['/', '\\']) && Url::parse(location).is_err();
    let Some(found) = own.join(location).ok().filter(|_| !is_relative) else { return Target::Elsewhere };
    if found.origin() != own.origin() {
        return Target::Elsewhere;
    }
    let rest = found.path().strip_prefix(base_path);
    let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
        return Target::Beside;
    };
    let part = |sign: &str, part: Option<&str>| part.map(|part| format!("{sign}{part}")).unwrap_or_default();
    Target::Own(format!("/{name}{rest}{}{}", part("?", found.query()), part("#", found.fragment())))
}

/// Writes the request's id into an answer.
pub(crate) fn mark(headers: &mut HeaderMap, request_id: &RequestId) {
    if let Ok(id) = HeaderValue::from_str(request_id.as_str()) {
        headers.insert(REQUEST_ID, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_on_the_backends_host_becomes_a_path_of_the_gateways() {
        let of = |location: &str| target(location, "desk", "https://desk.internal:8443/", "/api/v1");
        let own = |path: &str| Target::Own(path.to_owned());
        assert_eq!(of("https://desk.internal:8443/api/v1/orders/7?a=b#c"), own("/desk/orders/7?a=b#c"));
        assert_eq!(of("//DESK.internal:8443/api/v1/orders"), own("/desk/orders"));
        assert_eq!(of("/api/v1/orders/7"), own("/desk/orders/7"));
        assert_eq!(of("/api/v1"), own("/desk"));
        assert_eq!(of("/api/v1/../v1/orders"), own("/desk/orders"));
        for beside in ["/api/v10/orders", "/login", "/api/v1/../../admin", "https://desk.internal:8443/"] {
            assert_eq!(of(beside), Target::Beside, "{beside}");
        }
        for elsewhere in [
            "7",
            "../orders",
            "?page=2",
            "http://desk.internal:8443/api/v1/x",
            "https://desk.internal/api/v1/x",
        ] {
            assert_eq!(of(elsewhere), Target::Elsewhere, "{elsewhere}");
        }
    }
}
