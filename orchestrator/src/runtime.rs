// SPDX-License-Identifier: Apache-2.0
//! Where sandboxes run. One trait, so that the lifecycle does not know whether it drives this
//! machine or a cluster; what an implementation needs besides is its own affair.
//!
//! A runtime makes, finds and ends sandboxes. It decides nothing (which should exist is the
//! lifecycle's to say) and remembers nothing that it cannot see: every answer is read from the
//! machine, so that a restarted orchestrator learns the truth.

pub mod agent;
pub mod local;

pub use agent::{Agent, AgentError};

use futures_util::future::BoxFuture;
use postern_common::id::SandboxId;
pub use postern_common::session::Isolation;
pub use postern_shim::exit::{Exit, Reason};
pub use postern_shim::spec::{Enforced, Limits};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which isolation a sandbox is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// The best that works here, but not below this.
    AtLeast(Isolation),
    /// Exactly this.
    Exactly(Isolation),
}

/// A sandbox to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// Its id; nothing with it exists yet.
    pub sandbox: SandboxId,
    /// How it must be kept apart.
    pub isolation: Wanted,
    /// What it may use.
    pub limits: Limits,
}

/// What a running sandbox turned out to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Running {
    /// Its id.
    pub sandbox: SandboxId,
    /// The isolation that was reached.
    pub isolation: Isolation,
    /// What it may use.
    pub limits: Limits,
    /// Which of the limits really hold.
    pub enforced: Enforced,
}

/// What there is of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Found {
    /// It runs and answers.
    Running(Running),
    /// It stands still, and will go on when it is resumed.
    Paused(Running),
    /// It has ended; its files are still there. Without an exit, it was killed.
    Ended {
        /// Its id.
        sandbox: SandboxId,
        /// How, if that was recorded.
        exit: Option<Exit>,
    },
}

impl Found {
    /// The sandbox's id.
    #[must_use]
    pub fn sandbox(&self) -> &SandboxId {
        match self {
            Self::Running(running) | Self::Paused(running) => &running.sandbox,
            Self::Ended { sandbox, .. } => sandbox,
        }
    }
}

/// What one level does on this machine, found out by running a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Probed {
    /// The level.
    pub level: Isolation,
    /// Which limits hold, or why it does not work and what to do.
    pub outcome: Result<Enforced, String>,
}

/// A kind of thing that a sandbox may leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A process of this machine.
    Process,
    /// A cgroup.
    Cgroup,
    /// A mount, with its loop device.
    Mount,
    /// A control socket.
    Socket,
    /// A folder.
    Folder,
}

/// Something that a sweep removed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Swept {
    /// Whose it was.
    pub sandbox: SandboxId,
    /// What it was.
    pub kind: Kind,
}

/// Something that could not be done to a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No level that would do works here.
    #[error("no isolation that is {wanted} works on this machine: {why}")]
    IsolationUnavailable {
        /// What was asked for.
        wanted: &'static str,
        /// Each level that was tried, with its reason.
        why: String,
    },
    /// It did not start.
    #[error("sandbox `{sandbox}` did not start: {why}")]
    Start {
        /// Which.
        sandbox: SandboxId,
        /// What the shim said.
        why: String,
    },
    /// There is none, or it has ended.
    #[error("sandbox `{sandbox}` is not running")]
    NotRunning {
        /// Which.
        sandbox: SandboxId,
    },
    /// Something of it could not be ended or removed.
    #[error("could not {what} of sandbox `{sandbox}`; the next sweep tries again")]
    Machine {
        /// Which.
        sandbox: SandboxId,
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// It does not answer as it should.
    #[error("sandbox `{sandbox}` does not answer")]
    Agent {
        /// Which.
        sandbox: SandboxId,
        /// How so.
        source: AgentError,
    },
}

/// Something that runs sandboxes.
///
/// Every call may be repeated. Dropping a future leaves what was done so far: the caller wrote
/// its intent down first, and `destroy` or `sweep` cleans up.
pub trait Runtime: fmt::Debug + Send + Sync {
    /// What works here, best first; found out once by really running a sandbox of each level.
    fn probe(&self) -> BoxFuture<'_, Vec<Probed>>;

    /// Makes a sandbox; it answers when this returns, and has no identity yet.
    fn create(&self, create: Create) -> BoxFuture<'_, Result<Running, RuntimeError>>;

    /// A connection to process 1 inside. Whatever comes from it is the agent's word.
    fn connect<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<Agent, RuntimeError>>;

    /// What there is of one sandbox; `None` if nothing.
    fn status<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Option<Found>>;

    /// Everything that bears this installation's id.
    fn list(&self) -> BoxFuture<'_, Vec<Found>>;

    /// Stops all processors' work in it until [`Runtime::resume`]; memory stays.
    fn pause<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Undoes [`Runtime::pause`].
    fn resume<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Ends every process of it; its files stay, so that they can be saved.
    fn end<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Ends it and removes all that there is of it, files too. Nothing there is success.
    fn destroy<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Destroys every sandbox of this installation that is not in `known`, touches nothing else,
    /// and tells what it removed.
    fn sweep<'a>(&'a self, known: &'a [SandboxId]) -> BoxFuture<'a, Vec<Swept>>;
}
