// SPDX-License-Identifier: Apache-2.0
//! Slots whose files could not be kept: moved out of every sweep's way, for the operator, though not for
//! ever. The database may lie on the same disk, and one that is full ends everybody's sandboxes.

use super::remains::{Remains, remove_guests};
use jiff::{SignedDuration, Timestamp};
use postern_shim::mounts;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// Where they go; no sandbox has this name.
const SET_ASIDE: &str = "set-aside";

/// What may be set aside, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// A month, in which somebody reads a log.
    age: SignedDuration,
    /// A day, in which somebody may have it though the disk is full: that may be why it was set aside.
    least: SignedDuration,
    /// Bytes that stay free on their disk: four times what files never take of the store's.
    free: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { age: DAY * 30, least: DAY, free: 2 << 30 }
    }
}

/// Moves a slot aside; `None` if there is none.
pub(super) fn set_aside(remains: &Remains) -> io::Result<Option<PathBuf>> {
    mounts::unmount_below(remains.folder.path(), None)?;
    let (Some(root), Some(name)) = (remains.slot.parent(), remains.slot.file_name()) else {
        return Ok(None);
    };
    let aside = root.join(SET_ASIDE);
    fs::create_dir_all(&aside)?;
    let to = aside.join(name);
    match fs::rename(&remains.slot, &to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        moved => moved?,
    }
    // Its age counts from now.
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    rustix::fs::futimens(File::open(&to)?, &times)?;
    Ok(Some(to))
}

/// Removes a slot that was set aside; whether there was one.
pub(super) fn forget(remains: &Remains) -> io::Result<bool> {
    let (Some(root), Some(name)) = (remains.slot.parent(), remains.slot.file_name()) else {
        return Ok(false);
    };
    match remove_guests(&root.join(SET_ASIDE).join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true),
    }
}

/// Removes what was set aside too long ago, and, oldest first, what the disk has no room for; each is
/// said in the log. Returns how many those were.
///
/// # Errors
/// What the system says; the rest is for the next time.
pub(super) fn tidy(slots: &Path, now: Timestamp, bounds: Bounds) -> io::Result<usize> {
    let aside = slots.join(SET_ASIDE);
    let mut found = Vec::new();
    for entry in fs::read_dir(&aside).into_iter().flatten().flatten() {
        let since = Timestamp::from_second(entry.metadata()?.mtime()).unwrap_or(now);
        found.push((since, entry.path()));
    }
    found.sort_unstable();
    let mut removed = 0;
    for (since, slot) in found {
        let about = rustix::fs::statvfs(&aside)?;
        let age = now.duration_since(since);
        let is_old = age > bounds.age;
        let is_in_the_way = age > bounds.least && about.f_bavail.saturating_mul(about.f_frsize) < bounds.free;
        if !is_old && !is_in_the_way {
            break;
        }
        let slot_shown = slot.display();
        if is_old {
            tracing::error!(slot = %slot_shown, "files that were set aside a month ago are removed");
        } else {
            tracing::error!(slot = %slot_shown, "files that were set aside are removed, for their disk is nearly full; free some space");
        }
        remove_guests(&slot)?;
        removed += 1;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_aside_goes_when_it_is_old_or_the_disk_is_full_the_oldest_first() {
        let slots = tempfile::tempdir().expect("a folder");
        let now = postern_common::clock::now();
        for (name, days) in [("one", 40), ("two", 20), ("three", 0)] {
            let slot = slots.path().join(SET_ASIDE).join(name);
            fs::create_dir_all(slot.join("files/data")).expect("a folder");
            fs::write(slot.join("files/data/f"), "x").expect("writes");
            let since = Timespec { tv_sec: (now - DAY * days).as_second(), tv_nsec: 0 };
            let times = Timestamps { last_access: since, last_modification: since };
            rustix::fs::futimens(File::open(&slot).expect("opens"), &times).expect("ages");
        }
        let left = || {
            let names = fs::read_dir(slots.path().join(SET_ASIDE)).expect("is there").flatten();
            let mut names: Vec<_> = names.map(|it| it.file_name().into_string().expect("text")).collect();
            names.sort();
            names
        };
        let roomy = Bounds { free: 0, ..Bounds::default() };
        assert_eq!(tidy(slots.path(), now, roomy).expect("tidies"), 1);
        assert_eq!(left(), ["three", "two"]);
        assert_eq!(tidy(slots.path(), now + DAY * 15, roomy).expect("tidies"), 1);
        assert_eq!(left(), ["three"]);
        let full = Bounds { free: u64::MAX, ..Bounds::default() };
        assert_eq!(tidy(slots.path(), now, full).expect("tidies"), 0, "somebody may want it first");
        assert_eq!(tidy(slots.path(), now + DAY * 2, full).expect("tidies"), 1);
        assert_eq!(left(), Vec::<String>::new());
    }
}
