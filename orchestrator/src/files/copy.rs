// SPDX-License-Identifier: Apache-2.0
//! Copies one file: only what was ever written of it, into a draft that gets its name when it is
//! whole and is removed otherwise.

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom as Position, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Drafts begin so; a file of the agent's that does is left.
pub(super) const DRAFT: &str = ".postern-draft-";
const BUFFER_BYTES: usize = 128 << 10;

/// Which side of a copy failed: what a guest did to its files is no reason to try again.
#[derive(Debug)]
pub(super) enum CopyError {
    /// The file that was read.
    From,
    /// There are more bytes in it than are allowed.
    TooMany,
    /// The file that was written.
    To(io::Error),
}

/// A file that has not got its name yet.
pub(super) struct Draft<'a> {
    folder: &'a OwnedFd,
    name: String,
    /// The file.
    pub(super) file: File,
}

impl<'a> Draft<'a> {
    /// Makes an empty one in `folder`; `who` tells it from those of others.
    pub(super) fn make(folder: &'a OwnedFd, who: &str, mode: Mode) -> io::Result<Self> {
        let name = fresh(folder, who)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(folder, &*name, flags, mode)?);
        Ok(Self { folder, name, file })
    }

    /// Makes one that is another name of a file.
    pub(super) fn link(folder: &'a OwnedFd, who: &str, of: (&OwnedFd, &str)) -> io::Result<Self> {
        let name = fresh(folder, who)?;
        rustix::fs::linkat(of.0, of.1, folder, &*name, AtFlags::empty())?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(folder, &*name, flags, Mode::empty());
        if file.is_err() {
            let _ = rustix::fs::unlinkat(folder, &*name, AtFlags::empty());
        }
        Ok(Self { folder, name, file: File::from(file?) })
    }

    /// Its name until it has another.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Gives it its name; `false` if a folder has that.
    pub(super) fn give(self, name: &str) -> io::Result<bool> {
        match rustix::fs::renameat(self.folder, &*self.name, self.folder, name) {
            Ok(()) => Ok(true),
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Draft<'_> {
    /// With its name it is a draft no more; two names of one file are no renaming (rename(2)).
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(self.folder, &*self.name, AtFlags::empty()).is_ok();
    }
}

/// A name that nothing has; what a crash left under it is removed.
fn fresh(folder: &OwnedFd, who: &str) -> io::Result<String> {
    let name = format!("{DRAFT}{who}");
    match rustix::fs::unlinkat(folder, &*name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(name),
        Err(error) => Err(error.into()),
    }
}

/// Copies what was ever written of the first `size` bytes; holes stay holes. Returns how many
/// bytes were written, which is at most `bound`.
pub(super) fn copy(from: &mut File, to: &mut File, size: u64, bound: u64) -> Result<u64, CopyError> {
    to.set_len(size).map_err(CopyError::To)?;
    let (mut end, mut written) = (0, 0);
    while end < size {
        let start = match seek(&*from, Position::Data(end)) {
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            found => found.map_err(|_unreadable| CopyError::From)?,
        };
        end = seek(&*from, Position::Hole(start)).map_err(|_unreadable| CopyError::From)?.min(size);
        from.seek(SeekFrom::Start(start)).map_err(|_unreadable| CopyError::From)?;
        to.seek(SeekFrom::Start(start)).map_err(CopyError::To)?;
        let length = end.saturating_sub(start);
        written += length;
        if written > bound {
            return Err(CopyError::TooMany);
        }
        pass(from, to, length)?;
    }
    Ok(written)
}

fn pass(from: &mut File, to: &mut File, length: u64) -> Result<(), CopyError> {
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES)];
    let mut from = from.take(length);
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_unreadable) => return Err(CopyError::From),
        };
        to.write_all(buffer.get(..read).unwrap_or_default()).map_err(CopyError::To)?;
    }
}

/// Whether two files hold the same; `None` if one cannot be read.
pub(super) fn is_same(one: &mut File, other: &mut File) -> Option<bool> {
    let (mut left, mut right) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    one.seek(SeekFrom::Start(0)).and_then(|_| other.seek(SeekFrom::Start(0))).ok()?;
    loop {
        let read = one.read(&mut left).ok()?;
        if read == 0 {
            return other.read(&mut right).ok().map(|rest| rest == 0);
        }
        let right = right.get_mut(..read)?;
        if other.read_exact(right).is_err() {
            return Some(false);
        }
        if left.get(..read)? != right {
            return Some(false);
        }
    }
}
