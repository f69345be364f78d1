// SPDX-License-Identifier: Apache-2.0
//! Follows the orchestrator: sessions into the registry, configurations into the snapshot.
//!
//! ```text
//! deliveries ──▶ follow ──▶ registry, doors        (sessions: at once)
//!                   └─────▶ compile ──▶ snapshot   (configurations: in order, off this task)
//! ```
//!
//! Sessions never wait for a configuration that takes long to compile. Within an epoch versions
//! only rise; an older message is refused. Each message is answered when it is in force.

use crate::Gateway;
use crate::config::SWEEP_INTERVAL;
use crate::listener::{accept_sandbox, open_door};
use crate::registry::Lookup;
use crate::snapshot::{Snapshot, build};
use postern_common::clock;
use postern_common::control::{Applied, Change, Delivery, State, TenantConfig};
use postern_common::id::TenantId;
use postern_common::session::{Peer, Session};
use postern_common::tasks::Stop;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

use crate::reject::Reject;

/// Whether the gateway has state, and how old it is.
///
/// Within one process the link is either there or gone, so age begins when it goes.
#[derive(Debug)]
pub(crate) struct Freshness {
    bound: Duration,
    state: Mutex<Hearing>,
}

#[derive(Debug, Clone, Copy)]
enum Hearing {
    Never(Instant),
    Now,
    LostAt(Instant),
}

impl Freshness {
    pub(crate) fn new(bound: Duration) -> Self {
        Self { bound, state: Mutex::new(Hearing::Never(Instant::now())) }
    }

    fn set(&self, hearing: Hearing) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = hearing;
    }

    fn heard(&self) {
        self.set(Hearing::Now);
    }

    fn lost(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Hearing::Now = *state {
            *state = Hearing::LostAt(Instant::now());
        }
    }

    fn hearing(&self) -> Hearing {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn age(&self) -> Duration {
        match self.hearing() {
            Hearing::Now => Duration::ZERO,
            Hearing::Never(since) | Hearing::LostAt(since) => since.elapsed(),
        }
    }

    /// Refuses to serve from state that is too old, or from none.
    ///
    /// # Errors
    /// [`Reject::StateStale`].
    pub(crate) fn check(&self) -> Result<(), Reject> {
        match self.hearing() {
            Hearing::Now => Ok(()),
            Hearing::LostAt(since) if since.elapsed() <= self.bound => Ok(()),
            Hearing::LostAt(_) | Hearing::Never(_) => Err(Reject::StateStale),
        }
    }
}

/// A change of configurations that waits to be compiled.
enum Work {
    Put(Arc<TenantConfig>),
    Remove(TenantId),
    /// All tenants, and what was wrong with the message so far.
    Replace(Vec<Arc<TenantConfig>>, Vec<String>),
}

/// Work with the epoch of its message and the way back.
type Waiting = (Work, u64, oneshot::Sender<Applied>);

/// Configurations that may wait to be compiled; then deliveries wait too.
const WORK_IN_FLIGHT: usize = 64;

/// Follows until the orchestrator's end closes or the gateway stops.
pub(crate) async fn follow(gateway: Arc<Gateway>, mut deliveries: mpsc::Receiver<Delivery>, stop: Stop) {
    let (work, waiting) = mpsc::channel(WORK_IN_FLIGHT);
    let compiling = Arc::clone(&gateway);
    gateway.tasks.spawn(move |stop| compile(compiling, waiting, stop));
    let mut following = Following { gateway: Arc::clone(&gateway), work, last: None };
    while let Some(Some(delivery)) = stop.run_until_cancelled(deliveries.recv()).await {
        following.apply(delivery).await;
    }
    gateway.freshness.lost();
}

struct Following {
    gateway: Arc<Gateway>,
    work: mpsc::Sender<Waiting>,
    /// Epoch and version of the last message.
    last: Option<(u64, u64)>,
}

impl Following {
    async fn apply(&mut self, delivery: Delivery) {
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
            Change::Snapshot(state) => return self.replace(*state, message.epoch, applied).await,
            Change::Tenant(config) => return self.hand_over(Work::Put(config), message.epoch, applied).await,
            Change::TenantRemoved(tenant) => {
                return self.hand_over(Work::Remove(tenant), message.epoch, applied).await;
            }
        };
        drop(applied.send(answer));
    }

    /// A dropped answer tells the orchestrator that nothing came of it.
    async fn hand_over(&self, work: Work, epoch: u64, applied: oneshot::Sender<Applied>) {
        drop(self.work.send((work, epoch, applied)).await);
    }

    async fn replace(&self, state: State, epoch: u64, applied: oneshot::Sender<Applied>) {
        let mut refused = Vec::new();
        let (mut opened, mut ended) = (Vec::new(), state.ended);
        ended.retain(|session| session.until > clock::now());
        for session in state.sessions {
            match self.door(&session) {
                Ok(door) => opened.push((session, door)),
                Err(words) => refused.push(words),
            }
        }
        let sessions = opened.iter().map(|(session, _)| session.clone()).collect();
        self.gateway.registry.replace(sessions, ended);
        for (session, door) in opened {
            self.serve(session, door);
        }
        self.hand_over(Work::Replace(state.tenants, refused), epoch, applied).await;
    }

    fn open(&self, session: Session) -> Applied {
        match self.door(&session) {
            Ok(door) => {
                if self.serve(session, door) {
                    Applied::InForce
                } else {
                    Applied::Refused(vec!["the session has ended; an ended session stays so".into()])
                }
            }
            Err(words) => Applied::Refused(vec![words]),
        }
    }

    /// Opens the session's own socket, if it has one that is not open yet.
    fn door(&self, session: &Session) -> Result<Option<(Arc<Path>, tokio::net::UnixListener)>, String> {
        let Peer::Socket(path) = &session.peer else { return Ok(None) };
        // A live session with this path has its door open: it closes with the session.
        if let Lookup::Live(live) = self.gateway.registry.find(&session.sandbox_id)
            && live.session.peer == session.peer
        {
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

    fn serve(&self, session: Session, door: Option<(Arc<Path>, tokio::net::UnixListener)>) -> bool {
        let Some(live) = self.gateway.registry.open(session) else {
            if let Some((path, _)) = door {
                drop(std::fs::remove_file(&path));
            }
            return false;
        };
        if let Some((path, listener)) = door {
            let (gateway, ended) = (Arc::clone(&self.gateway), live.ended.clone());
            self.gateway.tasks.spawn(move |stop| accept_sandbox(gateway, listener, path, ended, stop));
        }
        true
    }
}

/// Compiles configurations one after the other, so that the order of messages holds.
async fn compile(gateway: Arc<Gateway>, mut waiting: mpsc::Receiver<Waiting>, stop: Stop) {
    while let Some(Some((work, epoch, applied))) = stop.run_until_cancelled(waiting.recv()).await {
        let answer = match work {
            Work::Put(config) => put(&gateway, config, epoch).await,
            Work::Remove(tenant) => {
                gateway.swap(|snapshot| snapshot.without(|kept| *kept != tenant));
                Vec::new()
            }
            Work::Replace(configs, mut mistakes) => {
                let keep: Vec<TenantId> = configs.iter().map(|config| config.tenant.clone()).collect();
                gateway.swap(|snapshot| snapshot.without(|tenant| keep.contains(tenant)));
                for config in configs {
                    mistakes.extend(put(&gateway, config, epoch).await);
                }
                // Not ready before the first state is whole.
                gateway.freshness.heard();
                mistakes
            }
        };
        let answer = if answer.is_empty() { Applied::InForce } else { Applied::Refused(answer) };
        drop(applied.send(answer));
    }
}

/// Puts one tenant's configuration in force; the mistakes, if it cannot be.
async fn put(gateway: &Arc<Gateway>, config: Arc<TenantConfig>, epoch: u64) -> Vec<String> {
    let tenant = config.tenant.clone();
    let building = Arc::clone(gateway);
    let built = tokio::task::spawn_blocking(move || {
        let before = building.snapshot();
        let before = before.tenant(&config.tenant).map(|rules| &**rules);
        build(&config, before, &building.surroundings, epoch)
    });
    match built.await {
        Ok(Ok(rules)) => {
            let rules = Arc::new(rules);
            gateway.swap(|snapshot: Snapshot| snapshot.with(Arc::clone(&rules)));
            Vec::new()
        }
        Ok(Err(mistakes)) => {
            tracing::warn!(%tenant, mistakes = mistakes.len(), "a configuration was refused; the last good one stays");
            mistakes
        }
        Err(_panicked) => vec!["the configuration could not be compiled; the last good one stays".into()],
    }
}

/// Ends sessions whose time is over, so that their streams end too.
pub(crate) async fn sweep(gateway: Arc<Gateway>, stop: Stop) {
    while stop.run_until_cancelled(tokio::time::sleep(SWEEP_INTERVAL)).await.is_some() {
        gateway.registry.sweep(clock::now());
    }
}
