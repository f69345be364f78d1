// SPDX-License-Identifier: Apache-2.0
//! Carries one process's output and end to those who follow it.
//!
//! ```text
//! reading ──exit──▶ draining (what the pipes held at exit) ──▶ end told, table left ──▶ discarding
//!                                                             (only what grandchildren still write)
//! ```

use super::terminal::Terminal;
use super::{Process, Processes};
use crate::connect::{self, Code, Failure};
use crate::reaper::Exit;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal};
use serde::Serialize;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// One read: a whole pipe. What each message costs on its way is spread over more that way.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// A pipe's capacity (pipe(7)): no more than this can have been written before the exit.
const PIPE_BYTES: usize = 64 << 10;

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
        Self { first: stdout.map(Source::Pipe), second: stderr.map(Source::Pipe), is_terminal: false }
    }

    pub(super) fn terminal(terminal: Arc<Terminal>) -> Self {
        Self { first: Some(Source::Terminal(terminal)), second: None, is_terminal: true }
    }
}

/// Where output comes from.
#[derive(Debug)]
enum Source {
    Pipe(pipe::Receiver),
    Terminal(Arc<Terminal>),
}

impl Source {
    async fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.read(chunk).await,
            Self::Terminal(terminal) => terminal.read(chunk).await,
        }
    }

    /// What is there without waiting for more than a process that ended can have left.
    async fn read_rest(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        match self {
            // Of the kernel itself: tokio answers from what it has heard, and may not have heard of the
            // last bytes when it has heard of the end.
            Self::Pipe(pipe) => Ok(retry_on_intr(|| rustix::io::read(pipe.as_fd(), &mut *chunk))?),
            Self::Terminal(terminal) => match timeout(TERMINAL_TIME, terminal.read(chunk)).await {
                Ok(read) => read,
                Err(_elapsed) => Ok(0),
            },
        }
    }
}

#[derive(Serialize)]
struct Message<'a> {
    event: Event<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Event<'a> {
    Start { pid: i32 },
    Data(Chunk<'a>),
    End(End),
    Keepalive {},
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Chunk<'a> {
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
    fn envelope(self, bytes: &[u8]) -> Bytes {
        let text = BASE64.encode(bytes);
        let chunk = match self {
            Self::Stdout => Chunk::Stdout(&text),
            Self::Stderr => Chunk::Stderr(&text),
            Self::Terminal => Chunk::Pty(&text),
        };
        connect::envelope(&Message { event: Event::Data(chunk) })
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
    let mut chunk = vec![0; CHUNK_BYTES];
    let exit = read_until_exit(&process, (&mut first, kind), &mut second, (&mut chunk, exit)).await;
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
        discard(first, second, chunk).await;
    }
}

async fn read_until_exit(
    process: &Process,
    (first, kind): (&mut Option<Source>, Output),
    second: &mut Option<Source>,
    (chunk, mut exit): (&mut [u8], oneshot::Receiver<Exit>),
) -> Exit {
    let mut other = vec![0; CHUNK_BYTES];
    loop {
        tokio::select! {
            read = read(first.as_mut(), chunk) => pass_on(process, first, kind, (read, chunk)).await,
            read = read(second.as_mut(), &mut other) => {
                pass_on(process, second, Output::Stderr, (read, &other)).await;
            }
            // The reaper outlives every process; without it there is no more to tell.
            exit = &mut exit => return exit.unwrap_or(Exit::Signal(0)),
        }
    }
}

/// Waits for ever on an output that has ended.
async fn read(output: Option<&mut Source>, chunk: &mut [u8]) -> io::Result<usize> {
    match output {
        Some(output) => output.read(chunk).await,
        None => std::future::pending().await,
    }
}

async fn pass_on(
    process: &Process,
    output: &mut Option<Source>,
    which: Output,
    (read, chunk): (io::Result<usize>, &[u8]),
) {
    match read.ok().and_then(|length| chunk.get(..length)) {
        Some(bytes) if !bytes.is_empty() => publish(process, which, bytes).await,
        _ => *output = None,
    }
}

async fn drain(process: &Process, output: Option<&mut Source>, which: Output, chunk: &mut [u8]) {
    let Some(output) = output else { return };
    let mut left = if matches!(which, Output::Terminal) { TERMINAL_BYTES } else { PIPE_BYTES };
    while let Ok(length) = output.read_rest(chunk).await {
        let Some(bytes) = chunk.get(..length).filter(|bytes| !bytes.is_empty()) else {
            return;
        };
        publish(process, which, bytes).await;
        left = left.saturating_sub(length);
        if left == 0 {
            return;
        }
    }
}

async fn publish(process: &Process, which: Output, bytes: &[u8]) {
    let followers = followers(process);
    if !followers.is_empty() {
        tell(&followers, which.envelope(bytes)).await;
    }
}

/// Waits for room in each queue; a follower that has left does not count.
async fn tell(followers: &[mpsc::Sender<Bytes>], envelope: Bytes) {
    for follower in followers {
        drop(follower.send(envelope.clone()).await);
    }
}

fn followers(process: &Process) -> Vec<mpsc::Sender<Bytes>> {
    let mut followers = process.followers.lock().unwrap_or_else(PoisonError::into_inner);
    followers.retain(|follower| !follower.is_closed());
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
async fn discard(mut stdout: Option<Source>, mut stderr: Option<Source>, mut chunk: Vec<u8>) {
    let mut other = vec![0; CHUNK_BYTES];
    while stdout.is_some() || stderr.is_some() {
        tokio::select! {
            read = read(stdout.as_mut(), &mut chunk) => if !matches!(read, Ok(1..)) { stdout = None },
            read = read(stderr.as_mut(), &mut other) => if !matches!(read, Ok(1..)) { stderr = None },
        }
    }
}
