// SPDX-License-Identifier: Apache-2.0
//! One lane for each sandbox: whoever is in it is alone, and a start in it can be called off.

use postern_common::id::SandboxId;
use postern_common::tasks::Stop;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedMutexGuard;

/// A turn in a lane; ends when dropped.
pub(super) type Turn = OwnedMutexGuard<()>;

#[derive(Debug, Default)]
struct Lane {
    turn: Arc<tokio::sync::Mutex<()>>,
    start: Stop,
    failures: u32,
}

/// All lanes. They come into being when they are needed and go with their sandbox.
#[derive(Debug, Default)]
pub(super) struct Lanes(Mutex<HashMap<SandboxId, Lane>>);

impl Lanes {
    fn with<T>(&self, id: &SandboxId, look: impl FnOnce(&mut Lane) -> T) -> T {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        look(lanes.entry(id.clone()).or_default())
    }

    /// Counts a failed try to keep a sandbox's files; how many there were.
    pub(super) fn count_failure(&self, id: &SandboxId) -> u32 {
        self.with(id, |lane| {
            lane.failures = lane.failures.saturating_add(1);
            lane.failures
        })
    }

    /// Waits for a turn. The lock is held across the effects of one sandbox: that is its purpose.
    pub(super) async fn turn(&self, id: &SandboxId) -> Turn {
        self.with(id, |lane| Arc::clone(&lane.turn)).lock_owned().await
    }

    /// What a start must end on.
    pub(super) fn start(&self, id: &SandboxId) -> Stop {
        self.with(id, |lane| lane.start.clone())
    }

    /// Whether somebody is in the lane.
    pub(super) fn is_busy(&self, id: &SandboxId) -> bool {
        self.with(id, |lane| lane.turn.try_lock().is_err())
    }

    /// Calls off a start that is under way or to come.
    pub(super) fn cancel(&self, id: &SandboxId) {
        self.with(id, |lane| lane.start.cancel());
    }

    /// [`Lanes::cancel`], if there is such a lane.
    pub(super) fn cancel_known(&self, id: &SandboxId) {
        if let Some(lane) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            lane.start.cancel();
        }
    }

    /// Forgets the lane of a sandbox that is over: nothing is done to it any more.
    pub(super) fn remove(&self, id: &SandboxId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
