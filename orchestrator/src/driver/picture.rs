// SPDX-License-Identifier: Apache-2.0
//! Picturing a sandbox's memory: when it is stopped, and for a snapshot. It sleeps meanwhile (ADR 0022).

use super::{AGENT_TIME, Cause, DriveError, Driver, Parts, freeze::level, log};
use crate::lifecycle::State;
use crate::memory::Owner;
use crate::runtime::{Agent, RuntimeError};
use crate::sealed::Kind;
use crate::sessions::SessionError;
use crate::snapshots::{SnapshotError, Snapshots};
use crate::store::{Kept, SandboxRow, SnapshotRow};
use futures_util::FutureExt as _;
use postern_common::clock;
use postern_common::id::SandboxId;
use postern_common::tasks::Stop;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{SemaphorePermit, oneshot};

impl Driver {
    /// Waits until there is room for one more picture that is not sealed: each takes the memory of its
    /// sandbox a second time.
    ///
    /// # Errors
    /// [`DriveError::Ending`].
    pub(super) async fn room_for_picture(&self) -> Result<SemaphorePermit<'_>, DriveError> {
        self.0.pictures.acquire().await.map_err(|_closed| DriveError::Ending)
    }

    /// Removes a picture that is not sealed. What cannot be removed goes when its sandbox's processes end.
    pub(super) async fn forget_picture(&self, id: &SandboxId) {
        if let Err(error) = self.parts().host.forget_picture(id).await {
            log(id, &error.into(), "remove the picture of its memory");
        }
    }

    /// Pictures its memory, seals that, and notes it.
    pub(super) async fn keep_memory(&self, row: &SandboxRow) -> Result<(), DriveError> {
        let (Parts { host, store, memory, .. }, id) = (self.parts(), &row.new.id);
        let _room = self.room_for_picture().await?;
        // What stands still in another way cannot be pictured.
        host.resume(id).await?;
        let agent = host.connect(id).await?;
        // INVARIANT: both before the picture. What changes on this machine after it is noticed.
        let (slept, fingerprint) = tokio::join!(self.put_to_sleep(id, &agent), self.fingerprint(row));
        let fingerprint = slept.and(fingerprint)?;
        let from = host.picture(id).await?;
        let kept = memory.keep(owner(row), from, fingerprint).await;
        let kept = kept.map_err(super::start::machine(row, "seal its memory"))?;
        // Of a sandbox that is being destroyed nothing is kept; that one ends it.
        store.note_kept(id, &Kept::Memory(kept.clone())).await?;
        memory.forget_but(id, &kept).await;
        Ok(())
    }

    async fn put_to_sleep(&self, id: &SandboxId, agent: &Agent) -> Result<(), DriveError> {
        let slept = tokio::time::timeout(AGENT_TIME, agent.sleep()).await;
        let slept = slept.map_err(|_late| DriveError::Silent(id.clone()))?;
        Ok(slept.map_err(|source| RuntimeError::Agent { sandbox: id.clone(), source })?)
    }

    async fn picture(&self, row: &SandboxRow) -> Result<(PathBuf, String), DriveError> {
        let fingerprint = self.fingerprint(row).await?;
        Ok((self.parts().host.picture(&row.new.id).await?, fingerprint))
    }

    /// What a picture of it depends on.
    async fn fingerprint(&self, row: &SandboxRow) -> Result<String, DriveError> {
        let fingerprint = self.parts().host.fingerprint(row.new.asked.image.as_deref()).await;
        Ok(fingerprint.map_err(super::start::machine(row, "tell what a picture depends on"))?)
    }

    /// Takes a snapshot of a running sandbox with its memory; it sleeps meanwhile, and goes on after it.
    ///
    /// # Errors
    /// [`DriveError::NotKept`] where there is no memory to be had, [`DriveError::Snapshot`],
    /// [`DriveError::Silent`] if it does not hand its files over in time.
    pub(crate) async fn snapshot(
        &self,
        snapshots: Arc<Snapshots>,
        id: &SandboxId,
        cause: Cause,
    ) -> Result<SnapshotRow, DriveError> {
        let (told, answer) = oneshot::channel();
        let (driver, of) = (self.clone(), id.clone());
        self.parts().tasks.spawn(async move |shutdown: Stop| {
            let taken = match driver.turn(&of).await {
                Ok(_turn) => driver.snapshot_in_turn((snapshots.as_ref(), &shutdown), &of, cause).await,
                Err(ending) => Err(ending),
            };
            // Nobody may be waiting any more.
            let _ = told.send(taken).is_ok();
        });
        answer.await.unwrap_or_else(|_stopped| Err(DriveError::Silent(id.clone())))
    }

    async fn snapshot_in_turn(
        &self,
        (snapshots, shutdown): (&Snapshots, &Stop),
        id: &SandboxId,
        cause: Cause,
    ) -> Result<SnapshotRow, DriveError> {
        let Parts { host, store, .. } = self.parts();
        let row = self.here(id).await?;
        match row.state {
            State::Running => {}
            State::Stopped | State::Waking => return Err(DriveError::Stopped(id.clone())),
            State::Paused => return Err(DriveError::Paused(id.clone())),
            _ => return Err(SessionError::Ended(id.clone()).into()),
        }
        if !host.keeps_memory(level(&row)) {
            return Err(DriveError::NotKept(id.clone(), "memory"));
        }
        // Whatever cuts this off, it is given a token soon, and goes on with that.
        store.rotate_session_at(id, clock::now()).await?;
        let taken = shutdown.run_until_cancelled(self.within(id, self.take(snapshots, &row))).await;
        self.forget_picture(id).await;
        if let Err(error) = self.replace_in_turn(id, cause).await {
            // The snapshot is what it is; the token is due, and tried again soon.
            log(id, &error, "hand over the token that it goes on with");
        }
        taken.unwrap_or(Err(DriveError::Ending))
    }

    /// What it says of its files is its own word, and it takes the time that it likes.
    async fn take(&self, snapshots: &Snapshots, row: &SandboxRow) -> Result<SnapshotRow, DriveError> {
        let agent = self.parts().host.connect(&row.new.id).await?;
        self.put_to_sleep(&row.new.id, &agent).await?;
        // Until it is sealed.
        let mut room = None;
        let told = |error: DriveError| SnapshotError::Picture(error.to_string());
        let picture = async {
            room = Some(self.room_for_picture().await.map_err(told)?);
            self.picture(row).await.map_err(told)
        };
        let taken = snapshots.take(row, &agent, Some(picture.boxed())).await;
        drop(room);
        Ok(taken?)
    }
}

/// Whose a sandbox's picture is.
pub(super) fn owner(row: &SandboxRow) -> Owner {
    let new = &row.new;
    let (tenant, user) = (new.tenant.clone(), new.user_id.clone());
    Owner { kind: Kind::Memory, tenant, user, thing: new.id.to_string() }
}
