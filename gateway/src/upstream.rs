// SPDX-License-Identifier: Apache-2.0
//! Sends a sealed request to its backend.
//!
//! Connections are pooled for all tenants, by scheme and authority: the tenant is not part of the
//! key, since a connection carries no identity of its own, requests on it are framed by hyper alone
//! (no sandbox, filter or tenant can name a header that frames: `headers::is_tenants`), and two
//! tenants with one authority reach the same server either way. HTTP/1.1 and HTTP/2 have pools of
//! their own, by what the backend's file says; a WebSocket has a connection of its own. Each is
//! opened by [`connect`] to an address that was checked right before. Redirects are passed back, never followed. Repeated is what
//! was never written to a connection, and, within a budget, what changes nothing; a backend that only
//! fails is left alone for a while ([`circuit`]).

pub(crate) mod address;
pub(crate) mod circuit;
mod connect;

use crate::broker::{Flow, Sealed, SealedBody};
use crate::config::{
    HEADER_BYTES, HEADER_COUNT, HTTP2_CONNECTION_WINDOW, HTTP2_PING_TIME, HTTP2_STREAM_WINDOW,
    POOL_IDLE_CONNECTIONS, POOL_IDLE_TIME,
};
use crate::limits::Permit;
use crate::listener::OwnedExecutor;
use crate::reject::Reject;
use crate::response::{Answer, BackendBody, Body};
use crate::snapshot::Backend;
use crate::websocket::{Key, Opened};
use address::{RefusedAddress, UpstreamRules};
use bytes::Bytes;
use circuit::Outcome;
pub(crate) use connect::{Authorities, Connector};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::{Builder, Client, Error};
use hyper_util::rt::TokioTimer;
use postern_common::folder::UpstreamProtocol;
use postern_common::tasks::Tasks;
use rustls::pki_types::CertificateDer;
use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The pools of connections to backends.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    auto: Client<Connector, SealedBody>,
    http1: Client<Connector, SealedBody>,
    http2: Client<Connector, SealedBody>,
    /// Keeps no connection: one that has left HTTP is nobody else's.
    websockets: Client<Connector, SealedBody>,
}

/// TLS to backends could not be prepared.
#[derive(Debug, thiserror::Error)]
#[error("TLS to backends could not be prepared")]
pub struct TlsUnusable(#[source] pub(crate) rustls::Error);

impl Upstream {
    /// Prepares the pools. Reads the system's certificate authorities; connects nowhere.
    pub(crate) fn new(
        rules: &UpstreamRules,
        extra_authorities: Vec<CertificateDer<'static>>,
        tasks: &Tasks,
    ) -> Result<Self, TlsUnusable> {
        let authorities = Authorities::new(extra_authorities).map_err(TlsUnusable)?;
        let connector =
            |protocols: &[&[u8]]| Connector::new(rules.clone(), &authorities, protocols).map_err(TlsUnusable);
        let mut client = client(tasks);
        Ok(Self {
            auto: client.build(connector(&[b"h2", b"http/1.1"])?),
            http1: client.build(connector(&[b"http/1.1"])?),
            http2: client.clone().http2_only(true).build(connector(&[b"h2"])?),
            websockets: client.pool_max_idle_per_host(0).build(connector(&[b"http/1.1"])?),
        })
    }

    fn client_for(&self, backend: &Backend, key: Option<&Key>) -> &Client<Connector, SealedBody> {
        match backend.protocol {
            _ if key.is_some() => &self.websockets,
            UpstreamProtocol::Auto => &self.auto,
            UpstreamProtocol::Http1 => &self.http1,
            UpstreamProtocol::Http2 => &self.http2,
        }
    }

    /// Sends the request and waits for the head of the answer.
    ///
    /// Ends when the backend keeps us waiting for its own timeout, and at once when the session
    /// ends; time in which a streamed body waits for the sandbox is the sandbox's, whose pace is
    /// bounded. The permit goes into the answer's body and is held until that ends.
    ///
    /// # Errors
    /// [`Reject`] for a refused address, a backend that cannot be reached or is too slow, a body
    /// that failed on its way, and a session that ended.
    pub(crate) async fn send(
        &self,
        sealed: Sealed,
        permit: Permit,
        ended: &CancellationToken,
    ) -> Result<Answer, Reject> {
        let (backend, request, key) = sealed.into_parts();
        let client = self.client_for(&backend, key.as_ref());
        let begun = Instant::now();
        let attempt = backend.circuit.enter(begun).map_err(Reject::CircuitOpen)?;
        let flow = request.body().flow();
        let answer = tokio::select! {
            biased;
            () = ended.cancelled() => return Err(Reject::SessionEnded),
            answer = ask(client, request, &backend) => answer,
            () = overdue(flow, backend.timeout) => Err(Reject::UpstreamTimeout),
        };
        attempt.end(outcome(&answer), Instant::now());
        answered(answer?, &backend, key.as_ref(), permit, ended, begun.elapsed())
    }
}

/// What all connections to backends are bounded by.
fn client(tasks: &Tasks) -> Builder {
    let mut client = Client::builder(OwnedExecutor(tasks.clone()));
    client
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE_TIME)
        .pool_max_idle_per_host(POOL_IDLE_CONNECTIONS)
        .http1_max_headers(HEADER_COUNT)
        .http1_max_buf_size(HEADER_BYTES)
        .http2_max_header_list_size(u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX))
        .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .http2_keep_alive_interval(HTTP2_PING_TIME)
        .http2_keep_alive_timeout(HTTP2_PING_TIME);
    client
}

/// Asks the backend; once more if that is safe, no answer came, and its budget allows it.
async fn ask(
    client: &Client<Connector, SealedBody>,
    request: Request<SealedBody>,
    backend: &Backend,
) -> Result<Response<Incoming>, Reject> {
    let again = repeatable(&request);
    let answer = ask_once(client, request).await;
    match (&answer, again) {
        (Err(Reject::UpstreamUnreachable(_)), Some(again)) if backend.circuit.may_repeat() => {
            ask_once(client, again).await
        }
        _ => answer,
    }
}

async fn ask_once(
    client: &Client<Connector, SealedBody>,
    request: Request<SealedBody>,
) -> Result<Response<Incoming>, Reject> {
    let fault = request.body().fault();
    let body_fault = || fault.as_ref().and_then(|fault| fault.get().copied());
    let answer = client.request(request).await;
    answer.map_err(|error| body_fault().map_or_else(|| refusal(&error), Reject::from))
}

/// The same request once more, if sending it twice means what sending it once does: its method is
/// safe (RFC 9110 §9.2.1, not only idempotent: between two of those another's may lie) and it has
/// no body.
fn repeatable(request: &Request<SealedBody>) -> Option<Request<SealedBody>> {
    if !request.method().is_safe() || !request.body().is_end_stream() {
        return None;
    }
    let mut again = Request::new(SealedBody::Whole(Bytes::new()));
    request.method().clone_into(again.method_mut());
    request.uri().clone_into(again.uri_mut());
    request.headers().clone_into(again.headers_mut());
    Some(again)
}

fn outcome<Answer>(answer: &Result<Answer, Reject>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Answered,
        Err(Reject::UpstreamUnreachable(_) | Reject::UpstreamTimeout) => Outcome::Failed,
        Err(_) => Outcome::Unknown,
    }
}

/// Resolves when the backend has kept us waiting for `bound`: for an answer since the request's
/// last byte, or for it to take more of a streamed body.
async fn overdue(flow: Option<watch::Receiver<Flow>>, bound: Duration) {
    let Some(mut flow) = flow else { return tokio::time::sleep(bound).await };
    loop {
        let is_sandboxs_turn = *flow.borrow_and_update() == Flow::Sandbox;
        tokio::select! {
            biased;
            changed = flow.changed() => if changed.is_err() {
                // The body is sent, or given up.
                return tokio::time::sleep(bound).await;
            },
            () = tokio::time::sleep(bound), if !is_sandboxs_turn => return,
        }
    }
}

fn answered(
    mut response: Response<Incoming>,
    backend: &Arc<Backend>,
    key: Option<&Key>,
    permit: Permit,
    ended: &CancellationToken,
    took: Duration,
) -> Result<Answer, Reject> {
    let (backend, status) = (Arc::clone(backend), response.status());
    if let Some(needles) = backend.needles() {
        needles.clean(response.headers_mut());
    }
    if !status.is_informational() {
        let (head, body) = response.into_parts();
        let body = BackendBody::new(body, Arc::clone(&backend), permit, ended);
        let body = Body::Backend(Box::new(body));
        return Ok(Answer { head, body, backend, took, opened: None });
    }
    if status != StatusCode::SWITCHING_PROTOCOLS
        || !key.is_some_and(|key| key.is_answered_by(response.headers()))
    {
        return Err(Reject::UpstreamUnreachable("the backend switched protocols unasked".into()));
    }
    let opened = Some(Opened { upgrade: hyper::upgrade::on(&mut response), permit });
    let (head, _empty) = response.into_parts();
    Ok(Answer { head, body: Body::Own(Bytes::new()), backend, took, opened })
}

/// Tells an address that was refused from a backend that failed.
fn refusal(error: &Error) -> Reject {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    let mut words = error.to_string();
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref::<RefusedAddress>() {
            return Reject::UpstreamAddress(refused.clone());
        }
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    Reject::UpstreamUnreachable(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(60);

    async fn is_overdue_within(flow: Option<watch::Receiver<Flow>>, wait: Duration) -> bool {
        tokio::time::timeout(wait, overdue(flow, BOUND)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_may_take_as_long_as_its_sandbox_keeps_pace() {
        let sender = watch::Sender::new(Flow::Backend(0));
        let flow = || Some(sender.subscribe());
        assert!(is_overdue_within(flow(), BOUND * 2).await, "the backend does not take its first part");
        sender.send_replace(Flow::Sandbox);
        assert!(!is_overdue_within(flow(), BOUND * 100).await, "the sandbox is waited for");
        sender.send_replace(Flow::Backend(1));
        assert!(is_overdue_within(flow(), BOUND * 2).await, "the backend takes no more");
        let receiver = flow();
        sender.send_replace(Flow::Sandbox);
        drop(sender);
        let begun = tokio::time::Instant::now();
        overdue(receiver, BOUND).await;
        assert_eq!(begun.elapsed(), BOUND, "its time begins with the body's end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_the_backend_takes_gives_it_time_again() {
        let sender = watch::Sender::new(Flow::Backend(0));
        let taking = async {
            for part in 1..=10 {
                tokio::time::sleep(BOUND / 2).await;
                sender.send_replace(Flow::Backend(part));
            }
        };
        let begun = tokio::time::Instant::now();
        tokio::join!(overdue(Some(sender.subscribe()), BOUND), taking);
        assert_eq!(begun.elapsed(), BOUND * 6);
    }
}
