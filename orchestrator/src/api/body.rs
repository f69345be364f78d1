// SPDX-License-Identifier: Apache-2.0
//! Bodies of requests: bounded, of the declared type, read whole.

use crate::storage::Content;
use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use postern_common::problem::{Code, Problem};
use std::io;
use std::time::Duration;

/// A configuration with its filters' components in base64.
pub(crate) const CONFIGURATION_BYTES: usize = 96 << 20;
/// Any other JSON: a whole environment and a long command fit.
pub(crate) const JSON_BYTES: usize = 1 << 20;
/// A secret's value.
pub(crate) const SECRET_BYTES: usize = 64 << 10;
/// The time in which a body must have arrived.
const BODY_TIME: Duration = Duration::from_secs(30);

/// What a route's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// There is none.
    None,
    /// JSON of at most so many bytes.
    Json(usize),
    /// Any bytes, which the handler takes as they come.
    Stream,
    /// None: the connection becomes a WebSocket.
    WebSocket,
}

/// Reads a body as its route wants it.
pub(crate) async fn read(kind: Kind, headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let bound = match kind {
        Kind::None | Kind::Stream | Kind::WebSocket => 0,
        Kind::Json(bound) => bound,
    };
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Problem::new(Code::ContentTypeRefused, "the body is compressed")
            .hint("send it as it is, without `Content-Encoding`"));
    }
    let collected = tokio::time::timeout(BODY_TIME, Limited::new(body, bound).collect()).await;
    let bytes = match collected {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
            let hint = if bound == 0 {
                "this call takes no body".to_owned()
            } else {
                format!("at most {bound} bytes are accepted here")
            };
            return Err(Problem::new(Code::BodyTooLarge, "the body is longer than it may be").hint(hint));
        }
        Ok(Err(_broken)) => return Err(Problem::new(Code::RequestMalformed, "the body broke off")),
        Err(_late) => return Err(Problem::new(Code::RequestTimeout, "the body did not arrive within 30 s")),
    };
    if matches!(kind, Kind::Json(_)) && !bytes.is_empty() && !is_json(headers) {
        return Err(Problem::new(Code::ContentTypeRefused, "the body is not declared as JSON")
            .hint("send `Content-Type: application/json`"));
    }
    Ok(bytes)
}

/// The bytes of a body as they come. Whoever sends none for too long is not waited for.
pub(crate) fn stream(headers: &HeaderMap, body: Body) -> Result<Content, Problem> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Problem::new(Code::ContentTypeRefused, "the body is compressed")
            .hint("send it as it is, without `Content-Encoding`"));
    }
    let next = |mut body: BodyDataStream| async move {
        match tokio::time::timeout(BODY_TIME, body.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => Ok(Some((bytes, body))),
            Ok(Some(Err(broken))) => Err(io::Error::other(broken)),
            Err(_late) => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came for 30 s")),
        }
    };
    Ok(futures_util::stream::try_unfold(body.into_data_stream(), next).boxed())
}

/// Whether the body is declared as JSON. A form or plain text never is: pages of other origins can
/// send those without asking.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}
