// SPDX-License-Identifier: Apache-2.0
//! A user's files: carried from the store into a sandbox's slot when it is made, and back when it
//! ends.
//!
//! The store is a local folder here, `tenants/{tenant}/users/{user}/files/`. Only regular files and
//! folders are carried; what else there is (links, devices, odd names, what is over the bounds) is
//! named in the [`Report`] and left. Each file appears whole or not at all.
//!
//! Two conversations of one user have two slots, and are kept one after the other: a file that a
//! sandbox did not touch is not written back, one that it deleted goes from the store only if the
//! store still has what it was given, and one that another conversation changed meanwhile stays
//! beside its own (`NAME.conflict-SANDBOX`).

mod carry;
mod copy;
mod manifest;
mod usage;

pub(crate) use carry::{Bounds, Report};

use crate::host::UserFolder;
use carry::{Carried, Way};
use manifest::Places;
use postern_common::id::{SandboxId, TenantId, UserId, percent_encoded};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedMutexGuard;
use usage::Usage;

/// Files could not be carried.
#[derive(Debug, thiserror::Error)]
#[error("could not {what} the files of sandbox `{sandbox}`")]
pub(crate) struct FilesError {
    what: &'static str,
    sandbox: SandboxId,
    source: io::Error,
}

/// A user has more files than a sandbox has room for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the user's files take {bytes} bytes in {entries} files and folders; the sandbox's disk has room \
     for {room_bytes} bytes in {room_entries}"
)]
pub(crate) struct TooMuch {
    bytes: u64,
    entries: u64,
    room_bytes: u64,
    room_entries: u64,
}

/// What became of the files of a sandbox that has ended.
#[derive(Debug)]
pub(crate) enum Kept {
    /// They are in the store, but for what the report names.
    Carried(Report),
    /// Files had been brought in, and there is nothing to keep them from.
    Lost,
}

/// Whose files are carried, and how much the sandbox's disk holds.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    /// The sandbox.
    pub(crate) sandbox: SandboxId,
    /// Its tenant.
    pub(crate) tenant: TenantId,
    /// Its user.
    pub(crate) user: UserId,
    /// The limit of its disk.
    pub(crate) disk_bytes: u64,
}

/// Where users' files are kept. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct UserFiles {
    root: PathBuf,
    bounds: Bounds,
    /// Who writes to a user's folder now.
    writing: Arc<Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>>,
}

impl UserFiles {
    /// Files under `root`, which is made when it is needed.
    #[must_use]
    pub(crate) fn new(root: PathBuf, bounds: Bounds) -> Self {
        Self { root, bounds, writing: Arc::default() }
    }

    /// The store's folder of one user.
    fn folder(&self, tenant: &TenantId, user: &UserId) -> PathBuf {
        let user = percent_encoded(user.as_str());
        self.root.join("tenants").join(tenant.as_str()).join("users").join(user).join("files")
    }

    /// What was carried into a sandbox, for the way back.
    fn manifest(&self, sandbox: &SandboxId) -> Places {
        Places::of(&self.root.join("hydrated"), sandbox)
    }

    /// Waits until nobody else writes to a user's folder.
    async fn alone(&self, folder: &Path) -> OwnedMutexGuard<()> {
        let lock = {
            let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            writing.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(writing.entry(folder.to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    /// Whether a sandbox's disk has room for its user's files; what is too much if not.
    ///
    /// # Errors
    /// [`FilesError`].
    pub(crate) async fn too_much(&self, owned: &Owned) -> Result<Option<TooMuch>, FilesError> {
        if owned.disk_bytes == 0 {
            // A template of a cluster that sets no limit.
            return Ok(None);
        }
        let (folder, room) = (self.folder(&owned.tenant, &owned.user), Usage::room_of(owned.disk_bytes));
        let count = move || {
            let Some(folder) = find_folder(&folder)? else { return Ok(None) };
            let Usage { bytes, entries } = Usage::of(&folder, false)?;
            let too_much = TooMuch { bytes, entries, room_bytes: room.bytes, room_entries: room.entries };
            Ok((!Usage { bytes, entries }.fits(room)).then_some(too_much))
        };
        blocking(&owned.sandbox, "count", count).await
    }

    /// Carries a user's files into the slot of a sandbox that nothing runs in yet.
    ///
    /// # Errors
    /// [`FilesError`]; the slot may then hold a part of them.
    pub(crate) async fn hydrate(&self, owned: &Owned, slot: UserFolder) -> Result<Report, FilesError> {
        let (from, manifest) = (self.folder(&owned.tenant, &owned.user), self.manifest(&owned.sandbox));
        let (bounds, sandbox) = (self.bounds, owned.sandbox.clone());
        let carry = move || {
            private_folder(&from)?;
            let to = open_folder(&slot.path)?;
            // The disk itself is the bound; `too_much` has told before if it cannot hold them.
            let carried = Carried::new(Way::In(slot.owner), &sandbox, &to, bounds, u64::MAX);
            let (report, given) = carried.carry(&open_folder(&from)?)?;
            manifest.write(&given)?;
            Ok(report)
        };
        blocking(&owned.sandbox, "bring in", carry).await
    }

    /// Carries the files of a sandbox whose processes have ended back to the store; `slot` is
    /// `None` if there is nothing of them. May be repeated.
    ///
    /// # Errors
    /// [`FilesError`] for the store's own trouble, never for what the guest did to its files; what
    /// was carried until then is in the store, whole.
    pub(crate) async fn keep(&self, owned: &Owned, slot: Option<UserFolder>) -> Result<Kept, FilesError> {
        let (folder, manifest) = (self.folder(&owned.tenant, &owned.user), self.manifest(&owned.sandbox));
        let alone = self.alone(&folder).await;
        let (bounds, owned) = (self.bounds, owned.clone());
        let sandbox = owned.sandbox.clone();
        let carry = move || {
            // Held until it is done, also if nobody waits for that any more.
            let _alone = alone;
            let is_torn = slot.as_ref().is_some_and(|slot| slot.is_torn);
            let Some(slot) = slot.map(|slot| find_folder(&slot.path)).transpose()?.flatten() else {
                // It ended before it had files, or was torn down before.
                let is_lost = manifest.is_owed();
                return Ok(if is_lost { Kept::Lost } else { Kept::Carried(Report::default()) });
            };
            private_folder(&folder)?;
            let store = open_folder(&folder)?;
            let used = Usage::of(&store, true)?.bytes;
            let bytes = bounds.bytes.saturating_sub(used).min(owned.disk_bytes);
            // Without a manifest nothing had been brought in, so there is nothing to compare with. Nor with
            // what a machine left that stopped: then nothing was deleted, and what differs goes beside.
            let given = if is_torn { manifest::Manifest::default() } else { manifest.read()? };
            let carried = Carried::new(Way::Out(&given), &owned.sandbox, &store, bounds, bytes);
            let (report, _) = carried.carry(&slot)?;
            manifest.note_kept()?;
            Ok(Kept::Carried(report))
        };
        blocking(&sandbox, "keep", carry).await
    }

    /// Notes that files were brought into a sandbox, so that it is known if they are lost.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn note_given(&self, sandbox: &SandboxId) -> io::Result<()> {
        self.manifest(sandbox).write(&manifest::Manifest::default())
    }

    /// Notes that a sandbox's files are in the store.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn note_kept(&self, sandbox: &SandboxId) -> io::Result<()> {
        self.manifest(sandbox).note_kept()
    }

    /// Whether a sandbox was given files that are not kept yet.
    pub(crate) fn is_owed(&self, sandbox: &SandboxId) -> bool {
        self.manifest(sandbox).is_owed()
    }

    /// Notes that a sandbox whose files were kept goes on, so that it is known if they are lost.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn note_owed(&self, sandbox: &SandboxId) -> io::Result<()> {
        self.manifest(sandbox).note_owed()
    }

    /// Forgets what had been carried into a sandbox that is gone.
    pub(crate) async fn forget(&self, sandbox: &SandboxId) {
        let manifest = self.manifest(sandbox);
        let _ = tokio::task::spawn_blocking(move || manifest.forget()).await.is_ok();
    }
}

async fn blocking<Answer: Send + 'static>(
    sandbox: &SandboxId,
    what: &'static str,
    carry: impl FnOnce() -> io::Result<Answer> + Send + 'static,
) -> Result<Answer, FilesError> {
    let carried =
        tokio::task::spawn_blocking(carry).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    carried.map_err(|source| FilesError { what, sandbox: sandbox.clone(), source })
}

fn private_folder(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// [`open_folder`], where it need not be there.
fn find_folder(path: &Path) -> io::Result<Option<OwnedFd>> {
    use io::ErrorKind::{NotADirectory, NotFound};
    match open_folder(path) {
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Opens a folder of ours; its last component must be no link.
fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests;
