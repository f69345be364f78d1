// SPDX-License-Identifier: Apache-2.0
//! The orchestrator's end of the control stream: what gateways know, told to each in order.
//!
//! One task owns the state and the connections; everything else sends it messages. A gateway that
//! connects gets a snapshot, then each change. One that does not take messages for a while is
//! dropped: it serves from what it has until its own staleness bound, then refuses.

mod shares;

use crate::filter_log::FilterLog;
use crate::store::Store;
use futures_util::future::join_all;
use postern_common::control::assertions::AssertionKey;
use postern_common::control::{
    Applied, Change, DeliverySender, EndedSession, Message, Publisher, State, TenantConfig,
};
use postern_common::decision::DecisionRecord;
use postern_common::id::{GatewayName, SandboxId, TenantId};
use postern_common::session::Session;
use postern_common::tasks::{Stop, Tasks};
use shares::{Sharer, Sharing};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// How long a gateway may leave its queue full before it is dropped.
const SEND_TIME: Duration = Duration::from_secs(2);
/// Commands that may wait for the task.
const COMMANDS: usize = 256;
/// Decisions that are written in one transaction.
const DECISION_BATCH: usize = 512;
/// The bounds on kept decisions are looked at after so many decisions, and after so long without.
const DECISIONS_BETWEEN_TRIMS: usize = 5_000;
const TIME_BETWEEN_TRIMS: Duration = Duration::from_secs(3600);
/// How long an answer may wait for gateways to put a session in force (contracts: POST /sandbox).
pub(crate) const ACKNOWLEDGE_TIME: Duration = Duration::from_millis(200);

enum Command {
    Connect(DeliverySender),
    Publish(Change, oneshot::Sender<Vec<oneshot::Receiver<Applied>>>),
}

/// What became of a change that was published.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// Gateways that put it in force.
    pub(crate) in_force: usize,
    /// Gateways that did not answer in time; they will.
    pub(crate) pending: usize,
    /// What gateways said that refused it.
    pub(crate) refused: Vec<String>,
}

/// All connected gateways. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Gateways {
    commands: mpsc::Sender<Command>,
    connected: watch::Receiver<usize>,
    uses: mpsc::Sender<SandboxId>,
    store: Store,
    filter_log: FilterLog,
    sharing: Sharing,
    tasks: Tasks,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Connect(_) => "Connect",
            Self::Publish(..) => "Publish",
        })
    }
}

impl Gateways {
    /// Starts with what is known; `epoch` must be greater than at any start before.
    ///
    /// The receiver tells which sandboxes used their session.
    #[must_use]
    pub(crate) fn start(
        epoch: u64,
        state: State,
        store: Store,
        tasks: &Tasks,
    ) -> (Self, mpsc::Receiver<SandboxId>) {
        let (commands, received) = mpsc::channel(COMMANDS);
        let (count, connected) = watch::channel(0);
        let (uses, used) = mpsc::channel(DECISION_BATCH * 2);
        let stream = Stream {
            epoch,
            version: 0,
            known: Known::from(state),
            senders: Vec::new(),
            count,
            tasks: tasks.clone(),
        };
        tasks.spawn(async move |stop: Stop| {
            let _ = stop.run_until_cancelled(stream.run(received)).await;
        });
        let (filter_log, sharing) = (FilterLog::default(), Sharing::default());
        sharing.keep_sharing(tasks);
        (Self { commands, connected, uses, store, filter_log, sharing, tasks: tasks.clone() }, used)
    }

    /// Connects a gateway: it gets a snapshot, and its decisions are kept from now on. If it is
    /// dropped it may connect again, and gets a snapshot again.
    pub(crate) async fn connect(&self, publisher: Publisher) {
        // The task ends only at shutdown, when nobody is told anything any more.
        let _ = self.commands.send(Command::Connect(publisher.sender())).await.is_ok();
        let (commands, mut redials) = (self.commands.clone(), publisher.redials);
        let share = self.sharing.enter(None, publisher.budgets, publisher.assertions);
        self.tasks.spawn(async move |stop: Stop| {
            // For as long as the gateway may come back.
            let _share = share;
            while let Some(Some(again)) = stop.run_until_cancelled(redials.recv()).await {
                if commands.send(Command::Connect(again)).await.is_err() {
                    return;
                }
            }
        });
        let (store, uses) = (self.store.clone(), self.uses.clone());
        self.tasks.spawn(async move |stop: Stop| {
            let _ = stop.run_until_cancelled(keep(publisher.decisions, store, uses)).await;
        });
        let kept = self.filter_log.clone().keep(publisher.lines);
        self.tasks.spawn(async move |stop: Stop| {
            let _ = stop.run_until_cancelled(kept).await;
        });
    }

    /// What filters log in all gateways.
    #[must_use]
    pub(crate) const fn filter_log(&self) -> &FilterLog {
        &self.filter_log
    }

    /// Connects a gateway of another process, whose decisions come by [`Gateways::keep`]. It shares
    /// budgets for as long as what is returned lives.
    pub(crate) async fn connect_distant(&self, gateway: &GatewayName, publisher: &Publisher) -> Sharer {
        // The task ends only at shutdown, when nobody is told anything any more.
        let _ = self.commands.send(Command::Connect(publisher.sender())).await.is_ok();
        let (budgets, assertions) = (publisher.budgets.clone(), publisher.assertions.clone());
        self.sharing.enter(Some(gateway.clone()), budgets, assertions)
    }

    /// The keys by which gateways' assertions are told from anybody's.
    #[must_use]
    pub(crate) fn assertion_keys(&self) -> Vec<AssertionKey> {
        self.sharing.keys()
    }

    /// Takes back what a gateway has in common with others, when its credential is.
    pub(crate) fn revoked(&self, gateway: &GatewayName) {
        self.sharing.revoke(gateway);
    }

    /// Keeps a batch of decisions; `false` if they could not be kept and should come again.
    pub(crate) async fn keep(&self, batch: Vec<DecisionRecord>) -> bool {
        if let Err(error) = self.store.keep_decisions(&batch).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, waiting = batch.len(), "decisions were not kept");
            return false;
        }
        tell_uses(batch, &self.uses);
        true
    }

    /// Drops decisions that are over the bound.
    pub(crate) async fn trim(&self) {
        trim(&self.store).await;
    }

    /// How many gateways are connected.
    #[must_use]
    pub(crate) fn connected(&self) -> usize {
        *self.connected.borrow()
    }

    /// Tells every gateway and waits until all have answered, at most `patience`.
    pub(crate) async fn publish(&self, change: Change, patience: Duration) -> Acknowledged {
        let (sender, answers) = oneshot::channel();
        let mut acknowledged = Acknowledged::default();
        if self.commands.send(Command::Publish(change, sender)).await.is_err() {
            return acknowledged;
        }
        let deadline = tokio::time::Instant::now() + patience;
        let Ok(Ok(answers)) = tokio::time::timeout_at(deadline, answers).await else {
            acknowledged.pending = self.connected();
            return acknowledged;
        };
        for answer in
            join_all(answers.into_iter().map(|answer| tokio::time::timeout_at(deadline, answer))).await
        {
            match answer {
                Ok(Ok(Applied::InForce)) => acknowledged.in_force += 1,
                Ok(Ok(Applied::Refused(mistakes))) => acknowledged.refused.extend(mistakes),
                // Gone, or late.
                Ok(Err(_)) => {}
                Err(_late) => acknowledged.pending += 1,
            }
        }
        acknowledged
    }
}

/// Keeps the decisions of one gateway until it is gone.
async fn keep(mut decisions: mpsc::Receiver<DecisionRecord>, store: Store, uses: mpsc::Sender<SandboxId>) {
    // What a run before left may be too much already.
    trim(&store).await;
    let mut kept = 0;
    loop {
        let mut batch = Vec::with_capacity(DECISION_BATCH);
        match timeout(TIME_BETWEEN_TRIMS, decisions.recv_many(&mut batch, DECISION_BATCH)).await {
            Ok(0) => return,
            Ok(count) => kept += count,
            Err(_quiet) => kept = DECISIONS_BETWEEN_TRIMS,
        }
        if let Err(error) = store.keep_decisions(&batch).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, lost = batch.len(), "decisions were not kept");
        }
        tell_uses(batch, &uses);
        if kept >= DECISIONS_BETWEEN_TRIMS {
            kept = 0;
            trim(&store).await;
        }
    }
}

/// Tells which sandboxes a batch is of.
fn tell_uses(batch: Vec<DecisionRecord>, uses: &mpsc::Sender<SandboxId>) {
    let used: BTreeSet<SandboxId> = batch.into_iter().filter_map(|record| record.sandbox_id).collect();
    for sandbox in used {
        // Full: the sandbox is noted with a later batch.
        let _ = uses.try_send(sandbox).is_ok();
    }
}

async fn trim(store: &Store) {
    if let Err(error) = store.trim_decisions(postern_common::clock::now()).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "old decisions were not dropped");
    }
}

/// What gateways know, by name, so that each change finds its place.
#[derive(Default)]
struct Known {
    tenants: BTreeMap<TenantId, Arc<TenantConfig>>,
    sessions: BTreeMap<SandboxId, Session>,
    ended: BTreeMap<SandboxId, EndedSession>,
    /// Tenants that are no more. A name is never given again, so they stay so.
    removed: BTreeSet<TenantId>,
}

impl From<State> for Known {
    fn from(state: State) -> Self {
        Self {
            removed: BTreeSet::new(),
            tenants: state.tenants.into_iter().map(|tenant| (tenant.tenant.clone(), tenant)).collect(),
            sessions: state
                .sessions
                .into_iter()
                .map(|session| (session.sandbox_id.clone(), session))
                .collect(),
            ended: state.ended.into_iter().map(|ended| (ended.sandbox_id.clone(), ended)).collect(),
        }
    }
}

impl Known {
    fn snapshot(&self) -> State {
        let now = postern_common::clock::now();
        State {
            tenants: self.tenants.values().cloned().collect(),
            // One that nobody ended but time is over all the same.
            sessions: self.sessions.values().filter(|session| session.expires_at > now).cloned().collect(),
            ended: self.ended.values().cloned().collect(),
        }
    }

    /// Takes a change over; `false` if it comes too late to count.
    fn apply(&mut self, change: &Change) -> bool {
        match change {
            Change::Snapshot(state) => *self = Self::from(State::clone(state)),
            Change::Session(session) => {
                // An ended session never comes back, whatever was on its way.
                if self.ended.contains_key(&session.sandbox_id) {
                    return false;
                }
                self.sessions.insert(session.sandbox_id.clone(), Session::clone(session));
            }
            Change::SessionEnded(ended) => {
                let now = postern_common::clock::now();
                self.ended.retain(|_, ended| ended.until > now);
                self.sessions.remove(&ended.sandbox_id);
                self.ended.insert(ended.sandbox_id.clone(), ended.clone());
            }
            Change::Tenant(tenant) => {
                let known = self.tenants.get(&tenant.tenant);
                let is_past = known.is_some_and(|known| known.revision > tenant.revision);
                if is_past || self.removed.contains(&tenant.tenant) {
                    return false;
                }
                self.tenants.insert(tenant.tenant.clone(), Arc::clone(tenant));
            }
            Change::TenantRemoved(tenant) => {
                self.tenants.remove(tenant);
                self.removed.insert(tenant.clone());
            }
            Change::Try(_) => {}
        }
        true
    }
}

struct Stream {
    epoch: u64,
    version: u64,
    known: Known,
    senders: Vec<DeliverySender>,
    count: watch::Sender<usize>,
    tasks: Tasks,
}

impl Stream {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Connect(sender) => {
                    let snapshot = Change::Snapshot(Box::new(self.known.snapshot()));
                    let message = self.message(snapshot);
                    if let Ok(Ok(answer)) = timeout(SEND_TIME, sender.send(message)).await {
                        self.senders.push(sender);
                        self.tasks.spawn(async move |stop: Stop| {
                            let _ = stop.run_until_cancelled(log_refusal(answer)).await;
                        });
                    }
                    self.count.send_replace(self.senders.len());
                }
                Command::Publish(change, answers) => {
                    let counts = self.known.apply(&change);
                    let sent = if counts { self.publish(change).await } else { Vec::new() };
                    // Whoever published may have stopped waiting.
                    let _ = answers.send(sent).is_ok();
                }
            }
        }
    }

    const fn message(&mut self, change: Change) -> Message {
        self.version += 1;
        Message { epoch: self.epoch, version: self.version, change }
    }

    async fn publish(&mut self, change: Change) -> Vec<oneshot::Receiver<Applied>> {
        let message = self.message(change);
        let sends = self.senders.iter().map(|sender| timeout(SEND_TIME, sender.send(message.clone())));
        let outcomes = join_all(sends).await;
        let (mut answers, mut kept) = (Vec::new(), Vec::new());
        for (sender, outcome) in self.senders.drain(..).zip(outcomes) {
            if let Ok(Ok(answer)) = outcome {
                answers.push(answer);
                kept.push(sender);
            } else {
                tracing::info!(
                    was_late = outcome.is_err(),
                    "a gateway left, or took no message for two seconds"
                );
            }
        }
        self.senders = kept;
        self.count.send_replace(self.senders.len());
        answers
    }
}

/// What a gateway refuses of its first snapshot nobody waits for: the operator is told.
async fn log_refusal(answer: oneshot::Receiver<Applied>) {
    if let Ok(Applied::Refused(refused)) = answer.await {
        tracing::error!(?refused, "a gateway that connected does not take everything over");
    }
}

#[cfg(test)]
mod tests;
