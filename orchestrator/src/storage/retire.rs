// SPDX-License-Identifier: Apache-2.0
//! Files that retention takes away: copied into the archive first if that is wanted, then removed where
//! they were, unless somebody wrote or used them meanwhile.
//!
//! ```text
//! copy to archive/ ─▶ lock the user ─▶ held? in use? ─▶ is the copy ours? ─▶ remove this version ─▶ log
//! ```
//! Stopped in between, a file is in both places, and the next run begins anew with it. A hold locks the
//! user too: once it is answered, nothing of theirs goes any more.

use super::content::Counted;
use super::objects::{Notes, Opened, Outcome};
use super::path::Key;
use super::types::{Condition, NewFile, StorageError, Version, Writer};
use super::user::UserFiles;
use crate::store::{ArchivedFile, AuditEntry, DueFile, FileChange, FileRow, HoldRow};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use postern_common::folder::OnRetired;

/// Objects that are looked at, copied or removed at the same time.
const AT_ONCE: usize = 16;

/// What became of files that were to go.
#[derive(Debug)]
pub(crate) enum Retirement {
    /// Of each whether it went: `false` if it is another version by now.
    Done(Vec<Result<bool, StorageError>>),
    /// None went: the user is held.
    Held(HoldRow),
    /// None went: the user uses them again.
    InUse,
}

impl UserFiles {
    /// Takes files away that were due when nothing of the user was used since `used`; the answers are in
    /// their order.
    ///
    /// # Errors
    /// [`StorageError`] if nothing could be done.
    pub(crate) fn retire<'a>(
        &'a self,
        by: &'a Writer,
        files: &'a [DueFile],
        then: OnRetired,
        (now, used): (Timestamp, Option<Timestamp>),
    ) -> BoxFuture<'a, Result<Retirement, StorageError>> {
        Box::pin(self.retire_now(by, files, then, (now, used)))
    }

    async fn retire_now(
        &self,
        by: &Writer,
        files: &[DueFile],
        then: OnRetired,
        (now, used): (Timestamp, Option<Timestamp>),
    ) -> Result<Retirement, StorageError> {
        let copies: Vec<_> = match then {
            OnRetired::Delete => files.iter().map(|_| Ok(Copy::NotWanted)).collect(),
            OnRetired::Archive => {
                let owned = files.to_vec();
                stream::iter(owned.into_iter().map(|file| self.copy_to_archive(file)))
                    .buffered(AT_ONCE)
                    .collect()
                    .await
            }
        };
        let mut changing = self.changing_user(by, files.iter().map(|file| &file.path)).await?;
        if let Some(hold) = self.storage.store.hold_on(&self.owner).await? {
            return Ok(Retirement::Held(hold));
        }
        if self.storage.store.uses_files(&self.owner, used).await? {
            return Ok(Retirement::InUse);
        }
        let owned = files.to_vec();
        let removals = owned.into_iter().zip(copies).map(|(file, copy)| self.remove_copied(file, copy));
        let removed: Vec<_> = stream::iter(removals).buffered(AT_ONCE).collect().await;
        let gone = files.iter().zip(&removed).filter(|(_, removed)| matches!(removed, Ok(true)));
        let changes = gone.map(|(file, _)| match then {
            OnRetired::Archive => FileChange::Archived(row_of(file)),
            OnRetired::Delete => FileChange::Expired(file.path.clone()),
        });
        changing.retired(changes.collect()).await?;
        changing.end_at(now).await?;
        Ok(Retirement::Done(removed))
    }

    /// Removes files from the archive.
    ///
    /// # Errors
    /// [`StorageError`] if nothing could be done.
    pub(crate) fn expire_archived<'a>(
        &'a self,
        by: &'a Writer,
        files: &'a [ArchivedFile],
    ) -> BoxFuture<'a, Result<Retirement, StorageError>> {
        Box::pin(self.expire_now(by, files))
    }

    async fn expire_now(&self, by: &Writer, files: &[ArchivedFile]) -> Result<Retirement, StorageError> {
        let mut changing = self.changing_user(by, []).await?;
        if let Some(hold) = self.storage.store.hold_on(&self.owner).await? {
            return Ok(Retirement::Held(hold));
        }
        let owned = files.to_vec();
        let removals = owned.into_iter().map(|file| async move {
            let key = self.prefix.archived(&file.path);
            let removed = self.storage.objects.remove(&key, &Condition::Anything).await;
            removed.map(|_was_there| true).map_err(|fault| fault.of(&file.path))
        });
        let removed: Vec<_> = stream::iter(removals).buffered(AT_ONCE).collect().await;
        let gone = files.iter().zip(&removed).filter(|(_, removed)| removed.is_ok());
        changing.noted(gone.map(|(file, _)| FileChange::ArchiveExpired(file.path.clone())).collect());
        changing.end().await?;
        Ok(Retirement::Done(removed))
    }

    /// Holds the user: what retention is doing to their files has ended before, and it does no more.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn hold(&self, hold: &HoldRow, audit: &AuditEntry) -> Result<(), StorageError> {
        let key = self.prefix.of_user();
        let _locks = self.storage.locks.hold([&key]).await;
        let held = self.storage.store.hold_files(&[key.as_str()]).await?;
        Ok(self.storage.store.set_hold(held, hold, audit).await?)
    }

    /// Copies this version of a file.
    async fn copy_to_archive(&self, file: DueFile) -> Result<Copy, StorageError> {
        let (path, to) = (&file.path, self.prefix.archived(&file.path));
        let fault = |fault: super::objects::Fault| fault.of(path);
        let Some(opened) = self.storage.objects.read(&self.prefix.file(path), None).await.map_err(fault)?
        else {
            return Ok(Copy::OtherVersion);
        };
        let Opened { info, notes, mut content, .. } = opened;
        if info.version != file.version {
            return Ok(Copy::OtherVersion);
        }
        let about = NewFile { size: Some(file.size), digest: file.digest, ..NewFile::default() };
        // What is there already may be larger than what may be written now.
        let mut counted = Counted::new(path, &about, u64::MAX)?;
        let mut object = self.storage.objects.begin(&to, &notes).await.map_err(fault)?;
        while let Some(bytes) = content.next().await {
            let taken =
                bytes.map_err(StorageError::Content).and_then(|bytes| counted.take(&bytes).map(|()| bytes));
            let bytes = match taken {
                Ok(bytes) => bytes,
                Err(error) => {
                    object.abandon().await;
                    return Err(error);
                }
            };
            object.write(bytes).await.map_err(fault)?;
        }
        let digest = match counted.end() {
            Ok((_, digest)) => digest,
            Err(error) => {
                object.abandon().await;
                return Err(error);
            }
        };
        let notes = Notes { digest: Some(digest), ..notes };
        match object.finish(&Condition::Anything, &notes).await.map_err(fault)? {
            Outcome::Done(info) => Ok(Copy::Made { key: to, version: info.version }),
            Outcome::Conflict(_) | Outcome::Obstructed => {
                Err(StorageError::Obstructed { path: path.clone(), by: path.clone() })
            }
        }
    }

    /// Removes a file that is the version that was due, and whose copy, where there is to be one, is
    /// still the one that was made of it. The user is locked.
    async fn remove_copied(
        &self,
        file: DueFile,
        copy: Result<Copy, StorageError>,
    ) -> Result<bool, StorageError> {
        let path = &file.path;
        match copy? {
            Copy::NotWanted => {}
            Copy::OtherVersion => return Ok(false),
            Copy::Made { key, version } => {
                let found = self.storage.objects.find(&key).await.map_err(|fault| fault.of(path))?;
                if found.is_none_or(|(info, _)| info.version != version) {
                    return Err(StorageError::Conflict { path: path.clone(), found: None });
                }
            }
        }
        let removed = self
            .storage
            .objects
            .remove(&self.prefix.file(path), &Condition::Version(file.version.clone()))
            .await;
        match removed.map_err(|fault| fault.of(path))? {
            Outcome::Done(was_there) => Ok(was_there),
            Outcome::Conflict(_) | Outcome::Obstructed => Ok(false),
        }
    }
}

/// What became of a copy that may have been wanted.
enum Copy {
    NotWanted,
    OtherVersion,
    Made { key: Key, version: Version },
}

fn row_of(file: &DueFile) -> FileRow {
    FileRow {
        path: file.path.clone(),
        size: file.size,
        digest: file.digest,
        mode: super::types::FILE_MODE,
        version: file.version.clone(),
        modified: Timestamp::UNIX_EPOCH,
        content_type: None,
    }
}
