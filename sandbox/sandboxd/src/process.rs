// SPDX-License-Identifier: Apache-2.0
//! The agent's processes: started, listed, fed, signalled and followed.
//!
//! A process belongs to nobody but the sandbox: it lives on when whoever started it stops
//! following. As long as somebody follows, output is never dropped, so a slow follower stops the
//! process; without one it is read and thrown away.

mod chunk;
mod follow;
pub(crate) mod service;
mod start;
pub(crate) mod terminal;

use crate::connect::{Code, Failure};
use crate::identity::Identity;
use crate::reaper::Exits;
use bytes::Bytes;
use http::HeaderMap;
use postern_common::output;
use postern_common::tasks::Tasks;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use terminal::Terminal;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

/// Envelopes that may wait for one follower; each holds at most [`output::CHUNK_BYTES`] of output.
const QUEUED_ENVELOPES: usize = 2;
/// Processes at one time, a bound on this table rather than on the agent (cgroups bound that).
const PROCESSES: usize = 4096;
/// How long output that comes in pieces is waited for where calls into the kernel are dear: the least that the event
/// loop can wait. What a process that is busy writing fills meanwhile makes one message, not dozens.
pub(crate) const GATHER_TIME: Duration = Duration::from_millis(1);
/// Followers of one process.
const FOLLOWERS: usize = 16;

/// What to run; also what `List` shows of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ProcessConfig {
    pub(crate) cmd: String,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    #[serde(default)]
    pub(crate) envs: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cwd: Option<String>,
}

/// Which process a call means.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Selector {
    Pid(i32),
    Tag(String),
}

/// How a follower wants output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As base64 in JSON, as Connect has it.
    Json,
    /// As it is ([`output`]).
    Bytes,
}

impl Form {
    /// What a call asks for.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let asked = headers.get(output::HEADER);
        if asked.is_some_and(|value| value == output::BYTES) { Self::Bytes } else { Self::Json }
    }
}

/// Where a process's envelopes go.
#[derive(Debug, Clone)]
struct Follower {
    envelopes: mpsc::Sender<Bytes>,
    form: Form,
}

/// One running process.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    config: ProcessConfig,
    tag: Option<String>,
    /// Held across a write, so that two callers' input is not interleaved.
    stdin: tokio::sync::Mutex<Option<pipe::Sender>>,
    /// There instead of inputs and outputs of its own.
    terminal: Option<Arc<Terminal>>,
    followers: Mutex<Vec<Follower>>,
    /// Set when the time limit ended it.
    is_late: AtomicBool,
    /// Set when it was killed: it is gone for who calls, also until it has been reaped.
    is_killed: AtomicBool,
}

impl Process {
    /// A new follower's queue, whose first envelope is the process's start.
    fn follow(&self, form: Form) -> Result<mpsc::Receiver<Bytes>, Failure> {
        let (envelopes, receiver) = mpsc::channel(QUEUED_ENVELOPES);
        // A fresh queue has room, and its receiver is alive.
        drop(envelopes.try_send(follow::started(self.pid)));
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        followers.retain(|follower| !follower.envelopes.is_closed());
        if followers.len() >= FOLLOWERS {
            return Err(Failure::new(Code::ResourceExhausted, "16 callers follow this process already"));
        }
        followers.push(Follower { envelopes, form });
        Ok(receiver)
    }

    /// Signals the process and all of its group.
    ///
    /// INVARIANT: only called while the process is in the table, so its id was not given anew.
    fn signal(&self, signal: Signal) -> Result<(), Failure> {
        if self.is_killed.load(Ordering::Acquire) {
            return Err(Failure::new(Code::NotFound, format!("process {} was killed", self.pid)));
        }
        let told = match rustix::process::kill_process_group(self.pid, signal) {
            // One that is just taking its terminal has no group of its own yet.
            Err(rustix::io::Errno::SRCH) => rustix::process::kill_process(self.pid, signal),
            told => told,
        };
        told.map_err(|error| Failure::new(Code::NotFound, format!("process {}: {error}", self.pid)))?;
        self.is_killed.fetch_or(signal == Signal::KILL, Ordering::AcqRel);
        Ok(())
    }
}

/// The table of processes. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Processes {
    live: Arc<Mutex<HashMap<Pid, Arc<Process>>>>,
    exits: Exits,
    identity: Arc<Identity>,
    home: PathBuf,
    /// How long output that comes in pieces is waited for, to be passed on in fewer.
    gather: Option<Duration>,
    tasks: Tasks,
}

impl Processes {
    pub(crate) fn new(
        exits: Exits,
        identity: Arc<Identity>,
        (home, gather): (PathBuf, Option<Duration>),
        tasks: Tasks,
    ) -> Self {
        Self { live: Arc::default(), exits, identity, home, gather, tasks }
    }

    fn find(&self, selector: &Selector) -> Result<Arc<Process>, Failure> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match selector {
            // No process has another number, and some of those mean many processes at once.
            Selector::Pid(pid) if *pid <= 0 => None,
            Selector::Pid(pid) => Pid::from_raw(*pid).and_then(|pid| live.get(&pid)),
            Selector::Tag(tag) => live.values().find(|process| process.tag.as_ref() == Some(tag)),
        };
        found.cloned().ok_or_else(|| Failure::new(Code::NotFound, "there is no such process"))
    }

    fn all(&self) -> Vec<Arc<Process>> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = live.values().cloned().collect();
        all.sort_unstable_by_key(|process| process.pid.as_raw_pid());
        all
    }

    fn has_room(&self) -> bool {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).len() < PROCESSES
    }

    fn insert(&self, process: &Arc<Process>) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(process.pid, Arc::clone(process));
    }

    fn remove(&self, pid: Pid) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }
}
