// SPDX-License-Identifier: Apache-2.0
//! Carries one process's output and end to those who follow it.
//!
//! ```text
//! reading ──exit──▶ draining (what the pipes held at exit) ──▶ end told, table left ──▶ discarding
//!                                                             (only what grandchildren still write)
//! ```

use super::{Process, Processes};
use crate::connect::{self, Code, Failure};
use crate::reaper::Exit;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use rustix::process::Pid;
use serde::Serialize;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

/// One read: a quarter of a pipe.
pub(super) const CHUNK_BYTES: usize = 16 << 10;
/// A pipe's capacity (pipe(7)): no more than this can have been written before the exit.
const PIPE_BYTES: usize = 64 << 10;

/// Both outputs of a process, each until its end.
pub(super) type Outputs = (Option<pipe::Receiver>, Option<pipe::Receiver>);

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
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Chunk<'a> {
    Stdout(&'a str),
    Stderr(&'a str),
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

/// Which of the two outputs.
#[derive(Debug, Clone, Copy)]
enum Output {
    Stdout,
    Stderr,
}

impl Output {
    fn envelope(self, bytes: &[u8]) -> Bytes {
        let text = BASE64.encode(bytes);
        let chunk = match self {
            Self::Stdout => Chunk::Stdout(&text),
            Self::Stderr => Chunk::Stderr(&text),
        };
        connect::envelope(&Message { event: Event::Data(chunk) })
    }
}

/// The first envelope of every follower.
pub(super) fn started(pid: Pid) -> Bytes {
    connect::envelope(&Message { event: Event::Start { pid: pid.as_raw_pid() } })
}

/// Follows a process to its end; returns when nobody can write to its outputs any more.
pub(super) async fn until_end(
    processes: Processes,
    process: Arc<Process>,
    outputs: Outputs,
    exit: oneshot::Receiver<Exit>,
) {
    let (mut stdout, mut stderr) = outputs;
    let mut chunk = vec![0; CHUNK_BYTES];
    let exit = read_until_exit(&process, (&mut stdout, &mut stderr), &mut chunk, exit).await;
    drain(&process, stdout.as_ref(), Output::Stdout, &mut chunk).await;
    drain(&process, stderr.as_ref(), Output::Stderr, &mut chunk).await;
    processes.remove(process.pid);
    end(&process, exit).await;
    drop(process);
    discard(stdout, stderr, chunk).await;
}

async fn read_until_exit(
    process: &Process,
    (stdout, stderr): (&mut Option<pipe::Receiver>, &mut Option<pipe::Receiver>),
    chunk: &mut [u8],
    mut exit: oneshot::Receiver<Exit>,
) -> Exit {
    let mut other = vec![0; CHUNK_BYTES];
    loop {
        tokio::select! {
            read = read(stdout.as_mut(), chunk) => pass_on(process, stdout, Output::Stdout, (read, chunk)).await,
            read = read(stderr.as_mut(), &mut other) => {
                pass_on(process, stderr, Output::Stderr, (read, &other)).await;
            }
            // The reaper outlives every process; without it there is no more to tell.
            exit = &mut exit => return exit.unwrap_or(Exit::Signal(0)),
        }
    }
}

/// Waits for ever on an output that has ended.
async fn read(output: Option<&mut pipe::Receiver>, chunk: &mut [u8]) -> io::Result<usize> {
    match output {
        Some(output) => output.read(chunk).await,
        None => std::future::pending().await,
    }
}

async fn pass_on(
    process: &Process,
    output: &mut Option<pipe::Receiver>,
    which: Output,
    (read, chunk): (io::Result<usize>, &[u8]),
) {
    match read.ok().and_then(|length| chunk.get(..length)) {
        Some(bytes) if !bytes.is_empty() => publish(process, which, bytes).await,
        _ => *output = None,
    }
}

async fn drain(process: &Process, output: Option<&pipe::Receiver>, which: Output, chunk: &mut [u8]) {
    let Some(output) = output else { return };
    let mut left = PIPE_BYTES;
    while let Ok(length) = output.try_read(chunk) {
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
async fn discard(mut stdout: Option<pipe::Receiver>, mut stderr: Option<pipe::Receiver>, mut chunk: Vec<u8>) {
    let mut other = vec![0; CHUNK_BYTES];
    while stdout.is_some() || stderr.is_some() {
        tokio::select! {
            read = read(stdout.as_mut(), &mut chunk) => if !matches!(read, Ok(1..)) { stdout = None },
            read = read(stderr.as_mut(), &mut other) => if !matches!(read, Ok(1..)) { stderr = None },
        }
    }
}
