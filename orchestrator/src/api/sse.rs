// SPDX-License-Identifier: Apache-2.0
//! Server-sent events (WHATWG HTML §9.2): one JSON text an event, numbered.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, header};
use std::convert::Infallible;
use tokio::sync::mpsc;

/// One event as it goes over the wire.
pub(crate) fn event(number: u64, kind: &str, json: &serde_json::Value) -> Bytes {
    // JSON text holds no line break, so it is one `data` line.
    Bytes::from(format!("id: {number}\nevent: {kind}\ndata: {json}\n\n"))
}

/// What keeps a quiet connection alive.
pub(crate) const KEEP_ALIVE: Bytes = Bytes::from_static(b": still here\n\n");

/// An answer that streams what is sent into the channel; a reader that is slow makes the sender
/// wait.
pub(crate) fn response(events: mpsc::Receiver<Bytes>) -> Response {
    let frames = stream::unfold(events, async |mut events| {
        let event = events.recv().await?;
        Some((Ok::<_, Infallible>(event), events))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that collect answers would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
