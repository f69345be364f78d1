// SPDX-License-Identifier: Apache-2.0
//! What is mounted in a run folder, and how it is unmounted.

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a mount may be held by processes that were killed.
const BUSY_TIME: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(1);

/// Every mount at `folder` or below it that `keep` does not name, the last made first.
#[must_use]
pub fn below(folder: &Path, keep: Option<&Path>) -> Vec<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = mounts.split(|byte| *byte == b'\n').filter_map(mounted_at).collect();
    found.retain(|at| at.starts_with(folder) && Some(at.as_path()) != keep);
    found.reverse();
    found
}

/// Whether something is mounted exactly here.
#[must_use]
pub fn is_mounted(at: &Path) -> bool {
    below(at, None).iter().any(|mounted| mounted == at)
}

/// Unmounts all of [`below`]. Processes that are just ending may hold one for a moment; what is
/// still in use after [`BUSY_TIME`] is detached and goes, with its loop device, when they do.
///
/// # Errors
/// If the kernel refuses even that.
pub fn unmount_below(folder: &Path, keep: Option<&Path>) -> io::Result<usize> {
    let mounts = below(folder, keep);
    for at in &mounts {
        unmount(at)?;
    }
    Ok(mounts.len())
}

fn unmount(at: &Path) -> io::Result<()> {
    let deadline = Instant::now() + BUSY_TIME;
    loop {
        let detach = if Instant::now() < deadline { UnmountFlags::empty() } else { UnmountFlags::DETACH };
        match rustix::mount::unmount(at, UnmountFlags::NOFOLLOW | detach) {
            Err(Errno::BUSY) if detach.is_empty() => std::thread::sleep(POLL),
            // Somebody else was faster.
            Err(Errno::INVAL) => return Ok(()),
            done => return Ok(done?),
        }
    }
}

/// The fifth field of a mountinfo line (proc(5)).
fn mounted_at(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    Some(PathBuf::from(OsString::from_vec(unescaped(field))))
}

/// Blanks, tabs, newlines and backslashes are written as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                path.push(escaped);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                path.push(byte);
                rest = after;
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_blanks_is_read_as_it_is() {
        let line = br"36 35 98:0 /m1 /mnt/a\040b\134c rw,noatime - ext4 /dev/root rw";
        assert_eq!(mounted_at(line), Some(PathBuf::from(r"/mnt/a b\c")));
        assert_eq!(mounted_at(b"36 35"), None);
    }

    #[test]
    fn the_root_of_this_machine_is_mounted_and_nowhere_is_not() {
        assert!(is_mounted(Path::new("/")));
        assert!(!is_mounted(Path::new("/nowhere")));
        assert_eq!(
            below(Path::new("/proc"), Some(Path::new("/proc")))
                .iter()
                .filter(|at| at.ends_with("proc"))
                .count(),
            0
        );
    }
}
