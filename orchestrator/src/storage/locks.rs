// SPDX-License-Identifier: Apache-2.0
//! Who changes which file now, within this process.
//!
//! Between processes the database holds them apart ([`crate::store::Store::hold_files`]); locks
//! here come first, so that waiting takes no connection.

use super::path::Key;
use crate::store::Share;
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, MutexGuard, PoisonError};
use tokio::sync::{
    Mutex, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, OwnedSemaphorePermit, RwLock,
    Semaphore,
};

/// Users that share a lock wait for each other, if one of them needs all of it alone: seldom.
const USERS: u64 = 1024;

/// Changes at the same time. On Postgres each holds a connection and now and then asks for a second:
/// fewer than there are, so that one is always left.
const CHANGES: usize = 12;
/// Files of all changes together: on Postgres each is a lock of its own, and the table of locks, by default of
/// some 6,400, is shared by all orchestrators.
const FILES: usize = 512;

/// Locks of files. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Locks {
    users: Arc<[Arc<RwLock<()>>]>,
    files: Files,
    changes: Arc<Semaphore>,
    room: Arc<Semaphore>,
    /// The most that one change has held.
    #[cfg(test)]
    pub(super) most: Arc<std::sync::atomic::AtomicUsize>,
}

/// Files that are being changed or waited for, each with a lock of its own: a change is of up to 128, so that
/// any two would meet in a table that many files share.
#[derive(Debug, Clone, Default)]
struct Files(Arc<std::sync::Mutex<HashMap<u64, Arc<Mutex<()>>>>>);

/// A file's lock, held or waited for; it is forgotten with the last.
struct File {
    number: u64,
    lock: Option<Arc<Mutex<()>>>,
    guard: Option<OwnedMutexGuard<()>>,
    files: Files,
}

/// A user's lock.
enum User {
    Together(#[expect(dead_code, reason = "held")] OwnedRwLockReadGuard<()>),
    Alone(#[expect(dead_code, reason = "held")] OwnedRwLockWriteGuard<()>),
}

/// Nobody else changes the files while this lives.
pub(super) struct Held {
    _user: Option<User>,
    _files: Vec<File>,
    _place: Option<OwnedSemaphorePermit>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Locks {
    pub(super) fn new() -> Self {
        Self {
            users: (0..USERS).map(|_| Arc::default()).collect(),
            files: Files::default(),
            changes: Arc::new(Semaphore::new(CHANGES)),
            room: Arc::new(Semaphore::new(FILES)),
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
        let place = usize::try_from(number(user) % USERS).unwrap_or(0);
        let user = match (self.users.get(place).cloned(), share) {
            (Some(lock), Share::Together) => Some(User::Together(lock.read_owned().await)),
            (Some(lock), Share::Alone) => Some(User::Alone(lock.write_owned().await)),
            // A place is less than there are.
            (None, _) => None,
        };
        let numbers: BTreeSet<u64> = keys.into_iter().map(number).collect();
        #[cfg(test)]
        self.most.fetch_max(numbers.len(), std::sync::atomic::Ordering::Relaxed);
        let wanted = u32::try_from(numbers.len().min(FILES)).unwrap_or(u32::MAX);
        let mut files = self.files.named(numbers);
        for file in &mut files {
            file.hold().await;
        }
        // INVARIANT: last, so that who has them waits for nobody's file. They are never closed.
        let room = Arc::clone(&self.room).acquire_many_owned(wanted).await.ok();
        let place = Arc::clone(&self.changes).acquire_owned().await.ok();
        Held { _user: user, _files: files, _place: place, _room: room }
    }

    /// Waits until nobody else changes one file that no change names: whoever has it waits for nothing more.
    pub(super) async fn hold_one(&self, key: &Key) -> impl Drop + use<> {
        let mut file = self.files.one(number(key));
        file.hold().await;
        file
    }
}

impl Files {
    fn table(&self) -> MutexGuard<'_, HashMap<u64, Arc<Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The locks of files, none of which is held by that; in the order of their numbers.
    fn named(&self, numbers: BTreeSet<u64>) -> Vec<File> {
        numbers.into_iter().map(|number| self.one(number)).collect()
    }

    fn one(&self, number: u64) -> File {
        let lock = Some(Arc::clone(self.table().entry(number).or_default()));
        File { number, lock, guard: None, files: self.clone() }
    }
}

impl File {
    async fn hold(&mut self) {
        if let Some(lock) = self.lock.take() {
            self.guard = Some(lock.lock_owned().await);
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.guard = None;
        self.lock = None;
        let mut table = self.files.table();
        // Whoever else has or wants it took it from the table, which nobody does meanwhile.
        if table.get(&self.number).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            table.remove(&self.number);
        }
    }
}

/// Two files with the same number wait for each other, and that is all.
fn number(key: &Key) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::path::{FilePath, UserPrefix};
    use futures_util::FutureExt as _;
    use postern_common::id::{TenantId, UserId};

    fn keys(range: std::ops::Range<usize>) -> (Key, Vec<Key>) {
        let tenant = TenantId::parse("acme").expect("a tenant");
        let prefix = UserPrefix::of(&tenant, &UserId::parse("alice").expect("a user"));
        let key = |number| prefix.file(&FilePath::parse(&format!("f{number}")).expect("a path"));
        (prefix.of_user(), range.map(key).collect())
    }

    fn hold(locks: &Locks, range: std::ops::Range<usize>) -> impl Future<Output = Held> {
        let (locks, (user, keys)) = (locks.clone(), keys(range));
        async move { locks.hold((&user, Share::Together), &keys).await }
    }

    #[test]
    fn changes_of_different_files_wait_for_nothing() {
        let locks = Locks::new();
        let files = |change: usize| change * 128..(change + 1) * 128;
        let mut held: Vec<Held> =
            (0..4).map(|it| hold(&locks, files(it)).now_or_never().expect("waits for none")).collect();
        assert_eq!(locks.files.table().len(), FILES);
        let mut more = Box::pin(hold(&locks, 600..601));
        assert!((&mut more).now_or_never().is_none(), "so many files are held together");
        held.pop();
        held.push(more.now_or_never().expect("has room"));
        drop(held);
        assert!(locks.files.table().is_empty());
    }

    #[test]
    fn a_file_that_two_want_is_had_by_one_and_forgotten_after_both() {
        let locks = Locks::new();
        let first = hold(&locks, 0..3).now_or_never().expect("is free");
        let mut second = Box::pin(hold(&locks, 2..5));
        assert!((&mut second).now_or_never().is_none(), "the first has one of its files");
        let mut third = Box::pin(hold(&locks, 1..2));
        assert!((&mut third).now_or_never().is_none());
        // Who leaves while it waits leaves nothing behind.
        drop(third);
        drop(first);
        let second = second.now_or_never().expect("is free now");
        assert_eq!(locks.files.table().len(), 3, "those of the second alone");
        drop(second);
        assert!(locks.files.table().is_empty());
    }

    #[test]
    fn who_leaves_last_while_it_waits_forgets_the_files_too() {
        let locks = Locks::new();
        let first = hold(&locks, 0..1).now_or_never().expect("is free");
        let mut second = Box::pin(hold(&locks, 0..2));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        drop(second);
        assert!(locks.files.table().is_empty());
    }
}
