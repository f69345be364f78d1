// SPDX-License-Identifier: Apache-2.0
//! Control groups: bounding a sandbox, freezing it, and killing it as a whole.
//!
//! Knows version 1 (a hierarchy per controller), version 2 (one for all) and hosts that have both.
//! It uses what it may: as root, or in a part of the tree that was delegated to us. What cannot
//! be bounded is reported, never pretended.

mod parents;

pub use parents::{Parents, Version};

use crate::processes;
use crate::spec::Enforced;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Scheduling period; the kernel's default (`cpu.cfs_period_us`).
const PERIOD_MICROSECONDS: u64 = 100_000;
/// How long killed processes may take to be gone before we say that they are not.
const EMPTY_TIME: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);

/// What a group bounds.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Memory, page cache and tmpfs included.
    pub memory_bytes: u64,
    /// Thousandths of one processor.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub tasks: u32,
}

/// What a sandbox uses; with gVisor that is with its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Memory, page cache and tmpfs included; absent where the kernel does not count it for us.
    pub memory_bytes: Option<u64>,
    /// Processors' time since its start.
    pub cpu_microseconds: u64,
    /// Processes and threads; absent where the kernel does not count them for us.
    pub processes: Option<u64>,
}

/// A group could not be frozen, thawed or emptied.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// This machine gives us no group that could do it.
    #[error("no cgroup of this machine can freeze a sandbox for us; run as root or delegate one")]
    NotAvailable,
    /// The kernel refused.
    #[error("could not write to cgroup `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// Processes would not go.
    #[error("processes of cgroup `{}` are still there after they were killed", path.display())]
    NotEmpty {
        /// The group.
        path: PathBuf,
    },
}

/// The groups of one sandbox: one folder on version 2, up to four on version 1.
#[derive(Debug, Clone, Default)]
pub struct Cgroups {
    memory: Option<(Version, PathBuf)>,
    cpu: Option<(Version, PathBuf)>,
    pids: Option<(Version, PathBuf)>,
    freezer: Option<(Version, PathBuf)>,
}

impl Cgroups {
    /// The groups of this name that exist.
    #[must_use]
    pub fn existing(parents: &Parents, name: &str) -> Self {
        Self::each(parents, name, Path::is_dir)
    }

    /// Makes the groups and bounds them; tells which bounds hold.
    #[must_use]
    pub fn make(parents: &Parents, name: &str, bounds: &Bounds) -> (Self, Enforced) {
        let groups = Self::each(parents, name, |folder| match fs::create_dir(folder) {
            Err(error) => error.kind() == io::ErrorKind::AlreadyExists,
            Ok(()) => true,
        });
        let enforced = Enforced {
            memory: groups.memory.as_ref().is_some_and(|group| bound_memory(group, bounds.memory_bytes)),
            cpu: groups.cpu.as_ref().is_some_and(|group| bound_cpu(group, bounds.cpu_millis)),
            pids: groups
                .pids
                .as_ref()
                .is_some_and(|(_, folder)| write(folder, "pids.max", bounds.tasks).is_ok()),
            disk: false,
        };
        (groups, enforced)
    }

    /// Moves the bound of memory; `false` if there is none, or the kernel will not.
    #[must_use]
    pub fn bound_memory(&self, bytes: u64) -> bool {
        let Some(group) = &self.memory else { return false };
        // One of the two bounds of version 1 is always in the other's way: whichever it is.
        bound_memory(group, bytes) || bound_memory(group, bytes)
    }

    /// Moves the bound of memory to below what may be used: what the kernel can do without goes first, which
    /// version 1 does not do by itself. `false` if it will not.
    #[must_use]
    pub fn lower_memory(&self, bytes: u64) -> bool {
        if self.bound_memory(bytes) {
            return true;
        }
        let Some((Version::One, folder)) = &self.memory else { return false };
        let _ = write(folder, "memory.force_empty", 0).is_ok();
        self.bound_memory(bytes)
    }

    fn each(parents: &Parents, name: &str, mut has: impl FnMut(&Path) -> bool) -> Self {
        let mut group = |parent: &Option<(Version, PathBuf)>| {
            let (version, folder) = parent.as_ref()?;
            let folder = folder.join(name);
            has(&folder).then_some((*version, folder))
        };
        Self {
            memory: group(&parents.memory),
            cpu: group(&parents.cpu),
            pids: group(&parents.pids),
            freezer: group(&parents.freezer),
        }
    }

    /// Each folder once.
    #[must_use]
    pub fn folders(&self) -> BTreeSet<PathBuf> {
        let groups = [&self.memory, &self.cpu, &self.pids, &self.freezer];
        groups.into_iter().flatten().map(|(_, folder)| folder.clone()).collect()
    }

    /// The processes in them.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<i32> {
        let lists = self
            .folders()
            .into_iter()
            .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok());
        lists.flat_map(|list| list.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
    }

    /// What is used now, as far as the kernel counts it.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let number = |group: &Option<(Version, PathBuf)>, one: &str, two: &str| {
            let (version, folder) = group.as_ref()?;
            let text =
                fs::read_to_string(folder.join(if *version == Version::One { one } else { two })).ok()?;
            // `cpu.stat` has names; all else is one number.
            let text = text.lines().next()?;
            text.strip_prefix("usage_usec ").unwrap_or(text).trim().parse::<u64>().ok()
        };
        let version = self.cpu.as_ref().map(|(version, _)| *version);
        let counted = number(&self.cpu, "cpuacct.usage", "cpu.stat");
        // Version 1 counts nanoseconds.
        let counted = counted.map(|time| if version == Some(Version::One) { time / 1000 } else { time });
        // Where the counter is a hierarchy of its own, which has none of our groups, processes tell.
        let of_processes = || self.processes().into_iter().filter_map(processes::time_microseconds).sum();
        Usage {
            memory_bytes: number(&self.memory, "memory.usage_in_bytes", "memory.current"),
            cpu_microseconds: counted.unwrap_or_else(of_processes),
            processes: number(&self.pids, "pids.current", "pids.current"),
        }
    }

    /// Whether the kernel killed a process of the sandbox for want of memory.
    #[must_use]
    pub fn ran_out_of_memory(&self) -> bool {
        let Some((version, folder)) = &self.memory else { return false };
        let file = match version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
    }

    /// Kills everything in the groups and waits until it is gone.
    ///
    /// # Errors
    /// [`CgroupError::NotEmpty`] after five seconds.
    pub fn kill(&self) -> Result<(), CgroupError> {
        // A frozen process does not die on version 1.
        drop(self.set_frozen(false));
        let deadline = Instant::now() + EMPTY_TIME;
        loop {
            let left = self.processes();
            let Some(folder) = self.folders().pop_first().filter(|_| !left.is_empty()) else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(CgroupError::NotEmpty { path: folder });
            }
            for folder in self.folders() {
                // Only version 2 has it; it leaves no room for a fork in between.
                drop(write(&folder, "cgroup.kill", 1));
            }
            processes::kill(left);
            std::thread::sleep(POLL);
        }
    }

    /// Freezes or thaws everything in the groups.
    ///
    /// # Errors
    /// [`CgroupError`] if there is no freezer, or it refuses.
    pub fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let (version, folder) = self.freezer.as_ref().ok_or(CgroupError::NotAvailable)?;
        let (file, value) = match (version, frozen) {
            (Version::One, true) => ("freezer.state", "FROZEN"),
            (Version::One, false) => ("freezer.state", "THAWED"),
            (Version::Two, true) => ("cgroup.freeze", "1"),
            (Version::Two, false) => ("cgroup.freeze", "0"),
        };
        write(folder, file, value).map_err(|source| CgroupError::Write { path: folder.join(file), source })
    }

    /// Whether everything in the groups stands still.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let Some((version, folder)) = &self.freezer else { return false };
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        match version {
            Version::One => read("freezer.state").trim() == "FROZEN",
            Version::Two => read("cgroup.events").lines().any(|line| line == "frozen 1"),
        }
    }

    /// Removes the groups, which must be empty. The kernel may need a moment after a kill.
    ///
    /// # Errors
    /// [`CgroupError::NotEmpty`] after five seconds.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + EMPTY_TIME;
        for folder in self.folders() {
            while let Err(error) = remove_tree(&folder) {
                if error.kind() == io::ErrorKind::NotFound {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(CgroupError::NotEmpty { path: folder });
                }
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }
}

/// A cgroup folder is removed when it has no child; its files go with it.
fn remove_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// Moves the calling process into the group at `folder`.
///
/// # Errors
/// If it is not there, or full.
pub fn enter(folder: &Path) -> io::Result<()> {
    write(folder, "cgroup.procs", 0)
}

/// Moves the calling thread into the group at `folder`, and with it whatever it becomes by exec.
///
/// On version 1 this costs no wait: for a process, the kernel first lets every processor pass a point
/// of rest (some 5 to 20 ms), which it need not for a thread that moves itself.
///
/// # Errors
/// If it is not there, or full.
pub fn enter_before_exec(folder: &Path) -> io::Result<()> {
    match write(folder, "tasks", 0) {
        // Version 2 has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => enter(folder),
        done => done,
    }
}

fn bound_memory((version, folder): &(Version, PathBuf), bytes: u64) -> bool {
    match version {
        Version::One => {
            // Swap is bounded too where the kernel counts it.
            let bounded = write(folder, "memory.limit_in_bytes", bytes).is_ok();
            drop(write(folder, "memory.memsw.limit_in_bytes", bytes));
            bounded
        }
        Version::Two => {
            drop(write(folder, "memory.swap.max", 0));
            write(folder, "memory.max", bytes).is_ok()
        }
    }
}

fn bound_cpu((version, folder): &(Version, PathBuf), millis: u32) -> bool {
    let quota = (u64::from(millis) * PERIOD_MICROSECONDS / 1000).max(1000);
    match version {
        Version::One => {
            write(folder, "cpu.cfs_period_us", PERIOD_MICROSECONDS).is_ok()
                && write(folder, "cpu.cfs_quota_us", quota).is_ok()
        }
        Version::Two => write(folder, "cpu.max", format_args!("{quota} {PERIOD_MICROSECONDS}")).is_ok(),
    }
}

fn write(folder: &Path, file: &str, value: impl std::fmt::Display) -> io::Result<()> {
    // Never creates: a file that the kernel does not offer must be an error.
    let mut file = fs::OpenOptions::new().write(true).open(folder.join(file))?;
    io::Write::write_all(&mut file, value.to_string().as_bytes())
}
