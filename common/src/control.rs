// SPDX-License-Identifier: Apache-2.0
//! What the orchestrator tells its gateways, and what they tell it.
//!
//! The types here are the same in one process (`postern up`: [`link`]) and over the wire. A
//! follower applies messages in order; each is acknowledged once it is in force, and a tenant's
//! configuration that cannot be put in force is answered with its mistakes while the last good
//! one stays.
//!
//! ```text
//!  orchestrator                                   gateway
//!   Publisher ── Delivery { Message, applied } ──▶ Follower ──▶ registry, snapshot
//!             ◀───────── DecisionRecord ──────────
//! ```

pub mod assertions;
pub mod budgets;

use crate::decision::{DecisionRecord, FilterLine, Versions};
use crate::folder::{BackendFile, LimitsFile};
use crate::id::{BackendName, FilterName, PolicyName, SandboxId, SecretName, TenantId};
use crate::secret::Secret;
use crate::session::Session;
use assertions::AssertionKeys;
use budgets::Budgets;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};

/// A message of the control stream.
#[derive(Debug, Clone)]
pub struct Message {
    /// Counts restored databases; a gateway goes back within an epoch never.
    pub epoch: u64,
    /// Rises by one with each message of an epoch.
    pub version: u64,
    /// What to change.
    pub change: Change,
}

/// What a message changes.
#[derive(Debug, Clone)]
pub enum Change {
    /// Replaces everything that the gateway knows.
    Snapshot(Box<State>),
    /// A session that opened, or whose tokens, end or labels changed.
    Session(Box<Session>),
    /// A session that ended: refused from now on, forgotten when its last token has expired.
    SessionEnded(EndedSession),
    /// A tenant's whole configuration, to be put in force as one.
    Tenant(Arc<TenantConfig>),
    /// A configuration that is to be judged and not put in force: [`Applied::InForce`] says that it
    /// could be.
    Try(Arc<TenantConfig>),
    /// A tenant that is no more.
    TenantRemoved(TenantId),
}

/// A session that is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedSession {
    /// Whose it was.
    pub sandbox_id: SandboxId,
    /// When its last token expires.
    pub until: Timestamp,
}

/// Everything that a gateway knows.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Every tenant's configuration.
    pub tenants: Vec<Arc<TenantConfig>>,
    /// Every live session.
    pub sessions: Vec<Session>,
    /// Sessions that ended and whose tokens have not all expired.
    pub ended: Vec<EndedSession>,
}

/// What a gateway enforces for one tenant. Judged whole: it is in force as one, or not at all.
#[derive(Debug, Clone)]
pub struct TenantConfig {
    /// Whose it is.
    pub tenant: TenantId,
    /// Rises with every change of any tenant's configuration or secrets: one that is lower than
    /// what was heard of before comes too late, and is refused.
    pub revision: u64,
    /// Digests that decision records name.
    pub versions: Versions,
    /// Backends by name.
    pub backends: BTreeMap<BackendName, BackendConfig>,
    /// The backend that paths without a backend's name go to, where it is set (`BACKEND_URL`).
    /// A tenant's only backend needs no setting.
    pub default_backend: Option<BackendName>,
    /// The tenant's policies; `None` if it never put a set, which is not the same as an empty one.
    pub policies: Option<BTreeMap<PolicyName, String>>,
    /// A whole set that only watches; empty if there is none.
    pub shadow_policies: BTreeMap<PolicyName, String>,
    /// Compiled filters by name.
    pub filters: BTreeMap<FilterName, FilterArtefact>,
    /// The secrets that its backends' credentials name.
    pub secrets: BTreeMap<SecretName, Secret<String>>,
    /// The tenant's own limits.
    pub limits: LimitsFile,
}

/// A backend as a gateway needs it.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// Its `backend.toml`.
    pub file: BackendFile,
    /// Its OpenAPI document, if it has one; else any path, in the groups `read` and `write`.
    pub document: Option<Arc<str>>,
}

/// A compiled filter and what makes it trustworthy.
#[derive(Debug, Clone)]
pub struct FilterArtefact {
    /// Its `filter.toml`.
    pub manifest: Arc<str>,
    /// The compiled component with its signed header, in the filter engine's own format.
    pub artefact: Arc<[u8]>,
    /// The rising number that rules out older ones.
    pub version: u64,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// It is in force.
    InForce,
    /// It is not; what was in force before still is. Each entry says what is wrong, for people; of
    /// a snapshot, whose parts stand or fall alone, it begins as [`of_tenant`] writes it.
    Refused(Vec<String>),
}

/// A mistake in a snapshot, with the tenant that it is of.
#[must_use]
pub fn of_tenant(tenant: &TenantId, mistake: &str) -> String {
    format!("{OF_TENANT}{tenant}: {mistake}")
}

/// The tenant that a mistake in a snapshot is of, and the mistake; `None` if it is of no tenant.
#[must_use]
pub fn tenant_of(mistake: &str) -> Option<(TenantId, &str)> {
    let (tenant, mistake) = mistake.strip_prefix(OF_TENANT)?.split_once(": ")?;
    Some((TenantId::parse(tenant).ok()?, mistake))
}

/// What a mistake of a tenant in a snapshot begins with.
const OF_TENANT: &str = "tenants/";

/// A message on its way, with the way back.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Answered once, when it is in force or refused.
    pub applied: oneshot::Sender<Applied>,
}

/// The orchestrator's end of a connection to one gateway.
#[derive(Debug)]
pub struct Publisher {
    deliveries: mpsc::Sender<Delivery>,
    /// A gateway whose link was dropped asks for a new one, of the same decisions.
    pub redials: mpsc::Receiver<DeliverySender>,
    /// The gateway's decisions, in the order in which they fell.
    pub decisions: mpsc::Receiver<DecisionRecord>,
    /// What filters logged there.
    pub lines: mpsc::Receiver<FilterLine>,
    /// Its parts of tenants' budgets.
    pub budgets: Budgets,
    /// Its key for assertions, and those of all gateways.
    pub assertions: AssertionKeys,
}

/// The gateway's end.
#[derive(Debug)]
pub struct Follower {
    /// Messages, in order.
    pub deliveries: mpsc::Receiver<Delivery>,
    /// Opens the link again when it is lost.
    pub link: Link,
    /// Takes decisions back; when it is full, a decision is dropped and counted, never waited for.
    pub decisions: mpsc::Sender<DecisionRecord>,
    /// Takes what filters log; when it is full, a line is dropped and counted.
    pub lines: mpsc::Sender<FilterLine>,
    /// Its parts of tenants' budgets.
    pub budgets: Budgets,
    /// Its key for assertions, and those of all gateways.
    pub assertions: AssertionKeys,
    /// Tells that the orchestrator is there.
    pub presence: Presence,
}

/// How a follower knows that its orchestrator is there.
#[derive(Debug, Clone)]
pub enum Presence {
    /// They share a process: it is there for as long as messages may come.
    Linked,
    /// It is elsewhere: all that it had said by then has come. `None`: it was not heard yet.
    Heard(watch::Receiver<Option<Instant>>),
}

/// The way to the orchestrator of this process, for a link that was lost.
#[derive(Debug, Clone)]
pub struct Link(mpsc::Sender<DeliverySender>);

impl Link {
    /// Opens a new link; the orchestrator begins with a snapshot.
    ///
    /// Waits for the orchestrator to take it; `None` if there is no orchestrator any more.
    pub async fn redial(&self) -> Option<mpsc::Receiver<Delivery>> {
        let (deliveries, received) = mpsc::channel(DELIVERIES_IN_FLIGHT);
        self.0.send(DeliverySender(deliveries)).await.ok()?;
        Some(received)
    }
}

/// The gateway is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the gateway's end of the control stream is closed")]
pub struct GatewayGone;

/// Messages that may wait for a gateway before the sender does.
const DELIVERIES_IN_FLIGHT: usize = 256;
/// Decisions that may wait for the orchestrator: at 10,000 a second, those of 0.8 s.
const DECISIONS_IN_FLIGHT: usize = 8192;
/// Lines of filters' logs that may wait: the most that a few calls write.
const LINES_IN_FLIGHT: usize = 1024;

/// A connection within one process.
#[must_use]
pub fn link() -> (Publisher, Follower) {
    let (deliveries, received) = mpsc::channel(DELIVERIES_IN_FLIGHT);
    let (decisions, decided) = mpsc::channel(DECISIONS_IN_FLIGHT);
    let (link, redials) = mpsc::channel(1);
    let (lines, written) = mpsc::channel(LINES_IN_FLIGHT);
    let (budgets, assertions) = (Budgets::default(), AssertionKeys::default());
    let publisher = Publisher {
        deliveries,
        redials,
        decisions: decided,
        lines: written,
        budgets: budgets.clone(),
        assertions: assertions.clone(),
    };
    let follower = Follower {
        deliveries: received,
        link: Link(link),
        decisions,
        lines,
        budgets,
        assertions,
        presence: Presence::Linked,
    };
    (publisher, follower)
}

/// A connection whose orchestrator is in another process: whoever carries it tells by the third
/// part when it was heard.
#[must_use]
pub fn distant_link() -> (Publisher, Follower, watch::Sender<Option<Instant>>) {
    let (publisher, follower) = link();
    let (heard, presence) = watch::channel(None);
    (publisher, Follower { presence: Presence::Heard(presence), ..follower }, heard)
}

impl Publisher {
    /// A handle that sends; the receiver of decisions stays here.
    #[must_use]
    pub fn sender(&self) -> DeliverySender {
        DeliverySender(self.deliveries.clone())
    }
}

/// Sends messages to one gateway. Clones send on the same connection.
#[derive(Debug, Clone)]
pub struct DeliverySender(mpsc::Sender<Delivery>);

impl DeliverySender {
    /// Sends a message; what comes back resolves once it is in force or refused.
    ///
    /// Waits while [`DELIVERIES_IN_FLIGHT`] messages are under way.
    ///
    /// # Errors
    /// [`GatewayGone`] if nobody follows any more.
    pub async fn send(&self, message: Message) -> Result<oneshot::Receiver<Applied>, GatewayGone> {
        let (applied, answer) = oneshot::channel();
        self.0.send(Delivery { message, applied }).await.map_err(|_closed| GatewayGone)?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_of_a_snapshot_names_its_tenant_whatever_it_says() {
        let acme = TenantId::parse("acme").expect("a name");
        let said = of_tenant(&acme, "filters/x: it is old: very");
        assert_eq!(tenant_of(&said), Some((acme, "filters/x: it is old: very")));
        for other in ["filters/x: it is old", "tenants/acme", "tenants/: no", "tenants/A B: no"] {
            assert_eq!(tenant_of(other), None, "{other}");
        }
    }
}
