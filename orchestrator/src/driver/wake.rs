// SPDX-License-Identifier: Apache-2.0
//! Waking what is stopped: with its memory, or with its files alone.
//!
//! ```text
//! wake:  state · a new token at the gateways · picture opened, restored · noted · told who it is · state
//! ```
//!
//! The state is written first. What an end in between leaves is stopped again. Until a sandbox that wakes
//! has been told its new token nothing in it runs but `sandboxd`. Right before, its picture is noted to be
//! none any more: what may have run is not gone back on.
//!
//! A disk that the machine cut off in the middle (`Host::is_torn`) is compared with the store first, so that
//! what it lost counts as lost and not as deleted; its memory, which knows another disk, is not gone on from.

use super::picture::owner;
use super::{Cause, DriveError, Driver, PICTURE_TIME, Parts, freeze::level, log};
use crate::lifecycle::{Event, State};
use crate::memory::{Memory, Owner};
use crate::runtime::{Create, Running};
use crate::sessions::SessionError;
use crate::snapshots::SnapshotError;
use crate::store::{Asked, Kept, KeptMemory, SandboxRow};
use postern_common::clock;
use postern_common::id::SandboxId;
use postern_common::secret::Secret;
use postern_common::tasks::Stop;
use tokio::sync::oneshot;

/// What is told of a sandbox that woke without the memory that was kept.
const LOST: &str = "its memory could not be gone on from: it woke with its files only";

impl Driver {
    /// Wakes a stopped sandbox, and returns it when it runs. Asking again changes nothing. A caller who
    /// leaves interrupts nothing of that.
    ///
    /// # Errors
    /// [`DriveError`]; then it is stopped as before.
    pub(crate) async fn wake(&self, id: &SandboxId, cause: Cause) -> Result<SandboxRow, DriveError> {
        let (told, answer) = oneshot::channel();
        let (driver, of) = (self.clone(), id.clone());
        self.parts().tasks.spawn(async move |_finishes: Stop| {
            let turn = match driver.turn(&of).await {
                Ok(turn) => turn,
                // Nobody may be waiting any more.
                Err(ending) => return drop(told.send(Err(ending))),
            };
            let woken = Box::pin(driver.wake_in_turn(&of, &cause)).await;
            let is_awake = woken.is_ok();
            // Nobody may be waiting any more; and nobody has to for what follows.
            let _ = told.send(woken).is_ok();
            if is_awake {
                driver.parts().memory.forget(&of).await;
            }
            drop(turn);
        });
        answer.await.unwrap_or_else(|_stopped| Err(DriveError::Silent(id.clone())))
    }

    async fn wake_in_turn(&self, id: &SandboxId, cause: &Cause) -> Result<SandboxRow, DriveError> {
        let (before, _) = self.write_state(id, Event::Wake, cause).await?;
        let row = self.sandbox(id).await?;
        if before == State::Running {
            return Ok(row);
        }
        let (event, running, why, error) = match Box::pin(self.within(id, self.bring_back(&row))).await {
            Ok((running, why)) => (Event::Woken, Some(running), why, None),
            Err(error) => {
                log(id, &error, "wake it");
                (Event::NotWoken, None, Some("it could not be woken"), Some(error))
            }
        };
        let cause = Cause { reason: why.map(str::to_owned), ..Cause::own("") };
        self.happen(id, event, running, cause).await?;
        match error {
            Some(error) => Err(error),
            None => self.sandbox(id).await,
        }
    }

    /// Whether somebody is at work on a sandbox here.
    pub(crate) fn is_busy(&self, id: &SandboxId) -> bool {
        self.0.lanes.is_busy(id)
    }

    /// Waits until nobody is at work on a sandbox here.
    pub(crate) async fn left_alone(&self, id: &SandboxId) {
        drop(self.0.lanes.turn(id).await);
    }

    /// Does what a sandbox's own processes, or a lot of memory, have a part in: until somebody wants the
    /// sandbox gone, who waits for this turn, and not for ever.
    ///
    /// # Errors
    /// [`SessionError::Ended`], [`DriveError::Silent`], or its own.
    pub(super) async fn within<Done>(
        &self,
        id: &SandboxId,
        work: impl Future<Output = Result<Done, DriveError>>,
    ) -> Result<Done, DriveError> {
        let called_off = self.0.lanes.start(id);
        match called_off.run_until_cancelled(tokio::time::timeout(PICTURE_TIME, work)).await {
            Some(Ok(done)) => done,
            Some(Err(_late)) => Err(DriveError::Silent(id.clone())),
            None => Err(SessionError::Ended(id.clone()).into()),
        }
    }

    /// Brings a stopped sandbox back under a new token; what it turned out to be, and what of it did not
    /// come back.
    async fn bring_back(&self, row: &SandboxRow) -> Result<(Running, Option<&'static str>), DriveError> {
        let Parts { host, sessions, store, files, .. } = self.parts();
        let id = &row.new.id;
        // From now on there is something to lose again.
        files.note_owed(id).map_err(super::start::machine(row, "note that its files are to be kept"))?;
        // INVARIANT: gateways know the new token, and have refused that of before for long, before
        // anything of it runs.
        let token = sessions.open(row, host.door(id)?, level(row), clock::now()).await?;
        let (running, lost) = match self.bring_up(row).await {
            Ok(brought) => brought,
            Err(error) => {
                // Nothing of it ran but `sandboxd`: what is kept of it is as it was.
                host.end(id).await?;
                return Err(error);
            }
        };
        if running.isolation != level(row)
            && let Some(session) = store.session(id).await?
        {
            sessions.publish(row, session, running.isolation).await;
        }
        self.meet_again(row, token).await?;
        self.follow_files(row);
        Ok((running, lost))
    }

    /// Makes it anew or restores it, with its files as they are to be; in either case it waits to be told who
    /// it is.
    async fn bring_up(&self, row: &SandboxRow) -> Result<(Running, Option<&'static str>), DriveError> {
        let (Parts { host, memory, .. }, id) = (self.parts(), &row.new.id);
        let is_torn = host.is_torn(id).await?;
        let kept = row.kept.as_ref().and_then(Kept::memory);
        if let Some(kept) = kept.filter(|_| !is_torn) {
            match self.go_on(row, (memory, owner(row)), kept).await {
                Ok(running) => return Ok((running, None)),
                Err(error) => {
                    log(id, &error, "go on from its memory");
                    host.end(id).await?;
                }
            }
        }
        let running = host.create(create(row)).await?;
        if is_torn {
            // INVARIANT: before anything runs in it, and before its files are kept in step: then what is
            // missing counts as deleted.
            self.try_to_keep(row).await?;
            host.believe(id).await?;
            self.bring_files(row).await?;
        }
        Ok((running, kept.map(|_lost| LOST)))
    }

    /// Tells a sandbox that was brought back who it is: it runs from then on.
    async fn meet_again(&self, row: &SandboxRow, token: Secret<String>) -> Result<(), DriveError> {
        // INVARIANT: before anything of it runs. Whatever cuts this off, nobody goes on from a picture that is
        // older than what it did.
        self.parts().store.note_kept(&row.new.id, &Kept::Files).await?;
        self.introduce(row, token, None).await.map(drop)
    }

    /// Has a sandbox that does not run go on from a picture; it sleeps then.
    pub(super) async fn go_on(
        &self,
        row: &SandboxRow,
        (memory, owner): (&Memory, Owner),
        kept: &KeptMemory,
    ) -> Result<Running, DriveError> {
        let (host, new) = (&self.parts().host, &row.new);
        let unusable = |why| DriveError::Snapshot(SnapshotError::Unusable(why));
        let fingerprint = host.fingerprint(new.asked.image.as_deref()).await;
        let fingerprint =
            fingerprint.map_err(super::start::machine(row, "tell what a picture depends on"))?;
        if fingerprint != kept.fingerprint {
            return Err(unusable("this machine's software or processor was another when it was taken"));
        }
        let _room = self.room_for_picture().await?;
        let place = host.place_for_picture(&new.id, new.asked.limits.memory_bytes).await?;
        let unsealed = memory.unseal(owner, kept.clone(), place).await;
        unsealed.map_err(super::start::machine(row, "open its memory"))?;
        let running = host.restore(create(row)).await?;
        self.forget_picture(&new.id).await;
        Ok(running)
    }
}

/// How a sandbox is made.
pub(super) fn create(row: &SandboxRow) -> Create {
    let Asked { isolation, limits, kubernetes, image } = row.new.asked.clone();
    Create { sandbox: row.new.id.clone(), isolation, limits, kubernetes, image }
}
