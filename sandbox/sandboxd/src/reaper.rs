// SPDX-License-Identifier: Apache-2.0
//! Reaps every child, its own and the orphans that fall to process 1, and tells who waits for one.
//!
//! INVARIANT: a process is registered in the same turn of the event loop that started it. There
//! is one thread, so no exit can be seen before its registration.

use postern_common::tasks::Tasks;
use rustix::process::{Pid, WaitOptions, WaitStatus};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    fn of(status: WaitStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Self::Code(code),
            (None, signal) => Self::Signal(signal.unwrap_or(0)),
        }
    }
}

/// Where ends of processes can be waited for. Clones share one table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exits(Arc<Mutex<HashMap<Pid, oneshot::Sender<Exit>>>>);

impl Exits {
    /// Resolves when `pid` has ended and been reaped. Must be called right after it was started.
    pub(crate) fn of(&self, pid: Pid) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, sender);
        receiver
    }

    fn tell(&self, pid: Pid, exit: Exit) {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
        // Nobody waits for an orphan, and a waiter may be gone: both are fine.
        if let Some(waiting) = waiting {
            let _ = waiting.send(exit);
        }
    }

    fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            self.tell(pid, Exit::of(status));
        }
    }
}

/// Starts reaping.
///
/// # Errors
/// If SIGCHLD cannot be listened for.
pub(crate) fn watch(tasks: &Tasks) -> io::Result<Exits> {
    let exits = Exits::default();
    let mut ended = signal(SignalKind::child())?;
    let table = exits.clone();
    tasks.spawn(async move |stop| {
        while stop.run_until_cancelled(ended.recv()).await.flatten().is_some() {
            table.reap();
        }
    });
    Ok(exits)
}
