// SPDX-License-Identifier: Apache-2.0
//! Fills a sandbox's slot with what this machine has of its user's files, before anything runs in it, and
//! keeps what a slot has for the next: by shared blocks or copies, whole and compared by digest.
//!
//! What was filled in is told the sandbox's sync by a list beside its log ([`FILLED`]); all else it brings
//! from the store. So nothing here has to work: what is not filled in is brought, and what cannot be kept
//! is not there the next time.

use super::beneath::{BENEATH, FOLDER, make_folder};
use super::cache::copy;
use super::objects::Objects;
use super::path::{DRAFT, UserPrefix};
use super::types::{Digest, FileEntry};
use super::{Storage, UserFiles};
use futures_util::stream::{self, StreamExt as _};
use postern_common::clock;
use postern_common::files::Entry;
use postern_common::files::orders::FILLED;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

/// Parts of a slot that are filled or kept at the same time: each has the disk wait for it now and then.
const LANES: usize = 4;

/// The file that says what is not to be carried.
const IGNORED: &str = ".posternignore";

/// A slot: where its user's files lie, whose they are to be, and the sync's own folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot<'a> {
    /// What is `/data/user` inside.
    pub(crate) files: &'a Path,
    /// The user and group that own them; `None`: our own.
    pub(crate) owner: Option<u32>,
    /// What the sync keeps.
    pub(crate) state: &'a Path,
}

/// How much was filled in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Filled {
    /// Files.
    pub(crate) files: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
}

/// The tree that is filled.
struct Filling {
    storage: Storage,
    prefix: UserPrefix,
    top: OwnedFd,
    owner: Option<u32>,
    told: fn(&FileEntry) -> Option<Entry>,
}

impl UserFiles {
    /// Fills a slot that is empty with those of these files that are at hand, and leaves the sync a list
    /// of them as it is `told` files. What it cannot do is for the sync.
    pub(crate) async fn fill(
        &self,
        files: &[FileEntry],
        slot: Slot<'_>,
        told: fn(&FileEntry) -> Option<Entry>,
    ) -> io::Result<Filled> {
        // Which files a user wants left out is the sync's to read.
        let has_rules = files.iter().any(|file| file.path.as_str() == IGNORED);
        if self.storage.cache.is_none() || has_rules {
            return Ok(Filled::default());
        }
        let top = rustix::fs::open(slot.files, FOLDER, Mode::empty())?;
        if !is_empty(&top)? {
            return Ok(Filled::default());
        }
        let filling = Arc::new(Filling {
            storage: self.storage.clone(),
            prefix: self.prefix.clone(),
            top,
            owner: slot.owner,
            told,
        });
        let at_hand: Vec<FileEntry> = files.iter().filter(|file| file.digest.is_some()).cloned().collect();
        let part = at_hand.len().div_ceil(LANES).max(1);
        let parts: Vec<(usize, Vec<FileEntry>)> =
            at_hand.chunks(part).map(<[_]>::to_vec).enumerate().collect();
        let fill = |(lane, files): (usize, Vec<FileEntry>)| {
            let filling = Arc::clone(&filling);
            tokio::task::spawn_blocking(move || filling.all(lane, files))
        };
        let filled: Vec<_> = stream::iter(parts).map(fill).buffered(LANES).collect().await;
        let (mut all, mut list) = (Filled::default(), Vec::new());
        for part in filled {
            let (filled, mut lines) = part.map_err(io::Error::other)?;
            all.files += filled.files;
            all.bytes += filled.bytes;
            list.append(&mut lines);
        }
        tell(slot, &list)?;
        Ok(all)
    }

    /// Keeps what a slot has of what the store has, for the next time; how many files that were. Where
    /// the store is a folder it is at hand anyway.
    pub(crate) async fn keep(&self, files: Vec<FileEntry>, slot: &Path) -> io::Result<u64> {
        let Some(cache) = self.storage.cache.clone() else { return Ok(0) };
        if matches!(self.storage.objects, Objects::Folder(_)) {
            return Ok(0);
        }
        let (top, prefix) = (rustix::fs::open(slot, FOLDER, Mode::empty())?, self.prefix.clone());
        let keep = move || {
            let mut kept = 0;
            for file in &files {
                let Some(digest) = &file.digest else { continue };
                // What the agent did to it since is no error, and is no file of this digest.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let opened = rustix::fs::openat2(&top, file.path.as_str(), flags, Mode::empty(), BENEATH);
                let Ok(opened) = opened.map(File::from) else { continue };
                let about = rustix::fs::fstat(&opened)?;
                let is_it = FileType::from_raw_mode(about.st_mode) == FileType::RegularFile
                    && u64::try_from(about.st_size) == Ok(file.size);
                if is_it && cache.put(&prefix, digest, &opened, file.size)? {
                    kept += 1;
                }
            }
            cache.tidy(clock::now(), false)?;
            Ok(kept)
        };
        tokio::task::spawn_blocking(keep).await.map_err(io::Error::other)?
    }
}

impl Filling {
    /// Fills in some files; those that are there now, as lines for the sync.
    fn all(&self, lane: usize, files: Vec<FileEntry>) -> (Filled, Vec<u8>) {
        let (mut filled, mut lines, draft) = (Filled::default(), Vec::new(), format!("{DRAFT}fill-{lane}"));
        let mut above: Option<(String, OwnedFd)> = None;
        for file in files {
            let (folder, name) = file.path.as_str().rsplit_once('/').unwrap_or(("", file.path.as_str()));
            if above.as_ref().is_none_or(|(known, _)| known != folder) {
                above = self.folder(folder).ok().map(|opened| (folder.to_owned(), opened));
            }
            let Some((_, folder)) = &above else { continue };
            // A disk that is full, a name that it does not take, a copy that is damaged: the sync's turn.
            if self.one(&file, folder, &draft).is_ok_and(|is_there| is_there)
                && place(folder, &draft, name).is_ok()
                && let Some(entry) = (self.told)(&file)
                && line(&mut lines, &entry)
            {
                filled.files += 1;
                filled.bytes += file.size;
            }
            let _ = rustix::fs::unlinkat(folder, &*draft, AtFlags::empty()).is_ok();
        }
        (filled, lines)
    }

    /// Makes a draft of a file; whether it is what it is to be.
    fn one(&self, file: &FileEntry, folder: &OwnedFd, draft: &str) -> io::Result<bool> {
        let Some(digest) = &file.digest else { return Ok(false) };
        let Some(from) = self.at_hand(file, digest)? else { return Ok(false) };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = File::from(rustix::fs::openat(folder, draft, flags, Mode::from_raw_mode(0o600))?);
        if !copy(&from, &to, file.size, digest)? {
            // A copy that is damaged would be in the way of a good one, for each look makes it young again.
            if let (Objects::Cloud(_), Some(cache)) = (&self.storage.objects, &self.storage.cache) {
                cache.forget(&self.prefix, digest)?;
            }
            return Ok(false);
        }
        self.own(to.as_fd())?;
        rustix::fs::fchmod(&to, Mode::from_raw_mode(file.mode & super::types::MODE_BITS))?;
        let modified = file.modified.as_nanosecond();
        let (seconds, nanos) = (modified.div_euclid(1_000_000_000), modified.rem_euclid(1_000_000_000));
        let time = Timespec {
            tv_sec: i64::try_from(seconds).unwrap_or(0),
            tv_nsec: i64::try_from(nanos).unwrap_or(0),
        };
        rustix::fs::futimens(&to, &Timestamps { last_access: time, last_modification: time })?;
        Ok(true)
    }

    /// Where this machine has a file: the store itself, if that is a folder, or the cache.
    fn at_hand(&self, file: &FileEntry, digest: &Digest) -> io::Result<Option<File>> {
        match (&self.storage.objects, &self.storage.cache) {
            (Objects::Folder(store), _) => store.open_file(&self.prefix.file(&file.path)),
            (Objects::Cloud(_), Some(cache)) => cache.get(&self.prefix, digest),
            (Objects::Cloud(_), None) => Ok(None),
        }
    }

    /// A folder of the slot, made with those above it.
    fn folder(&self, path: &str) -> io::Result<OwnedFd> {
        make_folder(&self.top, path, 0o755, |made| {
            // Whatever our own mask is.
            rustix::fs::fchmod(made, Mode::from_raw_mode(0o755))?;
            self.own(made.as_fd())
        })
    }

    fn own(&self, file: rustix::fd::BorrowedFd<'_>) -> io::Result<()> {
        let Some(owner) = self.owner else { return Ok(()) };
        Ok(rustix::fs::fchown(file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?)
    }
}

fn place(folder: &OwnedFd, draft: &str, name: &str) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(folder, draft, folder, name, rustix::fs::RenameFlags::NOREPLACE)?)
}

fn line(lines: &mut Vec<u8>, entry: &Entry) -> bool {
    let is_written = serde_json::to_writer(&mut *lines, entry).is_ok();
    lines.push(b'\n');
    is_written
}

/// Leaves the list for the sync, whose own it becomes.
fn tell(slot: Slot<'_>, list: &[u8]) -> io::Result<()> {
    if list.is_empty() {
        return Ok(());
    }
    let state = rustix::fs::open(slot.state, FOLDER, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&state, FILLED, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(list)?;
    if let Some(owner) = slot.owner {
        rustix::fs::fchown(&file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
    }
    Ok(())
}

fn is_empty(folder: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(folder)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}
