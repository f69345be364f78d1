// SPDX-License-Identifier: Apache-2.0
//! Folders that are reached through no link and never from outside the one that is open already.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::io;

/// How folders are opened.
pub(super) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How whatever is below an open folder is found.
pub(super) const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens the folder `path` below `top`, and makes it and those above it where they are missing, each
/// of which `made` is shown. An empty path is `top` itself.
///
/// # Errors
/// What the system says; `NotFound` too, if one was removed again meanwhile.
pub(super) fn make_folder(
    top: &OwnedFd,
    path: &str,
    mode: u32,
    made: impl Fn(&OwnedFd) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    let mut folder = top.try_clone()?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let is_new = match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(mode)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        folder = rustix::fs::openat2(folder.as_fd(), name, FOLDER, Mode::empty(), BENEATH)?;
        if is_new {
            made(&folder)?;
        }
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::fs;

    #[test]
    fn folders_are_made_where_they_are_missing_and_never_through_a_link() {
        let (inside, outside) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let top = rustix::fs::open(inside.path(), FOLDER, Mode::empty()).expect("opens");
        let shown = Cell::new(0);
        let make = |path| {
            make_folder(&top, path, 0o700, |_new| {
                shown.set(shown.get() + 1);
                Ok(())
            })
        };
        make("a/b/c").expect("is made");
        assert!(inside.path().join("a/b/c").is_dir());
        make("a/b/d").expect("is made");
        make("").expect("is the top");
        assert_eq!(shown.get(), 4, "what was there is not shown again");
        std::os::unix::fs::symlink(outside.path(), inside.path().join("a/link")).expect("links");
        fs::write(inside.path().join("a/file"), "").expect("writes");
        for wrong in ["a/link/x", "a/file/x", "../x", "a/../../x"] {
            make(wrong).expect_err(wrong);
        }
        assert_eq!(fs::read_dir(outside.path()).expect("is there").count(), 0);
    }
}
