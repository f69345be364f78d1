// SPDX-License-Identifier: Apache-2.0
//! Who changes which file now, within this process.
//!
//! Between processes the database holds them apart ([`crate::store::Store::hold_files`]); locks
//! here come first, so that waiting takes no connection.

use super::path::Key;
use crate::store::Share;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use tokio::sync::{
    Mutex, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, OwnedSemaphorePermit, RwLock,
    Semaphore,
};

/// Files, or users, that share a lock wait for each other: more than are ever changed at once.
const LOCKS: usize = 1024;

/// Changes at the same time. On Postgres each holds a connection and now and then asks for a second:
/// fewer than there are, so that one is always left.
const CHANGES: usize = 12;

/// Locks of files. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Locks {
    users: Arc<[Arc<RwLock<()>>]>,
    locks: Arc<[Arc<Mutex<()>>]>,
    changes: Arc<Semaphore>,
    /// The most that one change has held.
    #[cfg(test)]
    pub(super) most: Arc<std::sync::atomic::AtomicUsize>,
}

/// A user's lock.
enum User {
    Together(#[expect(dead_code, reason = "held")] OwnedRwLockReadGuard<()>),
    Alone(#[expect(dead_code, reason = "held")] OwnedRwLockWriteGuard<()>),
}

/// Nobody else changes the files while this lives.
pub(super) struct Held {
    _user: Option<User>,
    _locks: Vec<OwnedMutexGuard<()>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Locks {
    pub(super) fn new() -> Self {
        let users = (0..LOCKS).map(|_| Arc::default()).collect();
        let locks = (0..LOCKS).map(|_| Arc::default()).collect();
        Self {
            users,
            locks,
            changes: Arc::new(Semaphore::new(CHANGES)),
            #[cfg(test)]
            most: Arc::default(),
        }
    }

    /// Waits until nobody else changes any of these, nor has all of the user alone. Two that want
    /// several never wait for each other: everybody takes the user first, of whom nobody has two at
    /// once, and then the files in the same order.
    pub(super) async fn hold(
        &self,
        (user, share): (&Key, Share),
        keys: impl IntoIterator<Item = &Key>,
    ) -> Held {
        let user = match (self.users.get(place(user)).cloned(), share) {
            (Some(lock), Share::Together) => Some(User::Together(lock.read_owned().await)),
            (Some(lock), Share::Alone) => Some(User::Alone(lock.write_owned().await)),
            // A place is less than there are.
            (None, _) => None,
        };
        let places: BTreeSet<usize> = keys.into_iter().map(place).collect();
        #[cfg(test)]
        self.most.fetch_max(places.len(), std::sync::atomic::Ordering::Relaxed);
        let mut held = Vec::with_capacity(places.len());
        for lock in places.into_iter().filter_map(|place| self.locks.get(place)) {
            held.push(Arc::clone(lock).lock_owned().await);
        }
        // It is never closed.
        let place = Arc::clone(&self.changes).acquire_owned().await.ok();
        Held { _user: user, _locks: held, _place: place }
    }
}

fn place(key: &Key) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let most = u64::try_from(LOCKS).unwrap_or(1);
    usize::try_from(hasher.finish() % most).unwrap_or(0)
}
