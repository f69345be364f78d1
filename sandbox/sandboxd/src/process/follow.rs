// SPDX-License-Identifier: Apache-2.0
//! Carries one process's output and end to those who follow it.
//!
//! ```text
//! reading ──exit──▶ draining (what the pipes held at exit) ──▶ end told, table left ──▶ discarding
//!                                                             (only what grandchildren still write)
//! ```

use super::chunk::{Chunk, Spares};
use super::terminal::Terminal;
use super::{Follower, Form, Process, Processes};
use crate::connect::{self, Code, Failure};
use crate::reaper::Exit;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use postern_common::output;
use rustix::io::retry_on_intr;
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};
use rustix::process::{Pid, Signal};
use serde::Serialize;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A pipe's usual capacity (pipe(7)).
const PIPE_BYTES: usize = 64 << 10;
/// That of one which was found full: its process goes on writing while we read. Half of what anybody may have; all
/// of one user's count together, so that those of idle processes stay small.
const LARGE_PIPE_BYTES: usize = 512 << 10;
/// So much at a time writes what is busy; less is somebody's line, who may be waiting for it.
const BUSY_BYTES: usize = 4 << 10;

/// What a terminal may still hold when its process has ended, and how long it is waited for: the
/// kernel hands over what was written a little later.
const TERMINAL_BYTES: usize = 1 << 20;
const TERMINAL_TIME: Duration = Duration::from_millis(100);

/// Both outputs of a process, each until its end; a terminal is one for both.
#[derive(Debug)]
pub(super) struct Outputs {
    first: Option<Source>,
    second: Option<Source>,
    is_terminal: bool,
}

impl Outputs {
    pub(super) fn pipes(stdout: Option<pipe::Receiver>, stderr: Option<pipe::Receiver>) -> Self {
        let source = |pipe| Source::Pipe { pipe, is_large: false };
        Self { first: stdout.map(source), second: stderr.map(source), is_terminal: false }
    }

    pub(super) fn terminal(terminal: Arc<Terminal>) -> Self {
        Self { first: Some(Source::Terminal(terminal)), second: None, is_terminal: true }
    }
}

/// Where output comes from.
#[derive(Debug)]
enum Source {
    Pipe { pipe: pipe::Receiver, is_large: bool },
    Terminal(Arc<Terminal>),
}

impl Source {
    /// Reads into a chunk; how much. Cancelling loses nothing.
    async fn read(&mut self, chunk: &mut Chunk) -> io::Result<usize> {
        let length = match self {
            Self::Pipe { pipe, .. } => pipe.read(chunk.room()).await?,
            Self::Terminal(terminal) => terminal.read(chunk.room()).await?,
        };
        chunk.add(length);
        Ok(length)
    }

    /// Adds to what was just read what a busy process writes within so long, as far as there is room.
    async fn gather(&mut self, chunk: &mut Chunk, time: Option<Duration>) {
        let Self::Pipe { pipe, is_large } = self else { return };
        if !*is_large && chunk.bytes().len() >= PIPE_BYTES {
            // Where it may not be larger, it stays as it is.
            let _ = fcntl_setpipe_size(pipe.as_fd(), LARGE_PIPE_BYTES).is_ok();
            *is_large = true;
        }
        let Some(time) = time.filter(|_| chunk.bytes().len() >= BUSY_BYTES) else { return };
        if chunk.room().is_empty() {
            return;
        }
        tokio::time::sleep(time).await;
        while !chunk.room().is_empty()
            && let Ok(length @ 1..) = read_now(pipe, chunk.room())
        {
            chunk.add(length);
        }
    }

    /// What is there without waiting for more than a process that ended can have left.
    async fn read_rest(&mut self, chunk: &mut Chunk) -> io::Result<usize> {
        let length = match self {
            Self::Pipe { pipe, .. } => read_now(pipe, chunk.room())?,
            Self::Terminal(terminal) => match timeout(TERMINAL_TIME, terminal.read(chunk.room())).await {
                Ok(read) => read?,
                Err(_elapsed) => 0,
            },
        };
        chunk.add(length);
        Ok(length)
    }

    /// What it holds at most: no more than this can have been written before an exit.
    fn capacity(&self) -> usize {
        match self {
            Self::Pipe { pipe, .. } => fcntl_getpipe_size(pipe.as_fd()).unwrap_or(PIPE_BYTES),
            Self::Terminal(_) => TERMINAL_BYTES,
        }
    }
}

/// Of the kernel itself: tokio answers from what it has heard, and may not have heard of the last bytes when it
/// has heard of the end.
fn read_now(pipe: &pipe::Receiver, room: &mut [u8]) -> io::Result<usize> {
    Ok(retry_on_intr(|| rustix::io::read(pipe.as_fd(), &mut *room))?)
}

#[derive(Serialize)]
struct Message<'a> {
    event: Event<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Event<'a> {
    Start { pid: i32 },
    Data(Text<'a>),
    End(End),
    Keepalive {},
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Text<'a> {
    Stdout(&'a str),
    Stderr(&'a str),
    Pty(&'a str),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct End {
    exit_code: i32,
    exited: bool,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<Exit> for End {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => {
                let status = format!("exit status {code}");
                let error = (code != 0).then(|| status.clone());
                Self { exit_code: code, exited: true, status, error }
            }
            Exit::Signal(signal) => {
                let status = format!("signal: {signal}");
                Self { exit_code: -1, exited: false, error: Some(status.clone()), status }
            }
        }
    }
}

/// Which of the outputs.
#[derive(Debug, Clone, Copy)]
enum Output {
    Stdout,
    Stderr,
    Terminal,
}

impl Output {
    /// As JSON.
    fn envelope(self, bytes: &[u8]) -> Bytes {
        let text = BASE64.encode(bytes);
        let text = match self {
            Self::Stdout => Text::Stdout(&text),
            Self::Stderr => Text::Stderr(&text),
            Self::Terminal => Text::Pty(&text),
        };
        connect::envelope(&Message { event: Event::Data(text) })
    }

    /// The flags of its envelopes that are bytes.
    const fn flags(self) -> u8 {
        match self {
            Self::Stdout | Self::Terminal => output::STDOUT,
            Self::Stderr => output::STDERR,
        }
    }
}

/// The first envelope of every follower.
pub(super) fn started(pid: Pid) -> Bytes {
    connect::envelope(&Message { event: Event::Start { pid: pid.as_raw_pid() } })
}

/// A message that says nothing.
pub(super) fn sign_of_life() -> impl Serialize {
    Message { event: Event::Keepalive {} }
}

/// Follows a process to its end; returns when nobody can write to its outputs any more.
pub(super) async fn until_end(
    processes: Processes,
    process: Arc<Process>,
    outputs: Outputs,
    exit: oneshot::Receiver<Exit>,
) {
    let Outputs { mut first, mut second, is_terminal } = outputs;
    let kind = if is_terminal { Output::Terminal } else { Output::Stdout };
    let spares = Spares::default();
    let mut chunks = [Chunk::new(&spares), Chunk::new(&spares)];
    let sources = ((&mut first, kind), &mut second);
    let exit = read_until_exit((&process, processes.gather), sources, &mut chunks, exit).await;
    let [mut chunk, other] = chunks;
    drain(&process, first.as_mut(), kind, &mut chunk).await;
    drain(&process, second.as_mut(), Output::Stderr, &mut chunk).await;
    if is_terminal {
        // gVisor hangs up nobody when a session's leader ends. Its group's number is not given anew while
        // one of the group is left; without any this does nothing.
        let _ = rustix::process::kill_process_group(process.pid, Signal::HUP).is_ok();
    }
    processes.remove(process.pid);
    end(&process, exit).await;
    drop(process);
    // Letting go of a terminal hangs up who is left at it, as it does when a window is closed.
    if !is_terminal {
        discard([(first, chunk), (second, other)]).await;
    }
}

async fn read_until_exit(
    (process, gather): (&Process, Option<Duration>),
    ((first, kind), second): ((&mut Option<Source>, Output), &mut Option<Source>),
    [chunk, other]: &mut [Chunk; 2],
    mut exit: oneshot::Receiver<Exit>,
) -> Exit {
    loop {
        tokio::select! {
            read = read(first.as_mut(), chunk) => {
                pass_on((process, gather), first, kind, (read, &mut *chunk)).await;
            }
            read = read(second.as_mut(), other) => {
                pass_on((process, gather), second, Output::Stderr, (read, &mut *other)).await;
            }
            // The reaper outlives every process; without it there is no more to tell.
            exit = &mut exit => return exit.unwrap_or(Exit::Signal(0)),
        }
    }
}

/// Waits for ever on an output that has ended.
async fn read(output: Option<&mut Source>, chunk: &mut Chunk) -> io::Result<usize> {
    match output {
        Some(output) => output.read(chunk).await,
        None => std::future::pending().await,
    }
}

async fn pass_on(
    (process, gather): (&Process, Option<Duration>),
    output: &mut Option<Source>,
    which: Output,
    (read, chunk): (io::Result<usize>, &mut Chunk),
) {
    if !matches!(read, Ok(1..)) {
        *output = None;
        return;
    }
    if let Some(source) = output {
        source.gather(chunk, gather).await;
    }
    publish(process, which, chunk).await;
}

async fn drain(process: &Process, output: Option<&mut Source>, which: Output, chunk: &mut Chunk) {
    let Some(output) = output else { return };
    let mut left = output.capacity();
    while let Ok(length @ 1..) = output.read_rest(chunk).await {
        publish(process, which, chunk).await;
        left = left.saturating_sub(length);
        if left == 0 {
            return;
        }
    }
}

/// Tells what was read in the forms that are wanted; the chunk is empty then.
async fn publish(process: &Process, which: Output, chunk: &mut Chunk) {
    let followers = followers(process);
    let is_wanted = |form: Form| followers.iter().any(|follower| follower.form == form);
    let json = is_wanted(Form::Json).then(|| which.envelope(chunk.bytes()));
    let bytes = is_wanted(Form::Bytes).then(|| chunk.envelope(which.flags()));
    chunk.clear();
    for follower in &followers {
        let envelope = match follower.form {
            Form::Json => &json,
            Form::Bytes => &bytes,
        };
        if let Some(envelope) = envelope {
            drop(follower.envelopes.send(envelope.clone()).await);
        }
    }
}

/// Waits for room in each queue; a follower that has left does not count.
async fn tell(followers: &[Follower], envelope: Bytes) {
    for follower in followers {
        drop(follower.envelopes.send(envelope.clone()).await);
    }
}

fn followers(process: &Process) -> Vec<Follower> {
    let mut followers = process.followers.lock().unwrap_or_else(PoisonError::into_inner);
    followers.retain(|follower| !follower.envelopes.is_closed());
    followers.clone()
}

async fn end(process: &Process, exit: Exit) {
    let followers = followers(process);
    let failure = process
        .is_late
        .load(Ordering::Acquire)
        .then(|| Failure::new(Code::DeadlineExceeded, "the process ran into its time limit and was killed"));
    if failure.is_none() {
        tell(&followers, connect::envelope(&Message { event: Event::End(exit.into()) })).await;
    }
    tell(&followers, connect::end_of_stream(failure.as_ref())).await;
    process.followers.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Grandchildren that hold an output would be killed by writing to it if nobody read.
async fn discard([(mut stdout, mut chunk), (mut stderr, mut other)]: [(Option<Source>, Chunk); 2]) {
    while stdout.is_some() || stderr.is_some() {
        tokio::select! {
            read = read(stdout.as_mut(), &mut chunk) => if !matches!(read, Ok(1..)) { stdout = None },
            read = read(stderr.as_mut(), &mut other) => if !matches!(read, Ok(1..)) { stderr = None },
        }
        chunk.clear();
        other.clear();
    }
}

#[cfg(test)]
mod tests;
