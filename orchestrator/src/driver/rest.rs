// SPDX-License-Identifier: Apache-2.0
//! Stopping to disk and waking: what is stopped has its files, and its memory where that can be kept.
//!
//! ```text
//! stop:  state · no token is accepted · all sleeps · picture, sealed · noted · processes end · files kept
//! wake:  state · a new token at the gateways · picture opened, restored · told who it is · state
//! ```
//!
//! The state is written first. What an end in between leaves is begun again: a stop wherever something
//! still runs, a wake by stopping again. Until a sandbox that wakes has been told its new token nothing in
//! it runs but `sandboxd`, and the token of before is refused from the beginning of the stop on.

use super::{AGENT_TIME, Cause, DriveError, Driver, Parts, freeze::level, log};
use crate::lifecycle::{Event, State};
use crate::memory::{Memory, Owner};
use crate::runtime::{Agent, Create, Found, Running, RuntimeError};
use crate::sealed::Kind;
use crate::sessions::SessionError;
use crate::snapshots::{SnapshotError, Snapshots};
use crate::store::{Asked, Kept, KeptMemory, SandboxRow, SnapshotRow};
use futures_util::FutureExt as _;
use postern_common::clock;
use postern_common::id::SandboxId;
use postern_common::tasks::Stop;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What is to be kept of a sandbox that is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Its files, and its memory if that can be.
    Best,
    /// Both; else it runs on.
    Memory,
    /// Its files.
    Files,
}

impl Driver {
    /// Stops a sandbox to disk, and returns it when it is so. Asking again changes nothing. A caller who
    /// leaves interrupts nothing of that.
    ///
    /// # Errors
    /// [`DriveError::Refused`] if its state does not allow it, [`DriveError::NotKept`] if what is to be
    /// kept cannot be; then it is what it was.
    pub(crate) async fn stop(
        &self,
        id: &SandboxId,
        keep: Keep,
        cause: Cause,
    ) -> Result<SandboxRow, DriveError> {
        self.stop_when(id, keep, cause, |_row| true).await
    }

    /// [`Driver::stop`], unless it was used since that was decided.
    ///
    /// # Errors
    /// As [`Driver::stop`].
    pub(super) async fn stop_if_unused(&self, id: &SandboxId, cause: Cause) -> Result<(), DriveError> {
        let is_unused = |row: &SandboxRow| row.state == State::Running && row.idle_at <= clock::now();
        self.stop_when(id, Keep::Best, cause, is_unused).await.map(drop)
    }

    async fn stop_when(
        &self,
        id: &SandboxId,
        keep: Keep,
        cause: Cause,
        is_meant: fn(&SandboxRow) -> bool,
    ) -> Result<SandboxRow, DriveError> {
        let (told, answer) = oneshot::channel();
        let (driver, of) = (self.clone(), id.clone());
        self.parts().tasks.spawn(async move |_finishes: Stop| {
            let turn = match driver.turn(&of).await {
                Ok(turn) => turn,
                // Nobody may be waiting any more.
                Err(ending) => return drop(told.send(Err(ending))),
            };
            let stopped = match driver.sandbox(&of).await {
                Ok(row) if !is_meant(&row) => Ok(row),
                _ => driver.stop_in_turn(&of, keep, &cause).await,
            };
            // Nobody may be waiting any more; and nobody has to for what follows.
            let _ = told.send(stopped).is_ok();
            driver.keep_files_of_rest(&of).await;
            drop(turn);
        });
        answer.await.unwrap_or_else(|_stopped| Err(DriveError::Silent(id.clone())))
    }

    async fn stop_in_turn(
        &self,
        id: &SandboxId,
        keep: Keep,
        cause: &Cause,
    ) -> Result<SandboxRow, DriveError> {
        let host = &self.parts().host;
        let row = self.here(id).await?;
        if !host.keeps_files() {
            return Err(DriveError::NotKept(id.clone(), "files"));
        }
        if keep == Keep::Memory && !host.keeps_memory(level(&row)) {
            return Err(DriveError::NotKept(id.clone(), "memory"));
        }
        let (before, _) = self.write_state(id, Event::Stop, cause).await?;
        if before != State::Stopped && !self.rest(id, keep).await? {
            self.write_state(id, Event::Wake, &Cause::own("its memory could not be kept")).await?;
            self.rouse(&row).await?;
            self.write_state(id, Event::Woken, &Cause::own("its memory could not be kept")).await?;
            return Err(DriveError::NotKept(id.clone(), "memory"));
        }
        self.sandbox(id).await
    }

    /// Keeps what can be kept of a sandbox that is written down as stopped, and ends its processes;
    /// `false` if its memory was to be kept, could not be, and all of it is still there, asleep.
    pub(super) async fn rest(&self, id: &SandboxId, keep: Keep) -> Result<bool, DriveError> {
        let Parts { host, sessions, syncs, store, memory, .. } = self.parts();
        let row = self.sandbox(id).await?;
        if row.state != State::Stopped {
            return Ok(true);
        }
        sessions.silence(&row, level(&row)).await?;
        if !matches!(host.status(id).await, Some(Found::Running(_) | Found::Paused(_))) {
            // It had ended before, or ended by itself: what it left is what is kept.
            syncs.stop(id).await;
            host.end(id).await?;
            if row.kept.is_none() {
                store.note_kept(id, &Kept::Files).await?;
            }
            return Ok(true);
        }
        let is_kept = keep != Keep::Files && host.keeps_memory(level(&row)) && {
            let kept = self.keep_memory(&row).await;
            kept.inspect_err(|error| log(id, error, "keep its memory")).is_ok()
        };
        if !is_kept {
            if keep == Keep::Memory {
                return Ok(false);
            }
            // INVARIANT: nothing is gone on from a picture after which it ran, as where a wake was cut off.
            store.note_kept(id, &Kept::Files).await?;
            memory.forget(id).await;
        }
        syncs.stop(id).await;
        host.end(id).await?;
        Ok(true)
    }

    /// Brings the files of a stopped sandbox to the store, where a sync does that and can do so again. They
    /// are on its disk too, and go to the store at the latest when it wakes or ends.
    pub(super) async fn keep_files_of_rest(&self, id: &SandboxId) {
        if !self.parts().host.has_syncs() {
            return;
        }
        let kept = async {
            let row = self.sandbox(id).await?;
            // At each start all that are stopped come by here.
            let is_owed = row.state == State::Stopped && self.parts().files.is_owed(id);
            if is_owed { self.try_to_keep(&row).await } else { Ok(()) }
        };
        if let Err(error) = kept.await {
            log(id, &error, "bring its files to the store");
        }
    }

    /// Pictures its memory, seals that, and notes it.
    async fn keep_memory(&self, row: &SandboxRow) -> Result<(), DriveError> {
        let (Parts { host, store, memory, .. }, id) = (self.parts(), &row.new.id);
        // What stands still in another way cannot be pictured.
        host.resume(id).await?;
        let agent = host.connect(id).await?;
        self.put_to_sleep(id, &agent).await?;
        let (from, fingerprint) = self.picture(row).await?;
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
        let host = &self.parts().host;
        let fingerprint = host.fingerprint(row.new.asked.image.as_deref()).await;
        let fingerprint =
            fingerprint.map_err(super::start::machine(row, "tell what a picture depends on"))?;
        Ok((host.picture(&row.new.id).await?, fingerprint))
    }

    /// Gives a sandbox that sleeps a new token: it goes on where it is.
    async fn rouse(&self, row: &SandboxRow) -> Result<(), DriveError> {
        let Parts { host, sessions, .. } = self.parts();
        let id = &row.new.id;
        drop(host.forget_picture(id).await);
        let token = sessions.open(row, host.door(id)?, level(row), clock::now()).await?;
        self.hand_over(id, &token).await
    }

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
            let woken = driver.wake_in_turn(&of, &cause).await;
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
        let (event, running, why, error) = match self.bring_back(&row).await {
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

    /// Brings a stopped sandbox back under a new token; what it turned out to be, and what of it did not
    /// come back.
    async fn bring_back(&self, row: &SandboxRow) -> Result<(Running, Option<&'static str>), DriveError> {
        let Parts { host, sessions, syncs, memory, files, .. } = self.parts();
        let id = &row.new.id;
        // From now on there is something to lose again.
        files.note_owed(id).map_err(super::start::machine(row, "note that its files are to be kept"))?;
        // INVARIANT: gateways know the new token, and have refused that of before for long, before
        // anything of it runs.
        let token = sessions.open(row, host.door(id)?, level(row), clock::now()).await?;
        let restored = match row.kept.as_ref().and_then(Kept::memory) {
            Some(kept) => Some(self.go_on(row, (memory, owner(row)), kept).await),
            None => None,
        };
        let (running, lost) = match restored {
            Some(Ok(running)) => (running, None),
            Some(Err(error)) => {
                log(id, &error, "go on from its memory");
                host.end(id).await?;
                let lost = "its memory could not be gone on from: it woke with its files only";
                (host.create(create(row)).await?, Some(lost))
            }
            None => (host.create(create(row)).await?, None),
        };
        self.introduce(row, token, None).await?;
        drop(host.forget_picture(id).await);
        syncs.resume(row);
        Ok((running, lost))
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
        let place = host.place_for_picture(&new.id, new.asked.limits.memory_bytes).await?;
        let unsealed = memory.unseal(owner, kept.clone(), place).await;
        unsealed.map_err(super::start::machine(row, "open its memory"))?;
        Ok(host.restore(create(row)).await?)
    }

    /// Takes a snapshot of a running sandbox with its memory; it sleeps meanwhile, and goes on after it.
    ///
    /// # Errors
    /// [`DriveError::NotKept`] where there is no memory to be had, [`DriveError::Snapshot`].
    pub(crate) async fn snapshot(
        &self,
        snapshots: Arc<Snapshots>,
        id: &SandboxId,
        cause: Cause,
    ) -> Result<SnapshotRow, DriveError> {
        let (told, answer) = oneshot::channel();
        let (driver, of) = (self.clone(), id.clone());
        self.parts().tasks.spawn(async move |_finishes: Stop| {
            let taken = match driver.turn(&of).await {
                Ok(_turn) => driver.snapshot_in_turn(&snapshots, &of, cause).await,
                Err(ending) => Err(ending),
            };
            // Nobody may be waiting any more.
            let _ = told.send(taken).is_ok();
        });
        answer.await.unwrap_or_else(|_stopped| Err(DriveError::Silent(id.clone())))
    }

    async fn snapshot_in_turn(
        &self,
        snapshots: &Snapshots,
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
        let agent = host.connect(id).await?;
        // Whatever cuts this off, it is given a token soon, and goes on with that.
        store.rotate_session_at(id, clock::now()).await?;
        let taken = async {
            self.put_to_sleep(id, &agent).await?;
            let told = |error: DriveError| SnapshotError::Picture(error.to_string());
            let picture = async { self.picture(&row).await.map_err(told) };
            Ok::<_, DriveError>(snapshots.take(&row, &agent, Some(picture.boxed())).await?)
        };
        let taken = taken.await;
        drop(host.forget_picture(id).await);
        self.replace_in_turn(id, cause).await?;
        taken
    }
}

/// Whose a sandbox's picture is.
fn owner(row: &SandboxRow) -> Owner {
    let new = &row.new;
    let (tenant, user) = (new.tenant.clone(), new.user_id.clone());
    Owner { kind: Kind::Memory, tenant, user, thing: new.id.to_string() }
}

/// How a sandbox is made.
pub(super) fn create(row: &SandboxRow) -> Create {
    let Asked { isolation, limits, kubernetes, image } = row.new.asked.clone();
    Create { sandbox: row.new.id.clone(), isolation, limits, kubernetes, image }
}
