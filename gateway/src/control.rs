// SPDX-License-Identifier: Apache-2.0
//! Follows the orchestrator: sessions into the registry, configurations into the snapshot.
//!
//! ```text
//! deliveries ──▶ follow ──▶ registry, doors                (sessions: at once)
//!                   └─────▶ pending ──▶ compile ──▶ snapshot (configurations: off this task)
//! ```
//!
//! Sessions never wait for a configuration, and no tenant's configuration for more than one of
//! each other tenant's. Within an epoch versions only rise; an older message is refused. Each
//! message is answered when it is in force. A link that is lost is opened again.

pub(crate) mod freshness;
mod pending;
pub(crate) mod unserved;

use crate::Gateway;
use crate::config::SWEEP_INTERVAL;
use crate::listener::{accept_sandbox, open_door};
use crate::registry::{LiveSession, Lookup};
use crate::snapshot::{Snapshot, TenantRules, build};
use freshness::Generation;
use pending::{Answer, Batch, Job, Pending, Work};
use postern_common::clock;
use postern_common::control::{Applied, Change, Delivery, Link, State, TenantConfig, of_tenant};
use postern_common::id::TenantId;
use postern_common::session::{Peer, Session};
use postern_common::tasks::Stop;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use unserved::Unserved;

/// Configurations that are compiled at the same time: one that takes long leaves the other.
const COMPILERS: usize = 2;
/// Configurations that are tried at the same time, beside those.
const TRIALS: usize = 1;
/// The pause before a lost link is opened again; it doubles up to [`REDIAL_LONGEST`].
const REDIAL_PAUSE: Duration = Duration::from_millis(50);
/// Well below the staleness bound.
const REDIAL_LONGEST: Duration = Duration::from_secs(2);

/// Follows until the orchestrator is gone for good or the gateway stops.
pub(crate) async fn follow(
    gateway: Arc<Gateway>,
    mut deliveries: mpsc::Receiver<Delivery>,
    link: Link,
    stop: Stop,
) {
    let pending = Arc::<Pending>::default();
    for _ in 0..COMPILERS {
        let (compiling, pending) = (Arc::clone(&gateway), Arc::clone(&pending));
        gateway.tasks.spawn(move |stop| compile(compiling, pending, stop));
    }
    let mut pause = REDIAL_PAUSE;
    let (mut last, mut newest) = (None, Newest::default());
    let trials = Arc::new(Semaphore::new(TRIALS));
    loop {
        let generation = gateway.freshness.connected();
        let mut following = Following {
            gateway: Arc::clone(&gateway),
            pending: Arc::clone(&pending),
            trials: Arc::clone(&trials),
            generation,
            last,
            newest,
        };
        while let Some(Some(delivery)) = stop.run_until_cancelled(deliveries.recv()).await {
            following.apply(delivery);
            pause = REDIAL_PAUSE;
        }
        gateway.freshness.lost(generation);
        (last, newest) = (following.last, following.newest);
        let wait = pause;
        pause = pause.saturating_mul(2).min(REDIAL_LONGEST);
        let redialled = async {
            tokio::time::sleep(wait).await;
            link.redial().await
        };
        match stop.run_until_cancelled(redialled).await {
            Some(Some(fresh)) => {
                tracing::info!("the link to the orchestrator was lost and is open again");
                deliveries = fresh;
            }
            None | Some(None) => return,
        }
    }
}

struct Following {
    gateway: Arc<Gateway>,
    pending: Arc<Pending>,
    trials: Arc<Semaphore>,
    generation: Generation,
    /// Epoch and version of the last message.
    last: Option<(u64, u64)>,
    newest: Newest,
}

type Door = Option<(Arc<Path>, tokio::net::UnixListener)>;

impl Following {
    /// Never waits: whatever takes long is done elsewhere.
    fn apply(&mut self, delivery: Delivery) {
        let Delivery { message, applied } = delivery;
        let place = (message.epoch, message.version);
        if self.last.is_some_and(|last| place <= last) {
            let words =
                format!("message {}.{} is older than what is in force", message.epoch, message.version);
            drop(applied.send(Applied::Refused(vec![words])));
            return;
        }
        self.last = Some(place);
        self.gateway.metrics.control_version.set(i64::try_from(message.version).unwrap_or(i64::MAX));
        let answer = match message.change {
            Change::Session(session) => self.open(*session),
            Change::SessionEnded(ended) => {
                self.gateway.registry.end(ended);
                Applied::InForce
            }
            Change::Snapshot(state) => return self.replace(*state, message.epoch, applied),
            Change::Tenant(config) => {
                if let Some(words) = self.newest.refusal(&config, message.epoch) {
                    drop(applied.send(Applied::Refused(vec![words])));
                    return;
                }
                let tenant = config.tenant.clone();
                return self.pending.add(tenant, Work::Put(config), message.epoch, Answer::One(applied));
            }
            Change::Try(config) => return self.try_out(config, message.epoch, applied),
            Change::TenantRemoved(tenant) => {
                self.newest.removed(tenant.clone(), message.epoch);
                return self.pending.add(tenant, Work::Remove, message.epoch, Answer::One(applied));
            }
        };
        drop(applied.send(answer));
    }

    /// Judges a configuration beside what is compiled, which it never takes the place of.
    fn try_out(&self, config: Arc<TenantConfig>, epoch: u64, applied: oneshot::Sender<Applied>) {
        let (gateway, trials) = (Arc::clone(&self.gateway), Arc::clone(&self.trials));
        self.gateway.tasks.spawn(async move |stop: Stop| {
            let judged = async {
                // Never closed; closed, nobody would be waiting.
                let _room = trials.acquire().await;
                built(&gateway, config, epoch).await
            };
            let answer = match stop.run_until_cancelled(judged).await {
                None => return,
                Some(Ok(_unused)) => Applied::InForce,
                Some(Err(mistakes)) => Applied::Refused(mistakes),
            };
            drop(applied.send(answer));
        });
    }

    fn replace(&mut self, mut state: State, epoch: u64, applied: oneshot::Sender<Applied>) {
        let mut refused = self.replace_sessions(state.sessions, state.ended);
        state.tenants.retain(|config| {
            let words = self.newest.refusal(config, epoch);
            let is_new = words.is_none();
            refused.extend(words.map(|words| of_tenant(&config.tenant, &words)));
            is_new
        });
        let named: HashSet<&TenantId> = state.tenants.iter().map(|config| &config.tenant).collect();
        let mut gone: BTreeSet<TenantId> = self.gateway.snapshot().tenants().cloned().collect();
        gone.extend(self.pending.tenants());
        gone.retain(|tenant| !named.contains(tenant));
        let had_state = self.gateway.freshness.has_state();
        let parts = state.tenants.len() + gone.len();
        let batch = Batch::new(&self.gateway, self.generation, parts, refused, applied);
        for tenant in gone {
            self.pending.add(tenant, Work::Remove, epoch, Answer::Part(Arc::clone(&batch)));
        }
        for config in state.tenants {
            let part = Answer::Part(Arc::clone(&batch));
            self.pending.add(config.tenant.clone(), Work::Put(config), epoch, part);
        }
        // The first state must be whole before anybody is served. Later ones change what is there,
        // like every configuration: no tenant's slow one may keep the others from being served.
        if had_state {
            self.gateway.freshness.in_force(self.generation);
        }
    }

    /// The mistakes of sessions that cannot be served.
    fn replace_sessions(
        &self,
        sessions: Vec<Session>,
        mut ended: Vec<postern_common::control::EndedSession>,
    ) -> Vec<String> {
        let (mut opened, mut doors, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        ended.retain(|session| session.until > clock::now());
        for session in sessions {
            match self.door(&session) {
                Ok(door) => {
                    opened.push(session);
                    doors.push(door);
                }
                Err(words) => refused.push(words),
            }
        }
        let live = self.gateway.registry.replace(opened, ended);
        for (live, door) in live.into_iter().zip(doors) {
            self.serve(live.as_deref(), door);
        }
        refused
    }

    fn open(&self, session: Session) -> Applied {
        match self.door(&session) {
            Ok(door) => {
                let live = self.gateway.registry.open(session);
                self.serve(live.as_deref(), door);
                match live {
                    Some(_) => Applied::InForce,
                    None => Applied::Refused(vec!["the session has ended; an ended session stays so".into()]),
                }
            }
            Err(words) => Applied::Refused(vec![words]),
        }
    }

    /// Opens the session's own socket, if it has one that is not open yet.
    fn door(&self, session: &Session) -> Result<Door, String> {
        let Peer::Socket(path) = &session.peer else { return Ok(None) };
        // A live session with this path has its door open: it closes with the session.
        if let Lookup::Live(live) = self.gateway.registry.find(&session.sandbox_id)
            && live.session.peer == session.peer
        {
            return Ok(None);
        }
        // The folder is there before its session is told of: where there is none, the sandbox is on
        // another machine, and so is the gateway that is its door.
        if path.parent().is_some_and(|folder| !folder.exists()) {
            return Ok(None);
        }
        match open_door(path) {
            Ok(listener) => Ok(Some((Arc::from(path.as_path()), listener))),
            Err(error) => Err(match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            }),
        }
    }

    /// Accepts at a session's door; without a session the door is taken away.
    fn serve(&self, live: Option<&LiveSession>, door: Door) {
        let Some((path, listener)) = door else { return };
        let Some(live) = live else {
            drop(std::fs::remove_file(&path));
            return;
        };
        let (gateway, ended) = (Arc::clone(&self.gateway), live.ended.clone());
        self.gateway.tasks.spawn(move |stop| accept_sandbox(gateway, listener, path, ended, stop));
    }
}

/// Does what is pending, one tenant at a time.
async fn compile(gateway: Arc<Gateway>, pending: Arc<Pending>, stop: Stop) {
    while let Some((tenant, job)) = stop.run_until_cancelled(pending.next()).await {
        let (work, epoch, answers) = job.into_parts();
        let mistakes = match work {
            Work::Put(config) => put(&gateway, config, epoch).await,
            Work::Remove => {
                gateway.swap(|snapshot| snapshot.without(|kept| *kept != tenant));
                gateway.unserved.forget(&tenant);
                Vec::new()
            }
        };
        gateway.metrics.keep(&gateway.snapshot());
        Job::answer(answers, &tenant, &mistakes);
        pending.done(&tenant);
    }
}

/// Epoch and revision of the newest configuration that was heard of each tenant, in force or not.
///
/// A tenant's name is never given again, so nothing is newer than its removal.
#[derive(Debug, Default)]
struct Newest(BTreeMap<TenantId, (u64, u64)>);

impl Newest {
    /// Why this one comes too late; if it does not, it is the newest now.
    fn refusal(&mut self, config: &TenantConfig, epoch: u64) -> Option<String> {
        let place = (epoch, config.revision);
        let newest = self.0.entry(config.tenant.clone()).or_insert(place);
        if place < *newest {
            let (tenant, revision) = (&config.tenant, config.revision);
            return Some(format!("revision {revision} of `{tenant}` is older than what was told before"));
        }
        *newest = place;
        None
    }

    fn removed(&mut self, tenant: TenantId, epoch: u64) {
        self.0.insert(tenant, (epoch, u64::MAX));
    }
}

/// Puts one tenant's configuration in force; the mistakes, if it cannot be.
async fn put(gateway: &Arc<Gateway>, config: Arc<TenantConfig>, epoch: u64) -> Vec<String> {
    let tenant = config.tenant.clone();
    let is_foreign = Unserved::is_foreign(&config);
    match built(gateway, config, epoch).await {
        Ok(rules) => {
            let rules = Arc::new(rules);
            gateway.swap(|snapshot: Snapshot| snapshot.with(Arc::clone(&rules)));
            gateway.unserved.forget(&tenant);
            Vec::new()
        }
        Err(mistakes) => {
            if is_foreign {
                gateway.unserved.note(&tenant);
            }
            tracing::warn!(%tenant, mistakes = mistakes.len(), "a configuration was refused; the last good one stays");
            mistakes
        }
    }
}

/// What a configuration would be in force; the mistakes, if it cannot be.
async fn built(
    gateway: &Arc<Gateway>,
    config: Arc<TenantConfig>,
    epoch: u64,
) -> Result<TenantRules, Vec<String>> {
    let building = Arc::clone(gateway);
    let built = tokio::task::spawn_blocking(move || {
        let before = building.snapshot();
        let before = before.tenant(&config.tenant).map(|rules| &**rules);
        build(&config, before, &building.surroundings, epoch)
    });
    built
        .await
        .unwrap_or_else(|_panicked| Err(vec!["the configuration could not be compiled; simplify it".into()]))
}

/// Ends sessions whose time is over, so that their streams end too.
pub(crate) async fn sweep(gateway: Arc<Gateway>, stop: Stop) {
    while stop.run_until_cancelled(tokio::time::sleep(SWEEP_INTERVAL)).await.is_some() {
        gateway.registry.sweep(clock::now());
    }
}
