// SPDX-License-Identifier: Apache-2.0
//! One image, copied to where sandboxes may read it. What comes is a stranger's.
//!
//! Every file is made below the copy's top by `openat2` that goes through no link: an archive whose
//! entries lead through a link, or upwards, is refused. Links themselves are kept, for inside they
//! are the sandbox's own affair. Everything is readable by everybody and belongs to whoever unpacks
//! it, so that no owner of the archive is one of this machine's: inside, all of it is nobody's.

use flate2::read::GzDecoder;
use postern_shim::rootfs;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use tar::EntryType;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Below the top, and through no link.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// Names of one path, and bytes of it.
const DEPTH: usize = 100;
const PATH_BYTES: usize = 4096;

/// What an image may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// All files together, unpacked.
    pub(crate) bytes: u64,
    /// Files, folders and links.
    pub(crate) entries: u64,
}

impl Default for Bounds {
    /// A distribution with compilers and an interpreter has some 4 GiB in 200,000 files.
    fn default() -> Self {
        Self { bytes: 16 << 30, entries: 1_000_000 }
    }
}

/// An image was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// The archive cannot be read.
    #[error("it cannot be read to its end; is it a tar archive, plain or by gzip?")]
    Archive(#[source] io::Error),
    /// It leads out of itself.
    #[error("`{0}` leads through a link or upwards")]
    Escape(String),
    /// It is too large.
    #[error("it holds more than {bytes} bytes in {entries} files and folders")]
    TooLarge {
        /// The bound on bytes.
        bytes: u64,
        /// The bound on entries.
        entries: u64,
    },
    /// It is no root file system.
    #[error("it has no `{0}`: the archive's top must be the root of the file system")]
    NoRoot(&'static str),
    /// The copy could not be written.
    #[error("its copy could not be written; is the disk full?")]
    Write(#[source] io::Error),
}

/// What was found in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    /// Files, folders and links.
    pub(crate) entries: u64,
    /// Bytes of files.
    pub(crate) bytes: u64,
    /// Devices, sockets and pipes, which were left out.
    pub(crate) left_out: u64,
}

/// Copies a folder or tarball to `to`, which must not be there.
pub(super) fn unpack(source: &Path, to: &Path, bounds: &Bounds) -> Result<Counts, UnpackError> {
    DirBuilder::new().mode(0o755).create(to).map_err(UnpackError::Write)?;
    let top = rustix::fs::open(to, FOLDER, Mode::empty()).map_err(written)?;
    let mut copy = Copy { top, bounds: *bounds, counts: Counts::default() };
    if source.is_dir() {
        copy.folder(source, Path::new(""))?;
    } else {
        let file = File::open(source).map_err(UnpackError::Archive)?;
        let is_plain = source.extension().is_some_and(|end| end == "tar");
        if is_plain { copy.archive(file)? } else { copy.archive(GzDecoder::new(file))? }
    }
    copy.furnish()?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).map_err(UnpackError::Write)?;
    Ok(copy.counts)
}

fn written(error: Errno) -> UnpackError {
    UnpackError::Write(error.into())
}

struct Copy {
    top: OwnedFd,
    bounds: Bounds,
    counts: Counts,
}

impl Copy {
    fn archive(&mut self, from: impl Read) -> Result<(), UnpackError> {
        let mut archive = tar::Archive::new(from);
        for entry in archive.entries().map_err(UnpackError::Archive)? {
            let mut entry = entry.map_err(UnpackError::Archive)?;
            let path = plain(&entry.path().map_err(UnpackError::Archive)?)?;
            let Some(path) = path else { continue };
            let mode = entry.header().mode().unwrap_or(0);
            match entry.header().entry_type() {
                EntryType::Directory => self.make_folder(&path)?,
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    self.file(&path, mode, &mut entry)?;
                }
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name().map_err(UnpackError::Archive)?;
                    let target = target.map(std::borrow::Cow::into_owned).unwrap_or_default();
                    let is_hard = entry.header().entry_type() == EntryType::Link;
                    if is_hard { self.hard_link(&path, &target)? } else { self.link(&path, &target)? }
                }
                EntryType::Char | EntryType::Block | EntryType::Fifo => self.counts.left_out += 1,
                // Headers about headers, which the reader has taken into account.
                _ => {}
            }
        }
        Ok(())
    }

    /// Copies what is in a folder; its own links are not followed.
    fn folder(&mut self, from: &Path, at: &Path) -> Result<(), UnpackError> {
        let entries = fs::read_dir(from).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(UnpackError::Archive)? {
            let (path, to) = (entry.path(), at.join(entry.file_name()));
            let Some(to) = plain(&to)? else { continue };
            let about = fs::symlink_metadata(&path).map_err(UnpackError::Archive)?;
            if about.is_dir() {
                self.make_folder(&to)?;
                self.folder(&path, &to)?;
            } else if about.is_symlink() {
                self.link(&to, &fs::read_link(&path).map_err(UnpackError::Archive)?)?;
            } else if about.is_file() {
                let mut file = File::open(&path).map_err(UnpackError::Archive)?;
                self.file(&to, about.permissions().mode(), &mut file)?;
            } else {
                self.counts.left_out += 1;
            }
        }
        Ok(())
    }

    fn count(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.counts.bytes = self.counts.bytes.saturating_add(bytes);
        if self.counts.bytes > self.bounds.bytes || self.counts.entries > self.bounds.entries {
            return Err(UnpackError::TooLarge { bytes: self.bounds.bytes, entries: self.bounds.entries });
        }
        Ok(())
    }

    /// The folder that `path` is in, made if it is not there, and the last name.
    fn parent<'a>(&mut self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), UnpackError> {
        self.counts.entries += 1;
        self.count(0)?;
        let escape = || UnpackError::Escape(path.display().to_string());
        let name = path.file_name().ok_or_else(escape)?;
        let parent = path.parent().unwrap_or_else(|| Path::new(""));
        match self.open_folder(parent) {
            Err(Errno::NOENT) => {
                self.make_folder(parent)?;
                Ok((self.open_folder(parent).map_err(written)?, name))
            }
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => Err(escape()),
            opened => Ok((opened.map_err(written)?, name)),
        }
    }

    fn open_folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        rustix::fs::openat2(&self.top, path, FOLDER, Mode::empty(), BENEATH)
    }

    /// Makes a folder, and those that it is in.
    fn make_folder(&mut self, path: &Path) -> Result<(), UnpackError> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) if is_folder(&parent, name) => Ok(()),
            // The last entry of a name counts, as with every other program.
            Err(Errno::EXIST) => {
                replace(&parent, name)?;
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)).map_err(written)
            }
            made => made.map_err(written),
        }?;
        // Whatever the mask of this process is.
        let folder = rustix::fs::openat2(&parent, name, FOLDER, Mode::empty(), BENEATH).map_err(written)?;
        rustix::fs::fchmod(folder, Mode::from_raw_mode(0o755)).map_err(written)
    }

    fn file(&mut self, path: &Path, mode: u32, from: &mut impl Read) -> Result<(), UnpackError> {
        let (parent, name) = self.parent(path)?;
        replace(&parent, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600)).map_err(written)?;
        let mut file = File::from(made);
        let left = self.bounds.bytes.saturating_sub(self.counts.bytes).saturating_add(1);
        let copied = io::copy(&mut from.take(left), &mut file).map_err(UnpackError::Archive)?;
        self.count(copied)?;
        // No set-user-id, no owner's privacy; executable by all what was so by one.
        let mode = if mode & 0o111 == 0 { 0o644 } else { 0o755 };
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(written)
    }

    fn link(&mut self, path: &Path, target: &Path) -> Result<(), UnpackError> {
        let (parent, name) = self.parent(path)?;
        replace(&parent, name)?;
        rustix::fs::symlinkat(target, &parent, name).map_err(written)
    }

    fn hard_link(&mut self, path: &Path, target: &Path) -> Result<(), UnpackError> {
        let escape = || UnpackError::Escape(path.display().to_string());
        let target = plain(target)?.ok_or_else(escape)?;
        let from = self.open_folder(target.parent().unwrap_or_else(|| Path::new("")));
        let from = from.map_err(|_not_there| escape())?;
        let of = target.file_name().ok_or_else(escape)?;
        let (parent, name) = self.parent(path)?;
        replace(&parent, name)?;
        rustix::fs::linkat(&from, of, &parent, name, AtFlags::empty()).map_err(|_no_file| escape())
    }

    /// Puts in what every sandbox has, whatever the image says.
    fn furnish(&mut self) -> Result<(), UnpackError> {
        if !["usr/bin", "bin"].iter().any(|folder| self.is_there(folder)) {
            return Err(UnpackError::NoRoot("usr/bin"));
        }
        for folder in rootfs::MOUNT_POINTS {
            let mut path = PathBuf::new();
            for name in Path::new(folder) {
                path.push(name);
                self.make_folder(&path)?;
            }
        }
        let shell =
            if self.is_there("bin/bash") || self.is_there("usr/bin/bash") { "/bin/bash" } else { "/bin/sh" };
        let passwd = self.read("etc/passwd")?;
        let group = self.read("etc/group")?;
        let files = [
            ("etc/passwd", rootfs::with_user(&passwd, rootfs::AgentId::Usual, shell)),
            (rootfs::PASSWD_OF_ZERO, rootfs::with_user(&passwd, rootfs::AgentId::Zero, shell)),
            ("etc/group", rootfs::with_group(&group)),
        ];
        let always = rootfs::FURNITURE.iter().map(|(name, text)| (*name, (*text).to_owned()));
        for (name, text) in always.chain(files) {
            self.file(Path::new(name), 0o644, &mut text.as_bytes())?;
        }
        Ok(())
    }

    /// Whether there is something of this name, a link too.
    fn is_there(&self, path: &str) -> bool {
        rustix::fs::statat(&self.top, path, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// A small file of the image, if it has it as a file.
    fn read(&self, path: &str) -> Result<String, UnpackError> {
        const MOST: u64 = 1 << 20;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let Ok(file) = rustix::fs::openat2(&self.top, path, flags, Mode::empty(), BENEATH) else {
            return Ok(String::new());
        };
        let mut bytes = Vec::new();
        File::from(file).take(MOST).read_to_end(&mut bytes).map_err(UnpackError::Write)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn is_folder(parent: impl AsFd, name: &OsStr) -> bool {
    rustix::fs::openat2(parent, name, FOLDER, Mode::empty(), BENEATH).is_ok()
}

/// Removes what had this name, unless it is a folder with something in it.
fn replace(parent: impl AsFd, name: &OsStr) -> Result<(), UnpackError> {
    match rustix::fs::unlinkat(parent.as_fd(), name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            rustix::fs::unlinkat(parent.as_fd(), name, AtFlags::REMOVEDIR).map_err(written)
        }
        removed => removed.map_err(written),
    }
}

/// A path from the top without `.` and a leading `/`; `None` for the top itself.
fn plain(path: &Path) -> Result<Option<PathBuf>, UnpackError> {
    let escape = || UnpackError::Escape(path.display().to_string());
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(escape()),
        }
    }
    let is_long = plain.components().count() > DEPTH || plain.as_os_str().as_bytes().len() > PATH_BYTES;
    if is_long {
        return Err(escape());
    }
    Ok((!plain.as_os_str().is_empty()).then_some(plain))
}
