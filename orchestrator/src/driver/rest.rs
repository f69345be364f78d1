// SPDX-License-Identifier: Apache-2.0
//! Stopping to disk: what is stopped has its files, and its memory where that can be kept. Its way back is
//! in `wake`, the memory in `picture`.
//!
//! ```text
//! stop:  state · no token is accepted · all sleeps · picture, sealed · noted · processes end · the disk is
//!        settled · files kept
//! ```
//!
//! The state is written first. What an end in between leaves is begun again wherever something still runs.
//! The disk is settled before anybody hears that it is stopped: whatever the machine does then, the files are
//! there, and as its memory knows them.

use super::{Cause, DriveError, Driver, Parts, freeze::level, log};
use crate::lifecycle::{Event, State};
use crate::runtime::Found;
use crate::store::{Kept, SandboxRow};
use postern_common::clock;
use postern_common::id::SandboxId;
use postern_common::tasks::Stop;
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
    /// Stops a sandbox to disk, and returns it when it is so. Asking again changes nothing but what is kept:
    /// files alone if they are asked for. A caller who leaves interrupts nothing of that.
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
        let not_kept = |what| Err(DriveError::NotKept(id.clone(), what));
        if !host.keeps_files() {
            return not_kept("files");
        }
        if keep == Keep::Memory && !self.has_memory(&row).await {
            return not_kept("memory");
        }
        let (before, _) = self.write_state(id, Event::Stop, cause).await?;
        if before == State::Stopped {
            if keep == Keep::Files {
                self.keep_files_only(id).await?;
            }
        } else if !self.rest(id, keep).await? {
            self.undo_stop(&row, before).await?;
            return not_kept("memory");
        }
        self.sandbox(id).await
    }

    /// Whether there is a memory to keep: that of what runs, or of what is stopped with it.
    async fn has_memory(&self, row: &SandboxRow) -> bool {
        let (host, id) = (&self.parts().host, &row.new.id);
        if row.state == State::Stopped {
            return row.kept.as_ref().is_some_and(|kept| kept.memory().is_some());
        }
        // A shim that is slow once has not ended.
        let is_there = |found| matches!(found, Some(Found::Running(_) | Found::Paused(_)));
        host.keeps_memory(level(row)) && (is_there(host.status(id).await) || is_there(host.status(id).await))
    }

    /// Has a sandbox whose memory could not be kept, and which sleeps, go on as what it was.
    async fn undo_stop(&self, row: &SandboxRow, before: State) -> Result<(), DriveError> {
        let (id, cause) = (&row.new.id, Cause::own("its memory could not be kept"));
        self.write_state(id, Event::Wake, &cause).await?;
        if let Err(error) = self.rouse(row).await {
            self.happen(id, Event::NotWoken, None, cause).await?;
            return Err(error);
        }
        self.write_state(id, Event::Woken, &cause).await?;
        if before == State::Paused {
            self.write_state(id, Event::Pause, &cause).await?;
            self.match_in_turn(id).await?;
        }
        Ok(())
    }

    /// Keeps what can be kept of a sandbox that is written down as stopped, and ends its processes;
    /// `false` if its memory was to be kept, could not be, and all of it is still there, asleep.
    pub(super) async fn rest(&self, id: &SandboxId, keep: Keep) -> Result<bool, DriveError> {
        let Parts { host, sessions, .. } = self.parts();
        let row = self.sandbox(id).await?;
        if row.state != State::Stopped {
            return Ok(true);
        }
        sessions.silence(&row, level(&row)).await?;
        let found = host.status(id).await;
        if matches!(found, Some(Found::Silent { .. })) {
            // It may run on, or have a picture that is good: the next sweep looks again.
            return Err(DriveError::Silent(id.clone()));
        }
        if found.is_none_or(|found| matches!(found, Found::Ended { .. })) {
            // It had ended before, or ended by itself: what it left is what is kept.
            let has_memory = row.kept.as_ref().is_some_and(|kept| kept.memory().is_some());
            return self.end_for_rest(id, has_memory).await.map(|()| true);
        }
        let is_kept = keep != Keep::Files && host.keeps_memory(level(&row)) && {
            let kept = self.within(id, self.keep_memory(&row)).await;
            kept.inspect_err(|error| log(id, error, "keep its memory")).is_ok()
        };
        if !is_kept && keep == Keep::Memory {
            // What may have been kept before it ran is of no use to anybody.
            self.parts().memory.forget(id).await;
            return Ok(false);
        }
        // INVARIANT: nothing is gone on from a picture after which it ran, as where a wake was cut off.
        self.end_for_rest(id, is_kept).await.map(|()| true)
    }

    /// Ends a stopped sandbox's processes and settles its disk, and notes that nothing but files is kept of
    /// it, unless its memory is and the disk is as that knows it.
    async fn end_for_rest(&self, id: &SandboxId, has_memory: bool) -> Result<(), DriveError> {
        let Parts { host, syncs, .. } = self.parts();
        if !has_memory {
            self.keep_files_only(id).await?;
        }
        syncs.stop(id).await;
        host.end(id).await?;
        if let Err(error) = host.settle(id).await {
            log(id, &error.into(), "bring its disk to the machine's");
            self.keep_files_only(id).await?;
        }
        Ok(())
    }

    async fn keep_files_only(&self, id: &SandboxId) -> Result<(), DriveError> {
        self.parts().store.note_kept(id, &Kept::Files).await?;
        self.parts().memory.forget(id).await;
        Ok(())
    }

    /// Brings the files of a stopped sandbox to the store, where a sync does that and can do so again. They
    /// are on its disk too, and go to the store at the latest when it wakes or ends.
    pub(super) async fn keep_files_of_rest(&self, id: &SandboxId) {
        let Parts { host, files, .. } = self.parts();
        if !host.has_syncs() {
            return;
        }
        let kept = async {
            let row = self.sandbox(id).await?;
            // At each start all that are stopped come by here.
            if row.state != State::Stopped || !files.is_owed(id) {
                return Ok(());
            }
            let kept = self.try_to_keep(&row).await;
            // It was shown for that.
            kept.and(host.settle(id).await.map_err(DriveError::from))
        };
        if let Err(error) = kept.await {
            log(id, &error, "bring its files to the store");
        }
    }

    /// Gives a sandbox that sleeps a new token: it goes on where it is.
    async fn rouse(&self, row: &SandboxRow) -> Result<(), DriveError> {
        let Parts { host, sessions, .. } = self.parts();
        let id = &row.new.id;
        self.forget_picture(id).await;
        let token = sessions.open(row, host.door(id)?, level(row), clock::now()).await?;
        self.hand_over(id, &token).await
    }
}
