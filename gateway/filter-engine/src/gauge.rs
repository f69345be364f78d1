// SPDX-License-Identifier: Apache-2.0
//! What keeps one tenant's filters from slowing another's: calls in flight are counted, and calls
//! that are under way for a while when a tick comes take turns, one at a time for each tenant. So do,
//! from their beginning, calls of a filter that failed lately (`suspicion`).

use crate::settings::TICK;
use postern_common::id::TenantId;
use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The pause before each turn, in which nobody of the tenant has it: a tenant whose filters all loop
/// gets at most a third of one core.
const PAUSE: std::time::Duration = TICK.saturating_mul(2);

/// The calls of one tenant.
#[derive(Debug)]
pub(crate) struct Gauge {
    in_flight: AtomicU32,
    /// Calls that wait for their first turn.
    waiting: AtomicU32,
    /// Of either.
    most: u32,
    lane: Arc<Semaphore>,
}

/// A place among the calls in flight; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Gauge>);

/// A place among the calls that wait; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<Gauge>);

/// A slow call's turn, if it has it.
#[derive(Debug, Default)]
pub(crate) struct Turn(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Gauge {
    fn new(most: u32) -> Self {
        let lane = Arc::new(Semaphore::new(1));
        Self { in_flight: AtomicU32::new(0), waiting: AtomicU32::new(0), most, lane }
    }

    /// A place, or nothing if all are taken.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Place> {
        self.has_counted(&self.in_flight).then(|| Place(Arc::clone(self)))
    }

    /// A place for a call that waits for its first turn, or nothing if as many wait as may run.
    pub(crate) fn wait(self: &Arc<Self>) -> Option<Waiting> {
        self.has_counted(&self.waiting).then(|| Waiting(Arc::clone(self)))
    }

    fn has_counted(&self, counter: &AtomicU32) -> bool {
        let one_more = |count: u32| (count < self.most).then(|| count.saturating_add(1));
        counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok()
    }

    /// Ends a slow call's turn; what comes back resolves when it has its next.
    pub(crate) fn next_turn(&self, turn: &Turn) -> impl Future<Output = ()> + Send + 'static {
        let (turn, lane) = (Arc::clone(&turn.0), Arc::clone(&self.lane));
        let set = move |permit| *turn.lock().unwrap_or_else(PoisonError::into_inner) = permit;
        set(None);
        async move {
            let permit = lane.acquire_owned().await.ok();
            tokio::time::sleep(PAUSE).await;
            set(permit);
        }
    }

    /// Calls in flight now.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Acquire)
    }
}

impl Place {
    /// Ends the call's turn; what comes back resolves when it has its next.
    pub(crate) fn next_turn(&self, turn: &Turn) -> impl Future<Output = ()> + Send + 'static {
        self.0.next_turn(turn)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The gauges of all tenants that have filters.
#[derive(Debug)]
pub(crate) struct Gauges {
    most: u32,
    by_tenant: Mutex<HashMap<TenantId, Weak<Gauge>>>,
}

impl Gauges {
    pub(crate) fn new(most: u32) -> Self {
        Self { most, by_tenant: Mutex::default() }
    }

    /// Calls in flight of all tenants.
    pub(crate) fn in_flight(&self) -> u32 {
        let by_tenant = self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner);
        by_tenant.values().filter_map(Weak::upgrade).map(|gauge| gauge.in_flight()).sum()
    }

    /// The one gauge of a tenant, which lives as long as any of its filters.
    pub(crate) fn of(&self, tenant: &TenantId) -> Arc<Gauge> {
        let mut by_tenant = self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gauge) = by_tenant.get(tenant).and_then(Weak::upgrade) {
            return gauge;
        }
        by_tenant.retain(|_, gauge| gauge.strong_count() > 0);
        let gauge = Arc::new(Gauge::new(self.most));
        by_tenant.insert(tenant.clone(), Arc::downgrade(&gauge));
        gauge
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::parse(name).expect("a name")
    }

    #[test]
    fn places_are_bounded_for_each_tenant_and_come_back() {
        let gauges = Gauges::new(2);
        let gauge = gauges.of(&tenant("a"));
        let first = gauge.enter().expect("a place");
        let _second = gauges.of(&tenant("a")).enter().expect("a place");
        assert!(gauge.enter().is_none());
        assert!(gauges.of(&tenant("b")).enter().is_some());
        drop(first);
        assert!(gauge.enter().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_calls_of_a_tenant_have_their_turn_one_at_a_time() {
        let gauge = Gauges::new(2).of(&tenant("a"));
        let (one, two) = (gauge.enter().expect("a place"), gauge.enter().expect("a place"));
        let (first, second) = (Turn::default(), Turn::default());
        one.next_turn(&first).await;
        let waits = two.next_turn(&second);
        tokio::pin!(waits);
        let a_while = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(a_while, &mut waits).await.is_err());
        drop(one.next_turn(&first));
        assert!(tokio::time::timeout(a_while, &mut waits).await.is_ok());
    }
}
