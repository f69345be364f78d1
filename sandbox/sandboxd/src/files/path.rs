// SPDX-License-Identifier: Apache-2.0
//! Paths of callers, and the only way in which files are opened here.

use crate::connect::{Code, Failure};
use rustix::fs::{CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

/// `PATH_MAX` of Linux.
const PATH_BYTES: usize = 4096;

/// What a caller's path means: relative ones and `~` begin at the home folder, and `..` is taken
/// away before anything is looked up, as the SDKs expect.
pub(super) fn resolve(home: &Path, text: &str) -> Result<PathBuf, Failure> {
    if text.len() > PATH_BYTES || text.contains('\0') {
        let detail = "a path has at most 4096 bytes and no zero byte";
        return Err(Failure::new(Code::InvalidArgument, detail));
    }
    let text = match text {
        "~" => "",
        text => text.strip_prefix("~/").unwrap_or(text),
    };
    let mut path = PathBuf::new();
    for component in home.join(text).components() {
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    Ok(path)
}

/// Opens without waiting for anybody, without following a magic link, and nothing of `/proc`: both
/// would be this process's own, not the agent's.
pub(super) fn open(path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    // A mere place (O_PATH) is never waited for, and takes no such flags.
    let unwaiting =
        if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY | OFlags::NONBLOCK };
    let flags = flags | unwaiting | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(CWD, path, flags, mode, ResolveFlags::NO_MAGICLINKS)?;
    if rustix::fs::fstatfs(&opened)?.f_type == PROC_SUPER_MAGIC {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "files of `/proc` are not served"));
    }
    Ok(opened)
}

/// Opens a file for reading; it must be an ordinary one.
pub(super) fn open_to_read(path: &Path) -> io::Result<File> {
    ordinary(open(path, OFlags::RDONLY, Mode::empty())?)
}

/// Opens a file for writing, empty, making it and the folders above it if need be.
pub(super) fn open_to_write(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let opened = open(path, OFlags::WRONLY | OFlags::CREATE, Mode::from_raw_mode(0o644))?;
    // Not by O_TRUNC: what turns out to be no file of the agent's is left as it is.
    let file = ordinary(opened)?;
    file.set_len(0)?;
    Ok(file)
}

fn ordinary(opened: OwnedFd) -> io::Result<File> {
    match FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) {
        FileType::RegularFile => Ok(File::from(opened)),
        FileType::Directory => Err(io::Error::new(io::ErrorKind::IsADirectory, "is a folder")),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "is no ordinary file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_at_home_and_lose_their_dots_before_anything_is_looked_up() {
        for (text, wanted) in [
            ("", "/home/user"),
            ("~", "/home/user"),
            ("~/a", "/home/user/a"),
            ("a/./b", "/home/user/a/b"),
            ("../x", "/home/x"),
            ("/../../etc", "/etc"),
            ("/a/../b", "/b"),
            ("/a//b/", "/a/b"),
        ] {
            assert_eq!(resolve(Path::new("/home/user"), text), Ok(wanted.into()), "{text}");
        }
        for wrong in ["a\0b", &"a".repeat(PATH_BYTES + 1)] {
            assert_eq!(resolve(Path::new("/"), wrong).expect_err("refused").code, Code::InvalidArgument);
        }
    }

    #[test]
    fn nothing_of_this_process_can_be_opened() {
        for own in ["/proc/self/mem", "/proc/self/environ", "/proc/self/fd/0", "/proc/self/exe"] {
            assert!(open_to_read(Path::new(own)).is_err(), "{own}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/proc/self/environ", &link).expect("links");
        assert_eq!(open_to_read(&link).expect_err("refused").kind(), io::ErrorKind::PermissionDenied);
        // The control: the same link to an ordinary file is followed.
        std::fs::write(folder.path().join("file"), "text").expect("writes");
        std::fs::remove_file(&link).expect("removes");
        std::os::unix::fs::symlink("file", &link).expect("links");
        assert!(open_to_read(&link).is_ok());
    }

    #[test]
    fn what_is_no_ordinary_file_is_neither_waited_for_nor_emptied() {
        let folder = tempfile::tempdir().expect("a folder");
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).expect("makes");
        assert!(open_to_read(&fifo).is_err());
        assert!(open_to_write(&fifo).is_err());
        assert_eq!(open_to_read(folder.path()).expect_err("a folder").kind(), io::ErrorKind::IsADirectory);
        assert!(open_to_write(Path::new("/dev/null")).is_err());
    }
}
