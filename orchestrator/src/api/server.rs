// SPDX-License-Identifier: Apache-2.0
//! Connections of the API: HTTP/1.1 and HTTP/2, bounded in number, time and headers.

use super::{Api, is_local_host, problems, router};
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderName, HeaderValue};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use postern_common::id::RequestId;
use postern_common::problem::{Code, Problem};
use postern_common::tasks::{Stop, Tasks};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower_service::Service;

/// Connections at the same time; a descriptor and some 20 KiB each.
const CONNECTIONS: usize = 1024;
/// How long a caller may take to send a request's head.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Requests at the same time on one HTTP/2 connection.
const STREAMS: u32 = 100;
/// All headers of a request.
const HEADER_BYTES: usize = 32 << 10;
/// After a failed accept (out of descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the API on `listener` until the tasks are stopped, then ends what is in flight.
pub(crate) fn serve(api: Arc<Api>, listener: TcpListener, tasks: &Tasks) {
    let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let front = Front { router: router(api), is_local };
    let group = tasks.clone();
    tasks.spawn(async move |stop: Stop| {
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Some(Ok(room)) = stop.run_until_cancelled(Arc::clone(&free).acquire_owned()).await else {
                return;
            };
            let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { return };
            let Ok((stream, _from)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let front = front.clone();
            let streams = group.clone();
            group.spawn(async move |stop: Stop| {
                converse(stream, front, streams, stop).await;
                drop(room);
            });
        }
    });
}

async fn converse(stream: TcpStream, front: Front, streams: Tasks, stop: Stop) {
    // Small answers should not wait for more.
    let _ = stream.set_nodelay(true).is_ok();
    let service = service_fn(move |request: http::Request<Incoming>| {
        let front = front.clone();
        async move { Ok::<_, Infallible>(front.answer(request.map(Body::new)).await) }
    });
    let mut builder = Builder::new(Owned(streams));
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(HEAD_TIME);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => drop(ended),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            drop(connection.await);
        }
    }
}

/// Lets hyper start its tasks within ours.
#[derive(Debug, Clone)]
struct Owned(Tasks);

impl<Task> hyper::rt::Executor<Task> for Owned
where
    Task: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: Task) {
        self.0.spawn(|_stop| task);
    }
}

/// What every request passes before its route is looked up.
#[derive(Debug, Clone)]
struct Front {
    router: axum::Router,
    is_local: bool,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl Front {
    async fn answer(&self, mut request: Request) -> Response {
        let id = RequestId::generate();
        request.extensions_mut().insert(id.clone());
        let mut response = if self.is_local && !is_local_host(request.headers(), request.uri()) {
            let problem = Problem::new(Code::Forbidden, "the request's `Host` is not this machine")
                .hint("use `127.0.0.1` or `localhost`; to serve others, listen on another address");
            problems::response(problem, &id)
        } else {
            match self.router.clone().call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        };
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::try_from(id.as_str()) {
            headers.insert(REQUEST_ID, value);
        }
        // Nothing of the API is ever a page of its own.
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        response
    }
}
