// SPDX-License-Identifier: Apache-2.0
//! WebSockets (RFC 6455, over HTTP/2 RFC 8441): a handshake that is judged like every request, and
//! the connection that comes of it.
//!
//! The two handshakes are not one: the sandbox's is read strictly and answered by us, the backend's
//! is asked with a key of our own and believed only if its answer fits. So nobody can make us take
//! for a tunnel what a backend still reads as HTTP. What goes through is bytes, carried both ways
//! and looked at by nobody; it ends with the session, when nothing has moved for a while, and when
//! the gateway has drained.

use crate::Gateway;
use crate::identify::Caller;
use crate::limits::Permit;
use crate::listener::InFlight;
use crate::metrics::WebSocketMetrics;
use crate::reject::Reject;
use crate::response::Body;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use postern_common::tasks::Stop;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// What a server adds to a key before it answers with the digest (RFC 6455 §1.3).
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
/// The one version there is (RFC 6455 §4.1).
const VERSION: HeaderValue = HeaderValue::from_static("13");

/// A sandbox's side of a WebSocket that was asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    upgrade: OnUpgrade,
    /// What its key is answered with; over HTTP/2 there is none.
    accept: Option<HeaderValue>,
    /// Keeps its connection among those that do something.
    in_flight: Option<Arc<InFlight>>,
}

/// Whether a request asks to leave HTTP.
pub(crate) fn is_asked_for<Body>(request: &Request<Body>) -> bool {
    request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE)
}

/// Reads the handshake of a request that asks for a WebSocket, which then is a `GET` like another;
/// `None` for a request that asks for nothing.
///
/// # Errors
/// [`Reject::Upgrade`] for CONNECT, every other upgrade, and a handshake that is not exactly one.
pub(crate) fn asked(request: &mut Request<Incoming>) -> Result<Option<Asked>, Reject> {
    if !is_asked_for(request) {
        return Ok(None);
    }
    let headers = request.headers();
    let is_get = *request.method() == Method::GET;
    let accept = match request.version() {
        Version::HTTP_11 if is_get => Some(key_of(headers).ok_or(Reject::Upgrade)?),
        Version::HTTP_2 if is_extended_connect(request) => None,
        _ => return Err(Reject::Upgrade),
    };
    let has_body = headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
    if has_body || only(headers, &SEC_WEBSOCKET_VERSION) != Some(VERSION.as_bytes()) {
        return Err(Reject::Upgrade);
    }
    *request.method_mut() = Method::GET;
    let in_flight = request.extensions_mut().remove::<Arc<InFlight>>();
    Ok(Some(Asked { upgrade: hyper::upgrade::on(request), accept, in_flight }))
}

/// The answer to the key of a handshake over HTTP/1.1; `None` if it is not exactly one.
fn key_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let upgrade = only(headers, &UPGRADE)?;
    let listed = headers.get_all(CONNECTION).iter().filter_map(|line| line.to_str().ok());
    let mut listed = listed.flat_map(|line| line.split(','));
    let is_upgrade = upgrade.eq_ignore_ascii_case(WEBSOCKET.as_bytes())
        && listed.any(|name| name.trim().eq_ignore_ascii_case("upgrade"));
    let key = only(headers, &SEC_WEBSOCKET_KEY).filter(|_| is_upgrade)?;
    let is_key = STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16);
    if is_key { accept_of(key) } else { None }
}

fn is_extended_connect(request: &Request<Incoming>) -> bool {
    let protocol = request.extensions().get::<Protocol>();
    request.method() == Method::CONNECT && protocol.is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// The value of a header that is there once.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then(|| first.as_bytes())
}

fn accept_of(key: &[u8]) -> Option<HeaderValue> {
    // SHA-1 proves nothing here but that both speak the protocol, which is all that it is for.
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, KEY_SUFFIX].concat());
    HeaderValue::from_str(&STANDARD.encode(digest.as_ref())).ok()
}

/// The key of our own handshake with a backend.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    key: HeaderValue,
    accept: HeaderValue,
}

impl Key {
    pub(crate) fn generate() -> Result<Self, Reject> {
        const FAILED: Reject = Reject::Internal("no key for a WebSocket could be made");
        let mut random = [0; 16];
        rand::fill(&mut random).map_err(|_no_randomness| FAILED)?;
        let key = HeaderValue::from_str(&STANDARD.encode(random)).map_err(|_not_text| FAILED)?;
        let accept = accept_of(key.as_bytes()).ok_or(FAILED)?;
        Ok(Self { key, accept })
    }

    /// Asks a backend to leave HTTP.
    pub(crate) fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, WEBSOCKET);
        headers.insert(SEC_WEBSOCKET_VERSION, VERSION);
        headers.insert(SEC_WEBSOCKET_KEY, self.key.clone());
    }

    /// Whether a backend that switches protocols means this handshake (RFC 6455 §4.1).
    pub(crate) fn is_answered_by(&self, headers: &HeaderMap) -> bool {
        only(headers, &UPGRADE).is_some_and(|upgrade| upgrade.eq_ignore_ascii_case(WEBSOCKET.as_bytes()))
            && only(headers, &SEC_WEBSOCKET_ACCEPT) == Some(self.accept.as_bytes())
    }
}

/// A backend's side of a WebSocket that it has agreed to.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) upgrade: OnUpgrade,
    /// Held until the WebSocket ends.
    pub(crate) permit: Permit,
}

/// Answers the sandbox's handshake if its backend agreed to ours, and carries what follows; any
/// other answer goes back as it is.
pub(crate) fn join(
    gateway: &Gateway,
    caller: &Caller,
    ends: Option<(Asked, Opened)>,
    mut response: Response<Body>,
) -> Response<Body> {
    let Some((asked, opened)) = ends else { return response };
    match asked.accept {
        Some(accept) => {
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, WEBSOCKET);
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        None => *response.status_mut() = StatusCode::OK,
    }
    response.headers_mut().remove(CONTENT_LENGTH);
    let tunnel = Tunnel {
        sandbox: asked.upgrade,
        backend: opened.upgrade,
        ended: caller.ended.clone(),
        idle: gateway.surroundings.waits.websocket,
        drain: gateway.drain,
        metrics: gateway.metrics.websockets.clone(),
        _held: (asked.in_flight, opened.permit),
    };
    gateway.tasks.spawn(move |stop| tunnel.carry(stop));
    response
}

/// Two ends, and what ends them.
struct Tunnel {
    sandbox: OnUpgrade,
    backend: OnUpgrade,
    ended: CancellationToken,
    idle: Duration,
    drain: Duration,
    metrics: WebSocketMetrics,
    _held: (Option<Arc<InFlight>>, Permit),
}

impl Tunnel {
    async fn carry(self, stop: Stop) {
        let drained = async {
            stop.cancelled().await;
            sleep(self.drain).await;
        };
        tokio::select! {
            biased;
            () = self.ended.cancelled() => {}
            () = drained => {}
            () = self.exchange() => {}
        }
    }

    /// Carries bytes both ways until both ends are done, one breaks off, or nothing has moved for
    /// too long.
    async fn exchange(&self) {
        // A sandbox that left before it was answered.
        let Ok(sandbox) = self.sandbox.clone().await else { return };
        let Ok(backend) = self.backend.clone().await else { return };
        let moved = Moved::new(self.metrics.clone());
        let mut sandbox = Counted { io: TokioIo::new(sandbox), moved: &moved };
        let mut backend = TokioIo::new(backend);
        self.metrics.open.inc();
        tokio::select! {
            // Either end may break off in any way: the other's end says all.
            _ = copy_bidirectional(&mut sandbox, &mut backend) => {}
            () = moved.idle(self.idle) => {}
        }
        self.metrics.open.dec();
    }
}

/// When something last went through.
#[derive(Debug)]
struct Moved {
    opened: Instant,
    /// Nanoseconds after `opened`.
    last: AtomicU64,
    metrics: WebSocketMetrics,
}

impl Moved {
    fn new(metrics: WebSocketMetrics) -> Self {
        Self { opened: Instant::now(), last: AtomicU64::new(0), metrics }
    }

    fn note(&self) {
        let since = u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }

    /// Resolves when nothing has moved for `bound`.
    async fn idle(&self, bound: Duration) {
        loop {
            let last = Duration::from_nanos(self.last.load(Ordering::Relaxed));
            let due = self.opened + last + bound;
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }
}

/// The sandbox's end, on which all that moves is counted.
#[derive(Debug)]
struct Counted<'m, Io> {
    io: Io,
    moved: &'m Moved,
}

impl<Io: AsyncRead + Unpin> AsyncRead for Counted<'_, Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, into))?;
        self.moved.note();
        self.moved.metrics.from_sandboxes.inc_by((into.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Counted<'_, Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(context, bytes))?;
        self.moved.note();
        self.moved.metrics.to_sandboxes.inc_by(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in fields.iter().map(field) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn a_key_is_answered_as_the_standard_says() {
        let accept = accept_of(b"dGhlIHNhbXBsZSBub25jZQ==").expect("text");
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "RFC 6455 §1.3");
    }

    #[test]
    fn only_a_whole_handshake_is_one() {
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let (upgrade, connection) = (("upgrade", "WebSocket"), ("connection", "keep-alive, Upgrade"));
        assert!(key_of(&headers(&[upgrade, connection, key])).is_some());
        for (what, fields) in [
            ("no key", vec![upgrade, connection]),
            ("two keys", vec![upgrade, connection, key, key]),
            ("a short key", vec![upgrade, connection, ("sec-websocket-key", "c2hvcnQ=")]),
            ("a key that is none", vec![upgrade, connection, ("sec-websocket-key", "not base64 at all!!!!")]),
            ("connection does not list it", vec![upgrade, ("connection", "keep-alive"), key]),
            ("no connection", vec![upgrade, key]),
            ("another protocol", vec![("upgrade", "h2c"), connection, key]),
            ("a list of protocols", vec![("upgrade", "websocket, h2c"), connection, key]),
            ("two upgrades", vec![upgrade, ("upgrade", "h2c"), connection, key]),
        ] {
            assert!(key_of(&headers(&fields)).is_none(), "{what}");
        }
    }

    #[test]
    fn a_backend_is_believed_only_with_the_answer_to_our_key() {
        let key = Key::generate().expect("random");
        let accept: &'static str = key.accept.to_str().expect("text").to_owned().leak();
        let (upgrade, accept) = (("upgrade", "websocket"), ("sec-websocket-accept", accept));
        assert!(key.is_answered_by(&headers(&[upgrade, accept])));
        for (what, fields) in [
            ("another's answer", vec![upgrade, ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")]),
            ("no answer", vec![upgrade]),
            ("two answers", vec![upgrade, accept, accept]),
            ("another protocol", vec![("upgrade", "h2c"), accept]),
        ] {
            assert!(!key.is_answered_by(&headers(&fields)), "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_idle_when_nothing_has_moved_for_the_bound() {
        let moved = Moved::new(WebSocketMetrics::default());
        let bound = Duration::from_secs(60);
        let is_idle_within =
            async |wait| tokio::time::timeout(Duration::from_secs(wait), moved.idle(bound)).await.is_ok();
        assert!(!is_idle_within(59).await);
        moved.note();
        assert!(!is_idle_within(59).await && is_idle_within(2).await);
    }
}
