// SPDX-License-Identifier: Apache-2.0
//! Pausing and resuming: a sandbox's processes stand still, with all their memory.
//!
//! The state is written first. What an end in between leaves, a sandbox that stands still and is
//! written down as running or the other way round, is set right at the next start or sweep.

use super::{Cause, DriveError, Driver, HAND_OVER_AGAIN, Parts, entry, log, signed};
use crate::lifecycle::{self, Event, State};
use crate::runtime::Isolation;
use crate::store::{Action, SandboxRow, Transition};
use postern_common::clock;
use postern_common::id::SandboxId;
use postern_common::tasks::Stop;
use tokio::sync::oneshot;

impl Driver {
    /// Pauses a sandbox, or resumes it, and returns it when it is so. Asking again changes nothing.
    /// A caller who leaves interrupts nothing of that.
    ///
    /// # Errors
    /// [`DriveError::Refused`] if its state does not allow it, [`DriveError::Runtime`] if the
    /// machine does not; then it is what it was.
    pub(crate) async fn freeze(
        &self,
        id: &SandboxId,
        event: Event,
        cause: Cause,
    ) -> Result<SandboxRow, DriveError> {
        let (told, answer) = oneshot::channel();
        let (driver, of) = (self.clone(), id.clone());
        self.parts().tasks.spawn(async move |_finishes: Stop| {
            let frozen = match driver.turn(&of).await {
                Ok(_turn) => driver.freeze_in_turn(&of, event, &cause).await,
                Err(error) => Err(error),
            };
            // Nobody may be waiting any more.
            let _ = told.send(frozen).is_ok();
        });
        answer.await.unwrap_or_else(|_stopped| Err(DriveError::Silent(id.clone())))
    }

    async fn freeze_in_turn(
        &self,
        id: &SandboxId,
        event: Event,
        cause: &Cause,
    ) -> Result<SandboxRow, DriveError> {
        let (before, to) = self.write_state(id, event, cause).await?;
        if let Err(error) = self.match_in_turn(id).await {
            if before == State::Running && to == State::Paused {
                log(id, &error, "pause it");
                self.write_state(id, Event::Resume, &Cause::own("")).await?;
            }
            return Err(error);
        }
        if to == State::Running {
            self.replace_what_is_due(id).await?;
        }
        self.sandbox(id).await
    }

    /// Writes down what an event leads to, and does nothing of it: the state before, and the one now.
    pub(super) async fn write_state(
        &self,
        id: &SandboxId,
        event: Event,
        cause: &Cause,
    ) -> Result<(State, State), DriveError> {
        loop {
            let row = self.here(id).await?;
            if row.state.is_over() {
                self.0.lanes.remove(id);
            }
            let (to, _effects) = lifecycle::next(row.state, event)?;
            if to == row.state {
                return Ok((to, to));
            }
            let mut entry = entry(&row.new, Action::SandboxChanged, cause);
            entry.change = Some((row.state.as_str(), to.as_str()));
            let transition =
                Transition { from: row.state, to, reason: None, running: None, is_claimed: true };
            if self.parts().store.move_sandbox(id, &transition, &entry).await? {
                tracing::info!(sandbox = %id, from = %row.state, %to, "sandbox changed");
                let _ = self.0.changes.send(id.clone()).is_ok();
                return Ok((row.state, to));
            }
        }
    }

    /// Makes it stand still, or go on, as is written. The caller is in its lane, so that what is
    /// written stays while this is done, but for its end.
    pub(super) async fn match_in_turn(&self, id: &SandboxId) -> Result<(), DriveError> {
        let Parts { host, sessions, .. } = self.parts();
        let row = self.sandbox(id).await?;
        match row.state {
            State::Paused => {
                if host.is_sync_beside(id) {
                    // Its pod goes, and what is in it too.
                    self.try_to_keep(&row).await?;
                }
                if host.peer(id).is_some() {
                    // Its pod goes, and another may get its address.
                    sessions.bind(&row, host.door(id)?, level(&row)).await?;
                }
                Ok(host.pause(id).await?)
            }
            State::Running => {
                host.resume(id).await?;
                self.introduce_again(&row).await
            }
            _ => Ok(()),
        }
    }

    /// What came back in another pod knows nothing: it gets its place at the gateways, a token and
    /// its identity, as at its start. What stood still and goes on has all that.
    async fn introduce_again(&self, row: &SandboxRow) -> Result<(), DriveError> {
        let Parts { host, sessions, store, .. } = self.parts();
        let id = &row.new.id;
        let Some(peer) = host.peer(id) else { return Ok(()) };
        if store.session(id).await?.is_none_or(|session| session.peer == peer) {
            return Ok(());
        }
        let soon = clock::now().saturating_add(signed(HAND_OVER_AGAIN)).unwrap_or(row.new.expires_at);
        let replaced = sessions.refresh(row, level(row), clock::now(), soon).await?;
        self.bring_files(row).await?;
        self.introduce(row, replaced.token, None).await?;
        // Last: until then nobody is bound to it, and after an interruption all this begins again.
        sessions.bind(row, peer, level(row)).await?;
        self.follow_files(row);
        Ok(store.rotate_session_at(id, replaced.rotate_at).await?)
    }

    /// [`Driver::match_in_turn`] in a task of its own, where the machine says otherwise.
    pub(super) fn match_frozen(&self, id: &SandboxId) {
        let (driver, id) = (self.clone(), id.clone());
        self.parts().tasks.spawn(async move |_finishes: Stop| {
            let Ok(_turn) = driver.turn(&id).await else { return };
            if let Err(error) = driver.match_in_turn(&id).await {
                log(&id, &error, "have it stand still or go on as is written");
            }
        });
    }

    /// A token whose time came while nobody could take it.
    pub(super) async fn replace_what_is_due(&self, id: &SandboxId) -> Result<(), DriveError> {
        let Some(session) = self.parts().store.session(id).await? else { return Ok(()) };
        let is_moved = session.expires_at != self.sandbox(id).await?.new.expires_at;
        if (session.rotate_at <= clock::now() || is_moved)
            && let Err(error) = self.replace_in_turn(id, Cause::own("")).await
        {
            // It goes on; its token is tried again soon.
            log(id, &error, "hand over the token that was due");
        }
        Ok(())
    }
}

/// The isolation that a sandbox turned out to have.
pub(super) fn level(row: &SandboxRow) -> Isolation {
    row.running.as_ref().map_or(Isolation::Namespaces, |running| running.isolation)
}
