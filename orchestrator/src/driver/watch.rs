// SPDX-License-Identifier: Apache-2.0
//! Makes reality match what is written: once at start, then at intervals. Deadlines and the
//! rotation of tokens are looked at here too.

use super::{Cause, DriveError, Driver, Parts, entry, log, signed};
use crate::lifecycle::{Effect, Event, State, Unfinished};
use crate::runtime::{Exit, Found};
use crate::store::{Action, Due, OnIdle, SandboxRow, StoreError};
use jiff::Timestamp;
use postern_common::clock;
use postern_common::id::SandboxId;
use postern_common::tasks::Stop;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often deadlines and rotations are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often the machine is compared with the database: each sandbox is asked then.
const TICKS_BETWEEN_SWEEPS: u32 = 10;
/// How often is looked for pictures of memory that nobody goes on from.
const TICKS_BETWEEN_PICTURES: u32 = 600;
/// A sandbox in use is noted this often at most.
const TOUCH_EVERY: Duration = Duration::from_secs(5);
/// Sandboxes whose last use is remembered; beyond, the memory is begun anew.
const REMEMBERED_USES: usize = 10_000;

/// A start that takes longer than this is none any more: the runtime's own bound and the agent's
/// together, and as long again for files.
const START_TIME: Duration = Duration::from_secs(90);

/// What a reconciliation found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Sandboxes that run on, or are kept on disk.
    pub adopted: Vec<SandboxId>,
    /// Sandboxes that had ended, or whose making or ending was interrupted.
    pub ended: Vec<SandboxId>,
    /// Things of sandboxes that nobody knows, which were removed.
    pub orphans: usize,
    /// Sandboxes that the database does not know and that were left alone, because it was restored.
    pub spared: Vec<SandboxId>,
}

impl Driver {
    /// Compares what is written with what there is, before anybody can ask for more: adopts what
    /// runs, finishes what was begun, removes what nobody knows.
    ///
    /// # Errors
    /// [`StoreError`]; what could not be done to a single sandbox is tried again by the sweep.
    pub(crate) async fn reconcile(&self) -> Result<Reconciled, StoreError> {
        if !self.watches().await? {
            tracing::info!("another orchestrator watches the sandboxes of this place");
            return Ok(Reconciled::default());
        }
        let host = &self.parts().host;
        let found: BTreeMap<SandboxId, Found> =
            host.list().await.into_iter().map(|found| (found.sandbox().clone(), found)).collect();
        let warm = self.parts().store.warm_sandboxes().await?;
        let live = self.parts().store.own_sandboxes().await?;
        let elsewhere = self.parts().store.claimed_elsewhere().await?;
        let known = live.iter().map(|row| &row.new.id).chain(warm.iter().map(|row| &row.id));
        let known: Vec<SandboxId> = known.cloned().collect();
        let mut reconciled = Reconciled::default();
        if self.parts().spares_unknown {
            reconciled.spared = found.keys().filter(|id| !known.contains(id)).cloned().collect();
            tracing::error!(
                sandboxes = ?reconciled.spared,
                "the database is older than what was done here: it was restored from a backup. What it does \
                 not know is left alone now; save what is needed of it: the next start removes it"
            );
        } else {
            let orphans = host.sweep(&known).await;
            tracing::info!(?orphans, "removed what nobody knows");
            orphans.iter().for_each(|orphan| self.0.counts.removed(orphan.kind.as_str()));
            reconciled.orphans = orphans.len();
        }
        self.parts().pool.reconcile(warm, &found);
        // Whoever has claimed one is at work on it.
        for row in live.into_iter().filter(|row| !elsewhere.contains(&row.new.id)) {
            let id = row.new.id.clone();
            match self.settle(row, found.get(&id)).await {
                Ok(true) => reconciled.adopted.push(id),
                Ok(false) => reconciled.ended.push(id),
                Err(error) => {
                    log(&id, &error, "will be tried again");
                }
            }
        }
        Ok(reconciled)
    }

    /// Puts one sandbox right after a restart; `true` if it runs on.
    async fn settle(&self, row: SandboxRow, found: Option<&Found>) -> Result<bool, DriveError> {
        match row.state.unfinished() {
            Unfinished::Happened(event) => {
                let is_kept = row.state == State::Waking;
                let being = if is_kept { "woken" } else { "made" };
                let cause = Cause::own(format!("the orchestrator stopped while it was being {being}"));
                self.happen(&row.new.id, event, None, cause).await?;
                return Ok(is_kept);
            }
            Unfinished::Effects([]) => {}
            Unfinished::Effects(effects) => {
                let is_kept = row.state == State::Stopped;
                self.perform(row, effects);
                return Ok(is_kept);
            }
        }
        match found {
            // One that does not answer is looked at again by each sweep.
            Some(found @ (Found::Running(_) | Found::Paused(_) | Found::Silent { .. })) => {
                self.match_if_other(&row, found);
                // One that was pictured when the orchestrator before ended: what is left of that is memory that
                // it has too much.
                self.forget_picture(&row.new.id).await;
                // Its sync ended with the orchestrator before.
                self.parts().syncs.resume(&row);
                Ok(true)
            }
            Some(Found::Ended { exit, .. }) => self.ended(&row.new.id, exit.as_ref()).await.map(|()| false),
            None => self.ended(&row.new.id, None).await.map(|()| false),
        }
    }

    /// Whether it stands still is to be as is written.
    fn match_if_other(&self, row: &SandboxRow, found: &Found) {
        let is_other = matches!(
            (row.state, found),
            (State::Running, Found::Paused(_)) | (State::Paused, Found::Running(_))
        );
        if is_other && !self.0.lanes.is_busy(&row.new.id) {
            self.match_frozen(&row.new.id);
        }
    }

    async fn ended(&self, id: &SandboxId, exit: Option<&Exit>) -> Result<(), DriveError> {
        let reason = exit.map_or_else(
            || "its processes were killed from outside".to_owned(),
            |exit| format!("it ended by itself: {:?}", exit.reason),
        );
        self.happen(id, Event::Ended, None, Cause::own(reason)).await.map(drop)
    }

    /// Looks at deadlines, rotations and the machine until `stop`; notes the uses that it is told.
    pub(crate) async fn watch(self, stop: Stop, mut uses: mpsc::Receiver<SandboxId>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut noted = BTreeMap::new();
        let mut ticks = 0_u32;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(sandbox) = uses.recv() => self.note(&mut noted, sandbox).await,
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    self.look(ticks.is_multiple_of(TICKS_BETWEEN_SWEEPS)).await;
                    if ticks.is_multiple_of(TICKS_BETWEEN_PICTURES) && !self.parts().spares_unknown {
                        self.parts().memory.sweep_old(&self.parts().store).await;
                    }
                }
            }
        }
    }

    async fn note(&self, noted: &mut BTreeMap<SandboxId, Instant>, sandbox: SandboxId) {
        let now = Instant::now();
        if noted.get(&sandbox).is_some_and(|last| now.duration_since(*last) < TOUCH_EVERY) {
            return;
        }
        if noted.len() >= REMEMBERED_USES {
            noted.clear();
        }
        self.touch(&sandbox).await;
        noted.insert(sandbox, now);
    }

    /// Notes that a sandbox is in use which was just read, unless that was noted a moment ago: each
    /// note is a write that the disk has to confirm.
    pub(crate) async fn used(&self, row: &SandboxRow) {
        let noted = row.idle_at.saturating_sub(signed(row.new.idle)).unwrap_or(row.created_at);
        let moment = signed(TOUCH_EVERY.min(row.new.idle / 4));
        if clock::now().duration_since(noted) >= moment {
            self.touch(&row.new.id).await;
        }
    }

    /// Notes that a sandbox is in use.
    pub(crate) async fn touch(&self, sandbox: &SandboxId) {
        if let Err(error) = self.parts().store.touch_sandbox(sandbox, clock::now()).await {
            tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "its use was not noted");
        }
    }

    async fn look(&self, is_sweep: bool) {
        if let Err(error) = self.look_at_all(is_sweep).await {
            tracing::error!(error = &error as &dyn std::error::Error, "the sweep goes on later");
        }
    }

    async fn look_at_all(&self, is_sweep: bool) -> Result<(), StoreError> {
        let now = clock::now();
        if !self.watches().await? {
            return Ok(());
        }
        self.end_due(now).await?;
        for id in self.parts().store.sessions_to_rotate(now).await? {
            self.rotate(id);
        }
        if self.parts().host.is_shared() {
            for id in self.parts().store.syncs_to_rotate(now).await? {
                self.rotate_sync(id);
            }
        }
        if is_sweep {
            self.parts().store.forget_sessions(now).await?;
            self.parts().store.forget_claims().await?;
            self.sweep().await?;
        }
        self.tell_deadlines(now).await
    }

    async fn end_due(&self, now: Timestamp) -> Result<(), StoreError> {
        for (id, due) in self.parts().store.due_sandboxes(now).await? {
            let reason = match due {
                Due::Unused(OnIdle::Pause) => {
                    self.pause_unused(id);
                    continue;
                }
                Due::Unused(OnIdle::Stop) => {
                    self.stop_unused(id);
                    continue;
                }
                Due::Unused(OnIdle::Destroy) => "it was unused for too long",
                Due::PausedTooLong => "it was paused for too long",
                Due::Over => "its time was over",
            };
            if let Err(error) = self.happen(&id, Event::Destroy, None, Cause::own(reason)).await {
                log(&id, &error, "end it in time");
            }
        }
        Ok(())
    }

    /// Tells whoever follows the events of each deadline that comes soon, once.
    pub(super) async fn tell_deadlines(&self, now: Timestamp) -> Result<(), StoreError> {
        for (row, deadline) in self.parts().store.deadlines_soon(now).await? {
            let audit = entry(&row.new, Action::DeadlineNear, &Cause::own(what_comes(&row, deadline)));
            if let Err(error) = self.parts().store.tell_deadline(&row.new.id, deadline, &audit).await {
                log(&row.new.id, &error.into(), "tell of a deadline that comes soon");
            }
        }
        Ok(())
    }

    /// Where this machine cannot pause it, it is destroyed: unused it shall not run on. What may be otherwise
    /// in a moment is tried again.
    fn pause_unused(&self, id: SandboxId) {
        if self.0.lanes.is_busy(&id) {
            return;
        }
        let driver = self.clone();
        self.parts().tasks.spawn(async move |_finishes: Stop| {
            let unused = Cause::own("it was unused for too long");
            let Err(error) = driver.freeze(&id, Event::Pause, unused.clone()).await else { return };
            if !matches!(error, DriveError::Runtime(_)) {
                return log(&id, &error, "pause it");
            }
            log(&id, &error, "pause it; it is destroyed instead");
            if let Err(error) = driver.happen(&id, Event::Destroy, None, unused).await {
                log(&id, &error, "end it in time");
            }
        });
    }

    /// Where no sandbox can be kept, it is destroyed: unused it shall not run on. Whatever else went wrong, it
    /// or its files are there: it is tried again, by the next tick or, once it is written down, by the sweep.
    pub(super) fn stop_unused(&self, id: SandboxId) {
        // Those that wait for room would be in nobody's way only if they had not begun.
        if self.0.lanes.is_busy(&id) || self.0.pictures.available_permits() == 0 {
            return;
        }
        let driver = self.clone();
        self.parts().tasks.spawn(async move |_finishes: Stop| {
            let unused = Cause::own("it was unused for too long");
            let Err(error) = driver.stop_if_unused(&id, unused.clone()).await else { return };
            if !matches!(error, DriveError::NotKept(_, "files")) {
                return log(&id, &error, "stop it");
            }
            log(&id, &error, "stop it; it is destroyed instead");
            if let Err(error) = driver.happen(&id, Event::Destroy, None, unused).await {
                log(&id, &error, "end it in time");
            }
        });
    }

    /// In a task of its own: one sandbox that does not answer holds up nobody else's token.
    fn rotate(&self, id: SandboxId) {
        if self.0.lanes.is_busy(&id) {
            return;
        }
        let driver = self.clone();
        self.parts().tasks.spawn(async move |stop: Stop| {
            if let Some(Err(error)) = stop.run_until_cancelled(driver.replace_if_due(&id)).await {
                log(&id, &error, "its token was not replaced");
            }
        });
    }

    /// The same for a sync that goes on by itself.
    fn rotate_sync(&self, id: SandboxId) {
        if self.0.lanes.is_busy(&id) {
            return;
        }
        let driver = self.clone();
        self.parts().tasks.spawn(async move |_finishes: Stop| {
            let Ok(_turn) = driver.turn(&id).await else { return };
            if let Err(error) = driver.parts().syncs.rotate_beside(&id).await {
                log(&id, &error.into(), "replace its sync's token; it is begun again soon");
            }
        });
    }

    /// Begins the syncs of pods that run without: whoever had begun them is gone, or failed to.
    async fn begin_missing_syncs(&self, live: &[SandboxRow]) -> Result<(), StoreError> {
        let Parts { host, store, syncs, .. } = self.parts();
        let runs = |row: &&SandboxRow| {
            row.state == State::Running && is_old(row) && host.is_sync_beside(&row.new.id)
        };
        let running: Vec<&SandboxRow> = live.iter().filter(runs).collect();
        if running.is_empty() {
            return Ok(());
        }
        let synced = store.sync_sessions(None).await?;
        let synced: BTreeSet<&SandboxId> = synced.iter().map(|session| &session.sandbox).collect();
        // Who is in its lane may be about to flush or to pause it.
        let is_missing = |id: &SandboxId| !synced.contains(id) && !self.0.lanes.is_busy(id);
        running.iter().filter(|row| is_missing(&row.new.id)).for_each(|row| syncs.resume(row));
        Ok(())
    }

    /// Compares the machine with the database while sandboxes come and go.
    pub(super) async fn sweep(&self) -> Result<(), StoreError> {
        // INVARIANT: the machine is read before the database. A sandbox is written down before
        // anything of it exists, so what is found here and is not known then is nobody's.
        let found = self.parts().host.list().await;
        // INVARIANT: warm ones are read before those that live. One that is claimed in between is
        // found in both, never in neither.
        let warm = self.parts().store.warm_sandboxes().await?;
        let live = self.parts().store.own_sandboxes().await?;
        // INVARIANT: claims are read after rows. Whoever makes a sandbox has claimed it before it is
        // written down, until it runs.
        let elsewhere = self.parts().store.claimed_elsewhere().await?;
        let known = live.iter().map(|row| &row.new.id).chain(warm.iter().map(|row| &row.id));
        let known: BTreeSet<&SandboxId> = known.collect();
        let is_spared = self.parts().spares_unknown;
        for orphan in found.iter().filter(|found| !is_spared && !known.contains(found.sandbox())) {
            self.remove_orphan(orphan.sandbox()).await;
        }
        self.parts().pool.compare(&warm, &found);
        // A session that outlived its sandbox, whatever kept it from ending.
        for id in self.parts().store.sessions_of_the_over().await? {
            tracing::warn!(sandbox = %id, "ending the session of a sandbox that is over");
            self.parts().sessions.end(&id, clock::now()).await?;
        }
        self.begin_missing_syncs(&live).await?;
        for row in live.iter().filter(|row| !elsewhere.contains(&row.new.id)) {
            let here = found.iter().find(|found| found.sandbox() == &row.new.id);
            if let Err(error) = self.compare(row, here).await {
                log(&row.new.id, &error, "compare it with the machine");
            }
        }
        Ok(())
    }

    async fn remove_orphan(&self, sandbox: &SandboxId) {
        tracing::warn!(%sandbox, "removing what nobody knows");
        match self.parts().host.destroy(sandbox).await {
            Ok(()) => self.0.counts.removed("sandbox"),
            Err(error) => {
                log(sandbox, &error.into(), "remove what nobody knows");
            }
        }
    }

    /// Whether what runs under a sandbox's name is a pod that was never told who it is.
    async fn is_in_another_pod(&self, row: &SandboxRow) -> Result<bool, DriveError> {
        let id = &row.new.id;
        let Some(peer) = self.parts().host.peer(id) else { return Ok(false) };
        let session = self.parts().store.session(id).await?;
        // Who is in the lane may be about to tell it.
        Ok(session.is_some_and(|session| session.peer != peer) && !self.0.lanes.is_busy(id))
    }

    /// Compares one sandbox with what there is of it. It may have come into being after the
    /// machine was read: only what is there counts.
    async fn compare(&self, row: &SandboxRow, here: Option<&Found>) -> Result<(), DriveError> {
        match (row.state, here) {
            (State::Running | State::Paused, Some(Found::Ended { exit, .. })) => {
                self.ended(&row.new.id, exit.as_ref()).await
            }
            (State::Running, Some(Found::Running(_))) if self.is_in_another_pod(row).await? => {
                let cause = Cause::own("the cluster replaced its pod");
                self.happen(&row.new.id, Event::Ended, None, cause).await.map(drop)
            }
            // Of one that does not answer nothing is known: the next sweep looks again.
            (State::Running | State::Paused, Some(found)) => {
                self.match_if_other(row, found);
                Ok(())
            }
            // Whoever was making it is gone: a maker is in its lane from before it is written down
            // to the end, and has claimed it where there are others.
            (State::Creating, _) if self.is_left(row) && !self.0.lanes.is_busy(&row.new.id) => {
                let cause = Cause::own("making it was interrupted");
                match self.happen(&row.new.id, Event::StartFailed, None, cause).await {
                    // It was made since the database was read.
                    Err(DriveError::Refused(_)) => Ok(()),
                    happened => happened.map(drop),
                }
            }
            (State::Waking, _) if !self.0.lanes.is_busy(&row.new.id) => {
                let cause = Cause::own("waking it was interrupted");
                match self.happen(&row.new.id, Event::NotWoken, None, cause).await {
                    // It woke since the database was read.
                    Err(DriveError::Refused(_)) => Ok(()),
                    happened => happened.map(drop),
                }
            }
            (State::Stopped, Some(Found::Running(_) | Found::Paused(_) | Found::Silent { .. }))
                if !self.0.lanes.is_busy(&row.new.id) =>
            {
                self.perform(row.clone(), &[Effect::Rest]);
                Ok(())
            }
            (State::Destroying(_), _) if !self.0.lanes.is_busy(&row.new.id) => {
                if let Unfinished::Effects(effects) = row.state.unfinished() {
                    self.perform(row.clone(), effects);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Driver {
    /// Whether nobody can be making a sandbox that is in no lane here. A claim that is gone says so at
    /// once; without claims its age does.
    fn is_left(&self, row: &SandboxRow) -> bool {
        self.parts().store.has_others() || is_old(row)
    }
}

/// What becomes of a sandbox at a deadline.
fn what_comes(row: &SandboxRow, deadline: Timestamp) -> String {
    if deadline == row.new.expires_at {
        return format!("its time is over at {deadline}");
    }
    match (row.state, row.new.on_idle) {
        (State::Paused, _) => format!("it will have been paused for too long at {deadline}"),
        (_, OnIdle::Pause) => format!("unused it is paused at {deadline}"),
        (_, OnIdle::Stop) => format!("unused it is stopped at {deadline}"),
        (_, OnIdle::Destroy) => format!("unused it is destroyed at {deadline}"),
    }
}

fn is_old(row: &SandboxRow) -> bool {
    clock::now().duration_since(row.created_at) > signed(START_TIME)
}
