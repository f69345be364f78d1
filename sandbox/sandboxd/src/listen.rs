// SPDX-License-Identifier: Apache-2.0
//! The control channel of a sandbox that is a pod: a port, on which only signed requests are heard.
//!
//! Everybody who gets past the network's rules can connect, the agent's own processes too, so each
//! request has to prove that it is the orchestrator's, meant for this very pod, made just now and
//! not heard before ([`postern_common::signed`]). What passes goes to the same services that a
//! local sandbox has on its standard streams; they see no difference.
//!
//! ```text
//! orchestrator ── TCP 49983 ── gate ─┬─ in memory ── control (see there)
//!                                    └─ commands whose output is kept
//! ```
//!
//! A pod has no shim: what that keeps of commands for an orchestrator that was restarted, the gate keeps.

use crate::connect::{Body, Code, Failure, unary};
use crate::control::{Owned, Services};
use crate::options::Listen;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_common::clock;
use postern_common::execs::{self, About, Execs, NotFollowed};
use postern_common::problem::{CONTENT_TYPE, Problem};
use postern_common::signed::{Envelope, FRESH, HEADER, hex};
use postern_common::tasks::Tasks;
use rustix::net::sockopt;
use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

type Inward = UnsyncBoxBody<Bytes, hyper::Error>;

/// Connections at one time: an orchestrator's replicas need a few each.
const CONNECTIONS: usize = 64;
/// Connections that wait to be accepted, as tokio has it.
const BACKLOG: u32 = 1024;
/// Streams on each.
const STREAMS: u32 = 256;
/// A peer that opens a connection and is not heard of is let go after this.
const QUIET: Duration = Duration::from_secs(60);
/// After a failed accept (no descriptors left) the next try waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A signed body is read whole before it is believed; the services' own bound.
const BODY_BYTES: usize = crate::connect::REQUEST_BYTES;
/// Nonces that are remembered; more requests within a minute are refused.
const NONCES: usize = 65_536;
/// What flows through memory between the gate and the services.
const PIPE_BYTES: usize = 256 << 10;
/// What is read of an order that is refused, and for how long at most.
const REFUSED_BYTES: usize = 64 << 10;
const REFUSED_TIME: Duration = Duration::from_secs(1);
/// Bytes of one stream that may wait for their reader, and of all together: whoever does not read holds
/// up nobody else.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * crate::control::STREAMS;
const HEADER_BYTES: u32 = 32 << 10;

/// The key that is to be believed is none.
#[derive(Debug, thiserror::Error)]
#[error("--control-key is no Ed25519 public key: expected 32 bytes in base64")]
pub(crate) struct InvalidKey;

/// Who may give orders, and what was ordered lately.
struct Gate {
    pod: String,
    key: UnparsedPublicKey<Vec<u8>>,
    /// The sandbox that this pod was told to be: the first order says it, the others must agree.
    sandbox: OnceLock<String>,
    heard: Mutex<Heard>,
    hears_own: bool,
    inner: SendRequest<Inward>,
    execs: Execs,
}

/// Nonces by the second in which they stop being fresh.
#[derive(Debug, Default)]
struct Heard {
    by_age: VecDeque<(u64, String)>,
    all: HashSet<String>,
}

impl Heard {
    /// Notes a nonce; `false` if it was heard before or there is no room.
    fn is_new(&mut self, envelope: &Envelope, now: u64) -> bool {
        while self.by_age.front().is_some_and(|(until, _)| *until < now) {
            if let Some((_, nonce)) = self.by_age.pop_front() {
                self.all.remove(&nonce);
            }
        }
        if self.all.len() >= NONCES || !self.all.insert(envelope.nonce.clone()) {
            return false;
        }
        // Kept for as long as a clock that is ahead may still take it for fresh.
        self.by_age.push_back((now + 2 * FRESH.as_secs(), envelope.nonce.clone()));
        true
    }
}

/// Listens, and serves `services` to whoever can sign; returns where.
///
/// # Errors
/// If the address cannot be listened on, or the key is none.
pub(crate) async fn open(options: Listen, services: Services, tasks: &Tasks) -> io::Result<SocketAddr> {
    let serving = tasks.clone();
    let serve =
        move |far: DuplexStream| async move { drop(crate::control::serve(far, services, &serving).await) };
    open_before(options, true, serve, tasks).await
}

/// [`open`] before whatever speaks HTTP/2 at the end that it is given; connections from within the pod are
/// taken only if `hears_own`.
///
/// # Errors
/// As [`open`].
pub(crate) async fn open_before<Serving>(
    options: Listen,
    hears_own: bool,
    serve: impl FnOnce(DuplexStream) -> Serving,
    tasks: &Tasks,
) -> io::Result<SocketAddr>
where
    Serving: Future<Output = ()> + Send + 'static,
{
    let key = BASE64.decode(&options.key).ok().filter(|key| key.len() == 32);
    let key = key.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, InvalidKey))?;
    let listener = bind(options.address, hears_own).await?;
    let address = listener.local_addr()?;
    let inner = connect_inside(serve, tasks).await.map_err(io::Error::other)?;
    let gate = Arc::new(Gate {
        pod: options.pod,
        key: UnparsedPublicKey::new(&ED25519, key),
        sandbox: OnceLock::new(),
        heard: Mutex::default(),
        hears_own,
        inner,
        execs: Execs::new(tasks.clone()),
    });
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let all = tasks.clone();
    tasks.spawn(async move |stop| {
        let _ = stop.run_until_cancelled(accept(listener, gate, room, all)).await;
    });
    Ok(address)
}

/// Listens. Whoever does not hear its own pod takes the port of all of IPv4 in IPv6 too: else the agent
/// could listen there, and take orders that are not for it where a pod has addresses of both.
async fn bind(address: SocketAddr, hears_own: bool) -> io::Result<TcpListener> {
    if hears_own || address.ip() != IpAddr::V4(Ipv4Addr::UNSPECIFIED) {
        return TcpListener::bind(address).await;
    }
    match TcpSocket::new_v6().and_then(|socket| in_both(socket, address.port())) {
        // There is no IPv6 here.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => TcpListener::bind(address).await,
        held => held,
    }
}

/// Listens in IPv6 and IPv4 by one socket, also where the kernel would keep IPv6 to itself
/// (`net.ipv6.bindv6only`): two sockets could be had apart, and one of them by somebody else.
///
/// # Errors
/// `AddrInUse` if somebody has the port in either; else there is no IPv6.
fn in_both(socket: TcpSocket, port: u16) -> io::Result<TcpListener> {
    sockopt::set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    let held = socket.bind((Ipv6Addr::UNSPECIFIED, port).into()).and_then(|()| socket.listen(BACKLOG));
    held.map_err(|error| match error.kind() {
        taken @ io::ErrorKind::AddrInUse => {
            io::Error::new(taken, format!("something else in this pod listens on port {port}"))
        }
        _ => error,
    })
}

/// A connection to the services, in memory.
async fn connect_inside<Serving>(
    serve: impl FnOnce(DuplexStream) -> Serving,
    tasks: &Tasks,
) -> Result<SendRequest<Inward>, hyper::Error>
where
    Serving: Future<Output = ()> + Send + 'static,
{
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let serving = serve(far);
    tasks.spawn(move |_stop| serving);
    let (sender, connection) = Builder::new(Owned(tasks.clone()))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_BYTES)
        .handshake(TokioIo::new(near))
        .await?;
    tasks.spawn(async move |stop| drop(stop.run_until_cancelled(connection).await));
    Ok(sender)
}

async fn accept(listener: TcpListener, gate: Arc<Gate>, room: Arc<Semaphore>, tasks: Tasks) {
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        let Ok((connection, from)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        if !gate.hears_own && is_own(&connection, from) {
            continue;
        }
        let (gate, owner) = (Arc::clone(&gate), tasks.clone());
        tasks.spawn(async move |stop| {
            let _ = stop.run_until_cancelled(serve(connection, gate, owner)).await;
            drop(place);
        });
    }
}

/// Whether a connection comes from this very pod.
fn is_own(connection: &TcpStream, from: SocketAddr) -> bool {
    let from = from.ip().to_canonical();
    from.is_loopback() || connection.local_addr().is_ok_and(|at| at.ip().to_canonical() == from)
}

async fn serve(connection: TcpStream, gate: Arc<Gate>, tasks: Tasks) {
    let service = service_fn(move |request| {
        let gate = Arc::clone(&gate);
        async move { Ok::<_, Infallible>(gate.answer(request).await) }
    });
    let served = hyper::server::conn::http2::Builder::new(Owned(tasks))
        .timer(TokioTimer::new())
        .keep_alive_interval(QUIET)
        .keep_alive_timeout(QUIET)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(connection), service)
        .await;
    // A connection that breaks is its client's affair.
    drop(served);
}

impl Gate {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let now = clock::unix_seconds(clock::now());
        let admitted = match self.admit(&head.method, &head.uri, &head.headers, now) {
            Ok(envelope) => believed(&envelope, body).await,
            Err(refusal) => {
                drained(body).await;
                Err(refusal)
            }
        };
        let body = match admitted {
            Ok(body) => body,
            Err(refusal) => return unary::<()>(Err(refusal)),
        };
        head.headers.remove(HEADER);
        if let Some(about) = About::of(&head.method, &head.uri, &head.headers) {
            return self.kept(about, Request::from_parts(head, body)).await;
        }
        match self.inner.clone().send_request(Request::from_parts(head, body)).await {
            // One that is cut off inside is cut off outside.
            Ok(response) => response.map(|body| body.map_err(io::Error::other).boxed_unsync()),
            Err(error) => unary::<()>(Err(Failure::new(Code::Internal, error.to_string()))),
        }
    }

    /// Starts a command whose output is kept, or follows it.
    async fn kept(&self, about: About, request: Request<Inward>) -> Response<Body> {
        let headers = request.headers().clone();
        let followed = match about {
            About::Follow => self.execs.follow(request.uri(), &headers),
            About::Start => {
                let mut inner = self.inner.clone();
                let started = async move {
                    let sent = inner.send_request(request).await;
                    sent.map_err(|error| {
                        Problem::new(postern_common::problem::Code::UpstreamUnreachable, error.to_string())
                    })
                };
                self.execs.start(&headers, started).await
            }
        };
        match followed {
            Ok(body) => {
                told(StatusCode::OK, execs::CONTENT_TYPE, body.map_err(io::Error::other).boxed_unsync())
            }
            Err(NotFollowed::Refused(refused)) => {
                (*refused).map(|body| body.map_err(io::Error::other).boxed_unsync())
            }
            Err(NotFollowed::Problem(problem)) => {
                let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_GATEWAY);
                // A problem is a map with string keys: it always serializes.
                let text = serde_json::to_vec(&problem).unwrap_or_default();
                told(status, CONTENT_TYPE, crate::connect::whole(text.into()))
            }
        }
    }

    /// Whether the orchestrator said this, to this pod, now and for the first time.
    fn admit(
        &self,
        method: &Method,
        uri: &http::Uri,
        headers: &HeaderMap,
        now: u64,
    ) -> Result<Envelope, Failure> {
        let refuse = |why: &str| Failure::new(Code::PermissionDenied, why);
        let header = headers.get(HEADER).and_then(|value| value.to_str().ok());
        let (envelope, signature) = header
            .and_then(Envelope::parse)
            .ok_or_else(|| refuse("only requests that the orchestrator has signed are heard here"))?;
        if envelope.pod != self.pod {
            return Err(refuse("the request is for another pod"));
        }
        if !envelope.is_fresh(now) {
            return Err(refuse(
                "the request was signed more than 30 s ago, or the clocks differ by that much",
            ));
        }
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let named = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let text = envelope.signed(method.as_str(), target, named);
        self.key.verify(&text, &signature).map_err(|_unspecified| refuse("the signature is not good"))?;
        let orders = ["/postern.Control/", "/postern.Sync/", "/process.Process/", "/filesystem.Filesystem/"];
        let is_order = orders.iter().any(|start| target.starts_with(start));
        if is_order && envelope.body.is_none() {
            return Err(refuse("the signature does not cover the body"));
        }
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if !heard.is_new(&envelope, now) {
            return Err(refuse("the request was heard before"));
        }
        drop(heard);
        if *self.sandbox.get_or_init(|| envelope.sandbox.clone()) != envelope.sandbox {
            return Err(refuse("this pod is another sandbox"));
        }
        Ok(envelope)
    }
}

fn told(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Reads what there is of an order that is refused, as far as it is short and comes soon: whoever still
/// writes it would take the end of its stream for an error, and not hear why.
async fn drained(body: Incoming) {
    let read = Limited::new(body, REFUSED_BYTES).collect();
    drop(tokio::time::timeout(REFUSED_TIME, read).await);
}

/// The body, whole and as it was signed; a streamed one as it comes.
async fn believed(envelope: &Envelope, body: Incoming) -> Result<Inward, Failure> {
    let Some(wanted) = &envelope.body else { return Ok(body.boxed_unsync()) };
    let too_long = |_| Failure::new(Code::ResourceExhausted, "the message is longer than 4 MiB or broke off");
    let bytes = Limited::new(body, BODY_BYTES).collect().await.map_err(too_long)?.to_bytes();
    if hex(digest(&SHA256, &bytes).as_ref()) != *wanted {
        return Err(Failure::new(Code::PermissionDenied, "the body is not what was signed"));
    }
    Ok(Full::new(bytes).map_err(|never| match never {}).boxed_unsync())
}

#[cfg(test)]
mod tests;
