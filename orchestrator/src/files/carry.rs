// SPDX-License-Identifier: Apache-2.0
//! Copies one tree into another without ever following a link.
//!
//! Every open is of one name in an open folder, with `O_NOFOLLOW`, and is looked at after it was
//! opened: a name that is swapped in between is refused by the kernel or seen for what it is.
//!
//! INVARIANT: on the way back nothing that a guest did to its files is an error. What cannot be
//! read is left and reported; only the store's own trouble is worth another try.

use super::copy::{self, CopyError, DRAFT, Draft};
use super::manifest::{Manifest, Stamp, size};
use super::usage::allocated;
use crate::storage::space;
use postern_common::id::SandboxId;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;

/// Names in the report; beyond, they are only counted.
const NAMED: usize = 100;
/// Longer files are not compared: they count as different.
const COMPARED_BYTES: u64 = 256 << 20;
const NAME_BYTES: usize = 255;
const IN_FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How much is carried at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Files and folders.
    pub(crate) entries: u64,
    /// Bytes of all files of one user, in blocks that are really there.
    pub(crate) bytes: u64,
    /// Folders within folders.
    pub(crate) depth: usize,
    /// Bytes of the store's disk that files never take: the database may lie there too.
    pub(crate) free: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        // A checked-out project with its dependencies has some 50,000 files; the slot's own size
        // bounds the bytes before this does.
        Self { entries: 200_000, bytes: 16 << 30, depth: 64, free: space::FREE_BYTES }
    }
}

/// Something that was not carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Left {
    /// Its path, escaped.
    pub(crate) path: String,
    /// Why.
    pub(crate) why: &'static str,
}

/// A file that another conversation had changed meanwhile, so that now there are two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Conflict {
    /// Its path, escaped.
    pub(crate) path: String,
    /// The name beside it that it was kept under.
    pub(crate) kept_as: String,
}

/// What was carried and what not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// Files that were written.
    pub(crate) files: u64,
    /// The bytes that this took: holes take none.
    pub(crate) bytes: u64,
    /// Files that went from the store because they were deleted inside.
    pub(crate) deleted: u64,
    /// What was left, the first hundred by name.
    pub(crate) left: Vec<Left>,
    /// How much was left.
    pub(crate) left_count: u64,
    /// What was kept beside another conversation's, the first hundred by name.
    pub(crate) conflicts: Vec<Conflict>,
    /// How much was.
    pub(crate) conflict_count: u64,
}

/// Which way files are carried.
pub(super) enum Way<'a> {
    /// From the store into a slot, where this user and group is to own them.
    In(Option<u32>),
    /// From a slot back to the store.
    Out(&'a Manifest),
}

/// A copy that is under way.
pub(super) struct Carried<'a> {
    way: Way<'a>,
    sandbox: &'a SandboxId,
    bounds: Bounds,
    /// What may still be written.
    bytes_left: u64,
    /// The top of the tree that is written.
    to: &'a OwnedFd,
    report: Report,
    given: Manifest,
    entries: u64,
    /// Files with several names: which of them was written, by device and inode.
    linked: BTreeMap<(u64, u64), String>,
    /// Paths whose stamps changed again when another name was made.
    restamp: Vec<(String, Stat)>,
}

/// A folder that is being copied, with its place.
struct Folder<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    path: &'a str,
    depth: usize,
}

/// What is done with a file.
enum Place {
    /// It gets its name.
    Here,
    /// It is there already.
    There,
    /// Something else has its name, which stays; it gets this one.
    Beside(String),
}

impl<'a> Carried<'a> {
    /// A copy to `to` of at most `bytes`.
    pub(super) fn new(
        way: Way<'a>,
        sandbox: &'a SandboxId,
        to: &'a OwnedFd,
        bounds: Bounds,
        bytes: u64,
    ) -> Self {
        Self {
            way,
            sandbox,
            bounds,
            bytes_left: bytes,
            to,
            report: Report::default(),
            given: Manifest::default(),
            entries: 0,
            linked: BTreeMap::new(),
            restamp: Vec::new(),
        }
    }

    /// Copies the tree at `from`; on the way back it takes deletions over too.
    pub(super) fn carry(mut self, from: &OwnedFd) -> io::Result<(Report, Manifest)> {
        self.folder(&Folder { from, to: self.to, path: "", depth: 0 })?;
        if let Way::Out(given) = self.way {
            for (path, stamp) in &given.files {
                match is_gone(from, path) {
                    Ok(true) if delete(self.to, path, stamp)? => self.report.deleted += 1,
                    Ok(_) => {}
                    Err(_guests) => self.leave("", path, "it could not be looked for"),
                }
            }
        }
        for (path, in_store) in std::mem::take(&mut self.restamp) {
            if let Some((folder, name)) = parent(self.to, &path)? {
                let in_slot = rustix::fs::statat(&folder, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
                self.given.files.insert(path, Stamp::of(&in_slot, &in_store));
            }
        }
        Ok((self.report, self.given))
    }

    /// What went wrong on the side that is read: the guest's doing on the way back, ours else.
    fn unreadable(&mut self, folder: &str, name: &str, error: Errno) -> io::Result<()> {
        let why = match (&self.way, error) {
            (_, Errno::LOOP | Errno::MLINK) => "it is a link",
            (_, Errno::NXIO | Errno::NODEV) => "it is a socket or a device",
            (_, Errno::NOENT) => return Ok(()),
            (_, Errno::ACCESS | Errno::PERM) => "it is not readable",
            (Way::In(_), _) => return Err(error.into()),
            (Way::Out(_), _) => "it could not be read",
        };
        self.leave(folder, name, why);
        Ok(())
    }

    fn folder(&mut self, folder: &Folder<'_>) -> io::Result<()> {
        let entries = match Dir::read_from(folder.from) {
            Ok(entries) => entries,
            Err(error) => return self.unreadable(folder.path, ".", error),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return self.unreadable(folder.path, ".", error),
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.entries += 1;
            let Ok(name) = name.to_str() else {
                self.leave(folder.path, &name.to_string_lossy(), "its name is not UTF-8");
                continue;
            };
            if name.starts_with(DRAFT) {
                self.leave(folder.path, name, "its name is one of ours");
                continue;
            }
            if self.entries > self.bounds.entries {
                self.leave(folder.path, name, "there are too many files");
                continue;
            }
            self.entry(folder, name)?;
        }
        Ok(())
    }

    fn entry(&mut self, folder: &Folder<'_>, name: &str) -> io::Result<()> {
        // Not blocking: opening a FIFO waits for nobody.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(folder.from, name, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(error) => return self.unreadable(folder.path, name, error),
        };
        let about = rustix::fs::fstat(&opened)?;
        match FileType::from_raw_mode(about.st_mode) {
            FileType::Directory => self.subfolder(folder, name, &opened),
            FileType::RegularFile => self.file(folder, name, opened, &about),
            _ => {
                self.leave(folder.path, name, "it is a FIFO, a socket or a device");
                Ok(())
            }
        }
    }

    fn subfolder(&mut self, folder: &Folder<'_>, name: &str, from: &OwnedFd) -> io::Result<()> {
        if folder.depth >= self.bounds.depth {
            self.leave(folder.path, name, "it lies too deep");
            return Ok(());
        }
        let mut path = joined(folder.path, name);
        let to = match self.make_folder(folder.to, name, &path)? {
            Some(to) => to,
            // A file of another conversation stands where the folder is to be: both are kept.
            None => {
                let Some(beside) = self.beside(folder, name) else { return Ok(()) };
                path = joined(folder.path, &beside);
                let made = self.make_folder(folder.to, &beside, &path)?;
                let Some(to) = made else {
                    self.leave(folder.path, name, "a file stands in its place");
                    return Ok(());
                };
                to
            }
        };
        self.folder(&Folder { from, to: &to, path: &path, depth: folder.depth + 1 })
    }

    /// Makes or finds a folder to write into; `None` if a file stands there that has to stay.
    fn make_folder(&self, to: &OwnedFd, name: &str, path: &str) -> io::Result<Option<OwnedFd>> {
        for _ in 0..2 {
            match rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700)) {
                Ok(()) => self.own(to, name)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            match rustix::fs::openat(to, name, IN_FOLDER, Mode::empty()) {
                Ok(made) => return Ok(Some(made)),
                Err(Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            }
            let about = rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_file = FileType::from_raw_mode(about.st_mode) == FileType::RegularFile;
            if is_file && !self.was_given(path).is_some_and(|stamp| stamp.is_in_store(&about)) {
                return Ok(None);
            }
            // It was replaced inside, or is a link, which nobody but us could have carried here.
            rustix::fs::unlinkat(to, name, AtFlags::empty())?;
        }
        Ok(None)
    }

    fn was_given(&self, path: &str) -> Option<Stamp> {
        match self.way {
            Way::In(_) => None,
            Way::Out(given) => given.files.get(path).copied(),
        }
    }

    fn file(&mut self, folder: &Folder<'_>, name: &str, from: OwnedFd, about: &Stat) -> io::Result<()> {
        let path = joined(folder.path, name);
        if self.was_given(&path).is_some_and(|stamp| stamp.is_in_slot(about)) {
            return Ok(());
        }
        let mut from = File::from(from);
        let (name_there, replaced) = match self.place(folder, name, &path, &mut from)? {
            (Place::Here, replaced) => (name.to_owned(), replaced),
            (Place::There, _) => {
                self.note_link(about, path);
                return Ok(());
            }
            (Place::Beside(beside), _) => (beside, 0),
        };
        let target = joined(folder.path, &name_there);
        let first = self.linked.get(&(about.st_dev, about.st_ino)).cloned();
        let written = match first.filter(|_| about.st_nlink > 1) {
            Some(first) => self.link(folder, &name_there, &first)?,
            None => self.write(folder, &name_there, from, about, replaced)?,
        };
        let Some(written) = written else { return Ok(()) };
        self.report.files += 1;
        self.note_link(about, target.clone());
        if matches!(self.way, Way::In(_)) {
            self.given.files.insert(target.clone(), Stamp::of(&written, about));
            if about.st_nlink > 1 {
                self.restamp.push((target, *about));
            }
        }
        Ok(())
    }

    fn note_link(&mut self, about: &Stat, path: String) {
        if about.st_nlink > 1 {
            self.linked.entry((about.st_dev, about.st_ino)).or_insert(path);
        }
    }

    /// Where a file goes, and how many bytes the one before it there takes.
    fn place(
        &mut self,
        folder: &Folder<'_>,
        name: &str,
        path: &str,
        from: &mut File,
    ) -> io::Result<(Place, u64)> {
        let there = match rustix::fs::statat(folder.to, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => there,
            Err(Errno::NOENT) => return Ok((Place::Here, 0)),
            Err(error) => return Err(error.into()),
        };
        let kind = FileType::from_raw_mode(there.st_mode);
        let is_as_given = self.was_given(path).is_some_and(|stamp| stamp.is_in_store(&there));
        let freed = if there.st_nlink > 1 { 0 } else { allocated(&there) };
        match kind {
            FileType::RegularFile if matches!(self.way, Way::In(_)) || is_as_given => {
                Ok((Place::Here, freed))
            }
            FileType::RegularFile if is_equal(folder.to, name, &there, from)? => Ok((Place::There, 0)),
            FileType::RegularFile | FileType::Directory => {
                Ok((self.beside(folder, name).map_or(Place::There, Place::Beside), 0))
            }
            // A link in the store, which we never made.
            _ => Ok((Place::Here, 0)),
        }
    }

    /// The name for what another conversation's file keeps from its own; reports both.
    fn beside(&mut self, folder: &Folder<'_>, name: &str) -> Option<String> {
        let beside = format!("{name}.conflict-{}", self.sandbox);
        if beside.len() > NAME_BYTES {
            self.leave(
                folder.path,
                name,
                "another conversation changed it, and its name is too long for two",
            );
            return None;
        }
        self.report.conflict_count += 1;
        if self.report.conflicts.len() < NAMED {
            let path = joined(folder.path, name).escape_debug().to_string();
            self.report.conflicts.push(Conflict { path, kept_as: beside.escape_debug().to_string() });
        }
        Some(beside)
    }

    /// Writes a file whole; `None` if it was left.
    fn write(
        &mut self,
        folder: &Folder<'_>,
        name: &str,
        mut from: File,
        about: &Stat,
        replaced: u64,
    ) -> io::Result<Option<Stat>> {
        let bound = self.bytes_left.saturating_add(replaced);
        if allocated(about).min(size(about)) > bound {
            self.leave(folder.path, name, "there are too many bytes");
            return Ok(None);
        }
        self.check_space(folder.to, allocated(about))?;
        let mode = Mode::from_raw_mode(0o600 | (about.st_mode & 0o111));
        let mut draft = Draft::make(folder.to, self.sandbox.as_str(), mode)?;
        // No more than it had when it was judged: a file that grows meanwhile is cut.
        let written = match copy::copy(&mut from, &mut draft.file, size(about), bound) {
            Ok(written) => written,
            Err(CopyError::To(error)) => return Err(error),
            Err(CopyError::From) => {
                drop(draft);
                return self.unreadable(folder.path, name, Errno::IO).map(|()| None);
            }
            Err(CopyError::TooMany) => {
                drop(draft);
                self.leave(folder.path, name, "there are too many bytes");
                return Ok(None);
            }
        };
        if matches!(self.way, Way::Out(_)) {
            draft.file.sync_all()?;
        }
        self.own(folder.to, draft.name())?;
        let named = self.name(folder, name, draft)?;
        if named.is_some() {
            self.bytes_left = bound.saturating_sub(written);
            self.report.bytes += written;
        }
        Ok(named)
    }

    /// Gives a file that was written another name.
    fn link(&mut self, folder: &Folder<'_>, name: &str, first: &str) -> io::Result<Option<Stat>> {
        let Some((holder, first)) = parent(self.to, first)? else { return Ok(None) };
        match Draft::link(folder.to, self.sandbox.as_str(), (&holder, &first)) {
            Ok(draft) => self.name(folder, name, draft),
            Err(error) if error.raw_os_error() == Some(Errno::MLINK.raw_os_error()) => {
                self.leave(folder.path, name, "its file has too many names");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn name(&mut self, folder: &Folder<'_>, name: &str, draft: Draft<'_>) -> io::Result<Option<Stat>> {
        let file = draft.file.try_clone()?;
        if draft.give(name)? {
            return Ok(Some(rustix::fs::fstat(&file)?));
        }
        self.leave(folder.path, name, "a folder stands in its place");
        Ok(None)
    }

    /// Refuses to fill the disk that the database may share.
    fn check_space(&self, to: &OwnedFd, bytes: u64) -> io::Result<()> {
        if matches!(self.way, Way::In(_)) {
            return Ok(());
        }
        space::check(to, bytes, self.bounds.free)
    }

    fn own(&self, folder: &OwnedFd, name: &str) -> io::Result<()> {
        let Way::In(Some(owner)) = self.way else { return Ok(()) };
        let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
        Ok(rustix::fs::chownat(folder, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Notes that something was not carried, which ends nothing.
    fn leave(&mut self, folder: &str, name: &str, why: &'static str) {
        self.report.left_count += 1;
        if self.report.left.len() < NAMED {
            let path = joined(folder, name).escape_debug().to_string();
            self.report.left.push(Left { path, why });
        }
    }
}

fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// Whether the store has just this file: another try finds what the one before it wrote.
fn is_equal(folder: &OwnedFd, name: &str, there: &Stat, from: &mut File) -> io::Result<bool> {
    let length = from.metadata()?.len();
    if length != size(there) || length > COMPARED_BYTES {
        return Ok(false);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut other = File::from(rustix::fs::openat(folder, name, flags, Mode::empty())?);
    Ok(copy::is_same(from, &mut other).unwrap_or(false))
}

/// Walks to the folder of `path`, opening one name at a time; `None` if it is not there as a tree
/// of folders.
fn parent(root: &OwnedFd, path: &str) -> rustix::io::Result<Option<(OwnedFd, String)>> {
    let mut at = root.as_fd().try_clone_to_owned().map_err(|_no_descriptors| Errno::MFILE)?;
    let mut names = path.split('/').peekable();
    while let Some(name) = names.next() {
        if names.peek().is_none() {
            return Ok(Some((at, name.to_owned())));
        }
        at = match rustix::fs::openat(&at, name, IN_FOLDER, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error),
        };
    }
    Ok(None)
}

/// Whether nothing has this path any more.
fn is_gone(root: &OwnedFd, path: &str) -> rustix::io::Result<bool> {
    let Some((folder, name)) = parent(root, path)? else { return Ok(true) };
    match rustix::fs::statat(&folder, &*name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(false),
        Err(Errno::NOENT) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Deletes a file of the store if it still is what was given out; `true` if it did.
fn delete(root: &OwnedFd, path: &str, stamp: &Stamp) -> io::Result<bool> {
    let Some((folder, name)) = parent(root, path)? else { return Ok(false) };
    match rustix::fs::statat(&folder, &*name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(about) if stamp.is_in_store(&about) => {}
        Ok(_) | Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    match rustix::fs::unlinkat(&folder, &*name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::ISDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
