// SPDX-License-Identifier: Apache-2.0
//! What takes orders for pods that run nothing: it says yes to all of them. For the benchmark only.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use tokio::net::TcpListener;

/// Answers until it is killed.
pub(crate) async fn run() {
    let listener = TcpListener::bind("0.0.0.0:49983").await.expect("listens");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        drop(stream.set_nodelay(true));
        let answer = service_fn(async |request: http::Request<hyper::body::Incoming>| {
            drop(request.into_body().collect().await);
            let mut response = http::Response::new(Full::new(Bytes::from_static(b"{}")));
            response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
            Ok::<_, Infallible>(response)
        });
        let serve = async move {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(server.serve_connection(TokioIo::new(stream), answer).await);
        };
        #[expect(clippy::disallowed_methods, reason = "it lives until it is killed")]
        drop(tokio::spawn(serve));
    }
}
