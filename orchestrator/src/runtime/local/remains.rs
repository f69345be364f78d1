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
use postern_shim::{disk, mounts, processes};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long killed processes may take to be gone.
const GONE_TIME: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);

/// The user's files on a disk.
const USER: &str = "data/user";

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
        // What stands still would not notice that bubblewrap is gone.
        processes::kill(left.iter().flat_map(|pid| processes::below(*pid)).collect::<Vec<i32>>());
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
    if was_there(fs::remove_dir_all(remains.folder.path()))? {
        removed.push(Kind::Folder);
    }
    if was_there(remove_guests(&remains.slot))? {
        removed.push(Kind::Folder);
    }
    Ok(removed)
}

/// Removes a folder with what a guest put into it, whatever modes it gave to folders and however
/// deep they lie: each folder is emptied, and what it holds moved up, before the next is looked at.
/// Its processes have ended, so nothing changes meanwhile.
pub(super) fn remove_guests(top: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top_folder = rustix::fs::open(top, flags, Mode::empty())?;
    let mut moved = 0_u64;
    loop {
        let folders = remove_files(&top_folder)?;
        if folders.is_empty() {
            return fs::remove_dir(top);
        }
        for name in folders {
            let folder = rustix::fs::openat(&top_folder, &*name, flags, Mode::empty())?;
            for inner in remove_files(&folder)? {
                move_up((&folder, &inner), &top_folder, &mut moved)?;
            }
            rustix::fs::unlinkat(&top_folder, &*name, AtFlags::REMOVEDIR)?;
        }
    }
}

/// Removes all but folders, which are made ours to look into; returns their names.
fn remove_files(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut folders = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let about = rustix::fs::statat(folder, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(about.st_mode) == FileType::Directory {
            // No link is followed: this is a folder, and nobody else is there any more.
            rustix::fs::chmodat(folder, &*name, Mode::RWXU, AtFlags::empty())?;
            folders.push(name);
        } else {
            rustix::fs::unlinkat(folder, &*name, AtFlags::empty())?;
        }
    }
    Ok(folders)
}

fn move_up((from, name): (&OwnedFd, &CStr), to: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        match rustix::fs::renameat(from, name, to, format!("moved-{moved}")) {
            // Something has that name.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            renamed => return Ok(renamed?),
        }
    }
}

/// Where the user's files lie now; `None` if nothing of them is left. A disk that is not mounted
/// any more, as after a restart of the machine, is mounted again to be read.
pub(super) fn show_files(remains: &Remains) -> io::Result<Option<PathBuf>> {
    let shown = remains.folder.disk();
    if !shown.join(USER).is_dir() && !disk::show_again(&remains.slot, &shown)? {
        let plain = disk::plain(&remains.slot).join(USER);
        return Ok(plain.is_dir().then_some(plain));
    }
    Ok(Some(shown.join(USER)))
}

/// Whether what is shown of a slot may have lost writes.
pub(super) fn is_torn(remains: &Remains) -> io::Result<bool> {
    disk::is_torn(&remains.slot, &remains.folder.disk())
}

/// Brings what is shown of a slot to the disk, and shows it no more.
pub(super) fn settle(remains: &Remains) -> io::Result<()> {
    disk::settle(&remains.slot, &remains.folder.disk())
}

/// Notes that what a slot holds was compared with the store.
pub(super) fn believe(remains: &Remains) -> io::Result<()> {
    disk::believe(&remains.slot)
}

fn was_there(removed: io::Result<()>) -> io::Result<bool> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    }
}
