// SPDX-License-Identifier: Apache-2.0
//! Replacing the token of a session, at the gateways and inside its sandbox.

use super::{AGENT_TIME, Cause, DriveError, Driver, HAND_OVER_AGAIN, entry, signed};
use crate::lifecycle::State;
use crate::runtime::{Isolation, RuntimeError};
use crate::sessions::SessionError;
use crate::store::{Action, SandboxRow};
use postern_common::clock;
use postern_common::id::SandboxId;
use postern_common::secret::Secret;
use postern_common::tasks::Stop;
use tokio::sync::oneshot;

impl Driver {
    /// Replaces the token of a running sandbox's session, also inside it, and returns it. A caller
    /// who leaves interrupts nothing of that.
    ///
    /// # Errors
    /// [`DriveError`]; [`DriveError::Silent`] if the sandbox did not take it, which leaves the
    /// token before it good for a minute.
    pub(crate) async fn refresh(
        &self,
        id: &SandboxId,
        cause: Cause,
    ) -> Result<(SandboxRow, Secret<String>), DriveError> {
        let (told, answer) = oneshot::channel();
        let (driver, of) = (self.clone(), id.clone());
        self.parts().tasks.spawn(async move |_finishes: Stop| {
            // Nobody may be waiting any more.
            let _ = told.send(driver.replace_token(&of, cause).await).is_ok();
        });
        answer.await.unwrap_or_else(|_stopped| Err(DriveError::Silent(id.clone())))
    }

    async fn replace_token(
        &self,
        id: &SandboxId,
        cause: Cause,
    ) -> Result<(SandboxRow, Secret<String>), DriveError> {
        let _turn = self.turn(id).await?;
        self.replace_in_turn(id, cause).await
    }

    /// The caller is in the sandbox's lane.
    pub(super) async fn replace_in_turn(
        &self,
        id: &SandboxId,
        cause: Cause,
    ) -> Result<(SandboxRow, Secret<String>), DriveError> {
        let row = self.here(id).await?;
        if row.state == State::Paused {
            return Err(DriveError::Paused(id.clone()));
        }
        if matches!(row.state, State::Stopped | State::Waking) {
            return Err(DriveError::Stopped(id.clone()));
        }
        if row.state != State::Running {
            if row.state.is_over() {
                self.0.lanes.remove(id);
            }
            return Err(SessionError::Ended(id.clone()).into());
        }
        let level = row.running.as_ref().map_or(Isolation::Namespaces, |running| running.isolation);
        // Until the sandbox has it, it holds a token that is good for a minute only: whatever
        // cuts this off, it is begun again before.
        let soon = clock::now().saturating_add(signed(HAND_OVER_AGAIN)).unwrap_or(row.new.expires_at);
        let replaced = self.parts().sessions.refresh(&row, level, clock::now(), soon).await?;
        self.hand_over(id, &replaced.token).await?;
        self.parts().store.rotate_session_at(id, replaced.rotate_at).await?;
        self.parts().store.record(&entry(&row.new, Action::TokenRefreshed, &cause)).await?;
        Ok((row, replaced.token))
    }

    /// Gives a sandbox the token that its door is to use.
    pub(super) async fn hand_over(&self, id: &SandboxId, token: &Secret<String>) -> Result<(), DriveError> {
        // INVARIANT: a sandbox takes the last token that it is given. One that is not ours any more may
        // have been given a newer one already.
        self.still_ours(id).await?;
        let handed = async {
            let agent = self.parts().host.connect(id).await?;
            agent.rotate(token).await.map_err(|source| RuntimeError::Agent { sandbox: id.clone(), source })
        };
        let handed = tokio::time::timeout(AGENT_TIME, handed).await;
        Ok(handed.map_err(|_late| DriveError::Silent(id.clone()))??)
    }
}
