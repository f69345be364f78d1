// SPDX-License-Identifier: Apache-2.0
//! Places of which nobody takes all: each owner has its own share, and waits for itself alone when that is
//! used up.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Shares of owners. Clones are the same.
#[derive(Clone)]
pub(crate) struct Shares<Owner> {
    each: usize,
    taken: Arc<Mutex<HashMap<Owner, Arc<Semaphore>>>>,
}

/// A place of a share; dropped, it is free.
pub(crate) struct Share {
    _place: Option<OwnedSemaphorePermit>,
}

impl<Owner> fmt::Debug for Shares<Owner> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shares").field("each", &self.each).finish_non_exhaustive()
    }
}

impl<Owner: Clone + Eq + Hash> Shares<Owner> {
    /// So many places for each.
    pub(crate) fn new(each: usize) -> Self {
        Self { each, taken: Arc::default() }
    }

    /// Waits for a place of this owner's own.
    pub(crate) async fn take(&self, owner: &Owner) -> Share {
        let places = {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that hold or wait for a place have it too.
            taken.retain(|_, places| Arc::strong_count(places) > 1);
            let new = || Arc::new(Semaphore::new(self.each));
            Arc::clone(taken.entry(owner.clone()).or_insert_with(new))
        };
        // It is never closed.
        Share { _place: places.acquire_owned().await.ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn an_owner_waits_for_itself_alone_and_is_forgotten_when_it_has_none() {
        let shares = Shares::new(2);
        let (one, _two) = (shares.take(&"a").await, shares.take(&"a").await);
        let mut third = Box::pin(shares.take(&"a"));
        assert!((&mut third).now_or_never().is_none(), "its share is used up");
        assert!(shares.take(&"b").now_or_never().is_some(), "nobody else's is");
        drop(one);
        drop(third.now_or_never().expect("has a place now"));
        let _c = shares.take(&"c").await;
        let known = shares.taken.lock().expect("no panic").len();
        assert_eq!(known, 2, "`b` holds nothing any more");
    }
}
