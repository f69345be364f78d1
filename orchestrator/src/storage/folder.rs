// SPDX-License-Identifier: Apache-2.0
//! Objects in a folder of this machine: one file each, under the object's name.
//!
//! Every open is `openat2` below the folder, through no link of any kind. A file appears whole: it
//! is written as a draft beside its place and renamed there under a lock (`flock`, so also between
//! processes) in which its condition is looked at. What an object store keeps as attributes is an
//! extended attribute here; where the file system has none, the database alone knows them.

use super::beneath::{BENEATH, FOLDER, make_folder};
use super::drafts::{Drafts, is_draft, remove_abandoned};
use super::objects::{Fault, Found, Notes, ObjectInfo, Opened, Outcome, Put};
use super::path::{Key, STAGING, UserPrefix};
use super::space;
use super::types::{Condition, Content, Version};
use crate::store::whole_micros;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use jiff::Timestamp;
use postern_common::clock;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Where attributes are.
const NOTES: &str = "user.postern.notes";
/// The longest attributes that are read.
const NOTES_BYTES: usize = 4096;
/// What is read of a file at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Files that come to the disk together: each is open, with its folder.
const AT_ONCE: usize = 128;
/// How often a folder that was removed meanwhile is made again.
const TRIES: u32 = 8;
/// Folders within folders that are listed.
const DEPTH: usize = 140;
/// Bytes of a large object after which is looked again whether there is room.
const LOOK_BYTES: u64 = 64 << 20;
/// How often drafts of those that died are looked for, in seconds: that reads every folder.
const TIDY_SECONDS: i64 = 6 * 3600;

/// A folder of objects. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    top: Arc<OwnedFd>,
    drafts: Drafts,
    /// Bytes of the disk that are never taken.
    pub(super) free: u64,
    /// When it was tidied last, in seconds since 1970.
    tidied: Arc<AtomicI64>,
}

/// An object that has not got its name yet; dropped, it never was.
pub(super) struct Draft {
    folder: OwnedFd,
    name: String,
    file: File,
    key: Key,
    pub(super) free: u64,
    /// Bytes since it was looked whether there is room.
    fresh: u64,
}

impl Drop for Draft {
    fn drop(&mut self) {
        // With its name it is a draft no more.
        let _ = rustix::fs::unlinkat(&self.folder, &*self.name, AtFlags::empty()).is_ok();
    }
}

impl Folder {
    /// The folder at `path`, which is made if it is not there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // The operator may have made it a link.
        let top = rustix::fs::open(path, FOLDER.difference(OFlags::NOFOLLOW), Mode::empty())?;
        let drafts = Drafts::new()?;
        Ok(Self { top: Arc::new(top), drafts, free: space::FREE_BYTES, tidied: Arc::default() })
    }

    /// Every object of a user.
    pub(super) fn list(&self, prefix: &UserPrefix) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for part in ["files", "odd"] {
            let name = format!("{}/{part}", prefix.as_str());
            if let Some(folder) = self.folder(&name)? {
                walk(&folder, &name, 0, &mut found)?;
            }
        }
        Ok(found)
    }

    /// What is known of an object.
    pub(super) fn find(&self, key: &Key) -> io::Result<Option<(ObjectInfo, Notes)>> {
        let Some((file, about)) = self.file(key)? else { return Ok(None) };
        Ok(Some((info(&about), notes(&file))))
    }

    /// An object itself, for whoever copies it.
    pub(super) fn open_file(&self, key: &Key) -> io::Result<Option<File>> {
        Ok(self.file(key)?.map(|(file, _)| file))
    }

    /// An object's bytes, or some of them.
    pub(super) fn read(&self, key: &Key, range: Option<Range<u64>>) -> io::Result<Option<Opened>> {
        let Some((file, about)) = self.file(key)? else { return Ok(None) };
        let info = info(&about);
        let range = range.unwrap_or(0..info.size);
        let range = range.start.min(info.size)..range.end.min(info.size);
        let notes = notes(&file);
        Ok(Some(Opened { info, notes, range: range.clone(), content: content(file, range) }))
    }

    /// Writes a small object whole.
    pub(super) fn put(
        &self,
        key: &Key,
        condition: &Condition,
        notes: &Notes,
        content: &[u8],
    ) -> io::Result<Outcome> {
        let mut draft = self.begin(key)?;
        draft.write(content)?;
        self.give(&draft, condition, notes)
    }

    /// Begins an object of any size.
    pub(super) fn begin(&self, key: &Key) -> io::Result<Draft> {
        let (parent, _name) = split(key);
        // What is noted of a user gets shorter by being written, too.
        let is_noted = parent.split('/').count() == 4 && *key == UserPrefix::manifest_in(parent);
        let free = if is_noted { 0 } else { self.free };
        space::check(&*self.top, 0, free)?;
        for _ in 0..TRIES {
            let folder = self.make_folder(parent)?;
            match self.drafts.make(&folder) {
                // The folder was empty, and went between the two.
                Err(Errno::NOENT) => {}
                made => {
                    let (name, file) = made?;
                    return Ok(Draft { folder, name, file, key: key.clone(), free, fresh: 0 });
                }
            }
        }
        Err(io::Error::other("its folder is removed again and again"))
    }

    /// Writes small objects whole. They come to the disk together, which takes no longer than one:
    /// none has its name before its bytes are there, and all have when this returns.
    pub(super) fn put_all(&self, puts: &[Put]) -> Vec<io::Result<Outcome>> {
        puts.chunks(AT_ONCE).flat_map(|puts| self.put_some(puts)).collect()
    }

    fn put_some(&self, puts: &[Put]) -> Vec<io::Result<Outcome>> {
        let draft = |put: &Put| -> io::Result<Draft> {
            let mut draft = self.begin(&put.key)?;
            draft.write(&put.content)?;
            write_notes(&draft.file, &put.notes);
            Ok(draft)
        };
        let drafts: Vec<io::Result<Draft>> = puts.iter().map(draft).collect();
        let settled = rustix::fs::syncfs(&*self.top);
        let place = |(draft, put): (io::Result<Draft>, &Put)| -> io::Result<Outcome> {
            settled?;
            self.place(&draft?, &put.condition)
        };
        let placed: Vec<io::Result<Outcome>> = drafts.into_iter().zip(puts).map(place).collect();
        match rustix::fs::syncfs(&*self.top) {
            Ok(()) => placed,
            Err(error) => placed.into_iter().map(|placed| placed.and(Err(error.into()))).collect(),
        }
    }

    /// Gives an object its name, if the condition holds.
    pub(super) fn give(&self, draft: &Draft, condition: &Condition, notes: &Notes) -> io::Result<Outcome> {
        write_notes(&draft.file, notes);
        draft.file.sync_data()?;
        let placed = self.place(draft, condition)?;
        rustix::fs::fsync(&draft.folder)?;
        Ok(placed)
    }

    fn place(&self, draft: &Draft, condition: &Condition) -> io::Result<Outcome> {
        let (_, name) = split(&draft.key);
        let lock = self.lock(&draft.key)?;
        let there = match rustix::fs::statat(&draft.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => None,
            found => Some(found?),
        };
        let version = there.as_ref().filter(|it| is_file(it)).map(|it| info(it).version);
        if !condition.holds(version.as_ref()) {
            return Ok(Outcome::Conflict(version));
        }
        set_time(&draft.file)?;
        if !rename(draft, name)? {
            return Ok(Outcome::Obstructed);
        }
        let about = rustix::fs::fstat(&draft.file)?;
        drop(lock);
        Ok(Outcome::Done(info(&about)))
    }

    /// Removes an object, if the condition holds, and the folders that it leaves empty.
    pub(super) fn remove(&self, key: &Key, condition: &Condition) -> io::Result<Outcome<bool>> {
        let (parent, name) = split(key);
        let Some(folder) = self.folder(parent)? else { return Ok(gone(condition)) };
        let lock = self.lock(key)?;
        let there = match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(gone(condition)),
            found => found?,
        };
        if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
            return Ok(gone(condition));
        }
        let version = info(&there).version;
        if !condition.holds(Some(&version)) {
            return Ok(Outcome::Conflict(Some(version)));
        }
        rustix::fs::unlinkat(&folder, name, AtFlags::empty())?;
        rustix::fs::fsync(&folder)?;
        drop(lock);
        self.prune(parent);
        Ok(Outcome::Done(true))
    }

    /// Removes everything below a prefix of ours; returns how many files that were.
    pub(super) fn erase(&self, prefix: &str) -> io::Result<u64> {
        let (parent, name) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        let Some(folder) = self.folder(parent)? else { return Ok(0) };
        let erased = empty(&folder, name, 0)?;
        rustix::fs::fsync(&folder)?;
        Ok(erased)
    }

    /// Removes parts of uploads that were written before `before`; returns how many.
    pub(super) fn erase_staged(&self, before: Timestamp) -> io::Result<u64> {
        let Some(staging) = self.folder(STAGING)? else { return Ok(0) };
        let (mut found, mut erased) = (Vec::new(), 0);
        walk(&staging, STAGING, 0, &mut found)?;
        for found in found {
            let Found::Object { key, info, .. } = found else { continue };
            if info.written < before {
                erased += self.erase(&key)?;
                // It stays where something else of the upload is in it.
                let upload = key.split('/').nth(1).unwrap_or_default();
                let _ = rustix::fs::unlinkat(&staging, upload, AtFlags::REMOVEDIR).is_ok();
            }
        }
        Ok(erased)
    }

    /// Removes drafts of those that died, once in a while, with the folders that they leave empty.
    pub(super) fn tidy(&self, now: Timestamp) -> io::Result<()> {
        let last = self.tidied.load(Ordering::Relaxed);
        if now.as_second().saturating_sub(last) < TIDY_SECONDS {
            return Ok(());
        }
        self.tidied.store(now.as_second(), Ordering::Relaxed);
        for name in ["tenants", "staging"] {
            if let Some(folder) = self.folder(name)? {
                self.tidy_below(&folder, name, now, 0)?;
            }
        }
        Ok(())
    }

    fn tidy_below(&self, folder: &OwnedFd, name: &str, now: Timestamp, depth: usize) -> io::Result<()> {
        let mut is_tidied = false;
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let Ok(own) = entry.file_name().to_str() else { continue };
            if is_draft(own) {
                is_tidied |= remove_abandoned(folder, own, now)?;
                continue;
            }
            let is_other = matches!(own, "." | "..") || entry.file_type() == FileType::RegularFile;
            if is_other || depth > DEPTH {
                continue;
            }
            match rustix::fs::openat2(folder, own, FOLDER, Mode::empty(), BENEATH) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                below => self.tidy_below(&below?, &format!("{name}/{own}"), now, depth + 1)?,
            }
        }
        if is_tidied && name.matches('/').count() > 3 {
            self.prune(name);
        }
        Ok(())
    }

    /// Waits until nobody else changes what belongs to the same user.
    fn lock(&self, key: &Key) -> io::Result<OwnedFd> {
        // `tenants/{tenant}/users/{user}`, or `staging/{upload}`.
        let depth = if key.as_str().starts_with("tenants/") { 4 } else { 2 };
        let end = key.as_str().match_indices('/').nth(depth - 1).map_or(key.as_str().len(), |(end, _)| end);
        let folder = self.make_folder(key.as_str().get(..end).unwrap_or_default())?;
        rustix::fs::flock(&folder, FlockOperation::LockExclusive)?;
        Ok(folder)
    }

    /// Opens a folder; `None` if there is none.
    fn folder(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        if name.is_empty() {
            return Ok(Some(self.top.try_clone()?));
        }
        match rustix::fs::openat2(&*self.top, name, FOLDER, Mode::empty(), BENEATH) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
            opened => Ok(Some(opened?)),
        }
    }

    fn make_folder(&self, name: &str) -> io::Result<OwnedFd> {
        if let Some(there) = self.folder(name)? {
            return Ok(there);
        }
        // One that was empty may go meanwhile: whoever asked tries again.
        make_folder(&self.top, name, 0o700, |_new| Ok(()))
    }

    /// Opens an object; `None` if there is none, or something else.
    fn file(&self, key: &Key) -> io::Result<Option<(File, Stat)>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat2(&*self.top, key.as_str(), flags, Mode::empty(), BENEATH) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::NXIO) => {
                return Ok(None);
            }
            opened => opened?,
        };
        let about = rustix::fs::fstat(&opened)?;
        Ok(is_file(&about).then(|| (File::from(opened), about)))
    }

    /// Removes folders that are empty, from the innermost out, within what one user has.
    fn prune(&self, folder: &str) {
        let mut folder = folder;
        while let Some((parent, name)) = folder.rsplit_once('/') {
            let is_top = matches!(name, "files" | "odd") && parent.split('/').count() == 4;
            let Ok(Some(within)) = self.folder(parent) else { return };
            if is_top || rustix::fs::unlinkat(&within, name, AtFlags::REMOVEDIR).is_err() {
                return;
            }
            folder = parent;
        }
    }
}

impl Draft {
    /// Writes what comes next.
    pub(super) fn write(&mut self, content: &[u8]) -> io::Result<()> {
        self.fresh = self.fresh.saturating_add(u64::try_from(content.len()).unwrap_or(u64::MAX));
        if self.fresh >= LOOK_BYTES {
            space::check(&self.file, 0, self.free)?;
            self.fresh = 0;
        }
        self.file.write_all(content)
    }
}

/// Puts a draft in its place; `false` if a folder that is not empty is there.
fn rename(draft: &Draft, name: &str) -> io::Result<bool> {
    for _ in 0..TRIES {
        match rustix::fs::renameat(&draft.folder, &*draft.name, &draft.folder, name) {
            Ok(()) => return Ok(true),
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        if !is_emptied(&draft.folder, name, 0)? {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Removes a folder with nothing in it but folders and what somebody who died left; whether it is gone.
fn is_emptied(parent: &OwnedFd, name: &str, depth: usize) -> io::Result<bool> {
    let folder = match rustix::fs::openat2(parent, name, FOLDER, Mode::empty(), BENEATH) {
        Err(Errno::NOENT) => return Ok(true),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        opened => opened?,
    };
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(name) = name.to_str() else { return Ok(false) };
        if is_draft(name) && remove_abandoned(&folder, name, clock::now())? {
            continue;
        }
        if depth >= DEPTH || !is_emptied(&folder, name, depth + 1)? {
            return Ok(false);
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes a folder, or a file, with all that it holds.
fn empty(parent: &OwnedFd, name: &str, depth: usize) -> io::Result<u64> {
    let folder = match rustix::fs::openat2(parent, name, FOLDER, Mode::empty(), BENEATH) {
        Err(Errno::NOENT) => return Ok(0),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
            return Ok(1);
        }
        opened => opened?,
    };
    if depth > DEPTH {
        return Err(io::Error::other("its folders lie too deep"));
    }
    let mut erased = 0;
    let mut names = Vec::new();
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in names {
        match name.to_str() {
            Ok(name) => erased += empty(&folder, name, depth + 1)?,
            Err(_not_text) => {
                rustix::fs::unlinkat(&folder, &*name, AtFlags::empty())?;
                erased += 1;
            }
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(erased),
        Err(error) => Err(error.into()),
    }
}

/// Lists what lies below a folder. What is neither file nor folder is not ours and is left out.
fn walk(folder: &OwnedFd, name: &str, depth: usize, found: &mut Vec<Found>) -> io::Result<()> {
    let mut is_empty = true;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let Ok(own) = entry.file_name().to_str() else { continue };
        if matches!(own, "." | "..") {
            continue;
        }
        is_empty = false;
        if is_draft(own) {
            continue;
        }
        let about = match rustix::fs::statat(folder, own, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            about => about?,
        };
        let key = format!("{name}/{own}");
        match FileType::from_raw_mode(about.st_mode) {
            FileType::RegularFile => {
                let is_program = about.st_mode & 0o111 != 0;
                found.push(Found::Object { key, info: info(&about), is_program });
            }
            FileType::Directory if depth < DEPTH => {
                match rustix::fs::openat2(folder, own, FOLDER, Mode::empty(), BENEATH) {
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    below => walk(&below?, &key, depth + 1, found)?,
                }
            }
            _ => {}
        }
    }
    if is_empty && depth > 0 {
        found.push(Found::Folder { key: name.to_owned() });
    }
    Ok(())
}

fn gone(condition: &Condition) -> Outcome<bool> {
    if condition.holds(None) { Outcome::Done(false) } else { Outcome::Conflict(None) }
}

fn split(key: &Key) -> (&str, &str) {
    key.as_str().rsplit_once('/').unwrap_or(("", key.as_str()))
}

fn is_file(about: &Stat) -> bool {
    FileType::from_raw_mode(about.st_mode) == FileType::RegularFile
}

/// Inode and time of writing, which rises with each: together they never come again.
fn info(about: &Stat) -> ObjectInfo {
    let size = u64::try_from(about.st_size).unwrap_or(0);
    let nanoseconds = i128::from(about.st_mtime) * 1_000_000_000 + i128::from(about.st_mtime_nsec);
    let version = format!("{:x}-{nanoseconds:x}-{size:x}", about.st_ino);
    let written = Timestamp::from_nanosecond(nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH);
    ObjectInfo { size, version: Version::from(version), written: whole_micros(written) }
}

/// Marks a file as written now, and later than any before it.
fn set_time(file: &File) -> io::Result<()> {
    static LAST: AtomicI64 = AtomicI64::new(0);
    let now = i64::try_from(clock::now().as_nanosecond()).unwrap_or(i64::MAX - 1);
    let next = |last: i64| Some(now.max(last + 1));
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
    let at = now.max(last + 1);
    let time = Timespec { tv_sec: at / 1_000_000_000, tv_nsec: at % 1_000_000_000 };
    Ok(rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })?)
}

fn notes(file: &File) -> Notes {
    let mut bytes = vec![0; NOTES_BYTES];
    let length = rustix::fs::fgetxattr(file, NOTES, &mut bytes).unwrap_or(0);
    bytes.get(..length).and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
}

/// A file system without attributes keeps none: the database knows them too.
fn write_notes(file: &File, notes: &Notes) {
    if *notes != Notes::default() {
        let text = serde_json::to_vec(notes).unwrap_or_default();
        let _ = rustix::fs::fsetxattr(file, NOTES, &text, rustix::fs::XattrFlags::empty()).is_ok();
    }
}

/// The bytes of an open file, read as they are asked for.
fn content(file: File, range: Range<u64>) -> Content {
    let begin = (file, range.start, range.end);
    stream::try_unfold(begin, |(file, at, end)| async move {
        if at >= end {
            return Ok(None);
        }
        let read = tokio::task::spawn_blocking(move || read_at(file, at, end)).await;
        let (file, bytes) = read.map_err(io::Error::other)??;
        let at = at + u64::try_from(bytes.len()).unwrap_or(0);
        Ok(Some((bytes, (file, at, end))))
    })
    .boxed()
}

fn read_at(mut file: File, at: u64, end: u64) -> io::Result<(File, Bytes)> {
    file.seek(SeekFrom::Start(at))?;
    let wanted = usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
    let mut bytes = vec![0; wanted];
    let read = file.read(&mut bytes)?;
    if read == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut meanwhile"));
    }
    bytes.truncate(read);
    Ok((file, bytes.into()))
}

/// What a folder could not do, as all stores tell it.
pub(super) fn fault(what: &'static str, source: io::Error) -> Fault {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        // A file where a folder has to be.
        Some(Errno::NOTDIR | Errno::LOOP) => Fault::Obstructed,
        _ => Fault::Store { what, source: Box::new(source) },
    }
}

/// Where the local store lies unless the operator says otherwise.
pub(super) fn usual(data_dir: &Path) -> PathBuf {
    data_dir.join("files")
}
