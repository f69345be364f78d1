// SPDX-License-Identifier: Apache-2.0
//! The step between the shim and the runtime: a fresh process that puts itself into the cgroup,
//! ties its life to the shim's, waits for the shim's word, gives up root, and becomes the runtime.
//!
//! It waits so that all of this goes on while the shim makes the disk.
//!
//! gVisor goes into a namespace of mounts without other sandboxes' disks first. What is mounted when its
//! gofer makes a namespace for another user is locked to the root there (`mount_namespaces(7)`), and `runsc`
//! keeps files of that root open: so the disk of each sandbox would be held for as long as any lives that
//! began after it, and could not be settled when it is stopped.
//!
//! It is a program of its own (`postern-shim launch`) because between fork and exec only
//! async-signal-safe code may run, which safe Rust cannot promise.

use crate::cgroup;
use crate::mounts;
use crate::seccomp::{SeccompError, programs};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::io::retry_on_intr;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to become, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Launch {
    /// Groups to enter.
    pub cgroups: Vec<PathBuf>,
    /// The user and group to become; as root only.
    pub user: Option<u32>,
    /// The sandbox's run folder, beside which nothing stays mounted of others; as root only.
    pub apart: Option<PathBuf>,
    /// Whether the program is bubblewrap, which is to install our seccomp filters.
    pub has_seccomp: bool,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// The runtime could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The command line of this step is wrong.
    #[error("`postern-shim launch` is called by the shim only")]
    Usage,
    /// A cgroup would not take this process.
    #[error("could not enter cgroup `{}`", path.display())]
    Cgroup {
        /// The group.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The kernel would not end us with the shim.
    #[error("could not tie the sandbox's life to its shim's")]
    Tie(#[source] rustix::io::Errno),
    /// A namespace of mounts without other sandboxes' disks could not be made.
    #[error(
        "could not go where no other sandbox's disk is mounted; `postern doctor` tells what this machine allows"
    )]
    Apart(#[source] rustix::io::Errno),
    /// The filters.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The shim ended, or gave up, before it gave its word.
    #[error("the shim gave up this start")]
    Word,
    /// The filters could not be handed over.
    #[error("could not hand the system call filters to the runtime")]
    Hand(#[source] rustix::io::Errno),
    /// The program cannot be executed.
    #[error("could not execute `{}`", program.display())]
    Execute {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Launch {
    /// The arguments after `launch` that mean this.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut line: Vec<OsString> = Vec::new();
        for folder in &self.cgroups {
            line.extend(["--cgroup".into(), folder.into()]);
        }
        if let Some(user) = self.user {
            line.extend(["--user".into(), user.to_string().into()]);
        }
        if let Some(folder) = &self.apart {
            line.extend(["--apart".into(), folder.into()]);
        }
        if self.has_seccomp {
            line.push("--seccomp".into());
        }
        line.extend(["--".into(), self.program.clone().into()]);
        line.extend(self.arguments.iter().cloned());
        line
    }

    /// Reads what [`Launch::to_arguments`] wrote.
    ///
    /// # Errors
    /// [`LaunchError::Usage`].
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, LaunchError> {
        let mut launch = Self::default();
        let mut arguments = arguments.into_iter();
        loop {
            let option = arguments.next().ok_or(LaunchError::Usage)?;
            match option.to_str() {
                Some("--cgroup") => launch.cgroups.push(arguments.next().ok_or(LaunchError::Usage)?.into()),
                Some("--user") => {
                    let user = arguments.next().and_then(|user| user.to_str()?.parse().ok());
                    launch.user = Some(user.ok_or(LaunchError::Usage)?);
                }
                Some("--apart") => launch.apart = Some(arguments.next().ok_or(LaunchError::Usage)?.into()),
                Some("--seccomp") => launch.has_seccomp = true,
                Some("--") => break,
                _ => return Err(LaunchError::Usage),
            }
        }
        launch.program = arguments.next().ok_or(LaunchError::Usage)?.into();
        launch.arguments = arguments.collect();
        Ok(launch)
    }

    /// Becomes the runtime; returns only if that failed.
    #[must_use]
    pub fn execute(self) -> LaunchError {
        self.try_execute().unwrap_or_else(|error| error)
    }

    fn try_execute(self) -> Result<LaunchError, LaunchError> {
        for path in &self.cgroups {
            cgroup::enter_before_exec(path)
                .map_err(|source| LaunchError::Cgroup { path: path.clone(), source })?;
        }
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(LaunchError::Tie)?;
        let mut command = Command::new(&self.program);
        // Held until the new program has them.
        let filters = if self.has_seccomp {
            programs()?.iter().map(|program| inherited(program)).collect()
        } else {
            Ok(Vec::new())
        };
        let filters: Vec<OwnedFd> = filters.map_err(LaunchError::Hand)?;
        for filter in &filters {
            command.args([OsStr::new("--add-seccomp-fd"), OsStr::new(&filter.as_raw_fd().to_string())]);
        }
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/");
        wait_for_word()?;
        if let Some(folder) = &self.apart {
            part(folder).map_err(LaunchError::Apart)?;
        }
        if let Some(user) = self.user {
            // The standard library also drops all supplementary groups here.
            command.uid(user).gid(user);
        }
        Ok(LaunchError::Execute { source: command.exec(), program: self.program })
    }
}

/// What the shim writes to the standard input, ahead of all that is meant for the runtime.
pub const WORD: &[u8] = b"\n";

/// Reads no byte more than the word: what comes after it is the runtime's.
fn wait_for_word() -> Result<(), LaunchError> {
    let mut word = [0; WORD.len()];
    let read = retry_on_intr(|| rustix::io::read(rustix::stdio::stdin(), &mut word));
    if read == Ok(WORD.len()) && word == WORD { Ok(()) } else { Err(LaunchError::Word) }
}

/// Goes into a namespace of mounts of our own, where nothing is mounted beside this run folder.
fn part(folder: &Path) -> rustix::io::Result<()> {
    #[expect(deprecated, reason = "it is unsound for tables of files alone")]
    rustix::thread::unshare(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let beside = folder.parent().map(|all| mounts::below(all, None)).unwrap_or_default();
    for at in beside.iter().filter(|at| !at.starts_with(folder) && !folder.starts_with(at)) {
        match unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // It was below another that went; or its sandbox has just been removed, which takes the place away
            // from here too.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            done => done?,
        }
    }
    Ok(())
}

/// A file in memory that is not closed on exec.
fn inherited(bytes: &[u8]) -> rustix::io::Result<OwnedFd> {
    let file = memfd_create("filter", MemfdFlags::empty())?;
    let mut left = bytes;
    while !left.is_empty() {
        let written = rustix::io::write(&file, left)?;
        left = left.get(written..).unwrap_or_default();
    }
    seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_survives_its_command_line() {
        let launch = Launch {
            cgroups: vec!["/sys/fs/cgroup/a b".into(), "/c".into()],
            user: Some(1_879_048_192),
            apart: Some("/run/a b".into()),
            has_seccomp: true,
            program: "/usr/bin/bwrap".into(),
            arguments: vec!["--".into(), "--seccomp".into()],
        };
        assert_eq!(Launch::parse(launch.to_arguments()).expect("parses"), launch);
    }

    #[test]
    fn a_wrong_command_line_launches_nothing() {
        for wrong in [&["--user", "root", "--", "/bin/true"][..], &["--seccomp"], &["--"], &["/bin/true"]] {
            let parsed = Launch::parse(wrong.iter().map(OsString::from));
            assert!(matches!(parsed, Err(LaunchError::Usage)), "{wrong:?}");
        }
    }
}
