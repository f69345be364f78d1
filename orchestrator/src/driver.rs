// SPDX-License-Identifier: Apache-2.0
//! Does what the lifecycle says: writes the new state, then performs its effects.
//!
//! Each sandbox has a *lane*: what is done to one sandbox is done one at a time, while different
//! sandboxes never wait for each other. A start that is no longer wanted is cancelled and leaves
//! its lane. Whatever is interrupted is begun again by [`Driver::reconcile`], at start and at
//! intervals (`watch`).
//!
//! It is long because every way out of a state stands here beside the others.

mod claims;
mod counts;
mod freeze;
mod keep;
mod lanes;
mod picture;
mod rest;
mod start;
mod tokens;
mod wake;
mod watch;
mod write;

pub(crate) use counts::Counts;
pub(crate) use rest::Keep;
pub(crate) use start::First;
pub use watch::Reconciled;
use write::Written;

use crate::files::{TooMuch, UserFiles};
use crate::host::Host;
use crate::keys::InstallationKeys;
use crate::lifecycle::{self, Effect, Event, Refusal, State};
use crate::memory::Memory;
use crate::pool::{Claim, Pool};
use crate::runtime::{Isolation, Running, RuntimeError};
use crate::sessions::{SessionError, Sessions};
use crate::snapshots::SnapshotError;
use crate::store::{
    Action, Actor, AuditEntry, IdempotencyKey, NewSandbox, OverQuota, Quotas, SandboxChange, SandboxRow,
    Store, StoreError, Transition,
};
use crate::sync::processes::{SyncError, Syncs};
use lanes::Lanes;
use postern_common::clock;
use postern_common::id::{RequestId, SandboxId, TenantId, UserId};
use postern_common::secret::Secret;
use postern_common::tasks::{Stop, Tasks};
use postern_common::telemetry::SECONDS;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, broadcast, oneshot};

/// State changes that a slow waiter may miss before it looks at the database instead.
const CHANGES: usize = 1024;
/// When a token that a sandbox did not take is replaced again; the one before is good for 60 s.
const HAND_OVER_AGAIN: Duration = Duration::from_secs(15);
/// How long a call into a sandbox may take.
const AGENT_TIME: Duration = Duration::from_secs(10);
/// How long keeping a memory, or going on from one, may take: as the largest disk at 100 MB/s, and some.
const PICTURE_TIME: Duration = Duration::from_secs(300);
/// Pictures of memory at a time that are not sealed: each takes its sandbox's memory a second time.
const PICTURES: usize = 2;

/// Something could not be done to a sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriveError {
    /// There is none, or it is another tenant's.
    #[error("there is no sandbox `{0}`")]
    Unknown(SandboxId),
    /// Its conversation has a live one already.
    #[error("the conversation has a live sandbox")]
    Taken,
    /// Another call with the same idempotency key was faster.
    #[error("the idempotency key belongs to another call")]
    Repeated,
    /// The warm sandbox that it was to be is none any more.
    #[error("the warm sandbox is gone")]
    NotReady,
    /// It stands still.
    #[error("sandbox `{0}` is paused")]
    Paused(SandboxId),
    /// It is kept on disk only.
    #[error("sandbox `{0}` is stopped")]
    Stopped(SandboxId),
    /// Its tenant may have no more.
    #[error(transparent)]
    Quota(#[from] OverQuota),
    /// Its disk would not hold its user's files.
    #[error(transparent)]
    TooMuch(#[from] TooMuch),
    /// Its tenant was removed meanwhile.
    #[error("there is no tenant `{0}`")]
    NoTenant(TenantId),
    /// Its user is being erased.
    #[error("user `{}` is being erased", .0.as_str())]
    BeingErased(UserId),
    /// Not in this state.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Its files could not be carried.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// One of its template's start commands failed: which, and how.
    #[error("start command {0} {1}")]
    StartCommand(usize, String),
    /// The snapshot that it was to be made from.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// This orchestrator ends: another does it, or this one when it is back.
    #[error("the orchestrator is being stopped")]
    Ending,
    /// It runs on another machine.
    #[error("sandbox `{0}` is driven by the orchestrator on its own machine")]
    Elsewhere(SandboxId),
    /// It cannot be kept, or not with its memory.
    #[error("the {1} of sandbox `{0}` cannot be kept here")]
    NotKept(SandboxId, &'static str),
    /// Its processes did not answer in time.
    #[error("sandbox `{0}` does not answer")]
    Silent(SandboxId),
}

/// Why something is done, and who wants it: what the audit log says of it.
#[derive(Debug, Clone)]
pub(crate) struct Cause {
    /// Who.
    pub(crate) actor: Actor,
    /// Why, where it ends a sandbox.
    pub(crate) reason: Option<String>,
    /// The request.
    pub(crate) request: Option<RequestId>,
}

impl Cause {
    /// The orchestrator's own doing.
    #[must_use]
    pub(crate) fn own(reason: impl Into<String>) -> Self {
        Self { actor: Actor::Orchestrator, reason: Some(reason.into()), request: None }
    }
}

/// A sandbox that somebody wants.
#[derive(Debug)]
pub(crate) struct Wish {
    /// What it is to be.
    pub(crate) new: NewSandbox,
    /// What its tenant may have.
    pub(crate) quotas: Quotas,
    /// The isolation that it will have.
    pub(crate) level: Isolation,
    /// What a repeat of the call is known by.
    pub(crate) key: Option<IdempotencyKey>,
    /// What is done inside before it counts as running.
    pub(crate) start: First,
    /// The warm sandbox that it is to be, under the id of `new`; `None`: it is made.
    pub(crate) claim: Option<Claim>,
}

/// Everything that driving sandboxes takes.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The database.
    pub(crate) store: Store,
    /// Where they run.
    pub(crate) host: Arc<dyn Host>,
    /// Their sessions.
    pub(crate) sessions: Sessions,
    /// Their users' files.
    pub(crate) files: UserFiles,
    /// What carries them while sandboxes run.
    pub(crate) syncs: Syncs,
    /// Sandboxes that are kept ready.
    pub(crate) pool: Pool,
    /// Where the memory of stopped ones is kept.
    pub(crate) memory: Memory,
    /// Opens what is sealed.
    pub(crate) keys: Arc<InstallationKeys>,
    /// What the database does not know is only told of, for the database may have forgotten it.
    pub(crate) spares_unknown: bool,
    /// Owns what goes on when a caller has left.
    pub(crate) tasks: Tasks,
}

/// Drives sandboxes. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Driver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    lanes: Lanes,
    changes: broadcast::Sender<SandboxId>,
    startups: Startups,
    counts: Counts,
    /// Room for pictures of memory.
    pictures: Semaphore,
}

/// By `runtime`, and `start`: `warm` or `cold`.
pub(crate) type Startups = Family<[(&'static str, &'static str); 2], Histogram>;

impl Driver {
    /// A driver; nothing happens yet.
    #[must_use]
    pub(crate) fn new(parts: Parts) -> Self {
        let (changes, _) = broadcast::channel(CHANGES);
        let startups = Startups::new_with_constructor(|| Histogram::new(SECONDS));
        let (pictures, counts) = (Semaphore::new(PICTURES), Counts::default());
        Self(Arc::new(Inner { parts, lanes: Lanes::default(), changes, startups, counts, pictures }))
    }

    /// How long sandboxes took from their create call until they ran.
    #[must_use]
    pub(crate) fn startups(&self) -> Startups {
        self.0.startups.clone()
    }

    /// What carries files.
    #[must_use]
    pub(crate) fn syncs(&self) -> Syncs {
        self.0.parts.syncs.clone()
    }

    fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// Writes down that a sandbox is to be made, opens its session and begins to make it. Returns
    /// the row and the session's token. A caller who leaves interrupts nothing of that.
    ///
    /// # Errors
    /// [`DriveError::Taken`] if the conversation has a live one, [`DriveError::Repeated`] if the call
    /// is a repeat of one, [`DriveError::Quota`] and [`DriveError::TooMuch`] if it may not have one;
    /// else what went wrong, and then the sandbox is recorded as failed.
    pub(crate) async fn create(
        &self,
        wish: Wish,
        cause: Cause,
    ) -> Result<(SandboxRow, Secret<String>), DriveError> {
        let (told, answer) = oneshot::channel();
        let level = wish.level;
        let (driver, id, of) = (self.clone(), wish.new.id.clone(), wish.new.id.clone());
        self.parts().tasks.spawn(async move |shutdown: Stop| {
            // INVARIANT: whoever destroys it meanwhile waits for this turn, so that what is made
            // here is there to be ended.
            let turn = driver.turn(&of).await;
            let written = match &turn {
                Ok(_turn) => driver.write_down(wish, cause).await,
                Err(_ending) => Err(DriveError::Ending),
            };
            match written {
                Ok(written) => {
                    // Nobody may be waiting any more: it is made all the same, and can be found.
                    let _ = told.send(Ok((written.row.clone(), written.token.clone()))).is_ok();
                    // Large, and once for each sandbox.
                    Box::pin(driver.start(written, level, &shutdown)).await;
                }
                Err(error) => {
                    let is_none = matches!(
                        error,
                        DriveError::Taken
                            | DriveError::Repeated
                            | DriveError::NotReady
                            | DriveError::Quota(_)
                            | DriveError::TooMuch(_)
                            | DriveError::NoTenant(_)
                            | DriveError::BeingErased(_)
                            | DriveError::Session(_)
                            | DriveError::Ending
                    );
                    if is_none {
                        // There is no such sandbox.
                        driver.0.lanes.remove(&of);
                    }
                    let _ = told.send(Err(error)).is_ok();
                }
            }
        });
        answer.await.unwrap_or(Err(DriveError::Silent(id)))
    }

    /// Lets an event happen: writes the state that it leads to and begins the effects in a task
    /// of their own, so that a caller who leaves interrupts nothing. Returns the state then.
    ///
    /// # Errors
    /// [`DriveError::Refused`] if it is not possible now.
    pub(crate) async fn happen(
        &self,
        id: &SandboxId,
        event: Event,
        running: Option<Running>,
        cause: Cause,
    ) -> Result<State, DriveError> {
        self.happen_to(self.sandbox(id).await?, event, running, cause).await
    }

    /// [`Driver::happen`] to a sandbox as it was just now: if it is in another state by now, it is looked at
    /// again.
    async fn happen_to(
        &self,
        mut row: SandboxRow,
        event: Event,
        running: Option<Running>,
        cause: Cause,
    ) -> Result<State, DriveError> {
        let id = row.new.id.clone();
        loop {
            let (to, effects) = lifecycle::next(row.state, event)?;
            if to == row.state {
                return Ok(to);
            }
            let mut entry = entry(&row.new, Action::SandboxChanged, &cause);
            entry.change = Some((row.state.as_str(), to.as_str()));
            let reason = to.outcome().and(cause.reason.clone());
            // Whoever makes it, wakes it or tears it down does so in its turn; an end may come from anywhere.
            let is_claimed = matches!(event, Event::Started | Event::Woken | Event::TornDown);
            let transition = Transition { from: row.state, to, reason, running: running.clone(), is_claimed };
            if !self.parts().store.move_sandbox(&id, &transition, &entry).await? {
                // Somebody was faster: look again.
                row = self.sandbox(&id).await?;
                continue;
            }
            tracing::info!(sandbox = %id, from = %row.state, %to, reason = cause.reason.as_deref(), "sandbox changed");
            if to.outcome().is_some() {
                self.0.lanes.cancel(&id);
            }
            if to.is_over() {
                self.0.lanes.remove(&id);
            }
            // Nobody waiting is fine.
            let _ = self.0.changes.send(id.clone()).is_ok();
            self.perform(row, effects);
            return Ok(to);
        }
    }

    /// Begins effects, in order, in the sandbox's lane.
    fn perform(&self, row: SandboxRow, effects: &'static [Effect]) {
        if effects.is_empty() {
            return;
        }
        let driver = self.clone();
        let is_here = row.place == self.parts().store.place();
        self.parts().tasks.spawn(async move |_finishes: Stop| {
            if effects.contains(&Effect::EndSession) {
                // Before the turn too: revocation waits for nothing that goes on inside.
                if let Err(error) = driver.effect(&row, Effect::EndSession).await {
                    log(&row.new.id, &error, "end its session at once");
                }
            }
            if !is_here {
                // The orchestrator on its machine hears of it and does the rest.
                return;
            }
            let Ok(_turn) = driver.turn(&row.new.id).await else { return };
            for &effect in effects {
                if let Err(error) = driver.effect(&row, effect).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(sandbox = %row.new.id, ?effect, error, "will be tried again");
                    return;
                }
            }
        });
    }

    async fn effect(&self, row: &SandboxRow, effect: Effect) -> Result<(), DriveError> {
        let Parts { host, sessions, .. } = self.parts();
        let id = &row.new.id;
        match effect {
            Effect::Freeze => host.pause(id).await?,
            Effect::Thaw => host.resume(id).await?,
            Effect::Rest => {
                self.rest(id, Keep::Best).await?;
                self.keep_files_of_rest(id).await;
            }
            Effect::EndSession => sessions.end(id, clock::now()).await?,
            Effect::EndProcesses => {
                // It would be begun again otherwise; what it has not carried yet is, before the slot goes.
                self.parts().syncs.stop(id).await;
                host.end(id).await?;
            }
            Effect::KeepFiles => self.keep_files(row).await?,
            Effect::TearDown => {
                self.parts().syncs.end_session(id).await?;
                host.destroy(id).await?;
                self.parts().files.forget(id).await;
                let forgotten = self.parts().memory.remove_all(id).await;
                forgotten.map_err(start::machine(row, "remove the picture of the memory"))?;
                self.torn_down(id).await?;
            }
        }
        Ok(())
    }

    /// [`Driver::happen`] calls itself through its effects; this knot is tied in one place.
    fn torn_down<'a>(
        &'a self,
        id: &'a SandboxId,
    ) -> futures_util::future::BoxFuture<'a, Result<(), DriveError>> {
        let cause = Cause { actor: Actor::Orchestrator, reason: None, request: None };
        Box::pin(async move {
            match self.happen(id, Event::TornDown, None, cause).await {
                // Two that finished the same work: the second finds it done.
                Ok(_) | Err(DriveError::Refused(Refusal { state: State::Destroyed | State::Failed, .. })) => {
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })
    }

    /// The sandbox as it is now.
    ///
    /// # Errors
    /// [`DriveError::Unknown`].
    pub(crate) async fn sandbox(&self, id: &SandboxId) -> Result<SandboxRow, DriveError> {
        self.parts().store.sandbox(id).await?.ok_or_else(|| DriveError::Unknown(id.clone()))
    }

    /// A sandbox that can be reached from here.
    ///
    /// # Errors
    /// [`DriveError::Unknown`], [`DriveError::Elsewhere`].
    pub(super) async fn here(&self, id: &SandboxId) -> Result<SandboxRow, DriveError> {
        let row = self.sandbox(id).await?;
        self.is_here(&row).map(|()| row)
    }

    /// Whether a sandbox can be reached from here.
    ///
    /// # Errors
    /// [`DriveError::Elsewhere`].
    pub(crate) fn is_here(&self, row: &SandboxRow) -> Result<(), DriveError> {
        if row.place == self.parts().store.place() {
            return Ok(());
        }
        Err(DriveError::Elsewhere(row.new.id.clone()))
    }

    /// Waits until a sandbox is what `is_it` asks for, at most `patience`; returns what it is then.
    ///
    /// # Errors
    /// [`DriveError::Unknown`].
    pub(crate) async fn wait(
        &self,
        id: &SandboxId,
        is_it: impl Fn(State) -> bool,
        patience: Duration,
    ) -> Result<SandboxRow, DriveError> {
        let deadline = tokio::time::Instant::now() + patience;
        let mut changes = self.0.changes.subscribe();
        loop {
            let row = self.sandbox(id).await?;
            if is_it(row.state) {
                return Ok(row);
            }
            let changed = async {
                loop {
                    match changes.recv().await {
                        Ok(changed) if changed != *id => {}
                        _ => return,
                    }
                }
            };
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Ok(row);
            }
        }
    }

    /// Changes a live sandbox's deadlines or labels, and what gateways know of them; its token is
    /// replaced by one that is good for as long as it may be now. A caller who leaves interrupts
    /// nothing of that.
    ///
    /// # Errors
    /// [`DriveError`]; [`DriveError::Session`] if it is on its way out.
    pub(crate) async fn change(
        &self,
        id: &SandboxId,
        change: SandboxChange,
        cause: Cause,
    ) -> Result<SandboxRow, DriveError> {
        let (told, answer) = oneshot::channel();
        let (driver, of) = (self.clone(), id.clone());
        self.parts().tasks.spawn(async move |_finishes: Stop| {
            let _ = told.send(driver.make_change(&of, &change, cause).await).is_ok();
        });
        answer.await.unwrap_or_else(|_stopped| Err(DriveError::Silent(id.clone())))
    }

    async fn make_change(
        &self,
        id: &SandboxId,
        change: &SandboxChange,
        cause: Cause,
    ) -> Result<SandboxRow, DriveError> {
        let turn = self.turn(id).await?;
        let row = self.here(id).await?;
        let entry = entry(&row.new, Action::SandboxPatched, &cause);
        if !self.parts().store.change_sandbox(id, change, &entry).await? {
            if row.state.is_over() {
                self.0.lanes.remove(id);
            }
            return Err(SessionError::Ended(id.clone()).into());
        }
        if row.state == State::Running
            && let Err(error) = self.replace_in_turn(id, cause).await
        {
            // It is changed; its token is tried again soon.
            log(id, &error, "hand over the token of its new deadline");
        }
        drop(turn);
        self.sandbox(id).await
    }

    /// Destroys every sandbox and waits until all are gone, at most `patience`; returns how many
    /// were not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn destroy_all(&self, reason: &str, patience: Duration) -> Result<usize, StoreError> {
        let deadline = tokio::time::Instant::now() + patience;
        let live = self.parts().store.own_sandboxes().await?;
        let warm = self.parts().pool.close(patience);
        for row in &live {
            if let Err(error) = self.happen(&row.new.id, Event::Destroy, None, Cause::own(reason)).await {
                log(&row.new.id, &error, "destroy");
            }
        }
        let (left, warm) = tokio::join!(self.count_left(&live, deadline), warm);
        Ok(left + warm?)
    }

    /// Waits until each of these is over or the deadline has come; how many are not over then.
    async fn count_left(&self, rows: &[SandboxRow], deadline: tokio::time::Instant) -> usize {
        let mut left = 0;
        for row in rows {
            let rest = deadline.saturating_duration_since(tokio::time::Instant::now());
            match self.wait(&row.new.id, State::is_over, rest).await {
                Ok(row) if row.state.is_over() => {}
                _ => left += 1,
            }
        }
        left
    }
}

/// Logs what could not be done to a sandbox.
fn log(id: &SandboxId, error: &DriveError, what: &'static str) {
    let error: &dyn std::error::Error = error;
    tracing::error!(sandbox = %id, error, cause = error.source(), what, "not done to a sandbox");
}

/// An audit entry about a sandbox.
fn entry(new: &NewSandbox, action: Action, cause: &Cause) -> AuditEntry {
    let mut entry = AuditEntry::new(clock::now(), Some(new.tenant.clone()), action, cause.actor.clone());
    entry.sandbox = Some((new.id.clone(), new.user_id.clone(), new.conversation_id.clone()));
    entry.reason(cause.reason.clone()).request(cause.request.clone())
}

/// A duration for arithmetic with timestamps.
pub(crate) fn signed(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
