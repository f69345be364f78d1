// SPDX-License-Identifier: Apache-2.0
//! What one sandbox is to be: the file that the orchestrator writes and the shim reads.

use postern_common::id::{InvalidId, SandboxId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The user and group that an agent has inside (contracts.md).
pub const INSIDE_UID: u32 = 1000;
/// Room for the runtime's own processes on top of a gVisor sandbox's memory limit: sentry and
/// gofer take some 16 MiB idle (facts: density), twice that is safe.
pub const GVISOR_MEMORY_BYTES: u64 = 32 << 20;

/// The slowest start seen on a machine at load 10 took 0.5 s.
const START_TIME: Duration = Duration::from_secs(20);
/// A restore reads all memory: 50 MB took 0.2 s, so this is for some 10 GB.
const RESTORE_TIME: Duration = Duration::from_secs(60);

/// The installation that a sandbox belongs to. It is in the name of everything that we make, so
/// that two installations on one machine never touch each other's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Installation(String);

/// Text that cannot name an installation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an installation id is 4 to 16 of a-z and 0-9")]
pub struct InvalidInstallation;

impl Installation {
    /// Takes an id of the right form.
    ///
    /// # Errors
    /// [`InvalidInstallation`] for any other.
    pub fn parse(text: &str) -> Result<Self, InvalidInstallation> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_valid = (4..=16).contains(&text.len()) && text.bytes().all(is_plain);
        is_valid.then(|| Self(text.to_owned())).ok_or(InvalidInstallation)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of everything on this machine that exists once for a sandbox, such as its cgroup.
    #[must_use]
    pub fn name_of(&self, sandbox: &SandboxId) -> String {
        format!("{}{sandbox}", self.prefix())
    }

    /// The sandbox that a name was made for, if we made it.
    ///
    /// # Errors
    /// `None` for what is not ours; an error for what begins like ours and goes on otherwise.
    #[must_use]
    pub fn sandbox_of(&self, name: &str) -> Option<Result<SandboxId, InvalidId>> {
        name.strip_prefix(&self.prefix()).map(SandboxId::parse)
    }

    fn prefix(&self) -> String {
        format!("postern-{}-", self.0)
    }
}

impl fmt::Display for Installation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Installation {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// How a sandbox is kept apart from this machine, with the program that does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "level", rename_all = "lowercase", deny_unknown_fields)]
pub enum IsolatedBy {
    /// A kernel of its own in user space.
    Gvisor {
        /// The program.
        runsc: PathBuf,
    },
    /// Namespaces of this machine's kernel, with seccomp and Landlock.
    Namespaces {
        /// The program.
        bwrap: PathBuf,
    },
}

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory of all its processes and of `/tmp`.
    pub memory_bytes: u64,
    /// Processor time in thousandths of one processor.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub pids: u32,
    /// What `/data` and the home folder may hold together.
    pub disk_bytes: u64,
}

/// Which limits this machine really holds a sandbox to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "four answers to four separate questions")]
pub struct Enforced {
    /// [`Limits::memory_bytes`].
    pub memory: bool,
    /// [`Limits::cpu_millis`].
    pub cpu: bool,
    /// [`Limits::pids`].
    pub pids: bool,
    /// [`Limits::disk_bytes`].
    pub disk: bool,
}

impl Enforced {
    /// The first limit that holds here and not in `now`.
    #[must_use]
    pub fn first_lost(self, now: Self) -> Option<&'static str> {
        let limits = [
            ("memory", self.memory, now.memory),
            ("cpu", self.cpu, now.cpu),
            ("pids", self.pids, now.pids),
            ("disk", self.disk, now.disk),
        ];
        limits.into_iter().find(|(_, held, holds)| *held && !holds).map(|(name, ..)| name)
    }
}

/// Everything that the shim needs to know. No secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Whose sandbox this is.
    pub installation: Installation,
    /// Which one.
    pub sandbox: SandboxId,
    /// How it is kept apart.
    pub isolation: IsolatedBy,
    /// A root folder made by [`crate::rootfs::make_skeleton`], or an image; sandboxes share it.
    pub skeleton: PathBuf,
    /// It is an image: this machine's `/usr` is not shown.
    #[serde(default)]
    pub is_image: bool,
    /// The program that becomes process 1.
    pub sandboxd: PathBuf,
    /// Where its files are kept: on a real disk, gone only with the sandbox.
    pub slot: PathBuf,
    /// The user and group of this machine that the agent is, outside. `None`: our own, because
    /// only root can choose.
    pub guest: Option<u32>,
    /// What it may use.
    pub limits: Limits,
    /// Which limits are known to work on this machine: without one of these nothing starts.
    #[serde(default)]
    pub must_hold: Enforced,
    /// It goes on from the picture of its memory that lies in the run folder.
    #[serde(default)]
    pub is_restored: bool,
}

impl Spec {
    /// The user and group that the agent is inside.
    ///
    /// An ordinary user can map one id only, and gVisor's own processes need it as their root. So
    /// the agent has id 0 there: a name without any capability, in a kernel of its own.
    #[must_use]
    pub const fn inside_uid(&self) -> u32 {
        match (&self.isolation, self.guest) {
            (IsolatedBy::Gvisor { .. }, None) => 0,
            _ => INSIDE_UID,
        }
    }

    /// A start that takes longer has failed.
    #[must_use]
    pub const fn start_time(&self) -> Duration {
        if self.is_restored { RESTORE_TIME } else { START_TIME }
    }

    /// The memory to allow for sandbox and runtime together.
    #[must_use]
    pub fn memory_with_runtime(&self) -> u64 {
        match self.isolation {
            IsolatedBy::Gvisor { .. } => self.limits.memory_bytes.saturating_add(GVISOR_MEMORY_BYTES),
            IsolatedBy::Namespaces { .. } => self.limits.memory_bytes,
        }
    }

    /// The bound of `/tmp`. What is in it counts as memory, and nothing frees it when memory runs
    /// out: if it could take all, a full `/tmp` would end the sandbox.
    #[must_use]
    pub const fn tmp_bytes(&self) -> u64 {
        self.limits.memory_bytes / 2
    }

    /// The bound of `/dev/shm`, likewise.
    #[must_use]
    pub const fn shared_memory_bytes(&self) -> u64 {
        self.limits.memory_bytes / 4
    }

    /// The tasks of this machine to allow. gVisor counts the agent's processes itself
    /// (`RLIMIT_NPROC`); outside, each may have several and the runtime has its own.
    #[must_use]
    pub fn tasks_with_runtime(&self) -> u32 {
        match self.isolation {
            IsolatedBy::Gvisor { .. } => self.limits.pids.saturating_mul(4).saturating_add(256),
            // bubblewrap's own process.
            IsolatedBy::Namespaces { .. } => self.limits.pids.saturating_add(1),
        }
    }
}

/// The user id of this machine for a sandbox's agent: always the same for one sandbox, and
/// another for its neighbour, as far as 26 bits can tell them apart.
///
/// From the range that systemd's table of user ids leaves unused (1879048192 to 2147483647). The
/// next higher id is the same sandbox's too: gVisor maps its root to it.
#[must_use]
pub fn guest_uid(sandbox: &SandboxId) -> u32 {
    const FIRST: u32 = 1_879_048_192;
    const BITS: u32 = 0x03ff_ffff;
    // FNV-1a, 32 bits: ids are random, so any mixing will do.
    let hash = sandbox
        .as_str()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    FIRST + 2 * ((hash ^ (hash >> 26)) & BITS)
}
