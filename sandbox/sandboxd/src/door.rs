// SPDX-License-Identifier: Apache-2.0
//! The door: the one way out of the sandbox.
//!
//! Listens on loopback, writes the session token into `Authorization`, and carries each request
//! to the gateway: its unix socket, or in a pod the address that came with the identity. It decides nothing: it can be talked to and imitated by every
//! process in here, so all that is refused is refused by the gateway.

mod pool;
mod way;

pub(crate) use way::is_usable;
#[cfg(feature = "pod")]
pub(crate) use way::{Way, connect};

use crate::control::Owned;
use crate::identity::Identity;
use crate::options::Options;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use pool::Pool;
use postern_common::problem::{CONTENT_TYPE as PROBLEM_JSON, Code, Problem};
use postern_common::tasks::Tasks;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Connections at one time; further ones wait in the listener's queue.
const CONNECTIONS: usize = 256;
/// A client that opens a connection and says nothing is let go after this.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// The head of a request may be this long; the gateway's own bound is smaller.
const HEAD_BYTES: usize = 64 << 10;
/// After a failed accept (no descriptors left) the next try waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Named by RFC 9110 §7.6.1 or by long custom: they belong to one connection.
const PER_CONNECTION: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
];

/// Opens the door.
///
/// # Errors
/// If the address cannot be listened on.
pub(crate) async fn open(options: &Options, identity: Arc<Identity>, tasks: &Tasks) -> io::Result<()> {
    let listener = TcpListener::bind(options.door).await?;
    let pool = Pool::new(options.gateway.clone(), Arc::clone(&identity), tasks.clone());
    let door = Arc::new(Door { identity, pool, tasks: tasks.clone() });
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    tasks.spawn(async move |stop| {
        let _ = stop.run_until_cancelled(accept(listener, door, room)).await;
    });
    Ok(())
}

async fn accept(listener: TcpListener, door: Arc<Door>, room: Arc<Semaphore>) {
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        let Ok((connection, _from)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let serving = Arc::clone(&door);
        door.tasks.spawn(async move |stop| {
            let _ = stop.run_until_cancelled(serving.serve(connection)).await;
            drop(place);
        });
    }
}

struct Door {
    identity: Arc<Identity>,
    pool: Pool,
    tasks: Tasks,
}

impl Door {
    async fn serve(self: Arc<Self>, connection: TcpStream) {
        let tasks = self.tasks.clone();
        let service = service_fn(move |request| {
            let door = Arc::clone(&self);
            async move { Ok::<_, Infallible>(door.carry(request).await) }
        });
        let mut server = auto::Builder::new(Owned(tasks));
        server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES);
        server.http2().timer(TokioTimer::new()).max_concurrent_streams(128);
        // A connection that breaks is its client's affair.
        drop(server.serve_connection_with_upgrades(TokioIo::new(connection), service).await);
    }

    /// Carries one request to the gateway and its answer back.
    async fn carry(&self, mut request: Request<Incoming>) -> Response<Body> {
        let Some(bearer) = self.identity.bearer_when_awake().await else {
            return refusal(
                &Problem::new(Code::TokenMissing, "this sandbox has no session yet")
                    .hint("a sandbox that is kept ready has no way out until a conversation claims it"),
            );
        };
        if request.method() == Method::CONNECT {
            return refusal(
                &Problem::new(Code::UpgradeRefused, "this is no forward proxy")
                    .hint("call a backend as GATEWAY_URL/<backend>/<path>; there is no internet here"),
            );
        }
        let upgrade = wanted_upgrade(&request);
        let theirs = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        address(&mut request, upgrade, bearer);
        match self.pool.send(request).await {
            Ok(response) => self.answer(response, theirs),
            Err(error) => refusal(
                &Problem::new(Code::UpstreamUnreachable, format!("the gateway did not answer: {error}"))
                    .hint("it may be restarting: try again in a moment"),
            ),
        }
    }

    fn answer(
        &self,
        mut response: Response<Incoming>,
        theirs: Option<hyper::upgrade::OnUpgrade>,
    ) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if let Some(theirs) = theirs {
                let ours = hyper::upgrade::on(&mut response);
                let identity = Arc::clone(&self.identity);
                self.tasks.spawn(async move |stop| {
                    let awake = async {
                        tokio::select! { () = join(theirs, ours) => {}, () = identity.falls_asleep() => {} }
                    };
                    let _ = stop.run_until_cancelled(awake).await;
                });
            }
        } else {
            remove_per_connection(response.headers_mut());
        }
        response.map(BodyExt::boxed_unsync)
    }
}

/// The protocol that an HTTP/1.1 client asks to change to. Never h2c, which the listener speaks.
fn wanted_upgrade(request: &Request<Incoming>) -> Option<HeaderValue> {
    let asks = request.headers().get_all(CONNECTION).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")))
    });
    let protocol =
        request.headers().get(UPGRADE).filter(|_| asks && request.version() == Version::HTTP_11)?;
    (!protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| protocol.clone())
}

/// Makes the request one of this connection: origin form, `Host`, our token.
fn address(request: &mut Request<Incoming>, upgrade: Option<HeaderValue>, bearer: HeaderValue) {
    if let Some(host) = request.uri().authority().and_then(|host| HeaderValue::try_from(host.as_str()).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(target);
    *request.version_mut() = Version::HTTP_11;
    remove_per_connection(request.headers_mut());
    if let Some(protocol) = upgrade {
        request.headers_mut().insert(UPGRADE, protocol);
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    request.headers_mut().insert(AUTHORIZATION, bearer);
}

/// Removes what belongs to one connection, and all that `Connection` names.
fn remove_per_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&PER_CONNECTION).chain(&[CONNECTION, UPGRADE]) {
        headers.remove(name);
    }
}

async fn join(theirs: hyper::upgrade::OnUpgrade, ours: hyper::upgrade::OnUpgrade) {
    if let (Ok(theirs), Ok(ours)) = (theirs.await, ours.await) {
        let (mut theirs, mut ours) = (TokioIo::new(theirs), TokioIo::new(ours));
        // Either side may end it in any way; there is nobody left to tell.
        drop(tokio::io::copy_bidirectional(&mut theirs, &mut ours).await);
    }
}

fn refusal(problem: &Problem) -> Response<Body> {
    // A Problem of our own always serializes.
    let json = serde_json::to_vec(problem).unwrap_or_default();
    let mut response =
        Response::new(Full::new(Bytes::from(json)).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_GATEWAY);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    response
}
