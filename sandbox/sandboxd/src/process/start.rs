// SPDX-License-Identifier: Apache-2.0
//! Starting one process.

use super::{Process, ProcessConfig, Processes, follow};
use crate::connect::{Code, Failure};
use bytes::Bytes;
use rustix::process::{Pid, Signal};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

/// A process to be started.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) config: ProcessConfig,
    pub(super) tag: Option<String>,
    pub(super) has_stdin: bool,
    pub(super) timeout: Option<Duration>,
}

/// Starts a process in a process group of its own and returns its first follower's queue.
///
/// Must be called within the event loop; it does not wait, which the reaper relies on.
pub(super) fn start(processes: &Processes, start: Start) -> Result<mpsc::Receiver<Bytes>, Failure> {
    if !processes.has_room() {
        return Err(Failure::new(Code::ResourceExhausted, "4096 processes are running already"));
    }
    let mut child = spawn(processes, &start)?;
    let pid = Pid::from_child(&child);
    let exit = processes.exits.of(pid);
    let pipes = Pipes::take(&mut child).map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
    let process = Arc::new(Process {
        pid,
        config: start.config,
        tag: start.tag,
        stdin: tokio::sync::Mutex::new(pipes.stdin),
        followers: std::sync::Mutex::default(),
        is_late: AtomicBool::new(false),
    });
    let envelopes = process.follow()?;
    processes.insert(&process);
    if let Some(limit) = start.timeout {
        enforce(processes, &process, limit);
    }
    let outputs = (pipes.stdout, pipes.stderr);
    let table = processes.clone();
    processes.tasks.spawn(async move |_stop| follow::until_end(table, process, outputs, exit).await);
    Ok(envelopes)
}

fn spawn(processes: &Processes, start: &Start) -> Result<Child, Failure> {
    let home = processes.home.to_string_lossy();
    let folder = processes.home.join(start.config.cwd.as_deref().unwrap_or_default());
    if !folder.is_dir() {
        return Err(Failure::new(Code::InvalidArgument, format!("`{}` is not a folder", folder.display())));
    }
    let mut command = Command::new(&start.config.cmd);
    command
        .args(&start.config.args)
        .env_clear()
        .envs(processes.identity.environment(&home)?)
        .envs(&start.config.envs)
        .current_dir(&folder)
        .process_group(0)
        .stdin(if start.has_stdin { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().map_err(|error| refused(Path::new(&start.config.cmd), &error))
}

fn refused(command: &Path, error: &std::io::Error) -> Failure {
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => Code::NotFound,
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::InvalidInput => Code::InvalidArgument,
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::OutOfMemory => Code::ResourceExhausted,
        _ => Code::Internal,
    };
    Failure::new(code, format!("could not start `{}`: {error}", command.display()))
}

/// Kills the process when its time is over. Ends early when the process does.
fn enforce(processes: &Processes, process: &Arc<Process>, limit: Duration) {
    let table = processes.clone();
    let process = Arc::downgrade(process);
    processes.tasks.spawn(async move |stop| {
        if stop.run_until_cancelled(tokio::time::sleep(limit)).await.is_none() {
            return;
        }
        let Some(process) = process.upgrade() else {
            return;
        };
        let is_same = table
            .find(&super::Selector::Pid(process.pid.as_raw_pid()))
            .is_ok_and(|found| Arc::ptr_eq(&found, &process));
        if is_same {
            process.is_late.store(true, Ordering::Release);
            // It may have ended just now, which is what we want.
            drop(process.signal(Signal::KILL));
        }
    });
}

/// Our ends of the child's standard streams.
struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Pipes {
    fn take(child: &mut Child) -> std::io::Result<Self> {
        let stdin = child.stdin.take().map(OwnedFd::from).map(pipe::Sender::from_owned_fd);
        let stdout = child.stdout.take().map(OwnedFd::from).map(pipe::Receiver::from_owned_fd);
        let stderr = child.stderr.take().map(OwnedFd::from).map(pipe::Receiver::from_owned_fd);
        Ok(Self { stdin: stdin.transpose()?, stdout: stdout.transpose()?, stderr: stderr.transpose()? })
    }
}
