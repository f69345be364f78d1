// SPDX-License-Identifier: Apache-2.0
//! Room on a disk that the database may share: users' files never take the last of it.

use rustix::fd::AsFd;
use std::io;

/// Bytes of a disk that users' files leave free.
pub(crate) const FREE_BYTES: u64 = 512 << 20;

/// Whether the disk of this file has room for so many bytes more, `free` left over.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`] if not.
pub(crate) fn check(on: impl AsFd, bytes: u64, free: u64) -> io::Result<()> {
    let about = rustix::fs::fstatvfs(on)?;
    let there = about.f_bavail.saturating_mul(about.f_frsize);
    if there.saturating_sub(bytes) < free {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            "the disk of the users' files is nearly full; free some space",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn what_would_take_the_last_of_a_disk_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let on = File::open(folder.path()).expect("opens");
        check(&on, 0, 0).expect("nothing takes nothing");
        for (bytes, free) in [(u64::MAX, 1), (0, u64::MAX)] {
            let refused = check(&on, bytes, free).expect_err("has not as much");
            assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        }
    }
}
