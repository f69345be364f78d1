// SPDX-License-Identifier: Apache-2.0
//! Where sandboxes run. One trait, so that the lifecycle does not know whether it drives this
//! machine or a cluster; what an implementation needs besides is its own affair.
//!
//! A runtime makes, finds and ends sandboxes. It decides nothing (which should exist is the
//! lifecycle's to say) and remembers nothing that it cannot see: every answer is read from the
//! machine, so that a restarted orchestrator learns the truth.

pub mod agent;
pub mod kubernetes;
pub mod local;

pub use agent::{Agent, AgentError};

use futures_util::future::BoxFuture;
use postern_common::id::SandboxId;
pub use postern_common::session::Isolation;
pub use postern_shim::cgroup::Usage;
pub use postern_shim::exit::{Exit, Reason};
pub use postern_shim::spec::{Enforced, Limits};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

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
    /// The SandboxTemplate that it is made from, on a cluster; `None`: the operator's default.
    pub kubernetes: Option<String>,
    /// The image that its root is; this machine's `/usr` if absent.
    pub image: Option<String>,
}

/// What a template of a cluster makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The isolation.
    pub isolation: Isolation,
    /// What a sandbox may use; 0 where the template sets no limit.
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
    /// It is there and does not answer, or not as it should: what it does is not known now.
    Silent {
        /// Its id.
        sandbox: SandboxId,
    },
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
            Self::Silent { sandbox } | Self::Ended { sandbox, .. } => sandbox,
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
    /// A claim on a cluster, with all that was made for it.
    Claim,
}

impl Kind {
    /// The label in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Cgroup => "cgroup",
            Self::Mount => "mount",
            Self::Socket => "socket",
            Self::Folder => "folder",
            Self::Claim => "claim",
        }
    }
}

/// Something that a sweep removed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Swept {
    /// Whose it was.
    pub sandbox: SandboxId,
    /// What it was.
    pub kind: Kind,
}

/// Why a cluster does not make a sandbox, and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The API server does not know the kinds that we use.
    #[error("the cluster knows no SandboxClaim `v1beta1`; install agent-sandbox v0.5.6 with its extensions")]
    Crds,
    /// Role or binding are missing.
    #[error("the orchestrator may not do that in this namespace; apply `manifests/rbac.yaml` there")]
    Rights,
    /// Admission counted.
    #[error("the namespace's resource quota is used up; raise it, or destroy sandboxes that nobody needs")]
    Quota,
    /// The kubelet has no image.
    #[error(
        "an image cannot be pulled; check its name in the SandboxTemplate and the nodes' right to pull it"
    )]
    Image,
    /// The scheduler has no node.
    #[error("no node has room for it; add nodes, or lower what the SandboxTemplate requests")]
    Unschedulable,
    /// The kubelet cannot run it.
    #[error("its container does not run; `kubectl describe pod` and its log say why")]
    Container,
    /// No pool is filled from the template.
    #[error("no SandboxWarmPool refers to it; make one, of 0 replicas if none are to be kept ready")]
    NoPool,
    /// There is no such template.
    #[error("the namespace has no such SandboxTemplate; the chart makes them")]
    NoTemplate,
    /// Its pods could reach the internet.
    #[error(
        "it has no `spec.networkPolicy` that the controller enforces, so its sandboxes could reach the internet; \
         give it one, as the chart does"
    )]
    OpenNetwork,
    /// The controller or the API server will not have it.
    #[error("the cluster refused the claim; its answer is in the orchestrator's log")]
    Refused,
    /// It came to its end meanwhile.
    #[error("it was ended by the cluster before it ran")]
    Ended,
    /// Nothing happened in time.
    #[error("the cluster took too long; is the agent-sandbox controller running, and are its nodes ready?")]
    Slow,
    /// The pod runs, and nothing in it listens.
    #[error(
        "nothing answers in its pod; is `sandboxd` its container's command, and may the orchestrator reach port 49983?"
    )]
    Silent,
    /// No answer, or a broken one.
    #[error("the Kubernetes API does not answer as it should; it is tried again with the next call")]
    Unreachable,
}

/// Something that could not be done to a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The cluster did not make it, or could not change it.
    #[error("sandbox `{sandbox}`: {trouble} ({detail})")]
    Cluster {
        /// Which.
        sandbox: SandboxId,
        /// What is wrong, and what to do.
        trouble: Trouble,
        /// What the cluster said.
        detail: String,
    },
    /// No sandbox may be made from a template of the cluster.
    #[error("SandboxTemplate `{template}`: {trouble}")]
    Template {
        /// Which.
        template: String,
        /// What is wrong, and what to do.
        trouble: Trouble,
    },
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

    /// What it uses now; `None` where nobody counts it.
    fn usage<'a>(&'a self, _sandbox: &'a SandboxId) -> BoxFuture<'a, Result<Option<Usage>, RuntimeError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Stops all processors' work in it until [`Runtime::resume`]; memory stays.
    fn pause<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Undoes [`Runtime::pause`].
    fn resume<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Whether a sandbox that ended can be made again with the files that it had.
    fn keeps_files(&self) -> bool {
        false
    }

    /// Whether the memory of a sandbox of this isolation can be pictured, and gone on from.
    fn keeps_memory(&self, _level: Isolation) -> bool {
        false
    }

    /// What a picture depends on that is made here of a sandbox with this image, in a few characters.
    fn fingerprint<'a>(&'a self, _image: Option<&'a str>) -> BoxFuture<'a, std::io::Result<String>> {
        Box::pin(std::future::ready(Err(std::io::ErrorKind::Unsupported.into())))
    }

    /// Pictures the memory of a sandbox that sleeps; the folder that the picture is in, until
    /// [`Runtime::forget_picture`] or its end. It is as it was whatever comes of this.
    fn picture<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<PathBuf, RuntimeError>> {
        Box::pin(std::future::ready(Err(RuntimeError::NotRunning { sandbox: sandbox.clone() })))
    }

    /// An empty folder for a picture that a sandbox, which does not run, is to go on from.
    fn place_for_picture<'a>(
        &'a self,
        sandbox: &'a SandboxId,
        _memory_bytes: u64,
    ) -> BoxFuture<'a, Result<PathBuf, RuntimeError>> {
        Box::pin(std::future::ready(Err(RuntimeError::NotRunning { sandbox: sandbox.clone() })))
    }

    /// Removes a picture.
    fn forget_picture<'a>(&'a self, _sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// [`Runtime::create`] from the picture in [`Runtime::place_for_picture`]; it sleeps when this
    /// returns. Its files are those that are there.
    fn restore(&self, create: Create) -> BoxFuture<'_, Result<Running, RuntimeError>> {
        Box::pin(std::future::ready(Err(RuntimeError::NotRunning { sandbox: create.sandbox })))
    }

    /// Ends every process of it; its files stay, so that they can be saved.
    fn end<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Ends it and removes all that there is of it, files too. Nothing there is success.
    fn destroy<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Destroys every sandbox of this installation that is not in `known`, touches nothing else,
    /// and tells what it removed.
    fn sweep<'a>(&'a self, known: &'a [SandboxId]) -> BoxFuture<'a, Vec<Swept>>;
}
