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
use postern_common::channel::{FLOOD, FLOOD_BYTES, GO, MARK};
use postern_common::tasks::Tasks;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;

/// The body of a request to `sandboxd`.
pub use postern_common::execs::Body;

const HEADER_BYTES: u32 = 32 << 10;
/// The longest frame. Of each command one may be held that no window counts any more, while its messages wait for
/// room (`execs`): 32 MiB for as many commands as there may be, whatever the sandbox sends.
const FRAME_BYTES: u32 = 32 << 10;
/// What of one stream may wait: a chunk of output and the beginning of the next.
const STREAM_WINDOW_BYTES: u32 = 192 << 10;
/// What of all streams may. As many commands as fill it, each with a follower that does not read, keep everybody
/// else waiting: 16.
const CONNECTION_WINDOW_BYTES: u32 = 16 * STREAM_WINDOW_BYTES;
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
    /// It was restored and does not listen.
    #[error("process 1 of the sandbox did not come back to its control channel")]
    Anew(#[source] io::Error),
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
            .max_frame_size(FRAME_BYTES)
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

/// Ends the conversation that a restored `sandboxd` is in the middle of ([`postern_common::channel`]);
/// after it [`Channel::open`] begins another.
///
/// # Errors
/// [`ChannelError::Anew`].
pub async fn begin_anew(streams: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), ChannelError> {
    let begun = async {
        // What is left of before may have to be read before more can be written.
        let (mut from, mut to) = tokio::io::split(streams);
        let flood = async { to.write_all(&[FLOOD; FLOOD_BYTES]).await };
        let (flooded, found) = tokio::join!(flood, until_mark(&mut from));
        flooded.and(found)?;
        to.write_all(&[GO]).await?;
        until_mark(&mut from).await
    };
    begun.await.map_err(ChannelError::Anew)
}

async fn until_mark(from: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut last = [0; MARK.len()];
    loop {
        last.rotate_left(1);
        let byte = from.read_u8().await?;
        if let Some(end) = last.last_mut() {
            *end = byte;
        }
        if &last == MARK {
            return Ok(());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_left_of_before_is_passed_over_and_the_new_begins_after_it() {
        let (mut ours, mut theirs) = tokio::io::duplex(64 << 10);
        let restored = async {
            // A part of a frame, and most of a mark: output that was on its way.
            theirs.write_all(b"\0\0\x40\0\0").await.expect("room");
            theirs.write_all(&MARK[..MARK.len() - 1]).await.expect("room");
            let mut flood = vec![0; FLOOD_BYTES];
            theirs.read_exact(&mut flood).await.expect("comes");
            assert!(flood.iter().all(|byte| *byte == FLOOD));
            theirs.write_all(MARK).await.expect("room");
            assert_eq!(theirs.read_u8().await.expect("comes"), GO);
            theirs.write_all(MARK).await.expect("room");
            theirs.write_all(b"settings").await.expect("room");
        };
        let (begun, ()) = tokio::join!(begin_anew(&mut ours), restored);
        begun.expect("begins");
        let mut next = [0; 8];
        ours.read_exact(&mut next).await.expect("comes");
        assert_eq!(&next, b"settings", "nothing of the new conversation is passed over");
    }

    #[tokio::test]
    async fn one_that_does_not_come_back_is_an_error() {
        let (mut ours, theirs) = tokio::io::duplex(64 << 10);
        drop(theirs);
        assert!(matches!(begin_anew(&mut ours).await, Err(ChannelError::Anew(_))));
    }
}
