// SPDX-License-Identifier: Apache-2.0
//! Connections to the gateway that are kept open between requests.

use super::way::{self, Way};
use crate::identity::Identity;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::UPGRADE;
use http_body_util::{Either, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use postern_common::tasks::Tasks;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A request's own body; none, of one that goes out again.
type Outward = Either<Incoming, Empty<Bytes>>;
type Connection = SendRequest<Outward>;

/// Connections that wait for their next request; further ones are closed.
const IDLE: usize = 8;

/// Why the gateway gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("it is not there")]
    Connect(#[source] io::Error),
    #[error("it broke off")]
    Broken(#[source] hyper::Error),
}

/// Idle connections to one gateway.
pub(super) struct Pool {
    socket: PathBuf,
    identity: Arc<Identity>,
    /// Found out at the first request.
    way: OnceLock<Way>,
    idle: Arc<Mutex<Vec<Connection>>>,
    tasks: Tasks,
}

impl Pool {
    /// The socket is where the gateway is unless the identity says otherwise.
    pub(super) fn new(socket: PathBuf, identity: Arc<Identity>, tasks: Tasks) -> Self {
        Self { socket, identity, way: OnceLock::new(), idle: Arc::default(), tasks }
    }

    /// Sends the request on an idle connection, or on a new one.
    ///
    /// A request that an idle connection could not take, because the gateway had closed it
    /// meanwhile, was not sent at all and goes out again. One that crossed the gateway's end on its
    /// way may have been heard: it goes out once more, on a new connection, if it only asks.
    pub(super) async fn send(&self, request: Request<Incoming>) -> Result<Response<Incoming>, SendError> {
        let mut request = request.map(Either::Left);
        while let Some(mut connection) = self.take() {
            let again = only_asks(&request);
            match connection.try_send_request(request).await {
                Ok(response) => {
                    self.keep_when_free(connection);
                    return Ok(response);
                }
                Err(mut error) => {
                    if let Some(unsent) = error.take_message() {
                        request = unsent;
                        continue;
                    }
                    let Some(again) = again else { return Err(SendError::Broken(error.into_error())) };
                    request = again.map(Either::Right);
                    break;
                }
            }
        }
        let mut connection = self.connect().await?;
        let response = connection.send_request(request).await.map_err(SendError::Broken)?;
        self.keep_when_free(connection);
        Ok(response)
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.is_closed());
        idle.pop()
    }

    /// The connection is busy until the response's body has been read; then it waits for more.
    fn keep_when_free(&self, mut connection: Connection) {
        let idle = Arc::clone(&self.idle);
        self.tasks.spawn(async move |stop| {
            if let Some(Ok(())) = stop.run_until_cancelled(connection.ready()).await {
                let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
                if idle.len() < IDLE {
                    idle.push(connection);
                }
            }
        });
    }

    async fn connect(&self) -> Result<Connection, SendError> {
        let way = self.way.get_or_init(|| Way::to(self.identity.gateway(), &self.socket));
        let stream = way::connect(way).await.map_err(SendError::Connect)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(SendError::Broken)?;
        let carried = connection.with_upgrades().boxed();
        let identity = Arc::clone(&self.identity);
        self.tasks.spawn(async move |stop| {
            // Its end is seen by whoever waits for an answer. What sleeps has no connection: the other
            // end would be gone when it wakes.
            let awake = async {
                tokio::select! { _ended = carried => {}, () = identity.falls_asleep() => {} }
            };
            let _ = stop.run_until_cancelled(awake).await;
        });
        Ok(sender)
    }
}

/// The same request, if whoever hears it twice does nothing twice (RFC 9110, 9.2.2): of a safe method,
/// without a body, and no upgrade.
fn only_asks(request: &Request<Outward>) -> Option<Request<Empty<Bytes>>> {
    let is_one = request.method().is_safe()
        && request.body().is_end_stream()
        && !request.headers().contains_key(UPGRADE);
    is_one.then(|| {
        let mut same = Request::new(Empty::new());
        request.method().clone_into(same.method_mut());
        request.uri().clone_into(same.uri_mut());
        request.headers().clone_into(same.headers_mut());
        same
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use http_body_util::BodyExt as _;
    use hyper::service::service_fn;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;
    use tokio::time::timeout;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A gateway whose first connection ends when it has heard its second request; later ones answer all.
    async fn gateway(listener: UnixListener, heard: Arc<AtomicUsize>) {
        for most in [1, usize::MAX] {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            for answered in 0.. {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                heard.fetch_add(1, Ordering::Relaxed);
                if answered == most {
                    break;
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(answer).await.expect("answers");
            }
        }
    }

    /// What comes of two requests, one after the other, and how many the gateway heard.
    async fn two(socket: &Path, method: &Method) -> (Vec<Result<u16, String>>, usize) {
        let (tasks, heard) = (Tasks::new(), Arc::new(AtomicUsize::new(0)));
        let listener = UnixListener::bind(socket).expect("binds");
        let counted = Arc::clone(&heard);
        tasks.spawn(move |_| gateway(listener, counted));
        let pool = Arc::new(Pool::new(socket.to_owned(), Arc::default(), tasks.clone()));
        let carried = Arc::clone(&pool);
        // Requests are what a server takes in.
        let (near, far) = tokio::io::duplex(4096);
        let service = service_fn(move |request: Request<Incoming>| {
            let pool = Arc::clone(&carried);
            async move { pool.send(request).await.map_err(|error| error.to_string()) }
        });
        tasks.spawn(move |_| async move {
            drop(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).await,
            );
        });
        let (mut client, connection) = handshake(TokioIo::new(near)).await.expect("begins");
        tasks.spawn(move |_| async move { drop(connection.await) });
        let mut came = Vec::new();
        for _ in 0..2 {
            let request = Request::builder().method(method).uri("/orders").body(Empty::<Bytes>::new());
            let answer = client.send_request(request.expect("a request")).await;
            came.push(match answer {
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    answer.collect().await.expect("reads");
                    while pool.idle.lock().expect("no panic").is_empty() {
                        tokio::task::yield_now().await;
                    }
                    Ok(status)
                }
                Err(error) => Err(error.to_string()),
            });
        }
        (came, heard.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn what_only_asks_goes_out_again_when_the_gateway_ended_and_nothing_else_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let two = async |name, method| {
            timeout(PATIENCE, two(&folder.path().join(name), &method)).await.expect("both come to their end")
        };
        let (came, heard) = two("asks", Method::GET).await;
        assert_eq!((came, heard), (vec![Ok(200), Ok(200)], 3));
        let (came, heard) = two("acts", Method::POST).await;
        assert_eq!(came.first(), Some(&Ok(200)), "the control");
        assert!(came.last().is_some_and(Result::is_err), "{came:?}");
        assert_eq!(heard, 2, "it was sent once");
    }
}
