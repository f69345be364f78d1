// SPDX-License-Identifier: Apache-2.0
//! Lanes across orchestrators: whoever works on a sandbox has claimed it in the database.
//!
//! A turn is the lane of this process and, where others share the database, the claim. A claim is
//! kept while this process lives and passes on when it is silent; what it then still writes for the
//! sandbox is refused (`store::claims`). What others do to a sandbox is heard of, and ends what this
//! process has begun for nothing.

use super::lanes::Turn;
use super::{DriveError, Driver, Parts, log};
use crate::lifecycle::{State, Unfinished};
use crate::store::{CLAIM_SECONDS, Store, StoreError};
use postern_common::id::SandboxId;
use postern_common::tasks::{Stop, Tasks};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How soon a claim that another has is asked for again.
const CLAIM_AGAIN: Duration = Duration::from_millis(100);
/// How soon a claim that could not be released is released again.
const RELEASE_AGAIN: Duration = Duration::from_millis(500);
/// How often claims are kept: one that fails is followed by others in time.
const KEEP_EVERY: Duration = Duration::from_secs(CLAIM_SECONDS as u64 / 5);

/// A turn on a sandbox; ends when dropped.
#[derive(Debug)]
pub(super) struct Claimed {
    turn: Option<Turn>,
    shared: Option<(Store, Tasks, SandboxId)>,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let (Some((store, tasks, sandbox)), Some(turn)) = (self.shared.take(), self.turn.take()) else {
            return;
        };
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        tasks.spawn(async move |stop: Stop| {
            // INVARIANT: until it is done. What is not released is kept for as long as this process
            // lives, and nobody else could end the sandbox.
            while let Err(error) = store.release(&sandbox).await {
                log(&sandbox, &error.into(), "release its claim; tried again");
                if stop.run_until_cancelled(sleep(RELEASE_AGAIN)).await.is_none() {
                    break;
                }
            }
            // INVARIANT: last, so that the next turn here does not have its claim taken away.
            drop(turn);
        });
    }
}

impl Driver {
    /// Waits until nobody works on a sandbox, here or elsewhere; then it is ours.
    ///
    /// # Errors
    /// [`DriveError::Ending`] if this orchestrator ends meanwhile.
    pub(super) async fn turn(&self, sandbox: &SandboxId) -> Result<Claimed, DriveError> {
        let Parts { store, tasks, .. } = self.parts();
        let turn = self.0.lanes.turn(sandbox).await;
        if !store.has_others() {
            return Ok(Claimed { turn: Some(turn), shared: None });
        }
        let claimed = tasks.stop_token().run_until_cancelled_owned(claim(store.clone(), sandbox.clone()));
        claimed.await.ok_or(DriveError::Ending)?;
        Ok(Claimed { turn: Some(turn), shared: Some((store.clone(), tasks.clone(), sandbox.clone())) })
    }

    /// Fails if a sandbox is not ours any more.
    ///
    /// # Errors
    /// [`StoreError::TakenOver`].
    pub(super) async fn still_ours(&self, sandbox: &SandboxId) -> Result<(), StoreError> {
        match self.parts().store.has_claimed(sandbox).await? {
            true => Ok(()),
            false => Err(StoreError::TakenOver { sandbox: sandbox.clone() }),
        }
    }

    /// Keeps what is claimed until the tasks are stopped.
    pub(crate) fn begin_keeping_claims(&self) {
        let driver = self.clone();
        if self.parts().store.has_others() {
            self.parts().tasks.spawn(async move |stop: Stop| driver.keep_claims(stop).await);
        }
    }

    async fn keep_claims(self, stop: Stop) {
        let mut tick = interval(KEEP_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            if let Err(error) = self.parts().store.keep_claims().await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "claims were not kept; tried again"
                );
            }
        }
    }

    /// Looks at a sandbox that another orchestrator has changed: whoever waits for it here is told, a
    /// start of it is called off if it is to end, and what runs on this machine is ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn changed_elsewhere(&self, sandbox: &SandboxId) -> Result<(), StoreError> {
        let Some(row) = self.parts().store.sandbox(sandbox).await? else { return Ok(()) };
        // Nobody waiting is fine.
        let _ = self.0.changes.send(sandbox.clone()).is_ok();
        if row.state.is_over() {
            self.0.lanes.remove(sandbox);
        } else if row.state.outcome().is_some() {
            self.0.lanes.cancel_known(sandbox);
            // Whoever wrote it drives it, if they can.
            if !self.parts().host.is_shared()
                && row.place == self.parts().store.place()
                && let Unfinished::Effects(effects) = row.state.unfinished()
            {
                self.perform(row, effects);
            }
        }
        Ok(())
    }

    /// Whether what this place needs is done by us: by whoever is alone there, or has the lease.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn watches(&self) -> Result<bool, StoreError> {
        let Parts { store, host, .. } = self.parts();
        if !host.is_shared() {
            return Ok(true);
        }
        store.lease(&format!("watch/{}", store.place()), CLAIM_SECONDS).await
    }

    /// A token that is due, unless whoever had the turn before has replaced it.
    ///
    /// # Errors
    /// [`DriveError`].
    pub(super) async fn replace_if_due(&self, sandbox: &SandboxId) -> Result<(), DriveError> {
        let _turn = self.turn(sandbox).await?;
        match self.sandbox(sandbox).await?.state {
            State::Running => self.replace_what_is_due(sandbox).await,
            _ => Ok(()),
        }
    }
}

/// Until the sandbox is claimed.
async fn claim(store: Store, sandbox: SandboxId) {
    loop {
        match store.claim(&sandbox).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => log(&sandbox, &error.into(), "claim it; tried again"),
        }
        sleep(CLAIM_AGAIN).await;
    }
}
