// SPDX-License-Identifier: Apache-2.0
//! The built-in route of sandboxes' syncs: carries them to the orchestrator's files API, and nothing
//! else there.
//!
//! It is a road of its own beside that of tenants' backends (`request.rs`), because no tenant's
//! configuration, policy, filter or limit has a part in it. Its session may use it alone, and nobody
//! else may: the session's only grant is `files:sync`, which `*` does not cover. What is sent is made
//! anew: one of a few known paths, no header of the caller's, and an assertion of ours in place of the
//! token. The orchestrator's address is no backend's and is never told.

use crate::Gateway;
use crate::assertion::About;
use crate::config::{CONNECT_TIME, FilesApi, POOL_IDLE_CONNECTIONS, POOL_IDLE_TIME};
use crate::decision::Draft;
use crate::head::Parsed;
use crate::identify::Caller;
use crate::limits::{self, Permit};
use crate::listener::OwnedExecutor;
use crate::pace::Pace;
use crate::reject::Reject;
use crate::response::{self, Body, BrokenOff};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_common::clock;
use postern_common::session::{FILES_SYNC, Grant};
use postern_common::stream::SERVER_NAME;
use postern_common::tasks::Tasks;
use postern_common::token::assertion::FILES_AUDIENCE;
use postern_openapi::Method as KnownMethod;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The calls that there are (`postern_common::files`).
const CALLS: [&str; 4] = ["list", "get", PUT, "changes"];
/// The one that changes something.
const PUT: &str = "put";
/// Calls of all syncs at a time: four lanes each, of a hundred sandboxes that begin or end together,
/// and one that waits for changes of each of some thousands.
const CALLS_AT_A_TIME: usize = 8192;
/// From a request's last byte to the head of the answer: `changes` waits half of this by itself.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// Says which decision let the call pass; the orchestrator's audit log names it.
const DECISION: http::HeaderName = http::HeaderName::from_static("x-postern-decision");

/// Whether this is a sandbox's sync.
pub(crate) fn is_sync(caller: &Caller) -> bool {
    let is_it = |grants: &[Grant]| grants.contains(&Grant::FilesSync);
    is_it(&caller.session.session.operations) && is_it(&caller.claims.operations)
}

/// The way to the orchestrator's files API.
#[derive(Debug)]
pub(crate) struct Way {
    client: Client<Connector, SyncBody>,
    places: Arc<Semaphore>,
}

impl Way {
    /// # Errors
    /// If the authority is none.
    pub(crate) fn new(api: FilesApi, tasks: &Tasks) -> Result<Self, rustls::Error> {
        let place = match api {
            FilesApi::Socket(path) => Place::Socket(path),
            FilesApi::Hosts { hosts, authority } => {
                Place::Hosts(hosts, crate::stream::believing(&authority)?)
            }
        };
        let client = Client::builder(OwnedExecutor(tasks.clone()))
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE_TIME)
            .pool_max_idle_per_host(POOL_IDLE_CONNECTIONS)
            .build(Connector(Arc::new(place)));
        Ok(Self { client, places: Arc::new(Semaphore::new(CALLS_AT_A_TIME)) })
    }
}

/// Carries one call.
///
/// # Errors
/// [`Reject::RouteUnknown`] for anything but the calls that there are.
pub(crate) async fn carry(
    gateway: &Gateway,
    caller: &Caller,
    request: Parsed,
    draft: &mut Draft,
) -> Result<Response<Body>, Reject> {
    draft.sync(false);
    let call = call(&request)?;
    let way = gateway.files.as_ref().ok_or(Reject::RouteUnknown)?;
    let permit = limits::enter_sync(&caller.session.limiter, &way.places, draft.begun)?;
    draft.stage("route");
    let path = format!("/{FILES_SYNC}/{call}");
    let about = About {
        session: &caller.session,
        audience: FILES_AUDIENCE,
        method: "POST",
        path: &path,
        request_id: draft.request_id(),
    };
    let assertion = gateway.asserter.assert(&about, clock::now())?;
    let body = SyncBody::new(request.body, &caller.ended, None).paced(gateway.surroundings.waits.stall);
    let mut sent = Request::new(body);
    *sent.method_mut() = Method::POST;
    // Whatever the host: the connector knows one place only.
    *sent.uri_mut() = Uri::try_from(format!("http://orchestrator{path}"))
        .map_err(|_never| Reject::Internal("a known path is no URI"))?;
    let headers = sent.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(AUTHORIZATION, assertion);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Ok(id) = HeaderValue::from_str(draft.id().as_str()) {
        headers.insert(DECISION, id);
    }
    response::mark(headers, draft.request_id());
    let begun = Instant::now();
    let answer = ask(way, sent, &caller.ended).await?;
    draft.upstream(answer.status().as_u16(), begun.elapsed());
    draft.stage("upstream");
    draft.sync(call != PUT);
    let (mut head, body) = answer.into_parts();
    let mut answer = Response::new(Body::Sync(Box::new(SyncBody::new(body, &caller.ended, Some(permit)))));
    *answer.status_mut() = head.status;
    if let Some(kind) = head.headers.remove(CONTENT_TYPE) {
        answer.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response::mark(answer.headers_mut(), draft.request_id());
    Ok(answer)
}

fn call(request: &Parsed) -> Result<&'static str, Reject> {
    let segments = request.path.rebuild();
    let asked = segments.strip_prefix('/').and_then(|path| path.split_once('/'));
    let known = match asked {
        Some((route, call)) if percent_decoded(route) == FILES_SYNC => {
            CALLS.into_iter().find(|known| *known == call)
        }
        _ => None,
    };
    let known = known.ok_or(Reject::RouteUnknown)?;
    if request.method != Some(KnownMethod::Post) {
        return Err(Reject::MethodNotAllowed("POST".to_owned()));
    }
    if request.websocket.is_some() {
        return Err(Reject::Upgrade);
    }
    Ok(known)
}

/// A path is rebuilt in one spelling, which may spell the colon either way.
fn percent_decoded(text: &str) -> std::borrow::Cow<'_, str> {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy()
}

async fn ask(
    way: &Way,
    request: Request<SyncBody>,
    ended: &CancellationToken,
) -> Result<Response<Incoming>, Reject> {
    // What is put takes as long as the sync that reads it from its disk, whose pace is bounded.
    let is_long = request.uri().path().ends_with("/put");
    let late = async {
        if is_long {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(ANSWER_TIME).await;
    };
    tokio::select! {
        biased;
        () = ended.cancelled() => Err(Reject::SessionEnded),
        answer = way.client.request(request) => answer.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            Reject::UpstreamUnreachable(format!("the orchestrator's files API: {error}: {cause}"))
        }),
        () = late => Err(Reject::UpstreamTimeout),
    }
}

/// A body on its way, either way: broken off when the session ends.
pub(crate) struct SyncBody {
    incoming: Incoming,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Where the sandbox's side is waited for.
    pace: Option<Pace>,
    _permit: Option<Permit>,
}

impl std::fmt::Debug for SyncBody {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SyncBody").field("incoming", &self.incoming).finish_non_exhaustive()
    }
}

impl SyncBody {
    fn new(incoming: Incoming, ended: &CancellationToken, permit: Option<Permit>) -> Self {
        Self { incoming, ended: Box::pin(ended.clone().cancelled_owned()), pace: None, _permit: permit }
    }

    fn paced(self, stall: Duration) -> Self {
        Self { pace: Some(Pace::new(stall)), ..self }
    }
}

impl http_body::Body for SyncBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(BrokenOff::SessionEnded)));
        }
        let polled = Pin::new(&mut self.incoming).poll_frame(context);
        let Some(pace) = &mut self.pace else {
            return polled.map(|frame| frame.map(|frame| frame.map_err(BrokenOff::Backend)));
        };
        match polled {
            Poll::Pending if pace.poll_too_slow(context).is_ready() => {
                Poll::Ready(Some(Err(BrokenOff::TooSlow)))
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(frame) => {
                if let Some(Ok(data)) = frame.as_ref().map(|frame| frame.as_ref().map(Frame::data_ref)) {
                    pace.moved(data.map_or(0, Bytes::len));
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BrokenOff::Backend)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Where the orchestrator is, and how that is known.
#[derive(Debug)]
enum Place {
    Socket(PathBuf),
    Hosts(Vec<String>, Arc<ClientConfig>),
}

/// Connects to the orchestrator, whatever is asked for.
#[derive(Debug, Clone)]
struct Connector(Arc<Place>);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let place = Arc::clone(&self.0);
        Box::pin(async move {
            let connecting = async {
                match &*place {
                    Place::Socket(path) => UnixStream::connect(path).await.map(Stream::Unix),
                    Place::Hosts(hosts, tls) => {
                        any(hosts, tls).await.map(|stream| Stream::Tls(Box::new(stream)))
                    }
                }
            };
            let connected = tokio::time::timeout(CONNECT_TIME, connecting).await;
            Ok(TokioIo::new(connected.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into()))?))
        })
    }
}

/// The first that is there; those behind it get their share of the time.
async fn any(hosts: &[String], tls: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let share = CONNECT_TIME / u32::try_from(hosts.len().max(1)).unwrap_or(u32::MAX);
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for host in hosts {
        match tokio::time::timeout(share, open(host, tls)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed = error,
            Err(_late) => failed = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
}

/// A connection to whoever is there, if that is our orchestrator.
async fn open(host: &str, tls: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(host).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
    TlsConnector::from(Arc::clone(tls)).connect(name, stream).await
}

/// A connection to the orchestrator.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Unix($stream) => $call,
            Stream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(context))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(context, buffers))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
