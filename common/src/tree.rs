// SPDX-License-Identifier: Apache-2.0
//! A folder as a tar stream and back, for who must not be led out of it: nothing is followed while a
//! tree is packed, and nothing that an archive says is written outside of the folder that it is
//! unpacked into, whatever its names, its links, or whoever else changes that folder meanwhile.
//!
//! Files, folders and links only. Who owns them and what else a file system knows is not carried.

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Builder, EntryType, Header};

/// Folders within each other that are gone into.
const DEPTH: usize = 512;
/// Entries of one archive.
const ENTRIES: u64 = 1_000_000;
/// `PATH_MAX` of Linux.
const PATH_BYTES: usize = 4096;

/// A tree could not be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Something of this machine.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// Where, within the tree.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive cannot be read, or nobody takes what is packed.
    #[error("the archive broke off or cannot be read: {0}")]
    Archive(#[source] io::Error),
    /// The archive holds what is not unpacked.
    #[error("the archive's entry `{}` {why}", path.escape_default())]
    Refused {
        /// Which entry.
        path: String,
        /// Why not.
        why: &'static str,
    },
}

/// Which links are unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Every one: whoever reads the tree may go wherever it likes anyway.
    All,
    /// Those that lead to somewhere within the tree; others are an error.
    Inside,
}

/// What was carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> TreeError + '_ {
    |source| TreeError::Io { path: path.to_owned(), source }
}

/// Opens within `folder` only, and through no link.
fn open_in(folder: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(rustix::fs::openat2(folder, path, flags, mode, resolve)?)
}

/// Packs what is in `folder`, names within it. Sockets, pipes and devices are left out.
///
/// # Errors
/// [`TreeError`]; also if a file becomes shorter while it is packed.
pub fn pack(folder: &Path, to: impl Write) -> Result<Carried, TreeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat2(CWD, folder, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let root = root.map_err(|error| at(folder)(error.into()))?;
    let mut packing = Packing { to: Builder::new(to), carried: Carried::default() };
    packing.folder(&root, Path::new(""), DEPTH)?;
    packing.to.into_inner().and_then(|mut to| to.flush()).map_err(TreeError::Archive)?;
    Ok(packing.carried)
}

struct Packing<To: Write> {
    to: Builder<To>,
    carried: Carried,
}

impl<To: Write> Packing<To> {
    fn folder(&mut self, folder: &OwnedFd, inside: &Path, depth: usize) -> Result<(), TreeError> {
        let Some(deeper) = depth.checked_sub(1) else {
            return Err(at(inside)(io::Error::new(
                io::ErrorKind::InvalidInput,
                "folders lie too deep within each other",
            )));
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(folder).map_err(|error| at(inside)(error.into()))? {
            let entry = entry.map_err(|error| at(inside)(error.into()))?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort_unstable();
        for name in names {
            self.entry(folder, &name, &inside.join(&name), deeper)?;
        }
        Ok(())
    }

    fn entry(&mut self, folder: &OwnedFd, name: &OsStr, path: &Path, depth: usize) -> Result<(), TreeError> {
        let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            // It went meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            stat => stat.map_err(|error| at(path)(error.into()))?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut header = Header::new_gnu();
        header.set_mode(stat.st_mode & 0o777);
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(0);
        match kind {
            FileType::Directory => {
                header.set_entry_type(EntryType::Directory);
                self.to.append_data(&mut header, path, io::empty()).map_err(TreeError::Archive)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let opened = open_in(folder, Path::new(name), flags, Mode::empty()).map_err(at(path))?;
                self.folder(&opened, path, depth)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(folder, name, Vec::new());
                let target = target.map_err(|error| at(path)(error.into()))?;
                header.set_entry_type(EntryType::Symlink);
                let target = Path::new(OsStr::from_bytes(target.to_bytes()));
                self.to.append_link(&mut header, path, target).map_err(TreeError::Archive)?;
            }
            FileType::RegularFile => self.file(folder, name, path, header)?,
            _ => return Ok(()),
        }
        self.carried.entries += 1;
        Ok(())
    }

    fn file(
        &mut self,
        folder: &OwnedFd,
        name: &OsStr,
        path: &Path,
        mut header: Header,
    ) -> Result<(), TreeError> {
        let file = open_in(folder, Path::new(name), OFlags::RDONLY, Mode::empty()).map_err(at(path))?;
        let mut file = File::from(file);
        let found = file.metadata().map_err(at(path))?;
        if !found.is_file() {
            return Ok(());
        }
        let length = found.len();
        header.set_entry_type(EntryType::Regular);
        header.set_size(length);
        let mut exactly = Exactly { from: Read::by_ref(&mut file), left: length };
        self.to.append_data(&mut header, path, &mut exactly).map_err(TreeError::Archive)?;
        self.carried.bytes += length;
        Ok(())
    }
}

/// As many bytes as were promised: the rest of a file that grows is left, one that shrinks is an
/// error.
struct Exactly<From> {
    from: From,
    left: u64,
}

impl<From: Read> Read for Exactly<From> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = self.from.read(buffer)?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a file became shorter while it was packed",
            ));
        }
        self.left = self.left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
        Ok(read)
    }
}

/// Unpacks an archive into `folder`, which is made if it is not there. What is there already stays,
/// unless an entry has its name.
///
/// # Errors
/// [`TreeError`]; what was unpacked until then stays.
pub fn unpack(from: impl Read, folder: &Path, links: Links) -> Result<Carried, TreeError> {
    std::fs::create_dir_all(folder).map_err(at(folder))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat2(CWD, folder, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let root = root.map_err(|error| at(folder)(error.into()))?;
    let mut archive = Archive::new(from);
    let mut unpacking = Unpacking { root, links, carried: Carried::default(), folders: Vec::new() };
    for entry in archive.entries().map_err(TreeError::Archive)? {
        unpacking.entry(entry.map_err(TreeError::Archive)?)?;
    }
    unpacking.close_folders()
}

struct Unpacking {
    root: OwnedFd,
    links: Links,
    carried: Carried,
    /// Folders whose modes are set at the end: until then they must be writable.
    folders: Vec<(PathBuf, u32)>,
}

impl Unpacking {
    fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<(), TreeError> {
        let name = entry.path_bytes().into_owned();
        let refused = |why| TreeError::Refused { path: String::from_utf8_lossy(&name).into_owned(), why };
        let path = inside(&name).map_err(refused)?;
        self.carried.entries += 1;
        if self.carried.entries > ENTRIES {
            return Err(refused("is one too many: there are a million"));
        }
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        let modified = entry.header().mtime().ok();
        match entry.header().entry_type() {
            EntryType::Directory => {
                self.make_folder(&path)?;
                self.folders.push((path, mode));
            }
            EntryType::Regular | EntryType::Continuous => self.file(&mut entry, &path, mode, modified)?,
            EntryType::Symlink => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| refused("is a link to nothing"))?.into_owned();
                if self.links == Links::Inside && !leads_inside(&path, &target) {
                    return Err(refused("is a link that leads out of the tree"));
                }
                let (parent, name) = self.place(&path)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &parent, &name)
                    .map_err(|error| at(&path)(error.into()))?;
            }
            EntryType::Link => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| refused("is a link to nothing"))?.into_owned();
                let target = inside(&target).map_err(refused)?;
                self.hard_link(&target, &path)?;
            }
            // What describes a whole archive describes nothing of ours.
            EntryType::XGlobalHeader => self.carried.entries -= 1,
            _ => return Err(refused("is neither file, folder nor link")),
        }
        Ok(())
    }

    /// Makes a folder with those above it, and opens it.
    fn make_folder(&self, path: &Path) -> Result<OwnedFd, TreeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut folder = open_in(&self.root, Path::new(""), flags, Mode::empty()).map_err(at(path))?;
        for name in path.iter() {
            match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(at(path)(error.into())),
            }
            folder = open_in(&folder, Path::new(name), flags, Mode::empty()).map_err(at(path))?;
        }
        Ok(folder)
    }

    /// The folder in which `path` goes, and its name there, which is free.
    fn place(&self, path: &Path) -> Result<(OwnedFd, OsString), TreeError> {
        let name = path.file_name().unwrap_or_default().to_owned();
        let parent = self.make_folder(path.parent().unwrap_or(Path::new("")))?;
        match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok((parent, name)),
            Err(error) => Err(at(path)(error.into())),
        }
    }

    fn file(
        &mut self,
        from: &mut impl Read,
        path: &Path,
        mode: u32,
        modified: Option<u64>,
    ) -> Result<(), TreeError> {
        let (parent, name) = self.place(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let opened =
            open_in(&parent, Path::new(&name), flags, Mode::from_raw_mode(0o600)).map_err(at(path))?;
        let mut file = File::from(opened);
        let mut counted = Counted { from, failed: None };
        let copied = io::copy(&mut counted, &mut file);
        // Whose fault it is decides what its reader can do.
        self.carried.bytes += match (copied, counted.failed) {
            (Ok(copied), _) => copied,
            (Err(_), Some(error)) => return Err(TreeError::Archive(error)),
            (Err(error), None) => return Err(at(path)(error)),
        };
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(|error| at(path)(error.into()))?;
        if let Some(seconds) = modified.and_then(|seconds| i64::try_from(seconds).ok()) {
            let times = Timestamps {
                last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 },
            };
            // A file system that keeps no such times keeps the file all the same.
            let _ = rustix::fs::futimens(&file, &times).is_ok();
        }
        Ok(())
    }

    fn hard_link(&self, target: &Path, path: &Path) -> Result<(), TreeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let of = open_in(&self.root, target.parent().unwrap_or(Path::new("")), flags, Mode::empty())
            .map_err(at(target))?;
        let (parent, name) = self.place(path)?;
        let target_name = target.file_name().unwrap_or_default();
        let linked = rustix::fs::linkat(&of, target_name, &parent, &name, AtFlags::empty());
        linked.map_err(|error| at(path)(error.into()))
    }

    /// Gives folders their modes, innermost first.
    fn close_folders(mut self) -> Result<Carried, TreeError> {
        self.folders.sort_unstable_by_key(|(path, _)| std::cmp::Reverse(path.components().count()));
        for (path, mode) in &self.folders {
            // Its owner can always go on in it.
            let mode = Mode::from_raw_mode(mode | 0o700);
            let opened = open_in(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
                .map_err(at(path))?;
            rustix::fs::fchmod(&opened, mode).map_err(|error| at(path)(error.into()))?;
        }
        Ok(self.carried)
    }
}

/// Remembers that reading failed, not writing.
struct Counted<'a, From> {
    from: &'a mut From,
    failed: Option<io::Error>,
}

impl<From: Read> Read for Counted<'_, From> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.from
            .read(buffer)
            .inspect_err(|error| self.failed = Some(io::Error::new(error.kind(), error.to_string())))
    }
}

/// A name within an archive as a path within the folder.
///
/// # Errors
/// Why it is none.
pub fn inside(name: &[u8]) -> Result<PathBuf, &'static str> {
    if name.len() > PATH_BYTES || name.contains(&0) {
        return Err("has a name that is too long or holds a zero byte");
    }
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err("leads out of the tree by `..`"),
            Component::RootDir | Component::Prefix(_) => return Err("has an absolute name"),
        }
    }
    if path.components().count() > DEPTH { Err("lies too deep") } else { Ok(path) }
}

/// Whether a link at `path` leads to somewhere within the tree, as far as its text tells.
fn leads_inside(path: &Path, target: &[u8]) -> bool {
    let mut depth = path.components().count().saturating_sub(1);
    for component in Path::new(OsStr::from_bytes(target)).components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => match depth.checked_sub(1) {
                Some(up) => depth = up,
                None => return false,
            },
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests;
