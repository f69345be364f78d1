// SPDX-License-Identifier: Apache-2.0
//! Files that have not got their place yet: their names, and the end of those whose writer died.

use super::path::DRAFT;
use crate::keys::{hex, random};
use jiff::{SignedDuration, Timestamp};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What tells the drafts of one process from those of every other, on whatever machine.
const PROCESS_BYTES: usize = 8;
/// Nobody writes to a draft any more that so long nobody wrote to: a call that stands still ends sooner.
const ABANDONED: SignedDuration = SignedDuration::from_hours(24);

/// Makes drafts. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Drafts {
    process: Arc<str>,
    number: Arc<AtomicU64>,
}

impl Drafts {
    pub(super) fn new() -> io::Result<Self> {
        let process = random(PROCESS_BYTES).map_err(io::Error::other)?;
        Ok(Self { process: hex(process.reveal()).into(), number: Arc::default() })
    }

    /// A new one in a folder, with its name.
    pub(super) fn make(&self, folder: &OwnedFd) -> rustix::io::Result<(String, File)> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let name = format!("{DRAFT}{}-{number}", self.process);
        // Never one that is there: its bytes are somebody else's.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(folder, &*name, flags, Mode::from_raw_mode(0o600))?;
        Ok((name, File::from(file)))
    }
}

/// Whether a name is a draft's.
pub(super) fn is_draft(name: &str) -> bool {
    name.starts_with(DRAFT)
}

/// Removes a draft that nobody writes to any more; whether it is gone.
pub(super) fn remove_abandoned(folder: impl AsFd, name: &str, now: Timestamp) -> io::Result<bool> {
    let about: Stat = match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(true),
        found => found?,
    };
    let written = Timestamp::from_second(about.st_mtime).unwrap_or(now);
    if now.duration_since(written) < ABANDONED {
        return Ok(false);
    }
    match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
