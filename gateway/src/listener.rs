// SPDX-License-Identifier: Apache-2.0
//! Accepts connections: each sandbox's own unix socket, TCP (by TLS where there is a certificate),
//! and the operators' listener.
//!
//! HTTP/1.1 and HTTP/2 (prior knowledge) with every bound set: size and number of headers, time
//! for a head, connections of one peer and in all, streams and resets. When the gateway stops,
//! listeners close at once, requests in flight get their drain time, then connections break off.

mod connections;
mod tls;

use crate::config::{
    CONNECTIONS, CONNECTIONS_OF_PEER, HEADER_BYTES, HEADER_COUNT, PENDING_RESETS, STREAMS, Waits,
};
use crate::pace::connection::PacedConnection;
use crate::registry::Source;
use crate::{Gateway, admin, request, websocket};
use bytes::Bytes;
pub(crate) use connections::InFlight;
use connections::{Activity, Connections, Counted, Entered, Tracked};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulConnection;
use postern_common::problem::Code;
use postern_common::tasks::{Stop, Tasks};
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
pub(crate) use tls::Tls;
pub use tls::TlsFilesUnusable;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// How long to wait after `accept` failed: for file descriptors to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Runs hyper's own tasks as tasks of ours.
#[derive(Debug, Clone)]
pub(crate) struct OwnedExecutor(pub(crate) Tasks);

impl<Work> hyper::rt::Executor<Work> for OwnedExecutor
where
    Work: Future + Send + 'static,
    Work::Output: Send,
{
    fn execute(&self, work: Work) {
        self.0.spawn(move |_stop| async move {
            drop(work.await);
        });
    }
}

/// What holds for every connection of a gateway.
#[derive(Debug, Clone)]
struct Terms {
    tasks: Tasks,
    waits: Waits,
    /// What requests in flight get when the gateway stops.
    drain: Duration,
}

impl Terms {
    fn of(gateway: &Gateway) -> Self {
        Self { tasks: gateway.tasks.clone(), waits: gateway.surroundings.waits, drain: gateway.drain }
    }
}

fn server(terms: &Terms) -> Builder<OwnedExecutor> {
    let mut builder = Builder::new(OwnedExecutor(terms.tasks.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(terms.waits.head)
        .max_headers(HEADER_COUNT)
        .max_buf_size(HEADER_BYTES)
        .half_close(false);
    let header_bytes = u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_header_list_size(header_bytes)
        .enable_connect_protocol()
        .keep_alive_interval(terms.waits.head)
        .keep_alive_timeout(terms.waits.head);
    builder
}

/// What a peer sent that hyper could not read as a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    Malformed,
    HeadTooLarge,
    HeadTooSlow,
}

impl Unreadable {
    fn of(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let error = error.downcast_ref::<hyper::Error>()?;
        match () {
            () if error.is_parse_too_large() => Some(Self::HeadTooLarge),
            () if error.is_parse() => Some(Self::Malformed),
            () if error.is_timeout() => Some(Self::HeadTooSlow),
            () => None,
        }
    }

    /// The code of the refusal that it is counted as.
    const fn code(self) -> Code {
        match self {
            Self::Malformed => Code::RequestMalformed,
            Self::HeadTooLarge => Code::HeaderTooLarge,
            Self::HeadTooSlow => Code::RequestTimeout,
        }
    }
}

/// What a peer may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    /// HTTP/1.1 or HTTP/2, as its first bytes say.
    Either,
    /// HTTP/2, as it has said already (ALPN).
    Http2,
}

/// Serves one connection; tells what the peer sent that is no request, if that ended it: hyper has
/// answered it by itself.
async fn serve<Io, Answer, Answered, Body>(
    terms: &Terms,
    io: Io,
    speaks: Speaks,
    activity: &Arc<Activity>,
    answer: Answer,
) -> Option<Unreadable>
where
    Io: Read + Write + Unpin + Send + 'static,
    Answer: Fn(Request<Incoming>) -> Answered + Clone,
    Answered: Future<Output = Response<Body>> + Send + 'static,
    Body: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    Body::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let counting = Arc::clone(activity);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if websocket::is_asked_for(&request) {
            // It outlives its answer.
            request.extensions_mut().insert(Arc::new(counting.begin()));
        }
        let (in_flight, answered) = (counting.begin(), answer(request));
        async move { Ok::<_, Infallible>(answered.await.map(|body| Tracked::new(body, in_flight))) }
    });
    let server = server(terms);
    match speaks {
        Speaks::Either => attend(terms, activity, server.serve_connection_with_upgrades(io, service)).await,
        // HTTP/2 needs no more for upgrades, which are streams there.
        Speaks::Http2 => attend(terms, activity, server.http2_only().serve_connection(io, service)).await,
    }
}

/// Attends to a connection until it ends, has had nothing in flight for a while, must make room for
/// another, or the gateway has stopped and its drain time is over.
async fn attend<Served>(terms: &Terms, activity: &Activity, connection: Served) -> Option<Unreadable>
where
    Served: GracefulConnection<Error = Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connection = pin!(connection);
    let stop = terms.tasks.stop_token();
    tokio::select! {
        // Other errors of one connection are its peer's; requests were logged by themselves.
        ended = connection.as_mut() => return ended.err().and_then(|error| Unreadable::of(&*error)),
        () = stop.cancelled() => {}
        () = activity.evicted.cancelled() => return None,
        // hyper's own timer begins only once it knows which protocol is spoken, and HTTP/2 has none.
        () = activity.idle(terms.waits.head, terms.waits.idle) => {}
    }
    connection.as_mut().graceful_shutdown();
    let ended = tokio::time::timeout(terms.drain, connection).await;
    ended.ok().and_then(Result::err).and_then(|error| Unreadable::of(&*error))
}

/// Serves a sandbox's connection, which keeps its place until it is closed, whatever it becomes.
async fn serve_sandbox<Io, Place>(
    gateway: Arc<Gateway>,
    io: Io,
    speaks: Speaks,
    source: Source,
    place: Place,
    activity: &Arc<Activity>,
) where
    Io: Read + Write + Unpin + Send + 'static,
    Place: Unpin + Send + 'static,
{
    let terms = Terms::of(&gateway);
    let counting = Arc::clone(&gateway);
    let answer = move |incoming| {
        let (gateway, source) = (Arc::clone(&gateway), source.clone());
        async move { Box::pin(request::handle(&gateway, &source, incoming)).await }
    };
    let io = PacedConnection::new(io, terms.waits.stall, place);
    if let Some(unreadable) = serve(&terms, io, speaks, activity, answer).await {
        counting.metrics.refusal(unreadable.code());
    }
}

/// A sandbox's door could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenDoorError {
    #[error("`{0}` exists and is no socket: remove it")]
    Occupied(String),
    #[error("could not listen at `{path}`; its folder must exist and be the gateway's to write")]
    Bind {
        path: String,
        #[source]
        source: std::io::Error,
    },
}

/// Listens at a sandbox's own path. A socket that a gateway of before left there is replaced.
///
/// Whoever can reach the path may connect: the folder is what protects it, and it is shown to one
/// sandbox only. Blocking, for microseconds.
pub(crate) fn open_door(path: &Path) -> Result<UnixListener, OpenDoorError> {
    let shown = || path.display().to_string();
    let bind = |source| OpenDoorError::Bind { path: shown(), source };
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path).map_err(bind)?,
        Ok(_) => return Err(OpenDoorError::Occupied(shown())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(bind(error)),
    }
    let listener = UnixListener::bind(path).map_err(bind)?;
    // The sandbox's user is not ours.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(bind)?;
    Ok(listener)
}

/// Accepts from one sandbox until its session ends, then removes the socket. Connections that
/// exist go on, so that what still comes is answered with `token-revoked`.
pub(crate) async fn accept_sandbox(
    gateway: Arc<Gateway>,
    listener: UnixListener,
    path: Arc<Path>,
    ended: CancellationToken,
    stop: Stop,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_OF_PEER));
    loop {
        let permit = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = ended.cancelled() => break,
            // A sandbox that holds all its connections waits for its own, nobody else does.
            permit = Arc::clone(&room).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = ended.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (served, source) = (Arc::clone(&gateway), Source::Socket(Arc::clone(&path)));
        gateway.tasks.spawn(move |_stop| async move {
            serve_sandbox(served, TokioIo::new(stream), Speaks::Either, source, permit, &Arc::default())
                .await;
        });
    }
    drop(listener);
    // It may be gone with the sandbox's folder already.
    drop(std::fs::remove_file(&path));
}

/// Accepts sandboxes by TCP.
pub(crate) async fn accept_tcp(gateway: Arc<Gateway>, listener: TcpListener, stop: Stop) {
    let connections = Connections::new(CONNECTIONS, CONNECTIONS_OF_PEER);
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // A dual-stack listener shows IPv4 peers in IPv6 spelling; sessions are bound in plain one.
        let address = peer.ip().to_canonical();
        let Some((counted, entered)) = connections.enter(address) else {
            gateway.metrics.connection_dropped("refused");
            continue;
        };
        if entered == Entered::Instead {
            gateway.metrics.connection_dropped("evicted");
        }
        drop(stream.set_nodelay(true));
        let served = Arc::clone(&gateway);
        gateway.tasks.spawn(move |_stop| async move {
            serve_address(served, stream, address, counted).await;
        });
    }
}

/// Serves one TCP peer, by TLS if that is spoken here.
async fn serve_address(gateway: Arc<Gateway>, stream: TcpStream, address: IpAddr, counted: Counted) {
    let (source, activity) = (Source::Address(address), Arc::clone(&counted.activity));
    let Some(tls) = gateway.tls.clone() else {
        let io = TokioIo::new(stream);
        return serve_sandbox(gateway, io, Speaks::Either, source, counted, &activity).await;
    };
    let stop = gateway.tasks.stop_token();
    let shaken = tokio::select! {
        shaken = tls.accept(stream, gateway.surroundings.waits.head) => shaken,
        () = activity.evicted.cancelled() => return,
        () = stop.cancelled() => return,
    };
    match shaken {
        Some(stream) => {
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2);
            let speaks = if is_http2 { Speaks::Http2 } else { Speaks::Either };
            serve_sandbox(gateway, TokioIo::new(stream), speaks, source, counted, &activity).await;
        }
        None => gateway.metrics.connection_dropped("handshake"),
    }
}

/// Accepts operators.
pub(crate) async fn accept_admin(gateway: Arc<Gateway>, listener: TcpListener, stop: Stop) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_OF_PEER));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let served = Arc::clone(&gateway);
        gateway.tasks.spawn(move |_stop| async move {
            let terms = Terms::of(&served);
            let answer =
                move |incoming: Request<Incoming>| std::future::ready(admin::answer(&served, &incoming));
            let connection = PacedConnection::new(TokioIo::new(stream), terms.waits.stall, permit);
            serve(&terms, connection, Speaks::Either, &Arc::default(), answer).await;
        });
    }
}
