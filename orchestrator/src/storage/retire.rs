// SPDX-License-Identifier: Apache-2.0
//! Files that retention takes away: copied into the archive first if that is wanted, then removed where
//! they were, unless somebody wrote or used them meanwhile.
//!
//! ```text
//! held? in use? ─▶ copy to the archive ─▶ lock the user ─▶ held? in use? ─▶ is the copy there?
//!     ─▶ remove this version ─▶ log
//! ```
//! Stopped in between, a file is in both places, and the next run goes on with that. A copy of a file that
//! stays is taken back. A hold locks the user too: once it is answered, nothing of theirs goes any more.

use super::archive::Copied;
use super::objects::Outcome;
use super::types::{Condition, StorageError, Writer};
use super::user::UserFiles;
use crate::store::{
    ArchivedFile, AuditEntry, BegunErasure, DueFile, FileChange, FileRow, HoldRow, SetHold, Share,
};
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
        // So that nothing is copied for nothing. What counts is what is asked under the lock.
        if let Some(stays) = self.stays(used).await? {
            return Ok(stays);
        }
        let copies: Vec<_> = match then {
            OnRetired::Delete => files.iter().map(|_| Ok(Copy::NotWanted)).collect(),
            OnRetired::Archive => {
                let owned = files.to_vec();
                stream::iter(owned.into_iter().map(|file| self.copied(file)))
                    .buffered(AT_ONCE)
                    .collect()
                    .await
            }
        };
        let mut changing = self.changing_user(by, files.iter().map(|file| &file.path)).await?;
        let made: Vec<Option<Copied>> =
            copies.iter().map(|copy| copy.as_ref().ok().and_then(Copy::made).cloned()).collect();
        if let Some(stays) = self.stays(used).await? {
            let made = files.iter().zip(made).filter_map(|(file, made)| Some((file.path.clone(), made?)));
            self.take_back(made.collect()).await;
            return Ok(stays);
        }
        let owned = files.to_vec();
        let removals = owned.into_iter().zip(copies).map(|(file, copy)| self.remove_copied(file, copy));
        let removed: Vec<_> = stream::iter(removals).buffered(AT_ONCE).collect().await;
        let (mut changes, mut left) = (Vec::new(), Vec::new());
        for ((file, removed), made) in files.iter().zip(&removed).zip(made) {
            match (removed, made) {
                (Ok(true), Some(made)) => changes.push(FileChange::Archived(row_of(file), made.place)),
                (Ok(true), None) => changes.push(FileChange::Expired(file.path.clone())),
                (Ok(false), made) => left.extend(made.map(|made| (file.path.clone(), made))),
                // It may be gone all the same: then its copy is all that there is.
                (Err(_), _) => {}
            }
        }
        self.take_back(left).await;
        changing.retired(changes).await?;
        changing.end_at(now).await?;
        Ok(Retirement::Done(removed))
    }

    /// Why nothing of the user goes, if nothing does.
    async fn stays(&self, used: Option<Timestamp>) -> Result<Option<Retirement>, StorageError> {
        if let Some(hold) = self.storage.store.hold_on(&self.owner).await? {
            return Ok(Some(Retirement::Held(hold)));
        }
        // Who is being erased keeps nothing that could be archived.
        let stays = self.storage.store.is_being_erased(&self.owner).await?
            || self.storage.store.uses_files(&self.owner, used).await?;
        Ok(stays.then_some(Retirement::InUse))
    }

    /// Removes files from the archive that have lain there since before `before`.
    ///
    /// # Errors
    /// [`StorageError`] if nothing could be done.
    pub(crate) fn expire_archived<'a>(
        &'a self,
        by: &'a Writer,
        files: &'a [ArchivedFile],
        before: Timestamp,
    ) -> BoxFuture<'a, Result<Retirement, StorageError>> {
        Box::pin(self.expire_now(by, files, before))
    }

    async fn expire_now(
        &self,
        by: &Writer,
        files: &[ArchivedFile],
        before: Timestamp,
    ) -> Result<Retirement, StorageError> {
        let mut changing = self.changing_user(by, []).await?;
        if let Some(hold) = self.storage.store.hold_on(&self.owner).await? {
            return Ok(Retirement::Held(hold));
        }
        // Another run may have been here since: what lies there now may have come today.
        let paths: Vec<_> = files.iter().map(|file| file.path.clone()).collect();
        let since = self.storage.store.archived_among(&self.owner, &paths).await?;
        let is_due =
            |file: &ArchivedFile| since.get(&(file.path.clone(), file.place)).is_some_and(|at| *at < before);
        let owned: Vec<_> = files.iter().map(|file| (file.clone(), is_due(file))).collect();
        let removals = owned.into_iter().map(|(file, is_due)| async move {
            if !is_due {
                return Ok(false);
            }
            let key = self.prefix.archived(&file.path, file.place);
            let removed = self.storage.objects.remove(&key, &Condition::Anything).await;
            removed.map(|_was_there| true).map_err(|fault| fault.of(&file.path))
        });
        let removed: Vec<_> = stream::iter(removals).buffered(AT_ONCE).collect().await;
        let gone = files.iter().zip(&removed).filter(|(_, removed)| matches!(removed, Ok(true)));
        changing
            .noted(gone.map(|(file, _)| FileChange::ArchiveExpired(file.path.clone(), file.place)).collect());
        changing.end().await?;
        Ok(Retirement::Done(removed))
    }

    /// Holds the user: what retention is doing to their files has ended before, and it does no more.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn hold(&self, hold: &HoldRow, audit: &AuditEntry) -> Result<SetHold, StorageError> {
        let user = self.prefix.of_user();
        // Beside who writes, and not beside retention.
        let _locks = self.storage.locks.hold((&user, Share::Together), []).await;
        let held = self.storage.store.hold_files((user.as_str(), Share::Together), &[]).await?;
        Ok(self.storage.store.set_hold(held, hold, audit).await?)
    }

    /// Begins to erase the user, unless they are held or have live sandboxes. Whatever changes their
    /// files has ended then, and nothing does until the erasure has.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn begin_erasure(&self, now: Timestamp) -> Result<BegunErasure, StorageError> {
        let user = self.prefix.of_user();
        let _locks = self.storage.locks.hold((&user, Share::Alone), []).await;
        let held = self.storage.store.hold_files((user.as_str(), Share::Alone), &[]).await?;
        Ok(self.storage.store.begin_erasure(held, &self.owner, now).await?)
    }

    async fn copied(&self, file: DueFile) -> Result<Copy, StorageError> {
        Ok(self.copy_to_archive(&file).await?.map_or(Copy::OtherVersion, Copy::Made))
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
            Copy::Made(Copied { place, version, .. }) => {
                let key = self.prefix.archived(path, place);
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
    Made(Copied),
}

impl Copy {
    const fn made(&self) -> Option<&Copied> {
        match self {
            Self::Made(copied) => Some(copied),
            Self::NotWanted | Self::OtherVersion => None,
        }
    }
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
