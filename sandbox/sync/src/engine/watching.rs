// SPDX-License-Identifier: Apache-2.0
//! The time between hydration and flush: waits for events, for the store and for its own scans, and
//! carries what they tell of.

use super::{Engine, FIRST_WAIT, LONGEST_WAIT, Order, SyncError};
use crate::client::Client;
use crate::watch::{Dirty, Watch};
use postern_common::files::Changes;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::DropGuard;

/// Quiet for so long, a change is over.
const QUIET: Duration = Duration::from_millis(60);
/// A change that goes on is carried after so long.
pub(super) const LONGEST_QUIET: Duration = Duration::from_millis(300);
/// A whole scan costs at most one part in so many of the time.
const SCAN_PARTS: u32 = 1000;
const SHORTEST_SCAN: Duration = Duration::from_secs(5);
const LONGEST_SCAN: Duration = Duration::from_secs(120);
/// The store is listed once in so long at most, and takes at most one part in so many of the time: each
/// list has everything, at both ends.
const BETWEEN_PULLS: Duration = Duration::from_millis(500);
const LIST_PARTS: u32 = 20;
const LONGEST_BETWEEN_PULLS: Duration = Duration::from_secs(60);
/// How long a question for changes may wait at the other end.
const CHANGES_MILLIS: u64 = 25_000;

/// What is to be done, and when.
struct Agenda {
    dirty: Dirty,
    /// When the first of what is dirty became so.
    first: Instant,
    push_at: Option<Instant>,
    pull_at: Option<Instant>,
    scan_at: Instant,
    pulled: Instant,
    /// How long after that the store may be listed again.
    between_pulls: Duration,
    /// The pause after a call failed.
    wait: Duration,
}

/// What there is to do now.
enum Due {
    Ordered(Option<Order>),
    Noted,
    Push,
    Pull,
}

impl Agenda {
    /// Everything is looked at first.
    fn new() -> Self {
        let now = Instant::now();
        Self {
            dirty: everything(),
            first: now,
            push_at: Some(now),
            pull_at: None,
            scan_at: now + LONGEST_SCAN,
            pulled: now,
            between_pulls: BETWEEN_PULLS,
            wait: FIRST_WAIT,
        }
    }

    /// Something changed: more may follow, but not for long.
    fn note(&mut self, more: Dirty) {
        let now = Instant::now();
        if self.dirty.is_empty() {
            self.first = now;
        }
        self.dirty.add(more);
        // While calls fail, their pause counts.
        let is_failing = self.wait > FIRST_WAIT && self.push_at.is_some();
        if !is_failing {
            self.push_at = Some((now + QUIET).min(self.first + LONGEST_QUIET));
        }
    }

    fn failed(&mut self) -> Instant {
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        Instant::now() + self.wait
    }

    /// Waits until there is something to do.
    async fn next(
        &mut self,
        orders: &mut mpsc::Receiver<Order>,
        watch: &mut Watch,
        store: &mut mpsc::Receiver<i64>,
    ) -> Result<Due, SyncError> {
        let far = self.scan_at + LONGEST_SCAN;
        tokio::select! {
            biased;
            order = orders.recv() => return Ok(Due::Ordered(order)),
            () = sleep_until(self.push_at.unwrap_or(far)), if self.push_at.is_some() => {
                self.push_at = None;
                return Ok(Due::Push);
            }
            () = sleep_until(self.pull_at.unwrap_or(far)), if self.pull_at.is_some() => {
                self.pull_at = None;
                return Ok(Due::Pull);
            }
            more = watch.changed() => self.note(more?),
            Some(_revision) = store.recv() => {
                self.pull_at = Some(Instant::now().max(self.pulled + self.between_pulls));
            }
            () = sleep_until(self.scan_at) => {
                self.note(everything());
                self.scan_at = Instant::now() + LONGEST_SCAN;
            }
        }
        Ok(Due::Noted)
    }
}

fn between_pulls(listing: Duration) -> Duration {
    listing.saturating_mul(LIST_PARTS).clamp(BETWEEN_PULLS, LONGEST_BETWEEN_PULLS)
}

fn everything() -> Dirty {
    Dirty { all: true, ..Dirty::default() }
}

impl Engine {
    /// Watches until an order comes; `None` if there is nobody any more who could give one.
    pub(crate) async fn watch(
        &mut self,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Result<Option<Order>, SyncError> {
        let mut watch = Watch::new()?;
        let mut agenda = Agenda::new();
        let (following, mut store) = follow(&self.client, self.revision);
        loop {
            match agenda.next(orders, &mut watch, &mut store).await? {
                Due::Ordered(order) => return Ok(order),
                Due::Noted => {}
                Due::Push => self.push_due(&mut agenda, &mut watch).await,
                Due::Pull => {
                    self.pull_due(&mut agenda, &mut watch).await;
                    following.known.send_replace(self.revision);
                }
            }
        }
    }

    async fn push_due(&mut self, agenda: &mut Agenda, watch: &mut Watch) {
        let (begun, dirty) = (Instant::now(), std::mem::take(&mut agenda.dirty));
        let is_whole = dirty.all;
        match self.carry_changes(watch, dirty, agenda.first).await {
            Ok(()) => {
                agenda.wait = FIRST_WAIT;
                // Nobody else's change tells of it. What the agent removed meanwhile, and nobody here knew
                // to be in the store, comes back.
                if std::mem::take(&mut self.is_doubtful) {
                    agenda.pull_at = Some(Instant::now());
                }
                agenda.push_at = self.next_try();
                if agenda.push_at.is_some() {
                    agenda.dirty = everything();
                    agenda.first = Instant::now();
                }
            }
            Err(_passing) => {
                agenda.dirty = everything();
                agenda.push_at = Some(agenda.failed());
            }
        }
        let fresh = std::mem::take(&mut self.fresh);
        if !fresh.is_empty() {
            agenda.note(Dirty { folders: fresh, all: false });
        }
        if is_whole {
            let pause = begun.elapsed().saturating_mul(SCAN_PARTS).clamp(SHORTEST_SCAN, LONGEST_SCAN);
            agenda.scan_at = Instant::now() + if watch.is_full() { SHORTEST_SCAN } else { pause };
        }
    }

    /// What changed here goes first: then nothing is pulled over it.
    async fn pull_due(&mut self, agenda: &mut Agenda, watch: &mut Watch) {
        let first = agenda.first;
        let pulled = match self.carry_changes(watch, everything(), first).await {
            Ok(()) => self.pull().await.map(drop).map_err(SyncError::from),
            Err(error) => Err(error),
        };
        agenda.pulled = Instant::now();
        agenda.between_pulls = between_pulls(self.listing);
        self.is_doubtful &= pulled.is_err();
        if pulled.is_err() {
            agenda.pull_at = Some(agenda.failed());
        }
        // Folders that came are to be watched, and names that were taken beside others carried.
        agenda.note(everything());
    }

    /// When what was put off may be tried.
    fn next_try(&self) -> Option<Instant> {
        let soon = (!self.again.is_empty()).then(|| Instant::now() + LONGEST_QUIET);
        let cooled = self.cooling.values().min().copied();
        soon.into_iter().chain(cooled).min()
    }
}

/// A question that is asked again and again until this is dropped.
struct Following {
    known: watch::Sender<i64>,
    _stop: DropGuard,
}

/// Asks the store for changes that others made; each answer waits until it is known what came of it.
fn follow(client: &Client, revision: i64) -> (Following, mpsc::Receiver<i64>) {
    let (to, changed) = mpsc::channel(1);
    let (known, knows) = watch::channel(revision);
    let (client, tasks) = (client.clone(), client.tasks().clone());
    let stop = tasks.stop_token().child_token();
    let following = Following { known, _stop: stop.clone().drop_guard() };
    tasks.spawn(async move |_all| {
        let _ = stop.run_until_cancelled(ask(client, to, knows)).await;
    });
    (following, changed)
}

async fn ask(client: Client, to: mpsc::Sender<i64>, mut knows: watch::Receiver<i64>) {
    let mut wait = FIRST_WAIT;
    let mut after = *knows.borrow_and_update();
    loop {
        match client.changes(Changes { after, wait_millis: CHANGES_MILLIS }).await {
            Ok(changed) => {
                wait = FIRST_WAIT;
                after = changed.revision;
                if !changed.by_others {
                    continue;
                }
                if to.send(after).await.is_err() || knows.changed().await.is_err() {
                    return;
                }
                after = *knows.borrow_and_update();
            }
            Err(_passing) => {
                sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_takes_long_is_asked_for_seldom() {
        for (took, pause) in [(0, 500), (25, 500), (100, 2000), (60_000, 60_000)] {
            assert_eq!(between_pulls(Duration::from_millis(took)), Duration::from_millis(pause));
        }
    }
}
