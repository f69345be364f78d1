// SPDX-License-Identifier: Apache-2.0
//! The control channel: this process's standard input and output, taken away from everybody else.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::pipe;

/// Takes both streams and leaves `/dev/null` in their place.
///
/// The copies are closed on exec, so no process that is started later can hold them.
///
/// # Errors
/// If either is not a pipe, or `/dev/null` is not there.
pub(crate) fn take_standard_streams() -> io::Result<impl AsyncRead + AsyncWrite + Unpin + Send> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(tokio::io::join(pipe::Receiver::from_owned_fd(input)?, pipe::Sender::from_owned_fd(output)?))
}
