// SPDX-License-Identifier: Apache-2.0
//! Small files that syncs of a cluster ask for, out of the cache that its orchestrators may share, and kept
//! there when they came from the store: no orchestrator sees a pod's files, but all of them pass through one.
//!
//! ```text
//! sync ──▶ UserFiles::open ──▶ the cache has this version's digest ──▶ read, compared, told
//!                    └───────▶ the store ──▶ told ──▶ (beside) kept under its digest
//! ```
//!
//! It is the way to the store and back for each that makes many small files slow; a large one comes at the
//! store's pace, and would take many others' place.
//!
//! INVARIANT: nobody waits longer for the cache than [`PATIENCE`], and nothing that it does is an error: its
//! folder may be a mount whose server went away.

use super::cache::Cache;
use super::path::{FilePath, UserPrefix};
use super::types::{Content, Digest, Version};
use super::user::{Open, UserFiles};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt as _};
use postern_common::clock;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// A cache that answers later is slower than most stores.
const PATIENCE: Duration = Duration::from_secs(2);
/// One that did not answer is left alone for so long.
const REST_SECONDS: i64 = 30;
/// Threads that look for files of it, and that keep some: a mount that hangs holds no more of them.
pub(super) const LOOKS: usize = 32;
pub(super) const KEEPS: usize = 8;
/// The longest file of it. It is held whole while it is compared, or until it is kept.
pub(super) const LONGEST: u64 = 1 << 20;

/// A cache that is read through. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Through {
    cache: Cache,
    pub(super) looks: Arc<Semaphore>,
    pub(super) keeps: Arc<Semaphore>,
    /// When it is asked again, in seconds since 1970.
    rests_until: Arc<AtomicI64>,
}

impl Through {
    pub(super) fn new(cache: Cache) -> Self {
        let (looks, keeps) = (Arc::new(Semaphore::new(LOOKS)), Arc::new(Semaphore::new(KEEPS)));
        Self { cache, looks, keeps, rests_until: Arc::default() }
    }

    fn rests(&self) -> bool {
        self.rests_until.load(Ordering::Relaxed) > clock::now().as_second()
    }

    fn rest(&self) {
        let until = clock::now().as_second().saturating_add(REST_SECONDS);
        if self.rests_until.swap(until, Ordering::Relaxed) < until - REST_SECONDS {
            tracing::warn!(
                seconds = REST_SECONDS,
                "the cache of users' files does not answer; files come from the store meanwhile: look at its mount"
            );
        }
    }

    /// The bytes of this digest, if the cache has them and they are.
    async fn get(&self, user: &UserPrefix, digest: Digest, size: u64) -> Option<Bytes> {
        let (cache, user) = (self.cache.clone(), user.clone());
        let look = async {
            let turn = Arc::clone(&self.looks).acquire_owned().await.ok()?;
            let look = move || {
                let found = compared(&cache, &user, &digest, size);
                drop(turn);
                found
            };
            spawn_blocking(look).await.ok()
        };
        match tokio::time::timeout(PATIENCE, look).await {
            Err(_late) => {
                self.rest();
                None
            }
            Ok(found) => found?.unwrap_or_else(|error| {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "a file of the cache was not used");
                None
            }),
        }
    }
}

fn compared(cache: &Cache, user: &UserPrefix, digest: &Digest, size: u64) -> io::Result<Option<Bytes>> {
    let Some(file) = cache.get(user, digest)? else { return Ok(None) };
    if file.metadata()?.len() == size {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        file.read_exact_at(&mut bytes, 0)?;
        if Digest::of(&bytes) == *digest {
            return Ok(Some(bytes.into()));
        }
    }
    // It makes room for a good one.
    cache.forget(user, digest)?;
    Ok(None)
}

impl UserFiles {
    /// A version of a small file out of the cache; `None`: it is the store's to give.
    pub(super) async fn open_kept(&self, path: &FilePath, version: &Version) -> Option<Open> {
        let through = self.storage.through.as_ref().filter(|through| !through.rests())?;
        let row = self.storage.store.file(&self.owner, path).await.ok()??;
        let digest = row.digest.filter(|_| row.version == *version && row.size <= LONGEST)?;
        let bytes = match row.size {
            0 => Bytes::new(),
            size => through.get(&self.prefix, digest, size).await?,
        };
        let content = stream::iter([Ok(bytes)]).boxed();
        Some(Open { size: row.size, digest: Some(digest), content })
    }

    /// The same content; a small one is kept under its digest when all of it was told.
    pub(super) fn keeping(
        &self,
        path: &FilePath,
        (digest, size): (Digest, u64),
        content: Content,
    ) -> Content {
        if self.storage.through.is_none() || size > LONGEST {
            return content;
        }
        let (files, path) = (self.clone(), path.clone());
        let whole = BytesMut::with_capacity(usize::try_from(size).unwrap_or_default());
        let begin = (content, whole, Some((files, path)));
        stream::unfold(begin, move |(mut content, mut whole, mut keeper)| async move {
            let part = content.next().await?;
            if let Ok(bytes) = &part
                && keeper.is_some()
            {
                whole.extend_from_slice(bytes);
            }
            let is_all = u64::try_from(whole.len()).is_ok_and(|length| length >= size);
            if is_all && let Some((files, path)) = keeper.take() {
                files.keep_one(path, digest, std::mem::take(&mut whole).freeze());
            }
            Some((part, (content, whole, keeper)))
        })
        .boxed()
    }

    /// Keeps a file, on a thread of its own, unless there are too few of them.
    fn keep_one(self, path: FilePath, digest: Digest, bytes: Bytes) {
        let Some(through) = self.storage.through.clone().filter(|through| !through.rests()) else { return };
        let Ok(turn) = Arc::clone(&through.keeps).try_acquire_owned() else { return };
        let database = Handle::current();
        drop(spawn_blocking(move || {
            let kept = through.cache.put_bytes(&self.prefix, &digest, &bytes).and_then(|is_new| {
                // Whoever was erased meanwhile may have been looked for before this came.
                if is_new && !database.block_on(self.is_still_there(&path, &digest)) {
                    through.cache.forget(&self.prefix, &digest)?;
                }
                through.cache.tidy(clock::now(), false)
            });
            if let Err(error) = kept {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "a file was not kept in the cache");
            }
            drop(turn);
        }));
    }

    async fn is_still_there(&self, path: &FilePath, digest: &Digest) -> bool {
        let store = &self.storage.store;
        let is_going = store.is_going(&self.owner).await.unwrap_or(true);
        let row = store.file(&self.owner, path).await.ok().flatten();
        !is_going && row.is_some_and(|row| row.digest == Some(*digest))
    }
}
