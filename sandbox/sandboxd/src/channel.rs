// SPDX-License-Identifier: Apache-2.0
//! The control channel: this process's standard input and output, taken away from everybody else.

use postern_common::channel::{GO, MARK};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;

/// What is read at a time of a flood.
const FLOOD_READ: usize = 4096;

/// Both streams. One conversation after the other is held on them.
#[derive(Debug)]
pub(crate) struct Streams {
    input: OwnedFd,
    output: OwnedFd,
}

/// Takes both streams and leaves `/dev/null` in their place.
///
/// The copies are closed on exec, so no process that is started later can hold them.
///
/// # Errors
/// If `/dev/null` is not there.
pub(crate) fn take_standard_streams() -> io::Result<Streams> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(Streams { input, output })
}

impl Streams {
    /// The channel, for one conversation.
    ///
    /// # Errors
    /// If either is not a pipe.
    pub(crate) fn open(&self) -> io::Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>> {
        let (input, output) = (self.input.try_clone()?, self.output.try_clone()?);
        Ok(tokio::io::join(pipe::Receiver::from_owned_fd(input)?, pipe::Sender::from_owned_fd(output)?))
    }

    /// After a conversation broke off because another is to begin: finds where that is
    /// ([`postern_common::channel`]).
    ///
    /// # Errors
    /// If the other end is gone.
    pub(crate) async fn begin_anew(&self) -> io::Result<()> {
        begin_anew(self.open()?).await
    }
}

async fn begin_anew(mut channel: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    channel.write_all(MARK).await?;
    let mut flood = [0; FLOOD_READ];
    loop {
        let length = channel.read(&mut flood).await?;
        match flood.get(..length).and_then(<[u8]>::last) {
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
            // Nothing comes after it before the second mark.
            Some(&GO) => break,
            Some(_) => {}
        }
    }
    channel.write_all(MARK).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::channel::{FLOOD, FLOOD_BYTES};

    #[tokio::test]
    async fn both_sides_know_where_the_next_conversation_begins() {
        let (mut shim, mut ours) = tokio::io::duplex(64 << 10);
        let beginning = begin_anew(&mut ours);
        let asking = async {
            shim.write_all(&[FLOOD; FLOOD_BYTES]).await.expect("room");
            let mut mark = [0; MARK.len()];
            shim.read_exact(&mut mark).await.expect("is told");
            assert_eq!(&mark, MARK);
            shim.write_all(&[GO]).await.expect("room");
            shim.read_exact(&mut mark).await.expect("is told again");
            shim.write_all(b"PRI").await.expect("room");
        };
        let (begun, ()) = tokio::join!(beginning, asking);
        begun.expect("begins");
        let mut next = [0; 3];
        ours.read_exact(&mut next).await.expect("is there");
        assert_eq!(&next, b"PRI", "nothing of the next conversation is passed over");
    }

    #[tokio::test]
    async fn an_end_that_is_gone_is_no_new_beginning() {
        let (shim, ours) = tokio::io::duplex(64);
        drop(shim);
        assert!(begin_anew(ours).await.is_err());
    }
}
