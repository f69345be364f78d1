// SPDX-License-Identifier: Apache-2.0
//! A process's terminal: our end of it, and the start of a process at the other.
//!
//! A process must make the terminal its own before it becomes the program that was asked for, and
//! there is no safe code between fork and exec. So this program is started once more, as
//! `terminal COMMAND …`, does that, and becomes the command.

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::Deserialize;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use tokio::net::unix::pipe;

/// The first argument by which this program is asked to take a terminal.
pub(crate) const ARGUMENT: &str = "terminal";
/// What this program is, whatever lies at its path meanwhile.
pub(super) const PROGRAM: &str = "/proc/self/exe";
/// What shells answer for a command that is not there, or that may not be run.
const NOT_THERE: u8 = 127;
const NOT_RUN: u8 = 126;

/// How large it is, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Size {
    #[serde(default)]
    cols: u16,
    #[serde(default)]
    rows: u16,
}

impl From<Size> for Winsize {
    fn from(size: Size) -> Self {
        Self { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
    }
}

/// Our end of a terminal. When the last one who has it lets go, its processes are hung up.
/// Both descriptors are the same terminal's, which is read and written as pipes are.
#[derive(Debug)]
pub(super) struct Terminal {
    output: pipe::Receiver,
    input: pipe::Sender,
}

impl Terminal {
    /// Makes a terminal; the other end is for a process.
    pub(super) fn open(size: Size) -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags)?;
        unlockpt(&ours)?;
        tcsetwinsize(&ours, size.into())?;
        let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
        rustix::fs::fcntl_setfl(&ours, rustix::fs::fcntl_getfl(&ours)? | OFlags::NONBLOCK)?;
        let input = pipe::Sender::from_owned_fd_unchecked(ours.try_clone()?)?;
        Ok((Self { output: pipe::Receiver::from_owned_fd_unchecked(ours)?, input }, theirs))
    }

    pub(super) fn resize(&self, size: Size) -> io::Result<()> {
        Ok(tcsetwinsize(&self.output, size.into())?)
    }

    /// Reads what its processes wrote; an error once they all have let go.
    pub(super) async fn read(&self, chunk: &mut [u8]) -> io::Result<usize> {
        loop {
            self.output.readable().await?;
            match self.output.try_read(chunk) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    /// As if somebody typed it. Waits while its processes do not read.
    pub(super) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.input.writable().await?;
            match self.input.try_write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What this program does when it is started as `terminal COMMAND …`: it never returns if the
/// command could be started.
pub(crate) fn become_command(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(command) = words.next() else { return ExitCode::FAILURE };
    let input = io::stdin();
    let taken =
        rustix::process::setsid().and_then(|_session| rustix::process::ioctl_tiocsctty(input.as_fd()));
    if let Err(error) = taken {
        return fail(&command, &error.into());
    }
    let error = Command::new(&command).args(words).exec();
    fail(&command, &error)
}

#[expect(clippy::print_stderr, reason = "it is the terminal of whoever asked for the command")]
fn fail(command: &OsString, error: &io::Error) -> ExitCode {
    eprintln!("could not start `{}`: {error}", command.display());
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NOT_THERE } else { NOT_RUN })
}
