// SPDX-License-Identifier: Apache-2.0
//! Users' files as this machine saw them last, so that a sandbox gets from the store only what differs.
//!
//! Each is kept under the digest of its bytes, in a folder of its user's own: on a disk of this machine,
//! or on a mount that several share. Nothing here is believed: whoever takes something out looks at its
//! digest. What was not used for long goes, and of the rest the oldest when there is too much.
//!
//! ```text
//! tenants/{tenant}/users/{user}/{first two digits}/{digest}
//! ```

use super::beneath::{BENEATH, FOLDER, make_folder};
use super::drafts::Drafts;
use super::path::{UserPrefix, tenant_prefix};
use super::space;
use super::types::Digest;
use aws_lc_rs::digest::{Context, SHA256};
use jiff::{SignedDuration, Timestamp};
use postern_common::id::TenantId;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Timestamps, UTIME_NOW};
use rustix::io::Errno;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What is read at once.
const BUFFER_BYTES: usize = 256 << 10;
/// Folders within folders: tenants, tenant, users, user, digits.
const DEPTH: usize = 6;

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheBounds {
    /// Bytes of all files.
    pub(crate) bytes: u64,
    /// How many files: each has an inode, and is looked at.
    pub(crate) files: u64,
    /// How long one that nobody uses is kept.
    pub(crate) age: Duration,
}

/// Files of users. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    top: Arc<OwnedFd>,
    bounds: CacheBounds,
    drafts: Drafts,
    /// Bytes of the disk that are never taken.
    pub(super) free: u64,
    /// What came since somebody looked how much there is.
    fresh: Arc<Fresh>,
}

#[derive(Debug)]
struct Fresh {
    bytes: AtomicU64,
    files: AtomicU64,
}

/// What tidying came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tidied {
    /// Files that are there still.
    pub(crate) files: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Files that went.
    pub(crate) gone: u64,
}

/// A file of the cache, as tidying sees it.
struct Cached {
    used: Timestamp,
    bytes: u64,
    path: String,
}

impl Cache {
    /// The cache in a folder, which is made if it is not there.
    pub(crate) fn open(path: &Path, bounds: CacheBounds) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let top = rustix::fs::open(path, FOLDER, Mode::empty())?;
        // Unknown is as much as there may be: the first to ask looks.
        let fresh = Fresh { bytes: AtomicU64::new(bounds.bytes), files: AtomicU64::new(bounds.files) };
        let (drafts, free, fresh) = (Drafts::new()?, space::FREE_BYTES, Arc::new(fresh));
        Ok(Self { top: Arc::new(top), bounds, drafts, free, fresh })
    }

    /// The file with this digest, and notes that it was used; `None` if it is not there.
    pub(super) fn get(&self, user: &UserPrefix, digest: &Digest) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat2(&*self.top, place(user, digest), flags, Mode::empty(), BENEATH) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            opened => {
                let file = File::from(opened?);
                let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
                let times = Timestamps { last_access: now, last_modification: now };
                // A mount that can only be read keeps its own times.
                let _ = rustix::fs::futimens(&file, &times).is_ok();
                Ok(Some(file))
            }
        }
    }

    /// Keeps a file, if its bytes are those of this digest and the disk has room; whether it was new.
    pub(super) fn put(&self, user: &UserPrefix, digest: &Digest, from: &File, size: u64) -> io::Result<bool> {
        self.place(user, digest, size, |to| copy(from, to, size, digest))
    }

    /// The same of a file that is held whole. It is on its disk when it has its name: of a mount that is full
    /// nobody hears before.
    pub(super) fn put_bytes(&self, user: &UserPrefix, digest: &Digest, bytes: &[u8]) -> io::Result<bool> {
        self.place(user, digest, bytes.len() as u64, |to| {
            if Digest::of(bytes) != *digest {
                return Ok(false);
            }
            to.write_all_at(bytes, 0)?;
            to.sync_data()?;
            Ok(true)
        })
    }

    /// Has a file written and gives it its name, if it is what it is to be.
    fn place(
        &self,
        user: &UserPrefix,
        digest: &Digest,
        size: u64,
        write: impl FnOnce(&File) -> io::Result<bool>,
    ) -> io::Result<bool> {
        if size > self.bounds.bytes || self.get(user, digest)?.is_some() {
            return Ok(false);
        }
        if space::check(&*self.top, size, self.free).is_err() {
            return Ok(false);
        }
        let whole = place(user, digest);
        let (folder, name) = whole.rsplit_once('/').unwrap_or(("", &whole));
        let folder = make_folder(&self.top, folder, 0o700, |_new| Ok(()))?;
        let (draft, to) = self.drafts.make(&folder)?;
        let kept = write(&to).and_then(|is_it| {
            if is_it {
                rustix::fs::renameat(&folder, &*draft, &folder, name)?;
            }
            Ok(is_it)
        });
        if !matches!(kept, Ok(true)) {
            let _ = rustix::fs::unlinkat(&folder, &*draft, AtFlags::empty()).is_ok();
        }
        if matches!(kept, Ok(true)) {
            self.fresh.bytes.fetch_add(size, Ordering::Relaxed);
            self.fresh.files.fetch_add(1, Ordering::Relaxed);
        }
        kept
    }

    /// Forgets a file that was found not to be what its name says.
    pub(super) fn forget(&self, user: &UserPrefix, digest: &Digest) -> io::Result<()> {
        match rustix::fs::unlinkat(&*self.top, place(user, digest), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets a user.
    pub(super) fn erase_user(&self, user: &UserPrefix) -> io::Result<()> {
        self.erase(user.as_str())
    }

    /// Forgets all users of a tenant.
    pub(super) fn erase_tenant(&self, tenant: &TenantId) -> io::Result<()> {
        self.erase(&tenant_prefix(tenant))
    }

    fn erase(&self, prefix: &str) -> io::Result<()> {
        let folder = match rustix::fs::openat2(&*self.top, prefix, FOLDER, Mode::empty(), BENEATH) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            opened => opened?,
        };
        let mut found = Vec::new();
        walk(&folder, prefix, 0, &mut found)?;
        let removed = found.iter().map(|cached| self.remove(cached)).fold(Ok(()), Result::and);
        // Their names go too. Whoever writes into one at this moment finds it gone, and keeps nothing.
        remove_empty(&folder, 0)?;
        let _ = rustix::fs::unlinkat(&*self.top, prefix.trim_end_matches('/'), AtFlags::REMOVEDIR).is_ok();
        removed
    }

    /// Removes what nobody used for long, and the oldest of the rest while there is too much; `None` if
    /// not enough has come since the last time that it could matter.
    pub(super) fn tidy(&self, now: Timestamp, in_any_case: bool) -> io::Result<Option<Tidied>> {
        /// A part of the bound that may come before somebody looks.
        const PART: u64 = 16;
        let few = self.fresh.bytes.load(Ordering::Relaxed) < self.bounds.bytes / PART
            && self.fresh.files.load(Ordering::Relaxed) < self.bounds.files / PART;
        if few && !in_any_case {
            return Ok(None);
        }
        self.fresh.bytes.store(0, Ordering::Relaxed);
        self.fresh.files.store(0, Ordering::Relaxed);
        let mut found = Vec::new();
        walk(&self.top, "", 0, &mut found)?;
        found.sort_by_key(|cached| std::cmp::Reverse(cached.used));
        let age = SignedDuration::try_from(self.bounds.age).unwrap_or(SignedDuration::MAX);
        let oldest = now.checked_sub(age).unwrap_or(Timestamp::MIN);
        let (mut tidied, mut removed) = (Tidied::default(), Ok(()));
        for cached in &found {
            let is_kept = cached.used >= oldest
                && tidied.files < self.bounds.files
                && tidied.bytes.saturating_add(cached.bytes) <= self.bounds.bytes;
            if is_kept {
                tidied.files += 1;
                tidied.bytes += cached.bytes;
            } else {
                removed = removed.and(self.remove(cached));
                tidied.gone += 1;
            }
        }
        if in_any_case {
            remove_empty(&self.top, 0)?;
        }
        removed.map(|()| Some(tidied))
    }

    fn remove(&self, cached: &Cached) -> io::Result<()> {
        let (folder, name) = cached.path.rsplit_once('/').unwrap_or((".", &cached.path));
        let folder = rustix::fs::openat2(&*self.top, folder, FOLDER, Mode::empty(), BENEATH);
        match folder.and_then(|folder| rustix::fs::unlinkat(&folder, name, AtFlags::empty())) {
            // The last is a file of NFS that somebody here has open yet: it goes with them.
            Ok(()) | Err(Errno::NOENT | Errno::STALE | Errno::BUSY) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn place(user: &UserPrefix, digest: &Digest) -> String {
    let digest = digest.to_string();
    format!("{}/{}/{digest}", user.as_str(), digest.get(..2).unwrap_or_default())
}

/// All files below a folder. What a crash left of drafts is among them, and gets as old as the rest.
fn walk(folder: &OwnedFd, place: &str, depth: usize, found: &mut Vec<Cached>) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        let path = if place.is_empty() { name.to_owned() } else { format!("{place}/{name}") };
        let about = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            about => about?,
        };
        match FileType::from_raw_mode(about.st_mode) {
            FileType::Directory if depth < DEPTH => {
                match rustix::fs::openat2(folder, name, FOLDER, Mode::empty(), BENEATH) {
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    below => walk(&below?, &path, depth + 1, found)?,
                }
            }
            FileType::RegularFile => found.push(Cached {
                used: Timestamp::from_second(about.st_mtime).unwrap_or(Timestamp::UNIX_EPOCH),
                bytes: u64::try_from(about.st_size).unwrap_or(0),
                path,
            }),
            _ => {}
        }
    }
    Ok(())
}

/// Removes the folders below that hold nothing.
fn remove_empty(folder: &OwnedFd, depth: usize) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if depth >= DEPTH || matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(below) = rustix::fs::openat2(folder, name, FOLDER, Mode::empty(), BENEATH) else { continue };
        remove_empty(&below, depth + 1)?;
        // One that holds something stays.
        let _ = rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR).is_ok();
    }
    Ok(())
}

/// Copies a file of so many bytes: by sharing its blocks where both lie on a file system that can, else
/// byte by byte; whether they were those of the digest.
pub(super) fn copy(from: &File, to: &File, size: u64, digest: &Digest) -> io::Result<bool> {
    if rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd()).is_ok() {
        return pass(to, None, size, digest);
    }
    pass(from, Some(to), size, digest)
}

/// Reads a file to its end, writes it if there is where, and compares.
fn pass(from: &File, to: Option<&File>, size: u64, digest: &Digest) -> io::Result<bool> {
    let room = usize::try_from(size.saturating_add(1)).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
    let (mut buffer, mut at, mut context) = (vec![0; room], 0, Context::new(&SHA256));
    loop {
        let read = match from.read_at(&mut buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        at += read as u64;
        if read == 0 || at > size {
            return Ok(at == size && Digest::finished(&context.finish()) == *digest);
        }
        context.update(bytes);
        // Zeros are holes, as a sync would have written them.
        if let Some(to) = to.filter(|_| bytes.iter().any(|byte| *byte != 0)) {
            to.write_all_at(bytes, at - read as u64)?;
        }
        if let Some(to) = to.filter(|_| at == size) {
            to.set_len(size)?;
        }
    }
}
