// SPDX-License-Identifier: Apache-2.0
//! Users' files: objects in a store, which is the truth, and what the database knows besides.
//!
//! [`Storage`] is the whole of it, [`UserFiles`] one user's part: every call names what it changes,
//! on which condition and for whom, and is written to the log in the transaction that describes it.
//! Which service holds the objects is known to `objects.rs` and below, whose types stop here.
//!
//! ```text
//! UserFiles ──▶ Objects ──▶ Folder (openat2, rename under a lock)
//!     │             └─────▶ Cloud  (S3, Azure Blob, Google Cloud Storage)
//!     └───────▶ Store       (file_metadata, file_audit_log)
//! ```
//!
//! Whoever changes a file holds its lock, here and in the database, from the look at its condition
//! until the change is written down: two conversations, or two orchestrators, never both win.

mod archive;
mod beneath;
mod cache;
mod change;
mod cloud;
mod connect;
mod content;
mod drafts;
mod fill;
mod folder;
mod list;
mod locks;
mod manifest;
mod objects;
mod own;
mod path;
mod retire;
mod shares;
pub(crate) mod space;
mod through;
mod types;
mod uploads;
mod user;

pub(crate) use archive::ArchivePlace;
pub(crate) use cache::Cache;
pub use connect::ConnectError;
pub(crate) use connect::StorageSettings;
pub(crate) use content::LARGEST_FILE;
pub(crate) use fill::Slot;
pub(crate) use path::FilePath;
pub(crate) use retire::Retirement;
pub(crate) use shares::{Share, Shares};
pub(crate) use types::{
    Condition, Content, Digest, Edit, FileEntry, Listing, NewFile, Quota, Reading, SmallFile, StorageError,
    Usage, Version, Writer,
};
pub(crate) use uploads::{PART_BYTES, UNDER_WAY};
pub(crate) use user::{Open, UserFiles};

use crate::store::{FileOwner, Store};
use jiff::Timestamp;
use locks::Locks;
use objects::Objects;
use path::UserPrefix;
use postern_common::id::{TenantId, UserId};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;
use through::Through;
use tokio::sync::Semaphore;

/// All users' files. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Storage {
    objects: Objects,
    store: Store,
    locks: Locks,
    /// Contents that come in at the same time: each is held until it is whole, up to a part's size.
    incoming: Arc<Semaphore>,
    /// What one tenant may take of these, and of the places for large files.
    turns: Turns,
    quota: Quota,
    /// When parts that no upload has any more were looked for last, in seconds since 1970.
    strays_dropped: Arc<AtomicI64>,
    /// What this machine has of files that lie elsewhere; `None`: everything comes from the store.
    cache: Option<Cache>,
    /// The same, where whatever syncs ask for goes through it.
    through: Option<Through>,
}

/// How long a cache may take to erase somebody's files, and to be looked through: its folder may be a mount
/// that hangs.
const ERASE_TIME: Duration = Duration::from_secs(120);
const TIDY_TIME: Duration = Duration::from_secs(300);

/// Half a GiB of them, at most.
const INCOMING: usize = 64;

/// A tenant's share of the places that all have together: half, so that whoever comes next waits for a few
/// of another's files and not for all that it has.
#[derive(Debug, Clone)]
struct Turns {
    incoming: Shares<TenantId>,
    large: Shares<TenantId>,
}

impl Storage {
    /// The files that this store of objects and this database hold.
    pub(crate) fn new(objects: StorageObjects, store: Store, quota: Quota) -> Self {
        Self {
            objects: objects.0,
            store,
            locks: Locks::new(),
            incoming: Arc::new(Semaphore::new(INCOMING)),
            turns: Turns { incoming: Shares::new(INCOMING / 2), large: Shares::new(cloud::LARGE / 2) },
            quota,
            strays_dropped: Arc::default(),
            cache: None,
            through: None,
        }
    }

    /// The same, with a cache on this machine.
    #[must_use]
    pub(crate) fn with_cache(self, cache: Option<Cache>) -> Self {
        Self { cache, ..self }
    }

    /// The same, where what syncs ask for comes through the cache: their sandboxes are on other machines.
    /// A store that is a folder is at hand itself.
    #[must_use]
    pub(crate) fn read_through(self) -> Self {
        let through = self.cache.clone().filter(|_| self.is_in_a_bucket()).map(Through::new);
        Self { through, ..self }
    }

    /// One user's files.
    pub(crate) fn of(&self, tenant: &TenantId, user: &UserId) -> UserFiles {
        let prefix = UserPrefix::of(tenant, user);
        let owner = FileOwner { tenant: tenant.clone(), user: user.clone() };
        UserFiles::new(self.clone(), Arc::new(owner), prefix)
    }

    /// Whether objects lie in a bucket, which may keep old versions of them by rules of its own.
    pub(crate) const fn is_in_a_bucket(&self) -> bool {
        matches!(self.objects, Objects::Cloud(_))
    }

    /// Erases a user's files, of whatever kind, and what of uploads is there; returns
    /// how many objects that were. May be repeated.
    ///
    /// # Errors
    /// [`StorageError`]; some of them may be gone then.
    pub(crate) async fn erase_user(&self, owner: &FileOwner) -> Result<u64, StorageError> {
        for upload in self.store.uploads_of(owner).await? {
            self.drop_parts(&upload).await?;
        }
        let prefix = UserPrefix::of(&owner.tenant, &owner.user);
        let erased = self.objects.erase_user(&prefix).await?;
        // Last: its folder may be a mount whose server is away, and the store is the truth.
        self.with_cached("erase files of the cache", ERASE_TIME, move |cache| cache.erase_user(&prefix))
            .await?;
        Ok(erased)
    }

    /// Erases the files of every user of a tenant. May be repeated.
    ///
    /// # Errors
    /// [`StorageError`]; some of them may be gone then.
    pub(crate) async fn erase_tenant(&self, tenant: &TenantId) -> Result<u64, StorageError> {
        let (name, erased) = (tenant.clone(), self.objects.erase_tenant(tenant).await?);
        self.with_cached("erase files of the cache", ERASE_TIME, move |cache| cache.erase_tenant(&name))
            .await?;
        Ok(erased)
    }

    async fn with_cached(
        &self,
        what: &'static str,
        time: Duration,
        work: impl FnOnce(Cache) -> io::Result<()> + Send + 'static,
    ) -> Result<(), StorageError> {
        let Some(cache) = self.cache.clone() else { return Ok(()) };
        let done = tokio::time::timeout(time, tokio::task::spawn_blocking(move || work(cache))).await;
        let done = done.map_err(|_late| io::Error::from(io::ErrorKind::TimedOut));
        let done = done.and_then(|done| done.map_err(io::Error::other)).and_then(|done| done);
        done.map_err(|source| StorageError::Store { what, source: source.into() })
    }

    /// A place of this tenant's share of those for large objects; `None` where there is no need of any.
    async fn large_turn(&self, tenant: &TenantId) -> Option<Share> {
        match &self.objects {
            Objects::Cloud(_) => Some(self.turns.large.take(tenant).await),
            Objects::Folder(_) => None,
        }
    }

    /// Removes from a store that is a folder what those that died left of files half written.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn tidy(&self, now: Timestamp) -> Result<(), StorageError> {
        Ok(self.objects.tidy(now).await?)
    }

    /// Removes from the cache what nobody used for long, and what is too much.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn tidy_cache(&self, now: Timestamp) -> Result<(), StorageError> {
        self.with_cached("tidy the cache", TIDY_TIME, move |cache| cache.tidy(now, true).map(drop)).await
    }
}

/// A store of objects that was connected to.
#[derive(Debug, Clone)]
pub(crate) struct StorageObjects(Objects);

#[cfg(test)]
mod tests;
