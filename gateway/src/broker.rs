// SPDX-License-Identifier: Apache-2.0
//! Attaches the backend's credential, after everything that could see or change the request.
//!
//! What comes out is [`Sealed`], the only thing that [`crate::upstream`] sends. The credential is
//! in no log and no error: its header is marked sensitive, and nothing reads `Sealed` but the
//! connection to the backend.

use crate::assertion::{About, Asserter};
use crate::authorize::Granted;
use crate::body::streamed::StreamedBody;
use crate::body::{AdmittedBody, BodyFault};
use crate::echo::Needles;
use crate::head::Trailers;
use crate::headers::{announce, clean_request_trailers, is_tenants};
use crate::identify::Caller;
use crate::limits::{HeldRoom, roomed};
use crate::registry::Source;
use crate::reject::Reject;
use crate::snapshot::Backend;
use crate::websocket::Key;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, IF_RANGE, RANGE, TE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use http_body::{Frame, SizeHint};
use jiff::Timestamp;
use postern_common::clock;
use postern_common::folder::{Credential, CredentialScheme};
use postern_common::id::{RequestId, SecretName, TenantId};
use postern_common::secret::Secret;
use prometheus_client::metrics::counter::Counter;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use tokio::sync::watch;

/// The header that ties the backend's log to ours.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A backend's credential, ready to attach.
#[derive(Debug)]
pub(crate) struct BackendCredential {
    name: HeaderName,
    value: Value,
    /// How it looks where the backend echoes it.
    pub(crate) needles: Option<Arc<Needles>>,
}

#[derive(Debug)]
enum Value {
    /// A secret's header; nothing if the secret is not here.
    Fixed(Option<HeaderValue>),
    /// A token of ours for each request, for this audience.
    Assertion(String),
}

/// A credential that cannot be attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("credential header `{0}` is no header name, or is one that the gateway writes itself")]
pub(crate) struct BadHeader(String);

impl BackendCredential {
    /// The header that takes it.
    pub(crate) fn name(&self) -> &HeaderName {
        &self.name
    }

    /// Makes the header of a declared credential. A secret that is absent, or that no header can
    /// hold, is noticed when it is needed: other backends are served meanwhile.
    ///
    /// # Errors
    /// [`BadHeader`] for a header name that cannot carry it.
    pub(crate) fn new(
        credential: &Credential,
        secrets: &BTreeMap<SecretName, Secret<String>>,
        (tenant, echoed): (&TenantId, &Counter),
    ) -> Result<Self, BadHeader> {
        let (secret, header, scheme) = match credential {
            Credential::Bearer(secret) => (secret, None, CredentialScheme::Bearer),
            Credential::Attached(attached) => (&attached.secret, attached.header.as_deref(), attached.scheme),
            Credential::Assertion(declared) => {
                // With the tenant's name before it: no tenant can have one made that another's backend
                // takes for its own.
                let value = Value::Assertion(format!("{tenant}/{}", declared.assertion));
                return Ok(Self { name: header_name(declared.header.as_deref())?, value, needles: None });
            }
        };
        let name = header_name(header)?;
        let Some(secret) = secrets.get(secret) else {
            return Ok(Self { name, value: Value::Fixed(None), needles: None });
        };
        let (text, needle) = match (header, scheme) {
            (Some(_), _) => (secret.clone(), None),
            (None, CredentialScheme::Bearer) => (Secret::new(format!("Bearer {}", secret.reveal())), None),
            (None, CredentialScheme::Basic) => {
                let encoded = Secret::new(STANDARD.encode(secret.reveal()));
                (Secret::new(format!("Basic {}", encoded.reveal())), Some(encoded))
            }
        };
        let value = HeaderValue::from_str(text.reveal()).ok().map(|mut value| {
            value.set_sensitive(true);
            value
        });
        let spellings: Vec<&Secret<String>> = [Some(secret), needle.as_ref()].into_iter().flatten().collect();
        let needles = Needles::new(&spellings, echoed.clone());
        Ok(Self { name, value: Value::Fixed(value), needles })
    }

    fn value(&self, asserter: &Asserter, about: &About<'_>, now: Timestamp) -> Result<HeaderValue, Reject> {
        match &self.value {
            Value::Fixed(value) => value.clone().ok_or(Reject::CredentialMissing),
            Value::Assertion(audience) => asserter.assert(&About { audience, ..*about }, now),
        }
    }
}

fn header_name(declared: Option<&str>) -> Result<HeaderName, BadHeader> {
    let name = match declared {
        None => AUTHORIZATION,
        Some(text) => HeaderName::try_from(text).map_err(|_not_a_name| BadHeader(text.to_owned()))?,
    };
    if is_tenants(name.as_str()) { Ok(name) } else { Err(BadHeader(name.to_string())) }
}

/// A request exactly as the backend will receive it.
#[derive(Debug)]
pub(crate) struct Sealed {
    backend: Arc<Backend>,
    request: Request<SealedBody>,
    websocket: Option<Key>,
}

impl Sealed {
    /// Opens it for the connection to the backend; nothing else may. The key is there if it asks
    /// for a WebSocket.
    pub(crate) fn into_parts(self) -> (Arc<Backend>, Request<SealedBody>, Option<Key>) {
        (self.backend, self.request, self.websocket)
    }
}

/// Seals a granted request.
///
/// # Errors
/// [`Reject::CredentialMissing`] if the backend needs a secret that is not here.
pub(crate) fn attach(
    granted: Granted,
    caller: &Caller,
    request_id: &RequestId,
    asserter: &Asserter,
) -> Result<Sealed, Reject> {
    let (call, body) = granted.into_parts();
    let mut path_and_query = format!("{}{}", call.backend.base_path, call.forwarded_path()?);
    let query = call.query.rebuild();
    if !query.is_empty() {
        path_and_query.push('?');
        path_and_query.push_str(&query);
    }
    let uri = Uri::builder()
        .scheme(call.backend.scheme.clone())
        .authority(call.backend.authority.clone())
        .path_and_query(path_and_query)
        .build()
        .map_err(|_unreadable| Reject::Internal("a rebuilt path is no URI"))?;
    let method = http::Method::from_bytes(call.operation.operation.method.as_str().as_bytes())
        .map_err(|_unreadable| Reject::Internal("a known method is none"))?;
    let mut request = Request::new(sealed_body(body, call.room));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    // Whoever was shown them is done.
    *request.headers_mut() = Arc::unwrap_or_clone(call.headers);
    if call.operation.is_response_read {
        plain_answers(request.headers_mut());
    }
    let is_watched = call.backend.credential.as_ref().is_some_and(|credential| credential.needles.is_some());
    if is_watched {
        request.headers_mut().remove(ACCEPT_ENCODING);
    }
    crate::response::mark(request.headers_mut(), request_id);
    forwarded(request.headers_mut(), &caller.source, &call.backend);
    if let Some(credential) = &call.backend.credential {
        let about = About {
            session: &caller.session,
            audience: "",
            method: request.method().as_str(),
            path: request.uri().path_and_query().map_or("/", PathAndQuery::as_str),
            request_id,
        };
        let value = credential.value(asserter, &about, clock::now())?;
        request.headers_mut().insert(credential.name.clone(), value);
    }
    trailers(request.headers_mut(), &call.trailers, &call.backend);
    if let Some(key) = &call.websocket {
        key.ask(request.headers_mut());
    }
    Ok(Sealed { backend: call.backend, request, websocket: call.websocket })
}

/// Says who forwarded what, in place of whatever the sandbox said.
///
/// `for` is the sandbox's address; one behind a unix socket has none, which is `unknown` (RFC 7239
/// §6.2), never a loopback address: backends trust those. Scheme and host are those of the
/// backend's own URL, since the door has no name that means anything to others, and the `Host` that
/// a sandbox sends is its word only.
fn forwarded(headers: &mut HeaderMap, source: &Source, backend: &Backend) {
    let client = match source {
        Source::Socket(_) => "unknown".to_owned(),
        Source::Address(address) => address.to_string(),
    };
    let fields = [
        ("x-forwarded-for", client.as_str()),
        ("x-forwarded-proto", backend.scheme.as_str()),
        ("x-forwarded-host", backend.authority.as_str()),
    ];
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

/// Says what the sandbox said of trailers, to a backend that may hear of them.
fn trailers(headers: &mut HeaderMap, said: &Trailers, backend: &Backend) {
    if said.are_taken {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    announce(headers, &said.announced, |names| {
        clean_request_trailers(names, |folded| !backend.takes_trailer(folded));
    });
}

/// Asks for an answer that filters can read: not compressed, not a range of it, which could cut in
/// two what they look for.
fn plain_answers(headers: &mut HeaderMap) {
    for name in [ACCEPT_ENCODING, RANGE, IF_RANGE] {
        headers.remove(name);
    }
}

/// A body as it is sent. A whole one keeps its room until its last byte is gone.
fn sealed_body(body: AdmittedBody, room: Option<Arc<HeldRoom>>) -> SealedBody {
    let whole = |bytes: Bytes| SealedBody::Whole(roomed(bytes, room));
    match body {
        AdmittedBody::None => SealedBody::Whole(Bytes::new()),
        AdmittedBody::Json(body) => whole(body.into_text()),
        AdmittedBody::Form(form) => whole(form.rebuild().into()),
        AdmittedBody::Multipart(multipart) => whole(multipart.rebuild()),
        AdmittedBody::Doubtful(text) => whole(text.into()),
        AdmittedBody::Whole(bytes) => whole(bytes),
        AdmittedBody::Stream(stream) => SealedBody::Stream(stream, watch::Sender::new(Flow::Backend(0))),
    }
}

/// Whom a streamed body waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The sandbox, whose pace is bounded.
    Sandbox,
    /// The backend, which has taken so many parts.
    Backend(u64),
}

impl Flow {
    const fn after(self, is_pending: bool) -> Self {
        match self {
            _ if is_pending => Self::Sandbox,
            Self::Sandbox => Self::Backend(0),
            Self::Backend(parts) => Self::Backend(parts.wrapping_add(1)),
        }
    }
}

/// A request body as it is sent.
#[derive(Debug)]
pub(crate) enum SealedBody {
    Whole(Bytes),
    Stream(Box<StreamedBody>, watch::Sender<Flow>),
}

impl SealedBody {
    /// How a streamed body flows; its end is told by the channel's.
    pub(crate) fn flow(&self) -> Option<watch::Receiver<Flow>> {
        match self {
            Self::Whole(_) => None,
            Self::Stream(_, flow) => Some(flow.subscribe()),
        }
    }

    /// Where a streamed body tells why it failed.
    pub(crate) fn fault(&self) -> Option<Arc<OnceLock<BodyFault>>> {
        match self {
            Self::Whole(_) => None,
            Self::Stream(stream, _) => Some(stream.fault()),
        }
    }
}

impl http_body::Body for SealedBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(stream, flow) => {
                let polled = Pin::new(&mut **stream).poll_frame(context);
                flow.send_modify(|flow| *flow = flow.after(polled.is_pending()));
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream(stream, _) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(stream, _) => stream.size_hint(),
        }
    }
}
