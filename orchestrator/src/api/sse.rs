// SPDX-License-Identifier: Apache-2.0
//! Server-sent events (WHATWG HTML §9.2): one JSON text an event, numbered.

use axum::body::Body;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
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

/// An event whose JSON is what a process wrote, in base64: `{"data":"…"}`. It is written once, where it is sent from.
pub(crate) fn output(number: u64, kind: &str, written: &[u8]) -> Bytes {
    const END: &str = "\"}\n\n";
    let mut event = format!("id: {number}\nevent: {kind}\ndata: {{\"data\":\"");
    event.reserve_exact(written.len().div_ceil(3) * 4 + END.len());
    // Nothing of base64 needs an escape in JSON.
    BASE64.encode_string(written, &mut event);
    event.push_str(END);
    Bytes::from(event)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_the_event_of_its_base64() {
        for written in [&b""[..], b"hi\n", b"\0\xff\"\\", &[7; 100_001]] {
            let json = serde_json::json!({ "data": BASE64.encode(written) });
            assert_eq!(output(12, "stderr", written), event(12, "stderr", &json), "{} bytes", written.len());
        }
    }
}
