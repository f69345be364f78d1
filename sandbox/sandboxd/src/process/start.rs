// SPDX-License-Identifier: Apache-2.0
//! Starting one process.

use super::follow::Outputs;
use super::terminal::{self, Size, Terminal};
use super::{Form, Process, ProcessConfig, Processes, follow};
use crate::connect::{Code, Failure};
use bytes::Bytes;
use rustix::process::{Pid, Signal};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

/// What a terminal is when its process is not told otherwise; every program knows it.
const TERM: &str = "xterm-256color";

/// A process to be started.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) config: ProcessConfig,
    pub(super) tag: Option<String>,
    pub(super) has_stdin: bool,
    /// There if it is to have a terminal instead of inputs and outputs of its own.
    pub(super) terminal: Option<Size>,
    pub(super) timeout: Option<Duration>,
    /// How whoever starts it follows it.
    pub(super) form: Form,
}

/// Starts a process in a process group of its own and returns its first follower's queue.
///
/// Must be called within the event loop; it does not wait, which the reaper relies on.
pub(super) fn start(processes: &Processes, start: Start) -> Result<mpsc::Receiver<Bytes>, Failure> {
    if !processes.has_room() {
        return Err(Failure::new(Code::ResourceExhausted, "4096 processes are running already"));
    }
    let started = spawn(processes, &start)?;
    let pid = Pid::from_child(&started.child);
    let exit = processes.exits.of(pid);
    let process = Arc::new(Process {
        pid,
        config: start.config,
        tag: start.tag,
        stdin: tokio::sync::Mutex::new(started.stdin),
        terminal: started.terminal,
        followers: std::sync::Mutex::default(),
        is_late: AtomicBool::new(false),
        is_killed: AtomicBool::new(false),
    });
    let envelopes = process.follow(start.form)?;
    processes.insert(&process);
    if let Some(limit) = start.timeout {
        enforce(processes, &process, limit);
    }
    let (table, outputs) = (processes.clone(), started.outputs);
    processes.tasks.spawn(async move |_stop| follow::until_end(table, process, outputs, exit).await);
    Ok(envelopes)
}

/// A process that runs, and our ends of its streams.
struct Started {
    child: Child,
    stdin: Option<pipe::Sender>,
    outputs: Outputs,
    terminal: Option<Arc<Terminal>>,
}

fn spawn(processes: &Processes, start: &Start) -> Result<Started, Failure> {
    let home = processes.home.to_string_lossy();
    let folder = processes.home.join(start.config.cwd.as_deref().unwrap_or_default());
    if !folder.is_dir() {
        return Err(Failure::new(Code::InvalidArgument, format!("`{}` is not a folder", folder.display())));
    }
    let program = if start.terminal.is_some() { terminal::PROGRAM } else { start.config.cmd.as_str() };
    let mut command = Command::new(program);
    if start.terminal.is_some() {
        command.args([terminal::ARGUMENT, start.config.cmd.as_str()]);
    }
    command
        .args(&start.config.args)
        .env_clear()
        .envs(start.terminal.map(|_| ("TERM", TERM)))
        .envs(processes.identity.environment(&home)?)
        .envs(&start.config.envs)
        .current_dir(&folder);
    let spawned = match start.terminal {
        Some(size) => at_terminal(command, size),
        None => with_pipes(command, start.has_stdin),
    };
    spawned.map_err(|error| refused(Path::new(&start.config.cmd), &error))
}

fn with_pipes(mut command: Command, has_stdin: bool) -> io::Result<Started> {
    command
        .process_group(0)
        .stdin(if has_stdin { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let stdin = child.stdin.take().map(OwnedFd::from).map(pipe::Sender::from_owned_fd);
    let stdout = child.stdout.take().map(OwnedFd::from).map(pipe::Receiver::from_owned_fd);
    let stderr = child.stderr.take().map(OwnedFd::from).map(pipe::Receiver::from_owned_fd);
    let outputs = Outputs::pipes(stdout.transpose()?, stderr.transpose()?);
    Ok(Started { stdin: stdin.transpose()?, outputs, terminal: None, child })
}

fn at_terminal(mut command: Command, size: Size) -> io::Result<Started> {
    let (ours, theirs) = Terminal::open(size)?;
    command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
    let child = command.spawn()?;
    let terminal = Arc::new(ours);
    Ok(Started {
        child,
        stdin: None,
        outputs: Outputs::terminal(Arc::clone(&terminal)),
        terminal: Some(terminal),
    })
}

fn refused(command: &Path, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound => Code::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => Code::InvalidArgument,
        io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => Code::ResourceExhausted,
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
