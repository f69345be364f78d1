// SPDX-License-Identifier: Apache-2.0
//! How much a user's files take, before anything is made for them.

use super::copy::DRAFT;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::io;

/// Folders within folders that are counted; files are not carried from so deep.
const DEPTH: usize = 128;
/// A block of most file systems: what is smaller takes this much.
const BLOCK: u64 = 4096;

/// What files take on a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Blocks that are really there, holes left out and each file counted once.
    pub(super) bytes: u64,
    /// Files and folders.
    pub(super) entries: u64,
}

impl Usage {
    /// What the files below a folder of the store take. Drafts that a crash left are removed if
    /// `tidies`: the caller then must be the only one that writes there.
    pub(super) fn of(folder: &OwnedFd, tidies: bool) -> io::Result<Self> {
        let mut usage = Self::default();
        usage.add(folder, tidies, 0, &mut BTreeSet::new())?;
        Ok(usage)
    }

    fn add(
        &mut self,
        folder: &OwnedFd,
        tidies: bool,
        depth: usize,
        seen: &mut BTreeSet<(u64, u64)>,
    ) -> io::Result<()> {
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if tidies && name.to_bytes().starts_with(DRAFT.as_bytes()) {
                rustix::fs::unlinkat(folder, name, AtFlags::empty())?;
                continue;
            }
            let about = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                found => found?,
            };
            self.entries += 1;
            if about.st_nlink < 2 || seen.insert((about.st_dev, about.st_ino)) {
                self.bytes += allocated(&about).next_multiple_of(BLOCK);
            }
            if FileType::from_raw_mode(about.st_mode) == FileType::Directory && depth < DEPTH {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = rustix::fs::openat(folder, name, flags, Mode::empty())?;
                self.add(&below, tidies, depth + 1, seen)?;
            }
        }
        Ok(())
    }

    /// What a sandbox's disk of this size has room for: the rest is the file system's own, of
    /// which tables of inodes take most. mke2fs.conf(5): one inode for each 4 KiB of a small disk
    /// and each 16 KiB of others, 256 bytes each.
    pub(super) const fn room_of(disk_bytes: u64) -> Self {
        const SMALL: u64 = 512 << 20;
        let bytes_per_inode = if disk_bytes < SMALL { 4096 } else { 16384 };
        Self { bytes: disk_bytes / 8 * 7, entries: disk_bytes / bytes_per_inode }
    }

    pub(super) const fn fits(self, room: Self) -> bool {
        self.bytes <= room.bytes && self.entries <= room.entries
    }
}

/// The bytes that a file's blocks take: not its length, which may be mostly holes.
pub(super) fn allocated(about: &rustix::fs::Stat) -> u64 {
    /// The unit of `st_blocks`, whatever the file system's own blocks are (stat(2)).
    const UNIT: u64 = 512;
    u64::try_from(about.st_blocks).unwrap_or(0).saturating_mul(UNIT)
}
