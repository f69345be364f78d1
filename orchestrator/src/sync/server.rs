// SPDX-License-Identifier: Apache-2.0
//! Connections of gateways that carry syncs, and which call is meant.

use super::FilesApi;
use crate::stream::ControlStream;
use axum::body::Body;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_common::clock;
use postern_common::files::ROUTE;
use postern_common::problem::{CONTENT_TYPE, Code, Problem};
use postern_common::tasks::{Stop, Tasks};
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections at the same time: as many as gateways have calls under way, of some hundred sandboxes
/// that are busy and some thousands that wait.
const CONNECTIONS: usize = 8192;
/// How long a gateway may take to send a call's head.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// How long it may take to agree on TLS.
const GREET_TIME: Duration = Duration::from_secs(5);
/// After a failed accept (out of descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where gateways come to.
#[derive(Debug)]
pub enum FilesListener {
    /// A socket that only this machine's gateway can reach.
    Unix(UnixListener),
    /// An address, by TLS with the control stream's certificate.
    Tcp(TcpListener),
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl FilesListener {
    /// Listens on a socket at `path`, where only our own user can reach it. One that is left there of
    /// before is replaced: whoever holds the data folder's lock has no other.
    ///
    /// # Errors
    /// What the system said.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::other("something that is no socket is there")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self::Unix(listener))
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

/// Serves until the tasks are stopped; gateways of other machines know us by the control stream's certificate.
pub(crate) fn serve(api: FilesApi, listener: FilesListener, control: Arc<ControlStream>, tasks: &Tasks) {
    let (group, api) = (tasks.clone(), Arc::new(api));
    tasks.spawn(async move |stop: Stop| {
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Some(Ok(room)) = stop.run_until_cancelled(Arc::clone(&free).acquire_owned()).await else {
                return;
            };
            let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { return };
            let Ok(stream) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (api, control) = (Arc::clone(&api), Arc::clone(&control));
            group.spawn(async move |stop: Stop| {
                match stream {
                    Stream::Unix(stream) => converse(TokioIo::new(stream), api, stop).await,
                    // Large, and not on one machine, which has a connection for each sandbox.
                    Stream::Tcp(stream) => Box::pin(greet(stream, api, &control, stop)).await,
                }
                drop(room);
            });
        }
    });
}

async fn greet(stream: TcpStream, api: Arc<FilesApi>, control: &ControlStream, stop: Stop) {
    let greeted = control.acceptor(clock::now()).accept(stream);
    let greeted = stop.run_until_cancelled(timeout(GREET_TIME, greeted)).await;
    // Who does not agree on it is no gateway of ours.
    if let Some(Ok(Ok(stream))) = greeted {
        converse(TokioIo::new(stream), api, stop).await;
    }
}

async fn converse<Io>(io: Io, api: Arc<FilesApi>, stop: Stop)
where
    Io: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(answer(&api, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(io, service);
    tokio::pin!(connection);
    tokio::select! {
        // Other errors of one connection are its gateway's; calls were answered by themselves.
        ended = connection.as_mut() => drop(ended),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            drop(connection.await);
        }
    }
}

async fn answer(api: &FilesApi, request: Request<Incoming>) -> Response<Body> {
    called(api, request).await.unwrap_or_else(|problem| refused(&problem))
}

async fn called(api: &FilesApi, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
    let call = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
    let Some((ROUTE, call)) = call else {
        return Err(Problem::new(Code::NotFound, "there is no such call"));
    };
    if request.method() != Method::POST {
        return Err(Problem::new(Code::MethodNotAllowed, "calls are made by POST"));
    }
    let call = call.to_owned();
    let caller = api.caller(request.headers(), request.uri()).await?;
    let body = request.into_body();
    // Of each sandbox one call waits for changes all the time: what others need is not held for it.
    match &*call {
        "list" => Box::pin(api.list(&caller)).await,
        "get" => api.get(&caller, body).await,
        "put" => Box::pin(api.put(&caller, body)).await,
        "changes" => api.changes(&caller, body).await,
        _ => Err(Problem::new(Code::NotFound, "there is no such call")),
    }
}

fn refused(problem: &Problem) -> Response<Body> {
    let text = serde_json::to_vec(problem).unwrap_or_default();
    let mut response = Response::new(Body::from(text));
    *response.status_mut() =
        StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(CONTENT_TYPE));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<Call: Future>(_call: impl Fn(&'static FilesApi, Request<Incoming>) -> Call) -> usize {
        size_of::<Call>()
    }

    #[test]
    fn a_call_that_waits_holds_little() {
        assert!(size(answer) <= 2048, "{} bytes for each sandbox", size(answer));
    }
}
