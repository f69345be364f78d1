// SPDX-License-Identifier: Apache-2.0
//! The HTTP/2 client that talks to `sandboxd` over its standard streams.
//!
//! What it says is untrusted: header lists, frames and windows are bounded here, so that however
//! much it sends, only this much of it waits in the shim.

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use postern_common::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

/// The body of a request to `sandboxd`.
pub use postern_common::execs::Body;

/// Bytes of one stream, and of all together, that may wait for their reader.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
const HEADER_BYTES: u32 = 32 << 10;
const SEND_BUFFER_BYTES: usize = 256 << 10;

/// `sandboxd` does not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// It does not speak HTTP/2.
    #[error("process 1 of the sandbox does not speak on its control channel")]
    Handshake(#[source] hyper::Error),
    /// The channel broke, or it broke its bounds.
    #[error("the control channel of the sandbox broke")]
    Broken(#[source] hyper::Error),
    /// It says that it is not well.
    #[error("process 1 of the sandbox says that it is not ready: {0}")]
    NotHealthy(StatusCode),
}

/// A channel to one `sandboxd`. Clones share it.
#[derive(Debug, Clone)]
pub struct Channel(http2::SendRequest<Body>);

impl Channel {
    /// Opens the channel. The receiver resolves when it is over.
    ///
    /// # Errors
    /// [`ChannelError::Handshake`].
    pub async fn open(
        streams: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        tasks: &Tasks,
    ) -> Result<(Self, oneshot::Receiver<()>), ChannelError> {
        let (sender, connection) = http2::Builder::new(Owned(tasks.clone()))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .handshake(TokioIo::new(streams))
            .await
            .map_err(ChannelError::Handshake)?;
        let (over, is_over) = oneshot::channel();
        tasks.spawn(async move |stop| {
            // Its end is the news, not how.
            let _ = stop.run_until_cancelled(connection).await.is_some_and(|ended| ended.is_ok());
            let _ = over.send(());
        });
        Ok((Self(sender), is_over))
    }

    /// Passes a request on.
    ///
    /// # Errors
    /// [`ChannelError::Broken`].
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, ChannelError> {
        self.0.clone().send_request(request).await.map_err(ChannelError::Broken)
    }

    /// Asks whether `sandboxd` serves.
    ///
    /// # Errors
    /// [`ChannelError`] unless it says yes.
    pub async fn check_health(&self) -> Result<(), ChannelError> {
        let mut request = Request::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        *request.uri_mut() = http::Uri::from_static("http://sandbox/health");
        match self.send(request).await?.status() {
            StatusCode::NO_CONTENT => Ok(()),
            other => Err(ChannelError::NotHealthy(other)),
        }
    }
}

/// Lets hyper start its tasks within ours.
#[derive(Debug, Clone)]
pub struct Owned(pub Tasks);

impl<Task> hyper::rt::Executor<Task> for Owned
where
    Task: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: Task) {
        self.0.spawn(|_stop| task);
    }
}
