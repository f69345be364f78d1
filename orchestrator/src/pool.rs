// SPDX-License-Identifier: Apache-2.0
//! Sandboxes that are kept ready, for each template that asks for some.
//!
//! ```text
//!   making ──▶ ready ──claimed──▶ a row of `sandboxes`, for good
//!      │         │ not wanted, dead
//!      └─────────┴──▶ ending ──▶ gone
//! ```
//!
//! A warm sandbox is nobody's: it has no identity, no session, no files. Whoever needs one takes it
//! off its shelf and claims it with the transaction that writes their sandbox down, under the id that
//! it has already; then it is told who it is. INVARIANT: only what was made here comes onto a shelf,
//! and only from `making` or, after a restart, `ready`: what ever had an identity has no such row.
//!
//! What is given away is replaced at once, that is when who asked for it has it: until then the machine's
//! processors and the database are theirs.
//!
//! Each row is written before its effect, so that an end at any moment leaves nothing behind: the
//! next start shelves what is ready and ends the rest.

mod claim;
mod refill;

pub(crate) use claim::{Claim, Given};
pub(crate) use refill::Wants;

use crate::host::Host;
use crate::runtime::{Found, Running};
use crate::store::{Asked, Store, StoreError, WarmRow, WarmState};
use futures_util::future::join_all;
use postern_common::id::{SandboxId, TemplateName, TenantId};
use postern_common::tasks::{Stop, Tasks};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Templates that are told apart in metrics; beyond, they are counted as `other`.
const COUNTED_TEMPLATES: usize = 1000;

/// How often is looked whether all have ended.
const CLOSE_POLL: Duration = Duration::from_millis(20);

/// Which template of which tenant sandboxes are kept for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The tenant.
    pub(crate) tenant: TenantId,
    /// The template.
    pub(crate) template: TemplateName,
}

/// One that can be claimed.
#[derive(Debug, Clone)]
struct Ready {
    asked: Asked,
    running: Running,
}

/// How many are to be ready, and what they are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    asked: Asked,
    count: usize,
}

/// How a claim went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claimed {
    /// There was one.
    Hit,
    /// The shelf was empty, and a sandbox was made.
    Miss,
}

impl Claimed {
    /// The label in metrics.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
        }
    }
}

/// What is known of them now. Locked for a few lines only.
#[derive(Debug, Default)]
struct Shelves {
    ready: BTreeMap<Place, VecDeque<Ready>>,
    /// What is wanted, as of the last look.
    wanted: BTreeMap<Place, Wanted>,
    /// Being made, for each place.
    making: BTreeMap<Place, usize>,
    /// In somebody's hands: made, claimed or ended just now.
    busy: BTreeSet<SandboxId>,
    /// Being given to who asked for them, each since when: nothing is made in their place yet.
    given: BTreeMap<SandboxId, (Place, Instant)>,
    claims: BTreeMap<(String, Claimed), u64>,
    /// None are made any more.
    is_closed: bool,
}

/// All shelves. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    host: Arc<dyn Host>,
    tasks: Tasks,
    shelves: Mutex<Shelves>,
    /// Something was taken, made or ended.
    changed: Notify,
}

impl Pool {
    /// Nothing is made before [`Pool::watch`].
    #[must_use]
    pub(crate) fn new(store: Store, host: Arc<dyn Host>, tasks: Tasks) -> Self {
        let (shelves, changed) = (Mutex::default(), Notify::new());
        Self(Arc::new(Inner { store, host, tasks, shelves, changed }))
    }

    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.0.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a restart: shelves what is ready, ends the rest; `found` is what there is.
    pub(crate) fn reconcile(&self, rows: Vec<WarmRow>, found: &BTreeMap<SandboxId, Found>) {
        for row in rows {
            match (row.state, found.get(&row.id)) {
                (WarmState::Ready, Some(Found::Running(running))) => {
                    let place = Place { tenant: row.tenant, template: row.template };
                    self.shelve(place, Ready { asked: row.asked, running: running.clone() });
                }
                _ => self.end(row.id),
            }
        }
    }

    /// While sandboxes come and go: ends what is dead or does not answer, and what an error left half-way.
    ///
    /// INVARIANT: `rows` were read after `found`.
    pub(crate) fn compare(&self, rows: &[WarmRow], found: &[Found]) {
        for row in rows {
            // Whoever is given one that does not answer would wait for nothing.
            let is_no_use = found.iter().any(|it| {
                matches!(it, Found::Ended { .. } | Found::Silent { .. }) && *it.sandbox() == row.id
            });
            let is_stuck = row.state != WarmState::Ready;
            if (is_no_use || is_stuck) && self.take_off(&row.id) {
                self.end(row.id.clone());
            }
        }
    }

    /// Takes one off its shelf, wherever that is; `false` if it is in somebody's hands.
    fn take_off(&self, id: &SandboxId) -> bool {
        let mut shelves = self.shelves();
        if shelves.busy.contains(id) {
            return false;
        }
        for shelf in shelves.ready.values_mut() {
            shelf.retain(|ready| ready.running.sandbox != *id);
        }
        true
    }

    fn shelve(&self, place: Place, ready: Ready) {
        let mut shelves = self.shelves();
        if shelves.is_closed {
            drop(shelves);
            return self.end(ready.running.sandbox);
        }
        shelves.busy.remove(&ready.running.sandbox);
        shelves.ready.entry(place).or_default().push_back(ready);
        drop(shelves);
        self.0.changed.notify_one();
    }

    /// Ends one that is on no shelf, in a task of its own.
    fn end(&self, id: SandboxId) {
        self.shelves().busy.insert(id.clone());
        let pool = self.clone();
        self.0.tasks.spawn(async move |_finishes: Stop| pool.end_now(&id).await);
    }

    async fn end_now(&self, id: &SandboxId) {
        if let Err(error) = self.try_to_end(id).await {
            tracing::error!(sandbox = %id, error, "a warm sandbox was not ended; the next sweep tries again");
        }
        self.shelves().busy.remove(id);
        self.0.changed.notify_one();
    }

    async fn try_to_end(&self, id: &SandboxId) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Inner { store, host, .. } = &*self.0;
        // INVARIANT: what has no row here any more was claimed, and is left alone.
        if store.end_warm(id).await? {
            host.destroy(id).await?;
            store.forget_warm(id).await?;
        }
        Ok(())
    }

    /// Makes no more and ends all that there are, within `patience`; how many are left.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn close(&self, patience: Duration) -> Result<usize, StoreError> {
        let all: Vec<Ready> = {
            let mut shelves = self.shelves();
            shelves.is_closed = true;
            let all: Vec<Ready> = std::mem::take(&mut shelves.ready).into_values().flatten().collect();
            shelves.busy.extend(all.iter().map(|ready| ready.running.sandbox.clone()));
            all
        };
        let ended = join_all(all.iter().map(|ready| self.end_now(&ready.running.sandbox)));
        let all_gone = async {
            ended.await;
            while !self.shelves().busy.is_empty() {
                // Whoever fills shelves may have taken the notice.
                let _ = tokio::time::timeout(CLOSE_POLL, self.0.changed.notified()).await.is_ok();
            }
        };
        let _ = tokio::time::timeout(patience, all_gone).await.is_ok();
        Ok(self.0.store.warm_sandboxes().await?.len())
    }

    /// How many are ready, by template.
    #[must_use]
    pub(crate) fn available(&self) -> BTreeMap<String, usize> {
        let shelves = self.shelves();
        let mut available = BTreeMap::new();
        for place in shelves.wanted.keys().chain(shelves.ready.keys()) {
            available.entry(place.template.to_string()).or_insert(0);
        }
        for (place, shelf) in &shelves.ready {
            *available.entry(place.template.to_string()).or_insert(0) += shelf.len();
        }
        available
    }

    /// How claims went, by template.
    #[must_use]
    pub(crate) fn claims(&self) -> BTreeMap<(String, Claimed), u64> {
        self.shelves().claims.clone()
    }
}

impl Shelves {
    fn count(&mut self, template: &TemplateName, claimed: Claimed) {
        let mut key = (template.to_string(), claimed);
        if self.claims.len() >= COUNTED_TEMPLATES && !self.claims.contains_key(&key) {
            key.0 = "other".to_owned();
        }
        *self.claims.entry(key).or_default() += 1;
    }
}
