// SPDX-License-Identifier: Apache-2.0
//! What takes orders for pods that run nothing: it says yes to all of them, and to one of a sync that there
//! was nothing to carry. For the benchmark only.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_common::files::Report;
use postern_common::files::orders::Told;
use std::convert::Infallible;
use tokio::net::TcpListener;

/// Answers until it is killed.
pub(crate) async fn run() {
    futures_util::future::join(answer_at(49983), answer_at(49984)).await;
}

async fn answer_at(port: u16) {
    let listener = TcpListener::bind(("0.0.0.0", port)).await.expect("listens");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        drop(stream.set_nodelay(true));
        let answer = service_fn(async |request: http::Request<hyper::body::Incoming>| {
            let is_begin = request.uri().path() == "/postern.Sync/Begin";
            let asked = request.into_body().collect().await.map(|it| it.to_bytes()).unwrap_or_default();
            let said = if is_begin { begun(&asked) } else { Bytes::from_static(b"{}") };
            let mut response = http::Response::new(Full::new(said));
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

/// The whole stream of a sync that was ordered so: one message, and its end.
fn begun(asked: &[u8]) -> Bytes {
    let only_flushes = String::from_utf8_lossy(asked).contains("\"only_flush\":true");
    let told = if only_flushes { Told::Flushed } else { Told::Hydrated };
    let json = serde_json::to_vec(&told(Report::default())).expect("JSON");
    let length = u32::try_from(json.len()).expect("is short").to_be_bytes();
    [&[0_u8][..], &length, &json, b"\x02\0\0\0\x02{}"].concat().into()
}
