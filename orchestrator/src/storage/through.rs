// SPDX-License-Identifier: Apache-2.0
//! What syncs of a cluster ask for, out of the cache that its orchestrators share, and kept there when it
//! came from the store: no orchestrator sees a pod's files, but all of them pass through one.
//!
//! ```text
//! sync ──▶ UserFiles::open ──▶ the cache has this version's digest ──▶ read, compared
//!                    └───────▶ the store ──▶ told on ──▶ (beside) kept under its digest
//! ```
//!
//! INVARIANT: nothing waits longer for the cache than [`PATIENCE`], and nothing it does is an error: its
//! folder may be a mount whose server went away.

use super::cache::Cache;
use super::folder::content;
use super::path::{FilePath, UserPrefix};
use super::types::{Content, Digest, Version};
use super::user::{Open, UserFiles};
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use postern_common::clock;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_blocking;

/// A cache that answers later is slower than most stores.
const PATIENCE: Duration = Duration::from_secs(2);
/// One that did not answer is left alone for so long.
const REST_SECONDS: i64 = 30;
/// Files of it that are looked for or written at the same time, each by a thread: a mount that hangs holds
/// no more of them.
pub(super) const TURNS: usize = 32;
/// Files up to this long are compared before anything is told of them.
const WHOLE_BYTES: u64 = 1 << 20;
/// Parts of a file that wait to be kept; the reader waits for them no longer than [`PATIENCE`].
const PARTS: usize = 16;

/// A cache that is read through. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Through {
    cache: Cache,
    turns: Arc<Semaphore>,
    /// When it is asked again, in seconds since 1970.
    rests_until: Arc<AtomicI64>,
}

/// What the cache had.
enum Kept {
    Whole(Bytes),
    /// Compared while it is read.
    Long(File),
}

/// A file that is told on, and the way to whoever keeps it; `None`: it is not kept any more.
struct Telling {
    content: Content,
    keeper: Option<mpsc::Sender<Bytes>>,
    through: Through,
}

impl Through {
    pub(super) fn new(cache: Cache) -> Self {
        Self { cache, turns: Arc::new(Semaphore::new(TURNS)), rests_until: Arc::default() }
    }

    #[cfg(test)]
    pub(super) fn turns(&self) -> Arc<Semaphore> {
        Arc::clone(&self.turns)
    }

    /// A turn to use the cache, if it is well and has one.
    fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let rests = self.rests_until.load(Ordering::Relaxed) > clock::now().as_second();
        if rests { None } else { Arc::clone(&self.turns).try_acquire_owned().ok() }
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

    /// A file with this digest and size, if the cache has it.
    async fn get(&self, user: &UserPrefix, digest: Digest, size: u64) -> Option<Kept> {
        let turn = self.turn()?;
        let (cache, user) = (self.cache.clone(), user.clone());
        let look = spawn_blocking(move || {
            let found = kept(&cache, &user, &digest, size);
            drop(turn);
            found
        });
        match tokio::time::timeout(PATIENCE, look).await {
            Err(_late) => {
                self.rest();
                None
            }
            Ok(Ok(Ok(found))) => found,
            Ok(Ok(Err(error))) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "a file of the cache was not used");
                None
            }
            Ok(Err(_ended)) => None,
        }
    }
}

fn kept(cache: &Cache, user: &UserPrefix, digest: &Digest, size: u64) -> io::Result<Option<Kept>> {
    let Some(file) = cache.get(user, digest)? else { return Ok(None) };
    let has_size = file.metadata()?.len() == size;
    if has_size && size > WHOLE_BYTES {
        return Ok(Some(Kept::Long(file)));
    }
    if has_size {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        file.read_exact_at(&mut bytes, 0)?;
        if Digest::of(&bytes) == *digest {
            return Ok(Some(Kept::Whole(bytes.into())));
        }
    }
    cache.forget(user, digest)?;
    Ok(None)
}

impl UserFiles {
    /// A version of a file out of the cache, whole; `None`: it is the store's to give.
    pub(super) async fn open_kept(&self, path: &FilePath, version: &Version) -> Option<Open> {
        let through = self.storage.through.as_ref()?;
        let row = self.storage.store.file(&self.owner, path).await.ok()??;
        let digest = row.digest.filter(|_| row.version == *version)?;
        let content = match through.get(&self.prefix, digest, row.size).await? {
            Kept::Whole(bytes) => stream::iter([Ok(bytes)]).boxed(),
            Kept::Long(file) => self.compared(content(file, 0..row.size), digest),
        };
        Some(Open { size: row.size, digest: Some(digest), content })
    }

    /// The same content, which breaks at its end if it was not what it was kept as; then it is forgotten.
    fn compared(&self, content: Content, digest: Digest) -> Content {
        let begin = (content, Context::new(&SHA256), self.clone());
        stream::try_unfold(begin, move |(mut content, mut context, files)| async move {
            if let Some(bytes) = content.next().await.transpose()? {
                context.update(&bytes);
                return Ok(Some((bytes, (content, context, files))));
            }
            if Digest::finished(&context.finish()) == digest {
                return Ok(None);
            }
            files.forget_kept(digest).await;
            Err(io::Error::new(io::ErrorKind::InvalidData, "a file of the cache was damaged"))
        })
        .boxed()
    }

    async fn forget_kept(&self, digest: Digest) {
        let Some(cache) = self.storage.cache.clone() else { return };
        let prefix = self.prefix.clone();
        let forgotten = spawn_blocking(move || cache.forget(&prefix, &digest)).await;
        if !matches!(forgotten, Ok(Ok(()))) {
            tracing::warn!("a damaged file stays in the cache of users' files");
        }
    }

    /// The same content, which is kept under its digest while it is told on.
    pub(super) fn keeping(
        &self,
        path: &FilePath,
        (digest, size): (Digest, u64),
        content: Content,
    ) -> Content {
        let Some(through) = self.storage.through.clone() else { return content };
        let Some(turn) = through.turn() else { return content };
        let (to, from) = mpsc::channel(PARTS);
        let (files, path, database) = (self.clone(), path.clone(), Handle::current());
        drop(spawn_blocking(move || {
            if let Err(error) = files.keep_all(&path, (digest, size), from, &database) {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "a file was not kept in the cache");
            }
            drop(turn);
        }));
        let begin = Telling { content, keeper: Some(to), through };
        stream::unfold(begin, |mut telling| async move {
            let part = telling.content.next().await?;
            match &part {
                Ok(bytes) => telling.keep(bytes).await,
                // Without its end it is no file.
                Err(_broken) => telling.keeper = None,
            }
            Some((part, telling))
        })
        .boxed()
    }

    /// Keeps a file as its parts come; a thread of its own runs this.
    fn keep_all(
        &self,
        path: &FilePath,
        (digest, size): (Digest, u64),
        mut from: mpsc::Receiver<Bytes>,
        database: &Handle,
    ) -> io::Result<()> {
        let Some(cache) = &self.storage.cache else { return Ok(()) };
        if !cache.put_parts(&self.prefix, &digest, size, || from.blocking_recv())? {
            return Ok(());
        }
        // Whoever was erased meanwhile may have been looked for before this came.
        if !database.block_on(self.is_still_there(path, &digest)) {
            cache.forget(&self.prefix, &digest)?;
        }
        cache.tidy(clock::now(), false).map(drop)
    }

    async fn is_still_there(&self, path: &FilePath, digest: &Digest) -> bool {
        let store = &self.storage.store;
        let is_going = store.is_going(&self.owner).await.unwrap_or(true);
        let row = store.file(&self.owner, path).await.ok().flatten();
        !is_going && row.is_some_and(|row| row.digest == Some(*digest))
    }
}

impl Telling {
    async fn keep(&mut self, bytes: &Bytes) {
        let Some(keeper) = &self.keeper else { return };
        match tokio::time::timeout(PATIENCE, keeper.send(bytes.clone())).await {
            Ok(Ok(())) => {}
            // It has the file already, or has no room for it.
            Ok(Err(_gone)) => self.keeper = None,
            Err(_late) => {
                self.through.rest();
                self.keeper = None;
            }
        }
    }
}
