// SPDX-License-Identifier: Apache-2.0
//! What sandboxes leave on this machine, and how it is removed. All of it is blocking.
//!
//! INVARIANT: a sandbox's things are found by its id *and* this installation's: by a path in our
//! own folders, or by a cgroup's name. Nothing else is ever touched.

use super::LocalSettings;
use crate::runtime::Kind;
use postern_common::id::SandboxId;
use postern_shim::cgroup::{Cgroups, Parents};
use postern_shim::folder::RunFolder;
use postern_shim::{mounts, processes};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long killed processes may take to be gone.
const GONE_TIME: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);

/// One sandbox's things.
pub(super) struct Remains {
    pub(super) folder: RunFolder,
    pub(super) slot: PathBuf,
    pub(super) cgroups: Cgroups,
}

/// Every sandbox of which there is a folder, a slot or a cgroup.
pub(super) fn all(settings: &LocalSettings, cgroups: &Parents) -> BTreeSet<SandboxId> {
    let names = |folder: &Path| -> Vec<SandboxId> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| SandboxId::parse(entry.file_name().to_str()?).ok()).collect()
    };
    let grouped =
        cgroups.names().into_iter().filter_map(|name| settings.installation.sandbox_of(&name)?.ok());
    names(&settings.run_root).into_iter().chain(names(&settings.slot_root)).chain(grouped).collect()
}

/// Ends every process, then removes groups, mounts but the disk, and the socket.
pub(super) fn end(remains: &Remains) -> io::Result<Vec<Kind>> {
    let mut removed = Vec::new();
    if kill_all(remains)? {
        removed.push(Kind::Process);
    }
    if !remains.cgroups.folders().is_empty() {
        remains.cgroups.remove().map_err(io::Error::other)?;
        removed.push(Kind::Cgroup);
    }
    if mounts::unmount_below(remains.folder.path(), Some(&remains.folder.disk()))? > 0 {
        removed.push(Kind::Mount);
    }
    if was_there(fs::remove_file(remains.folder.control_socket()))? {
        removed.push(Kind::Socket);
    }
    Ok(removed)
}

/// The shim first, since it would be surprised; what was its sandbox dies with it or after it.
fn kill_all(remains: &Remains) -> io::Result<bool> {
    let deadline = Instant::now() + GONE_TIME;
    let mut killed = false;
    loop {
        let named = processes::that_name(remains.folder.path());
        let left: Vec<i32> = named.into_iter().filter(|pid| processes::is_running(*pid)).collect();
        if left.is_empty() {
            break;
        }
        killed = true;
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("processes {left:?} do not end")));
        }
        processes::kill(left);
        std::thread::sleep(POLL);
    }
    killed |= !remains.cgroups.processes().is_empty();
    remains.cgroups.kill().map_err(io::Error::other)?;
    Ok(killed)
}

/// Unmounts the disk and removes both folders.
pub(super) fn remove(remains: &Remains) -> io::Result<Vec<Kind>> {
    let mut removed = Vec::new();
    if mounts::unmount_below(remains.folder.path(), None)? > 0 {
        removed.push(Kind::Mount);
    }
    for folder in [remains.folder.path(), &remains.slot] {
        if was_there(fs::remove_dir_all(folder))? {
            removed.push(Kind::Folder);
        }
    }
    Ok(removed)
}

fn was_there(removed: io::Result<()>) -> io::Result<bool> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    }
}
