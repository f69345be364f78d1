// SPDX-License-Identifier: Apache-2.0
//! The control channel's HTTP/2 server: which call goes to which service.
//!
//! Whoever holds the other end is the orchestrator (through the shim), so calls are not
//! authenticated here; the agent cannot reach this channel (see `channel` and `confine`).

use crate::connect::{self, Body, Code, Failure};
use crate::files::{self, Files};
use crate::identity::Identity;
use crate::process::{self, Processes};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postern_common::tasks::Tasks;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// Streams that a caller may keep open: one for each process that it follows, and then some.
pub(crate) const STREAMS: u32 = 1024;
/// What is buffered for one stream that is not read, so that a slow reader stops its process.
const STREAM_SEND_BYTES: usize = 64 << 10;
const HEADER_BYTES: u32 = 32 << 10;

/// Everything that can be called.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    identity: Arc<Identity>,
    processes: Processes,
    files: Files,
}

impl Services {
    pub(crate) fn new(identity: Arc<Identity>, processes: Processes, files: Files) -> Self {
        Self { identity, processes, files }
    }

    /// Whether everything in here sleeps.
    pub(crate) fn is_asleep(&self) -> bool {
        self.identity.is_asleep()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        match path {
            "/health" if head.method == Method::GET => return status(StatusCode::NO_CONTENT),
            "/tree" => return files::archive::answer(&self.files, &head, body).await,
            "/files" => return files::transfer::answer(&self.files, &head, body).await,
            _ => {}
        }
        if head.method != Method::POST {
            return status(StatusCode::METHOD_NOT_ALLOWED);
        }
        match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
            Some(("postern.Control", method)) => self.control(method, body).await,
            Some(("process.Process", method)) => {
                process::service::answer(&self.processes, method, &head.headers, body).await
            }
            Some(("filesystem.Filesystem", method)) => {
                files::service::answer(&self.files, method, &head.headers, body).await
            }
            _ => connect::unary::<()>(Err(unimplemented(path))),
        }
    }

    async fn control(&self, method: &str, body: Incoming) -> Response<Body> {
        #[derive(serde::Serialize)]
        struct Done {}
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Nothing {}
        connect::unary(
            match method {
                "Identify" => connect::read_unary(body).await.and_then(|claim| self.identity.claim(claim)),
                "Token" => {
                    connect::read_unary(body).await.and_then(|rotation| self.identity.rotate(&rotation))
                }
                "Sleep" => match connect::read_unary::<Nothing>(body).await {
                    Ok(Nothing {}) => self.identity.sleep().await,
                    Err(failure) => Err(failure),
                },
                _ => Err(unimplemented(method)),
            }
            .map(|()| Done {}),
        )
    }
}

/// Serves until the other end closes the channel.
///
/// # Errors
/// If the other end breaks HTTP/2.
pub(crate) async fn serve(
    channel: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    services: Services,
    tasks: &Tasks,
) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let services = services.clone();
        async move { Ok::<_, Infallible>(services.answer(request).await) }
    });
    hyper::server::conn::http2::Builder::new(Owned(tasks.clone()))
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(STREAM_SEND_BYTES)
        .max_header_list_size(HEADER_BYTES)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(channel), service)
        .await
}

/// The failure of a call that this version does not have.
pub(crate) fn unimplemented(what: &str) -> Failure {
    Failure::new(Code::Unimplemented, format!("`{}` is not served here", what.escape_default()))
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(connect::whole(bytes::Bytes::new()));
    *response.status_mut() = status;
    response
}

/// Lets hyper start its tasks within ours.
#[derive(Debug, Clone)]
pub(crate) struct Owned(pub(crate) Tasks);

impl<Task> hyper::rt::Executor<Task> for Owned
where
    Task: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: Task) {
        self.0.spawn(|_stop| task);
    }
}
