// SPDX-License-Identifier: Apache-2.0
//! The orchestrator's end of the control stream: what gateways know, told to each in order.
//!
//! One task owns the state and the connections; everything else sends it messages. A gateway that
//! connects gets a snapshot, then each change. One that does not take messages for a while is
//! dropped: it serves from what it has until its own staleness bound, then refuses.
//!
//! A tenant's filters are native code, made for the engine that a gateway announces: each gateway
//! is told the configuration with the filters of its own.

mod known;
mod shares;
mod standing;

pub(crate) use standing::GatewayStand;

use crate::filter_log::FilterLog;
use crate::store::Store;
use futures_util::future::join_all;
use known::{Known, for_engine};
use postern_common::control::assertions::AssertionKey;
use postern_common::control::{Applied, Change, DeliverySender, FilterArtefact, Message, Publisher, State};
use postern_common::decision::DecisionRecord;
use postern_common::id::{FilterName, GatewayName, SandboxId, TenantId};
use postern_common::tasks::{Stop, Tasks};
use postern_filter_engine::settings::fingerprint;
use shares::{Sharer, Sharing};
use standing::{OWN_PROCESS, Place, Standing, Told};
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
    Connect(Follower),
    Publish(Publication, oneshot::Sender<Vec<oneshot::Receiver<Applied>>>),
}

/// A tenant's filters by the engine that they are compiled for, for gateways of other releases.
pub(crate) type OtherEngines = BTreeMap<String, BTreeMap<FilterName, FilterArtefact>>;

/// A change, and what of it other engines take.
struct Publication {
    change: Change,
    others: Arc<OtherEngines>,
}

/// A gateway that is told, and its place in the list of those.
struct Follower {
    number: u64,
    engine: String,
    /// Epoch and version of the last message that it put in force, whoever told it.
    last: Option<(u64, u64)>,
    sender: DeliverySender,
}

/// A gateway's connection, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Connection {
    _share: Sharer,
    _place: Place,
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
    standing: Standing,
    engines: watch::Receiver<BTreeSet<String>>,
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
        let (engines, announced) = watch::channel(BTreeSet::new());
        let (uses, used) = mpsc::channel(DECISION_BATCH * 2);
        let standing = Standing::default();
        let stream = Stream {
            epoch,
            version: 0,
            known: Known::from(state),
            followers: Vec::new(),
            count,
            engines,
            standing: standing.clone(),
            store: store.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn(async move |stop: Stop| {
            let _ = stop.run_until_cancelled(stream.run(received)).await;
        });
        let (filter_log, sharing) = (FilterLog::default(), Sharing::default());
        sharing.keep_sharing(store.clone(), tasks);
        let (store, engines, tasks) = (store, announced, tasks.clone());
        let gateways =
            Self { commands, connected, uses, store, filter_log, sharing, standing, engines, tasks };
        (gateways, used)
    }

    /// Connects a gateway: it gets a snapshot, and its decisions are kept from now on. If it is
    /// dropped it may connect again, and gets a snapshot again.
    pub(crate) async fn connect(&self, publisher: Publisher) {
        let engine = fingerprint().to_string();
        let place = self.standing.enter(OWN_PROCESS, &engine);
        let number = place.number();
        let follower =
            move |sender| Command::Connect(Follower { number, engine: engine.clone(), last: None, sender });
        // The task ends only at shutdown, when nobody is told anything any more.
        let _ = self.commands.send(follower(publisher.sender())).await.is_ok();
        let (commands, mut redials) = (self.commands.clone(), publisher.redials);
        let share = self.sharing.enter(None, publisher.budgets, publisher.assertions);
        let connection = Connection { _share: share, _place: place };
        self.tasks.spawn(async move |stop: Stop| {
            // For as long as the gateway may come back.
            let _connection = connection;
            while let Some(Some(again)) = stop.run_until_cancelled(redials.recv()).await {
                if commands.send(follower(again)).await.is_err() {
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

    /// Connects a gateway of another process, which runs filters with `engine` and whose decisions
    /// come by [`Gateways::keep`]. It shares budgets for as long as what is returned lives.
    pub(crate) async fn connect_distant(
        &self,
        gateway: &GatewayName,
        engine: &str,
        last: Option<(u64, u64)>,
        publisher: &Publisher,
    ) -> Connection {
        let place = self.standing.enter(gateway.as_str(), engine);
        let (number, sender) = (place.number(), publisher.sender());
        let follower = Follower { number, engine: engine.to_owned(), last, sender };
        // The task ends only at shutdown, when nobody is told anything any more.
        let _ = self.commands.send(Command::Connect(follower)).await.is_ok();
        let (budgets, assertions) = (publisher.budgets.clone(), publisher.assertions.clone());
        let share = self.sharing.enter(Some(gateway.clone()), budgets, assertions);
        Connection { _share: share, _place: place }
    }

    /// Where every gateway stands with a tenant's configuration.
    #[must_use]
    pub(crate) fn standing(&self, tenant: &TenantId) -> Vec<GatewayStand> {
        self.standing.of(tenant)
    }

    /// The engines, other than this release's, that gateways run which are connected.
    #[must_use]
    pub(crate) fn other_engines(&self) -> watch::Receiver<BTreeSet<String>> {
        self.engines.clone()
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
        self.publish_for_all(change, OtherEngines::new(), patience).await
    }

    /// The same for a tenant's configuration whose filters other engines take as in `others`. A
    /// gateway whose engine is not among them refuses it; to be judged it does not even get it.
    pub(crate) async fn publish_for_all(
        &self,
        change: Change,
        others: OtherEngines,
        patience: Duration,
    ) -> Acknowledged {
        let (sender, answers) = oneshot::channel();
        let mut acknowledged = Acknowledged::default();
        let publication = Publication { change, others: Arc::new(others) };
        if self.commands.send(Command::Publish(publication, sender)).await.is_err() {
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

struct Stream {
    epoch: u64,
    version: u64,
    known: Known,
    followers: Vec<Follower>,
    count: watch::Sender<usize>,
    engines: watch::Sender<BTreeSet<String>>,
    standing: Standing,
    store: Store,
    tasks: Tasks,
}

impl Stream {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Connect(follower) => self.connect(follower).await,
                Command::Publish(publication, answers) => {
                    let counts = self.known.apply(&publication);
                    let sent = if counts { self.publish(publication).await } else { Vec::new() };
                    // Whoever published may have stopped waiting.
                    let _ = answers.send(sent).is_ok();
                }
            }
        }
    }

    async fn connect(&mut self, follower: Follower) {
        self.outrun(follower.last).await;
        let (state, unserved) = self.known.snapshot(&follower.engine);
        let told: Vec<_> =
            state.tenants.iter().map(|config| (config.tenant.clone(), Told::of(config))).collect();
        for (tenant, told) in &told {
            self.standing.told(follower.number, tenant, Arc::clone(told), !unserved.contains(tenant));
        }
        let message = self.message(Change::Snapshot(Box::new(state)));
        if let Ok(Ok(answer)) = timeout(SEND_TIME, follower.sender.send(message)).await {
            let (standing, number) = (self.standing.clone(), follower.number);
            self.followers.push(follower);
            self.tasks.spawn(async move |stop: Stop| {
                let Some(Ok(answer)) = stop.run_until_cancelled(answer).await else { return };
                standing.answered_snapshot(number, &told, &answer);
                log_refusal(&answer);
            });
        }
        self.note_followers();
    }

    /// Makes sure that a gateway that was told by another orchestrator takes what this one says: it
    /// never goes back, so a new epoch begins. The number is the database's, not the gateway's word.
    async fn outrun(&mut self, last: Option<(u64, u64)>) {
        if last.is_none_or(|last| last < (self.epoch, self.version + 1)) {
            return;
        }
        match self.store.next_number("epoch", 0).await {
            Ok(epoch) => self.epoch = self.epoch.max(epoch),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "a gateway that another orchestrator has told is told when it comes again"
                );
            }
        }
    }

    /// Tells how many follow, and with which engines.
    fn note_followers(&self) {
        self.count.send_replace(self.followers.len());
        let own = fingerprint().to_string();
        let others = self.followers.iter().map(|follower| &follower.engine).filter(|engine| **engine != own);
        let others: BTreeSet<String> = others.cloned().collect();
        self.engines.send_if_modified(|engines| {
            let is_other = *engines != others;
            *engines = others;
            is_other
        });
    }

    const fn message(&mut self, change: Change) -> Message {
        self.version += 1;
        Message { epoch: self.epoch, version: self.version, change }
    }

    async fn publish(&mut self, publication: Publication) -> Vec<oneshot::Receiver<Applied>> {
        let Publication { change, others } = publication;
        if let Change::TenantRemoved(tenant) = &change {
            self.standing.removed(tenant);
        }
        let message = self.message(change);
        let sends = self.followers.iter().map(|follower| self.tell(follower, &message, &others));
        let outcomes = join_all(sends).await;
        let (mut answers, mut kept) = (Vec::new(), Vec::new());
        for (follower, outcome) in self.followers.drain(..).zip(outcomes) {
            match outcome {
                Sent::Answering(answer) => answers.push(answer),
                Sent::NotFor => {}
                Sent::Lost { was_late } => {
                    tracing::info!(was_late, "a gateway left, or took no message for two seconds");
                    continue;
                }
            }
            kept.push(follower);
        }
        self.followers = kept;
        self.note_followers();
        answers
    }

    /// Tells one gateway, with the filters of its engine.
    async fn tell(&self, follower: &Follower, message: &Message, others: &OtherEngines) -> Sent {
        let (mut message, mut noted) = (message.clone(), None);
        match &mut message.change {
            Change::Tenant(config) => {
                let (fitting, is_served) = for_engine(config, others, &follower.engine);
                let told = Told::of(&fitting);
                self.standing.told(follower.number, &fitting.tenant, Arc::clone(&told), is_served);
                noted = Some((fitting.tenant.clone(), told));
                *config = fitting;
            }
            Change::Try(config) => match for_engine(config, others, &follower.engine) {
                (fitting, true) => *config = fitting,
                // It could say nothing but that; the others' word counts.
                (_, false) => return Sent::NotFor,
            },
            Change::Snapshot(_) | Change::Session(_) | Change::SessionEnded(_) | Change::TenantRemoved(_) => {
            }
        }
        match timeout(SEND_TIME, follower.sender.send(message)).await {
            Ok(Ok(answer)) => Sent::Answering(match noted {
                Some((tenant, told)) => self.note_answer(follower.number, tenant, told, answer),
                None => answer,
            }),
            Ok(Err(_gone)) => Sent::Lost { was_late: false },
            Err(_late) => Sent::Lost { was_late: true },
        }
    }

    /// Notes what a gateway answers, whenever that is, and hands it on.
    fn note_answer(
        &self,
        number: u64,
        tenant: TenantId,
        told: Arc<Told>,
        answer: oneshot::Receiver<Applied>,
    ) -> oneshot::Receiver<Applied> {
        let (standing, (handed, answered)) = (self.standing.clone(), oneshot::channel());
        self.tasks.spawn(async move |stop: Stop| {
            let Some(Ok(answer)) = stop.run_until_cancelled(answer).await else { return };
            let refused = match &answer {
                Applied::InForce => &[][..],
                Applied::Refused(mistakes) => mistakes,
            };
            standing.answered(number, &tenant, &told, refused);
            // Whoever published may have stopped waiting.
            let _ = handed.send(answer).is_ok();
        });
        answered
    }
}

/// What became of a message to one gateway.
enum Sent {
    Answering(oneshot::Receiver<Applied>),
    /// It is of no use to this one.
    NotFor,
    Lost {
        was_late: bool,
    },
}

/// What a gateway refuses of its first snapshot nobody waits for: the operator is told.
fn log_refusal(answer: &Applied) {
    if let Applied::Refused(refused) = answer {
        tracing::error!(?refused, "a gateway that connected does not take everything over");
    }
}

#[cfg(test)]
mod tests;
