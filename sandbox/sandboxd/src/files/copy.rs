// SPDX-License-Identifier: Apache-2.0
//! Moving between folders that are mounts of their own, as `/data/user` and the home folder are:
//! copied beside its place, put there, and only then taken away.

use super::{path, tree};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{self, File, FileTimes};
use std::io;
use std::path::Path;

/// Moves `from` to `to`, making the folders above it.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    if tree::kind_of(from)?.is_none() {
        return Err(io::ErrorKind::NotFound.into());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::rename(from, to) {
        Err(error) if error.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => carry_over(from, to),
        done => done,
    }
}

fn carry_over(from: &Path, to: &Path) -> io::Result<()> {
    if to.starts_with(from) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a folder cannot be moved into itself"));
    }
    let name = to.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut draft = OsString::from(".");
    draft.push(name);
    draft.push(".moving");
    let draft = to.with_file_name(draft);
    tree::remove(&draft)?;
    let placed = copy(from, &draft, tree::DEPTH).and_then(|()| fs::rename(&draft, to));
    if let Err(error) = placed {
        // It could not be put there; what was copied is of no use.
        drop(tree::remove(&draft));
        return Err(error);
    }
    tree::remove(from)
}

fn copy(from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    match tree::kind_of(from)? {
        Some(FileType::RegularFile) => copy_file(from, to),
        Some(FileType::Symlink) => std::os::unix::fs::symlink(fs::read_link(from)?, to),
        Some(FileType::Directory) => {
            let deeper = depth.checked_sub(1).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "folders lie too deep within each other")
            })?;
            fs::create_dir(to)?;
            for name in tree::names_in(from)? {
                let name = std::os::unix::ffi::OsStringExt::from_vec(name.into_bytes());
                let name: OsString = name;
                copy(&from.join(&name), &to.join(&name), deeper)?;
            }
            fs::set_permissions(to, fs::metadata(from)?.permissions())
        }
        // Went meanwhile.
        None => Ok(()),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "is no file, folder or link")),
    }
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = path::open_to_read(from)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut copy = File::from(path::open(to, flags, Mode::from_raw_mode(0o600))?);
    io::copy(&mut source, &mut copy)?;
    let found = source.metadata()?;
    copy.set_permissions(found.permissions())?;
    copy.set_times(FileTimes::new().set_modified(found.modified()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A folder on another file system than the temporary one.
    fn elsewhere() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").expect("a folder in memory")
    }

    #[test]
    fn a_tree_moves_to_another_file_system_whole() {
        let (here, there) = (tempfile::tempdir().expect("a folder"), elsewhere());
        let tree = here.path().join("tree");
        fs::create_dir_all(tree.join("inner")).expect("makes");
        fs::write(tree.join("inner/run"), "#!").expect("writes");
        fs::set_permissions(tree.join("inner/run"), fs::Permissions::from_mode(0o755)).expect("ours");
        std::os::unix::fs::symlink("inner/run", tree.join("link")).expect("links");
        let to = there.path().join("made/on/the/way");
        rename(&tree, &to).expect("moves");
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(to.join("link")).expect("reads"), "#!");
        assert_eq!(fs::metadata(to.join("inner/run")).expect("is there").permissions().mode() & 0o777, 0o755);
        let names = fs::read_dir(to.parent().expect("a folder")).expect("lists").count();
        assert_eq!(names, 1, "no draft is left");
    }

    #[test]
    fn what_cannot_be_carried_over_stays_where_it_was() {
        let (here, there) = (tempfile::tempdir().expect("a folder"), elsewhere());
        let tree = here.path().join("tree");
        fs::create_dir(&tree).expect("makes");
        rustix::fs::mknodat(rustix::fs::CWD, tree.join("fifo"), FileType::Fifo, Mode::RWXU, 0)
            .expect("makes");
        assert!(rename(&tree, &there.path().join("tree")).is_err());
        assert!(tree.join("fifo").exists());
        assert_eq!(fs::read_dir(there.path()).expect("lists").count(), 0);
        assert_eq!(
            rename(&here.path().join("none"), &there.path().join("x")).expect_err("not there").kind(),
            io::ErrorKind::NotFound
        );
    }
}
