// SPDX-License-Identifier: Apache-2.0
//! A user's tree, which somebody else changes under our eyes.
//!
//! INVARIANT: nothing in it is opened but by `openat2` below the tree's own folder, with
//! `RESOLVE_BENEATH`, `RESOLVE_NO_MAGICLINKS` and `RESOLVE_NO_SYMLINKS`, and what was opened is looked
//! at by `fstat` before it is used. A name that is swapped in between is refused by the kernel, or
//! seen for what it is.

use postern_common::files::{FilePath, MODE_BITS, What};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;

const BELOW: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_SYMLINKS);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Not blocking: opening a FIFO waits for nobody.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// The longest text of a link.
const TARGET_BYTES: usize = 4096;

/// What tells that something changed: unlike the time of modification, the agent cannot set when the
/// inode changed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) size: u64,
    modified: i64,
    pub(crate) changed: i64,
    inode: u64,
}

impl Stamp {
    /// Whether its inode changed after that of the other did.
    pub(crate) const fn is_after(&self, other: &Self) -> bool {
        self.changed > other.changed
    }
}

/// What was found under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Link,
    /// A FIFO, a socket or a device.
    Other,
}

impl Kind {
    /// The kind of what both sides know.
    pub(crate) const fn of(what: &What) -> Self {
        match what {
            What::File { .. } => Self::File,
            What::Folder { .. } => Self::Folder,
            What::Link { .. } => Self::Link,
        }
    }
}

/// What is known of something without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: Kind,
    pub(crate) mode: u16,
    pub(crate) stamp: Stamp,
    /// The bytes that its blocks take, which may be less than its length.
    pub(crate) allocated: u64,
}

impl Seen {
    #[expect(clippy::cast_possible_truncation, reason = "masked to nine bits")]
    pub(crate) fn of(about: &Stat) -> Self {
        /// The unit of `st_blocks`, whatever the file system's own blocks are (stat(2)).
        const UNIT: u64 = 512;
        let kind = match FileType::from_raw_mode(about.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Folder,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        };
        let size = if kind == Kind::Folder { 0 } else { u64::try_from(about.st_size).unwrap_or(0) };
        // What is in a folder changes its times, and is looked at by itself.
        let times = if kind == Kind::Folder {
            [0, 0]
        } else {
            [nanos(about.st_mtime, about.st_mtime_nsec), nanos(about.st_ctime, about.st_ctime_nsec)]
        };
        let [modified, changed] = times;
        Self {
            kind,
            mode: (about.st_mode & u32::from(MODE_BITS)) as u16,
            stamp: Stamp { size, modified, changed, inode: about.st_ino },
            allocated: u64::try_from(about.st_blocks).unwrap_or(0).saturating_mul(UNIT),
        }
    }

    /// What an open file looks like now.
    pub(crate) fn again(file: &File) -> Option<Self> {
        rustix::fs::fstat(file).ok().map(|about| Self::of(&about))
    }

    /// When it was written, in microseconds since 1970.
    pub(crate) const fn modified_micros(&self) -> i64 {
        self.stamp.modified.div_euclid(1000)
    }
}

fn nanos(seconds: impl TryInto<i64>, nanos: impl TryInto<i64>) -> i64 {
    let seconds = seconds.try_into().unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos.try_into().unwrap_or(0))
}

/// The tree, and beside it, on the same file system and out of the agent's sight, a place for drafts.
#[derive(Debug)]
pub(crate) struct Tree {
    top: OwnedFd,
    drafts: OwnedFd,
}

/// A file that has not got its place yet. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    tree: &'a Tree,
    name: String,
    pub(crate) file: File,
    is_placed: bool,
}

/// What came of putting something in its place.
#[derive(Debug)]
pub(crate) enum Placed {
    /// It is there; this is what it looks like.
    Here(Seen),
    /// What was there had changed since it was looked at, and still is there.
    Changed,
}

impl Tree {
    /// A tree at `top`, with drafts in `drafts`; both must be there.
    pub(crate) fn open(top: &str, drafts: &str) -> io::Result<Self> {
        let open = |path| rustix::fs::open(path, FOLDER, Mode::empty());
        Ok(Self { top: open(top)?, drafts: open(drafts)? })
    }

    /// A folder of it; `None`: the top.
    pub(crate) fn folder(&self, path: Option<&str>) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat2(&self.top, path.unwrap_or("."), FOLDER, Mode::empty(), BELOW)
    }

    /// A file of it, and what it is: opened, it may be a folder or anything else.
    pub(crate) fn file(&self, path: &str) -> rustix::io::Result<(File, Seen)> {
        let file = rustix::fs::openat2(&self.top, path, FILE, Mode::empty(), BELOW)?;
        let seen = Seen::of(&rustix::fs::fstat(&file)?);
        Ok((File::from(file), seen))
    }

    /// What lies at a path; `None` if nothing does.
    pub(crate) fn look(&self, path: &FilePath) -> rustix::io::Result<Option<Seen>> {
        let (folder, name) = path.split();
        let folder = match self.folder(folder) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error),
        };
        look_in(&folder, name)
    }

    /// A link's text; `None` if it is none any more, or no text.
    pub(crate) fn target(&self, path: &FilePath) -> rustix::io::Result<Option<String>> {
        let (folder, name) = path.split();
        let text = match rustix::fs::readlinkat(self.folder(folder)?, name, Vec::with_capacity(128)) {
            Ok(text) => text,
            Err(Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(text.into_string().ok().filter(|text| text.len() <= TARGET_BYTES))
    }

    /// A folder of it, made with all above it if it is not there. `Ok(None)` if something else stands
    /// in its place, or in the place of one above it.
    pub(crate) fn make_folder(&self, path: &str) -> rustix::io::Result<Option<OwnedFd>> {
        match self.folder(Some(path)) {
            Ok(folder) => return Ok(Some(folder)),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error),
        }
        let (above, name) = match path.rsplit_once('/') {
            Some((above, name)) => (self.make_folder(above)?, name),
            None => (Some(self.folder(None)?), path),
        };
        let Some(above) = above else { return Ok(None) };
        match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        match rustix::fs::openat2(&above, name, FOLDER, Mode::empty(), BELOW) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives a folder its mode; its owner can always look into it.
    pub(crate) fn set_folder_mode(&self, path: &str, mode: u16) -> rustix::io::Result<()> {
        rustix::fs::fchmod(self.folder(Some(path))?, Mode::from_raw_mode(u32::from(mode) | 0o700))
    }

    /// A draft that is told from others by `name`; one of this name that is there already is gone on
    /// with, and its length told.
    pub(crate) fn draft(&self, name: String, goes_on: bool) -> io::Result<(Draft<'_>, u64)> {
        let mut flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if !goes_on {
            flags |= OFlags::TRUNC;
        }
        let file = rustix::fs::openat2(&self.drafts, &*name, flags, Mode::from_raw_mode(0o600), BELOW)?;
        let length = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        Ok((Draft { tree: self, name, file: File::from(file), is_placed: false }, length))
    }

    /// Removes the drafts that `is_kept` does not name: never where the tree is the place for drafts.
    pub(crate) fn tidy(&self, is_kept: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(&self.drafts)? {
            let name = entry?.file_name().to_owned();
            let is_dot = matches!(name.to_bytes(), b"." | b"..");
            if !is_dot && !name.to_str().is_ok_and(&is_kept) {
                rustix::fs::unlinkat(&self.drafts, &*name, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Makes a link where nothing is, or in place of what looks like `before`.
    pub(crate) fn link(&self, path: &FilePath, target: &str, before: Option<&Stamp>) -> io::Result<Placed> {
        let name = format!("link-{}", before.map_or(0, |it| it.inode));
        match rustix::fs::symlinkat(target, &self.drafts, &*name) {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&self.drafts, &*name, AtFlags::empty())?;
                rustix::fs::symlinkat(target, &self.drafts, &*name)?;
            }
            made => made?,
        }
        let placed = self.place(&name, path, before);
        if !matches!(placed, Ok(Placed::Here(_))) {
            let _ = rustix::fs::unlinkat(&self.drafts, &*name, AtFlags::empty()).is_ok();
        }
        placed
    }

    /// Gives a draft its place, in one step: where nothing is, or instead of what looks like `before`.
    fn place(&self, draft: &str, path: &FilePath, before: Option<&Stamp>) -> io::Result<Placed> {
        let (above, name) = path.split();
        let folder = match above {
            Some(above) => self.make_folder(above)?,
            None => Some(self.folder(None)?),
        };
        let Some(folder) = folder else { return Ok(Placed::Changed) };
        let Some(before) = before else {
            return match rustix::fs::renameat_with(&self.drafts, draft, &folder, name, RenameFlags::NOREPLACE)
            {
                Ok(()) => self.placed(&folder, name),
                Err(Errno::EXIST) => Ok(Placed::Changed),
                Err(error) => Err(error.into()),
            };
        };
        if look_in(&folder, name)?.map(|seen| seen.stamp) != Some(*before) {
            return Ok(Placed::Changed);
        }
        let exchange =
            || rustix::fs::renameat_with(&self.drafts, draft, &folder, name, RenameFlags::EXCHANGE);
        match exchange() {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(Placed::Changed),
            Err(error) => return Err(error.into()),
        }
        // The agent may have written to it between the look and the exchange. Taking its place changed
        // when the inode changed last, so that this is no part of the comparison.
        let was = look_in(&self.drafts, draft)?;
        let is_same = was.is_some_and(|was| {
            let stamp = was.stamp;
            (stamp.size, stamp.modified, stamp.inode) == (before.size, before.modified, before.inode)
        });
        if !is_same {
            exchange()?;
            return Ok(Placed::Changed);
        }
        let placed = self.placed(&folder, name)?;
        rustix::fs::unlinkat(&self.drafts, draft, AtFlags::empty())?;
        Ok(placed)
    }

    fn placed(&self, folder: &OwnedFd, name: &str) -> io::Result<Placed> {
        // Gone again, or another, if the agent was that fast: the next scan sees it.
        Ok(look_in(folder, name)?.map_or(Placed::Changed, Placed::Here))
    }

    /// Removes what looks like `before`; `false` if something else is there by now.
    pub(crate) fn remove(&self, path: &FilePath, before: &Stamp) -> io::Result<bool> {
        let (folder, name) = path.split();
        let folder = match self.folder(folder) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let Some(seen) = look_in(&folder, name)? else { return Ok(true) };
        if seen.kind == Kind::Folder {
            return match rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => Ok(true),
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(false),
                Err(error) => Err(error.into()),
            };
        }
        if seen.stamp != *before {
            return Ok(false);
        }
        // Out of its place first, so that what is written to it meanwhile is not lost.
        let aside = format!("gone-{}", before.inode);
        match rustix::fs::renameat(&folder, name, &self.drafts, &*aside) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        let was =
            look_in(&self.drafts, &aside)?.map(|was| (was.stamp.size, was.stamp.modified, was.stamp.inode));
        if was == Some((before.size, before.modified, before.inode)) {
            rustix::fs::unlinkat(&self.drafts, &*aside, AtFlags::empty())?;
            return Ok(true);
        }
        let back = rustix::fs::renameat_with(&self.drafts, &*aside, &folder, name, RenameFlags::NOREPLACE);
        match back {
            Ok(()) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a path another name where nothing has that; `false` if it is gone, or the name taken.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<bool> {
        let split = |path: &str| match path.rsplit_once('/') {
            Some((folder, name)) => (Some(folder.to_owned()), name.to_owned()),
            None => (None, path.to_owned()),
        };
        let ((from_folder, from_name), (to_folder, to_name)) = (split(from), split(to));
        let folders =
            self.folder(from_folder.as_deref()).and_then(|it| Ok((it, self.folder(to_folder.as_deref())?)));
        let renamed = folders.and_then(|(from, to)| {
            rustix::fs::renameat_with(&from, &*from_name, &to, &*to_name, RenameFlags::NOREPLACE)
        });
        match renamed {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::EXIST | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Draft<'_> {
    /// Gives it mode and time, then its place, in one step ([`Tree`]).
    pub(crate) fn place(
        mut self,
        path: &FilePath,
        (mode, modified_micros): (u16, i64),
        before: Option<&Stamp>,
    ) -> io::Result<Placed> {
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(u32::from(mode)))?;
        let time = Timespec {
            tv_sec: modified_micros.div_euclid(1_000_000),
            tv_nsec: modified_micros.rem_euclid(1_000_000) * 1000,
        };
        rustix::fs::futimens(&self.file, &Timestamps { last_access: time, last_modification: time })?;
        let placed = self.tree.place(&self.name, path, before)?;
        self.is_placed = matches!(placed, Placed::Here(_));
        Ok(placed)
    }

    /// Leaves it for another try.
    pub(crate) fn keep(mut self) {
        self.is_placed = true;
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.is_placed {
            let _ = rustix::fs::unlinkat(&self.tree.drafts, &*self.name, AtFlags::empty()).is_ok();
        }
    }
}

/// What lies under a name in an open folder; links are not followed.
pub(crate) fn look_in(folder: impl AsFd, name: &str) -> rustix::io::Result<Option<Seen>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(about) => Ok(Some(Seen::of(&about))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
pub(crate) mod tests;
