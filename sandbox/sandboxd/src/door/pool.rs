// SPDX-License-Identifier: Apache-2.0
//! Connections to the gateway that are kept open between requests.

use super::way::{self, Way};
use crate::identity::Identity;
use futures_util::FutureExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use postern_common::tasks::Tasks;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

type Connection = SendRequest<Incoming>;

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
    /// meanwhile, was not sent at all and goes out again; any other is sent once.
    pub(super) async fn send(&self, mut request: Request<Incoming>) -> Result<Response<Incoming>, SendError> {
        while let Some(mut connection) = self.take() {
            match connection.try_send_request(request).await {
                Ok(response) => {
                    self.keep_when_free(connection);
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(SendError::Broken(error.into_error())),
                },
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
