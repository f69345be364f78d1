// SPDX-License-Identifier: Apache-2.0
//! The picture of a sandbox's memory while it is written or read: on a file system in memory that is
//! mounted for it in the run folder, so that nothing of it touches a disk unsealed; on a kernel before 6.4
//! that is true of a machine without swap only.

use crate::folder::RunFolder;
use crate::mounts;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;

/// What gVisor writes: the state of its kernel, where which page is, and the pages.
pub const PARTS: [&str; 3] = ["checkpoint.img", "pages_meta.img", "pages.img"];
/// The kernel's own state comes on top of a sandbox's memory.
const STATE_BYTES: u64 = 256 << 20;

/// How large a picture of a sandbox with so much memory may be.
#[must_use]
pub const fn at_most(memory_bytes: u64) -> u64 {
    memory_bytes.saturating_add(STATE_BYTES)
}

/// Makes an empty place for a picture, which only we can look into.
///
/// # Errors
/// If there is none of so much memory; only root can have one at all.
pub fn make(folder: &RunFolder, memory_bytes: u64) -> io::Result<()> {
    forget(folder)?;
    let at = folder.memory();
    match fs::DirBuilder::new().mode(0o700).create(&at) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let options = format!("mode=0700,nr_inodes=16,size={}", at_most(memory_bytes));
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    let mount = |options: &CString| rustix::mount::mount("postern", &at, "tmpfs", flags, options.as_c_str());
    // What is swapped is on a disk too. Kernels before 6.4 do not know the word.
    match mount(&CString::new(format!("{options},noswap"))?) {
        Err(Errno::INVAL) => Ok(mount(&CString::new(options)?)?),
        mounted => Ok(mounted?),
    }
}

/// Removes it with all that is in it.
///
/// # Errors
/// If the kernel will not.
pub fn forget(folder: &RunFolder) -> io::Result<()> {
    if mounts::is_mounted(&folder.memory()) {
        // The namespace of mounts that its runtime began in may have it still: the memory is to be free at once.
        // What cannot be removed goes with the last of these namespaces.
        for file in fs::read_dir(folder.memory()).into_iter().flatten().flatten() {
            drop(fs::remove_file(file.path()));
        }
    }
    mounts::unmount_below(&folder.memory(), None)?;
    match fs::remove_dir(folder.memory()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_picture_lies_in_memory_and_is_gone_when_it_is_forgotten() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let here = tempfile::tempdir().expect("a folder");
        let folder = RunFolder::new(here.path());
        make(&folder, 1 << 20).expect("root can");
        assert!(mounts::is_mounted(&folder.memory()));
        let mode = fs::metadata(folder.memory()).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(folder.memory().join("pages.img"), "secret").expect("writes");
        make(&folder, 1 << 20).expect("begins anew");
        assert_eq!(fs::read_dir(folder.memory()).expect("lists").count(), 0);
        forget(&folder).expect("goes");
        assert!(!folder.memory().exists() && !mounts::is_mounted(&folder.memory()));
        forget(&folder).expect("is gone already");
    }
}
