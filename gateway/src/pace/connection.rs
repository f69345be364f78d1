// SPDX-License-Identifier: Apache-2.0
//! A connection that breaks off when its peer takes our answers too slowly.
//!
//! Reading is not bounded here: what a peer sends has bounds of its own, by its kind.

use super::Pace;
use hyper::rt::{Read, ReadBufCursor, Write};
use std::io::{Error, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// A connection whose peer must take what we write. It keeps its place among those that are
/// counted for as long as it is open, also when it has left HTTP.
#[derive(Debug)]
pub(crate) struct PacedConnection<Io, Place> {
    io: Io,
    pace: Pace,
    _place: Place,
}

impl<Io: Write + Unpin, Place: Unpin> PacedConnection<Io, Place> {
    /// Bounds a connection; a peer may keep us waiting for `most` in all.
    pub(crate) const fn new(io: Io, most: Duration, place: Place) -> Self {
        Self { io, pace: Pace::new(most), _place: place }
    }

    fn poll_paced<Done>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Io>, &mut Context<'_>) -> Poll<Result<Done, Error>>,
        bytes: impl FnOnce(&Done) -> usize,
    ) -> Poll<Result<Done, Error>> {
        if let Poll::Ready(written) = write(Pin::new(&mut self.io), context) {
            self.pace.moved(written.as_ref().map_or(0, bytes));
            return Poll::Ready(written);
        }
        ready!(self.pace.poll_too_slow(context));
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the peer takes too little of the answer")))
    }
}

impl<Io: Read + Unpin, Place: Unpin> Read for PacedConnection<Io, Place> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl<Io: Write + Unpin, Place: Unpin> Write for PacedConnection<Io, Place> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, Error>> {
        self.poll_paced(context, |io, context| io.poll_write(context, bytes), |written| *written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize, Error>> {
        self.poll_paced(context, |io, context| io.poll_write_vectored(context, slices), |written| *written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_paced(context, Io::poll_flush, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_paced(context, Io::poll_shutdown, |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::STALL_TIME;
    use hyper_util::rt::TokioIo;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt as _, duplex};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_nothing_loses_its_connection() {
        let (ours, _theirs) = duplex(16);
        let mut connection = PacedConnection::new(TokioIo::new(ours), STALL_TIME, ());
        let begun = Instant::now();
        let broken = loop {
            let write = poll_fn(|context| Pin::new(&mut connection).poll_write(context, &[0; 16]));
            if let Err(error) = write.await {
                break error;
            }
        };
        assert_eq!(broken.kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() >= STALL_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_a_little_now_and_then_loses_it_too() {
        let (ours, mut theirs) = duplex(16);
        let mut connection = PacedConnection::new(TokioIo::new(ours), STALL_TIME, ());
        let writing = async {
            loop {
                let write = poll_fn(|context| Pin::new(&mut connection).poll_write(context, &[0; 16]));
                if let Err(error) = write.await {
                    break error;
                }
            }
        };
        let reading = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if theirs.read(&mut [0; 16]).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let broken = tokio::select! {
            broken = writing => broken,
            () = reading => unreachable!("it reads for ever"),
        };
        assert_eq!(broken.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_stays_open() {
        let (ours, mut theirs) = duplex(16);
        let mut connection = PacedConnection::new(TokioIo::new(ours), STALL_TIME, ());
        for _ in 0..3 {
            tokio::time::sleep(STALL_TIME * 2).await;
            let write = poll_fn(|context| Pin::new(&mut connection).poll_write(context, b"event"));
            assert_eq!(write.await.expect("writes"), 5);
            theirs.read_exact(&mut [0; 5]).await.expect("reads");
        }
    }
}
