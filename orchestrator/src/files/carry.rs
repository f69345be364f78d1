// SPDX-License-Identifier: Apache-2.0
//! Copies one tree into another without ever following a link.
//!
//! Every open is of one name in an open folder, with `O_NOFOLLOW`, and is looked at after it was
//! opened: a name that is swapped in between is refused by the kernel or seen for what it is.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// How much is carried at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Files and folders.
    pub(crate) entries: u64,
    /// Bytes of all files.
    pub(crate) bytes: u64,
    /// Folders within folders.
    pub(crate) depth: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        // A checked-out project with its dependencies has some 50,000 files; the slot's own size
        // bounds the bytes before this does.
        Self { entries: 200_000, bytes: 16 << 30, depth: 64 }
    }
}

/// Names in the report; beyond, they are only counted.
const NAMED: usize = 100;
/// The longest manifest that is read: 200,000 names of 255 bytes and some.
const MANIFEST_BYTES: u64 = 128 << 20;
/// Drafts begin so; a file of the agent's that does is left.
const DRAFT: &str = ".postern-draft-";

/// Something that was not carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Left {
    /// Its path, escaped.
    pub(crate) path: String,
    /// Why.
    pub(crate) why: &'static str,
}

/// What was carried and what not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// Files that were written.
    pub(crate) files: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Files that went from the store because they were deleted inside.
    pub(crate) deleted: u64,
    /// What was left, the first hundred by name.
    pub(crate) left: Vec<Left>,
    /// How much was left.
    pub(crate) left_count: u64,
}

/// What a file was when it was carried in: enough to see that it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    size: u64,
    slot_nanos: i128,
    store_nanos: i128,
}

/// The files that were carried into a sandbox, by path.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Manifest {
    files: BTreeMap<String, Stamp>,
}

impl Manifest {
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let mut text = String::new();
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            opened => opened?.take(MANIFEST_BYTES).read_to_string(&mut text)?,
        };
        serde_json::from_str(&text).map_err(io::Error::other)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            super::private_folder(folder)?;
        }
        let draft = path.with_extension("draft");
        std::fs::write(&draft, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        std::fs::rename(draft, path)
    }
}

/// A copy that is under way.
pub(super) struct Carried {
    bounds: Bounds,
    owner: Option<u32>,
    report: Report,
    given: Manifest,
    entries: u64,
}

/// A folder that is being copied, with its place.
struct Folder<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    path: &'a str,
    depth: usize,
}

impl Carried {
    pub(super) fn new(bounds: Bounds, owner: Option<u32>) -> Self {
        Self { bounds, owner, report: Report::default(), given: Manifest::default(), entries: 0 }
    }

    pub(super) fn finish(self) -> (Report, Manifest) {
        (self.report, self.given)
    }

    /// Copies the store's tree into a slot.
    pub(super) fn fill_slot(&mut self, store: &OwnedFd, slot: &OwnedFd) -> io::Result<()> {
        self.folder(&Folder { from: store, to: slot, path: "", depth: 0 }, None)
    }

    /// Copies what changed in a slot back, and takes deletions over.
    pub(super) fn fill_store(&mut self, slot: &OwnedFd, store: &OwnedFd, given: &Manifest) -> io::Result<()> {
        self.folder(&Folder { from: slot, to: store, path: "", depth: 0 }, Some(given))?;
        for (path, stamp) in &given.files {
            if is_gone(slot, path)? && delete(store, path, stamp)? {
                self.report.deleted += 1;
            }
        }
        Ok(())
    }

    fn folder(&mut self, folder: &Folder<'_>, given: Option<&Manifest>) -> io::Result<()> {
        for entry in Dir::read_from(folder.from)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(name) = name.to_str() else {
                self.leave(folder.path, &name.to_string_lossy(), "its name is not UTF-8")?;
                continue;
            };
            if name.starts_with(DRAFT) {
                continue;
            }
            self.entries += 1;
            if self.entries > self.bounds.entries {
                self.leave(folder.path, name, "there are too many files")?;
                continue;
            }
            self.entry(folder, name, given)?;
        }
        Ok(())
    }

    fn entry(&mut self, folder: &Folder<'_>, name: &str, given: Option<&Manifest>) -> io::Result<()> {
        // Not blocking: opening a FIFO waits for nobody.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(folder.from, name, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(Errno::LOOP | Errno::MLINK) => return self.leave(folder.path, name, "it is a link"),
            Err(Errno::NXIO | Errno::NODEV) => {
                return self.leave(folder.path, name, "it is a socket or a device");
            }
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ACCESS | Errno::PERM) => {
                return self.leave(folder.path, name, "it is not readable");
            }
            Err(error) => return Err(error.into()),
        };
        let about = rustix::fs::fstat(&opened)?;
        match FileType::from_raw_mode(about.st_mode) {
            FileType::Directory => self.subfolder(folder, name, &opened, given),
            FileType::RegularFile => self.file(folder, name, opened, &about, given),
            _ => self.leave(folder.path, name, "it is a FIFO, a socket or a device"),
        }
    }

    fn subfolder(
        &mut self,
        folder: &Folder<'_>,
        name: &str,
        from: &OwnedFd,
        given: Option<&Manifest>,
    ) -> io::Result<()> {
        if folder.depth >= self.bounds.depth {
            return self.leave(folder.path, name, "it lies too deep");
        }
        if name.len() > 255 {
            return self.leave(folder.path, name, "its name is too long");
        }
        match rustix::fs::mkdirat(folder.to, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => self.own(folder.to, name)?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = match rustix::fs::openat(folder.to, name, flags, Mode::empty()) {
            Ok(to) => to,
            // A file stands where a folder is to be: it was replaced inside.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                rustix::fs::unlinkat(folder.to, name, AtFlags::empty())?;
                rustix::fs::mkdirat(folder.to, name, Mode::from_raw_mode(0o700))?;
                rustix::fs::openat(folder.to, name, flags, Mode::empty())?
            }
            Err(error) => return Err(error.into()),
        };
        let path = joined(folder.path, name);
        self.folder(&Folder { from, to: &to, path: &path, depth: folder.depth + 1 }, given)
    }

    fn file(
        &mut self,
        folder: &Folder<'_>,
        name: &str,
        from: OwnedFd,
        about: &Stat,
        given: Option<&Manifest>,
    ) -> io::Result<()> {
        let path = joined(folder.path, name);
        let size = u64::try_from(about.st_size).unwrap_or(0);
        if let Some(stamp) = given.and_then(|given| given.files.get(&path))
            && stamp.size == size
            && stamp.slot_nanos == changed_nanos(about)
        {
            return Ok(());
        }
        if self.report.bytes.saturating_add(size) > self.bounds.bytes {
            return self.leave(folder.path, name, "there are too many bytes");
        }
        let mode = Mode::from_raw_mode(0o600 | (about.st_mode & 0o111));
        let Some(written) = self.write(folder.to, name, from, size, mode)? else {
            return self.leave(folder.path, name, "a folder stands in its place");
        };
        self.report.files += 1;
        self.report.bytes += size;
        if given.is_none() {
            let stamp = Stamp { size, slot_nanos: changed_nanos(&written), store_nanos: nanos(about) };
            self.given.files.insert(path, stamp);
        }
        Ok(())
    }

    /// Writes a draft and gives it its name once it is whole; `None` if a folder has that name.
    fn write(
        &self,
        to: &OwnedFd,
        name: &str,
        from: OwnedFd,
        size: u64,
        mode: Mode,
    ) -> io::Result<Option<Stat>> {
        let draft = format!("{DRAFT}{}", std::process::id());
        match rustix::fs::unlinkat(to, &*draft, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(to, &*draft, flags, mode)?);
        // No more than it had when it was judged: a file that grows meanwhile is cut.
        io::copy(&mut File::from(from).take(size), &mut file)?;
        file.flush()?;
        if self.owner.is_none() {
            file.sync_all()?;
        }
        self.own(to, &draft)?;
        match rustix::fs::renameat(to, &*draft, to, name) {
            Ok(()) => Ok(Some(rustix::fs::fstat(&file)?)),
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                rustix::fs::unlinkat(to, &*draft, AtFlags::empty())?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn own(&self, folder: &OwnedFd, name: &str) -> io::Result<()> {
        let Some(owner) = self.owner else { return Ok(()) };
        let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
        Ok(rustix::fs::chownat(folder, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Notes that something was not carried, which ends nothing.
    #[expect(
        clippy::unnecessary_wraps,
        reason = "it stands where carrying the entry would, and that may fail"
    )]
    fn leave(&mut self, folder: &str, name: &str, why: &'static str) -> io::Result<()> {
        self.report.left_count += 1;
        if self.report.left.len() < NAMED {
            let path = joined(folder, name).escape_debug().to_string();
            self.report.left.push(Left { path, why });
        }
        Ok(())
    }
}

fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// When the inode last changed: unlike the time of modification, the agent cannot set it.
fn changed_nanos(about: &Stat) -> i128 {
    i128::from(about.st_ctime) * 1_000_000_000 + i128::from(about.st_ctime_nsec)
}

fn nanos(about: &Stat) -> i128 {
    i128::from(about.st_mtime) * 1_000_000_000 + i128::from(about.st_mtime_nsec)
}

/// Walks to the folder of `path`, opening one name at a time; `None` if it is not there as a tree
/// of folders.
fn parent(root: &OwnedFd, path: &str) -> io::Result<Option<(OwnedFd, String)>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = root.as_fd().try_clone_to_owned()?;
    let mut names = path.split('/').peekable();
    while let Some(name) = names.next() {
        if names.peek().is_none() {
            return Ok(Some((at, name.to_owned())));
        }
        at = match rustix::fs::openat(&at, name, flags, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
    }
    Ok(None)
}

/// Whether nothing has this path any more.
fn is_gone(root: &OwnedFd, path: &str) -> io::Result<bool> {
    let Some((folder, name)) = parent(root, path)? else { return Ok(true) };
    match rustix::fs::statat(&folder, &*name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(false),
        Err(Errno::NOENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Deletes a file of the store if it still is what was given out; `true` if it did.
fn delete(root: &OwnedFd, path: &str, stamp: &Stamp) -> io::Result<bool> {
    let Some((folder, name)) = parent(root, path)? else { return Ok(false) };
    match rustix::fs::statat(&folder, &*name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(about) if nanos(&about) == stamp.store_nanos => {}
        Ok(_) | Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    match rustix::fs::unlinkat(&folder, &*name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::ISDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
