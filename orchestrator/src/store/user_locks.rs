// SPDX-License-Identifier: Apache-2.0
//! Locks of users beside a SQLite file: what an operator runs there (`postern-orchestrator retention`) and
//! the orchestrator that serves from it keep out of each other's way.
//!
//! ```text
//! postern.db   postern.db-users/00 … 3f     each for some of the users, by `flock`
//! ```
//! Files within one process are held apart by its own locks (`storage/locks.rs`).

use super::StoreError;
use super::files::{Share, number};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Users that share a lock wait for each other: more than an operator's program retires at once.
const LOCKS: i64 = 64;
/// As long as Postgres waits for a lock.
const LOCK_TIME: Duration = Duration::from_secs(5);
/// How often is asked for a lock that somebody has.
const EVERY: Duration = Duration::from_millis(5);

/// A lock that is held as long as this lives.
#[derive(Debug)]
pub(crate) struct UserLock(#[expect(dead_code, reason = "closing it lets go")] File);

/// The locks beside one file.
#[derive(Debug)]
pub(super) struct UserLocks {
    folder: PathBuf,
}

impl UserLocks {
    /// Those of the database in this file; nothing is made before one is held.
    pub(super) fn of(database: &Path) -> Self {
        let mut folder = database.as_os_str().to_owned();
        folder.push("-users");
        Self { folder: folder.into() }
    }

    /// Waits for a user's lock.
    ///
    /// # Errors
    /// [`StoreError::Locks`], also if others have it for too long.
    pub(super) async fn hold(&self, user: &str, share: Share) -> Result<UserLock, StoreError> {
        let file = self.open(user).map_err(StoreError::Locks)?;
        let operation = match share {
            Share::Together => FlockOperation::NonBlockingLockShared,
            Share::Alone => FlockOperation::NonBlockingLockExclusive,
        };
        let begun = Instant::now();
        loop {
            match rustix::fs::flock(&file, operation) {
                Ok(()) => return Ok(UserLock(file)),
                Err(Errno::WOULDBLOCK | Errno::INTR) if begun.elapsed() < LOCK_TIME => {
                    tokio::time::sleep(EVERY).await;
                }
                Err(error) => return Err(StoreError::Locks(error.into())),
            }
        }
    }

    fn open(&self, user: &str) -> io::Result<File> {
        let path = self.folder.join(format!("{:02x}", number(user).rem_euclid(LOCKS)));
        let open = || OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
                open()
            }
            opened => opened,
        }
    }
}
