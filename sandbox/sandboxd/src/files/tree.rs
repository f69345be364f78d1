// SPDX-License-Identifier: Apache-2.0
//! Going through folders: listing and removing. The agent may change them meanwhile, so what is
//! removed is named within the folder that was opened, never by its path.

use super::entry::{Entry, Names};
use super::{failed, path};
use crate::connect::{Code, Failure};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Folders within each other that are gone into.
pub(super) const DEPTH: usize = 512;
/// Entries of one listing.
const ENTRIES: usize = 20_000;
/// Names of one folder that are read before they are removed.
const BATCH: usize = 1024;

/// What is in a folder, and in the folders in it down to `depth`, each after its folder.
pub(super) fn list(root: &Path, depth: usize, names: &Names) -> Result<Vec<Entry>, Failure> {
    let mut found = Vec::new();
    into_folder(root, depth.clamp(1, DEPTH), names, &mut found)?;
    Ok(found)
}

fn into_folder(folder: &Path, depth: usize, names: &Names, found: &mut Vec<Entry>) -> Result<(), Failure> {
    let mut inside = names_in(folder).map_err(|error| failed(folder, &error))?;
    inside.sort_unstable();
    for name in inside {
        let path = folder.join(OsStr::from_bytes(name.as_bytes()));
        // What went meanwhile is not there.
        let Ok(entry) = Entry::of(&path, names) else { continue };
        if found.len() >= ENTRIES {
            let detail = format!(
                "there are more than {ENTRIES} entries; ask for less depth, or for one folder at a time"
            );
            return Err(Failure::new(Code::ResourceExhausted, detail));
        }
        let goes_on = depth > 1 && entry.is_folder();
        found.push(entry);
        if goes_on {
            match into_folder(&path, depth - 1, names, found) {
                // A folder that cannot be read is told of, but not what is in it.
                Err(failure) if failure.code != Code::ResourceExhausted => {}
                done => done?,
            }
        }
    }
    Ok(())
}

/// The names in a folder, without `.` and `..`.
pub(super) fn names_in(folder: &Path) -> io::Result<Vec<CString>> {
    let opened = path::open(folder, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(opened)? {
        let entry = entry?;
        if !is_dots(entry.file_name().to_bytes()) {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// Removes a file, a link, or a folder with all that is in it. Nothing there is success.
pub(super) fn remove(at: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the root cannot be removed"));
    };
    let name = CString::new(name.as_bytes())?;
    match path::open(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
        Ok(folder) => remove_in(folder.as_fd(), &name, DEPTH),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn remove_in(folder: BorrowedFd<'_>, name: &CString, depth: usize) -> io::Result<()> {
    let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        stat => stat?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return unless_gone(rustix::fs::unlinkat(folder, name, AtFlags::empty()));
    }
    let Some(deeper) = depth.checked_sub(1) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "folders lie too deep within each other"));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let opened = rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve)?;
    loop {
        let mut inside = Dir::read_from(&opened)?;
        inside.rewind();
        let names =
            inside.filter(|entry| !entry.as_ref().is_ok_and(|entry| is_dots(entry.file_name().to_bytes())));
        let batch: Result<Vec<CString>, Errno> =
            names.take(BATCH).map(|entry| entry.map(|entry| entry.file_name().to_owned())).collect();
        let batch = batch?;
        if batch.is_empty() {
            return unless_gone(rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR));
        }
        for name in &batch {
            remove_in(opened.as_fd(), name, deeper)?;
        }
    }
}

fn unless_gone(removed: Result<(), Errno>) -> io::Result<()> {
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The kind of what is at `path`, a link counting as itself; `None` if there is nothing.
pub(super) fn kind_of(path: &Path) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_is_removed_and_what_its_links_lead_to_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("kept")).expect("makes");
        fs::write(at("kept/file"), "").expect("writes");
        fs::create_dir_all(at("tree/deep/deeper")).expect("makes");
        for number in 0..BATCH + 10 {
            fs::write(at("tree/deep").join(number.to_string()), "").expect("writes");
        }
        symlink(at("kept"), at("tree/deep/link")).expect("links");
        remove(&at("tree")).expect("removes");
        assert!(!at("tree").exists() && at("kept/file").exists());
        remove(&at("tree")).expect("nothing there is success");
        symlink(at("kept"), at("link")).expect("links");
        remove(&at("link")).expect("removes");
        assert!(at("kept/file").exists());
        assert!(remove(Path::new("/")).is_err());
    }

    #[test]
    fn a_listing_goes_as_deep_as_asked_and_never_into_links() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(folder.path().join("a/b")).expect("makes");
        fs::write(folder.path().join("a/file"), "").expect("writes");
        symlink("a", folder.path().join("link")).expect("links");
        let names = |depth| {
            let found = list(folder.path(), depth, &Names::default()).expect("lists");
            found.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(0), ["a", "link"]);
        assert_eq!(names(2), ["a", "b", "file", "link"]);
    }

    #[test]
    fn a_tree_that_is_too_deep_is_refused_not_followed_to_its_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut inner = rustix::fs::open(folder.path(), OFlags::PATH, Mode::empty()).expect("opens");
        for _ in 0..DEPTH + 2 {
            rustix::fs::mkdirat(&inner, "d", Mode::RWXU).expect("makes");
            inner = rustix::fs::openat(&inner, "d", OFlags::PATH, Mode::empty()).expect("opens");
        }
        let refused = remove(&folder.path().join("d")).expect_err("is too deep");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        drop(std::process::Command::new("rm").arg("-rf").arg(folder.path().join("d")).status());
    }
}
