// SPDX-License-Identifier: Apache-2.0
//! The gateway: the one door out of a sandbox.
//!
//! [`Gateway::start`] opens the listeners and follows the orchestrator; what happens to a request
//! is told, top to bottom, in `request.rs`. The gateway holds no database, Kubernetes or compiler
//! code. [`stream`] carries the link to an orchestrator of another process, and what outlives this
//! one.

mod access;
mod admin;
pub mod alone;
mod assertion;
mod authorize;
mod body;
mod broker;
mod config;
mod control;
mod decision;
mod echo;
mod files;
mod filters;
mod head;
mod headers;
mod identify;
mod identity;
pub mod issuer;
mod limits;
mod listener;
mod meaning;
mod metrics;
mod pace;
mod registry;
mod reject;
mod request;
mod response;
mod route;
mod snapshot;
mod spans;
pub mod stream;
mod trace;
mod upstream;
mod validate;
mod websocket;

pub use access::AccessLog;
pub use config::{
    CONCURRENT_CEILING, Ceilings, Clients, Config, ConfigMistake, DRAIN, FilesApi, STALENESS, Settings,
    TIMEOUT_CEILING, Tls, Waits,
};
pub use listener::TlsFilesUnusable;
pub use spans::{SpanExport, SpanExportError};
pub use upstream::TlsUnusable;
pub use upstream::address::{MistakenRule, RefusedAddress, UpstreamRules};

use access::AccessLines;
use arc_swap::ArcSwap;
use assertion::Asserter;
use control::freshness::Freshness;
use control::unserved::Unserved;
use identify::{Identities, Trust};
use limits::Room;
use metrics::Metrics;
use postern_common::control::{Delivery, Follower, Link};
use postern_common::decision::DecisionRecord;
use postern_common::folder::DeniedFile;
use postern_common::tasks::Tasks;
use postern_common::telemetry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry as MetricRegistry;
use registry::Registry;
use reject::Reject;
use snapshot::{Snapshot, Surroundings};
use spans::{Place, Spans};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use upstream::Upstream;

/// A running gateway's shared state.
#[derive(Debug)]
pub struct Gateway {
    identities: Identities,
    registry: Registry,
    rules: ArcSwap<Snapshot>,
    surroundings: Surroundings,
    upstream: Upstream,
    /// The way to the orchestrator's files API, if there is one.
    files: Option<files::Way>,
    freshness: Freshness,
    unserved: Unserved,
    decisions: mpsc::Sender<DecisionRecord>,
    audit: Audit,
    metrics: Metrics,
    reports: filters::Reports,
    access: Option<AccessLines>,
    spans: Option<Spans>,
    asserter: Asserter,
    registered: MetricRegistry,
    tasks: Tasks,
    /// Memory for judged bodies of all sessions.
    bodies: Arc<Room>,
    drain: Duration,
    /// TLS of the door over TCP.
    tls: Option<Arc<listener::Tls>>,
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener's address is taken or not ours.
    #[error("could not listen on {address}; free it or choose another")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// TLS to backends.
    #[error(transparent)]
    Tls(#[from] TlsUnusable),
    /// The collector of spans.
    #[error(transparent)]
    Spans(#[from] SpanExportError),
    /// No key for assertions.
    #[error("this machine gives no random numbers")]
    Random,
    /// The issuer's keys.
    #[error(transparent)]
    Keys(#[from] issuer::KeepKeysError),
    /// The door's own certificate.
    #[error("the gateway's door cannot speak TLS: {0}")]
    Door(#[from] TlsFilesUnusable),
    /// The authority of the orchestrator's files API.
    #[error("the files API is known by no certificate authority that TLS can use")]
    Files(#[source] rustls::Error),
    /// The engine that runs filters.
    #[error("the filter engine could not be made: {0}")]
    Filters(String),
}

/// A gateway that runs, and where.
#[derive(Debug)]
pub struct Running {
    /// Where sandboxes connect by TCP, if they may.
    pub tcp: Option<SocketAddr>,
    /// Where operators look.
    pub admin: Option<SocketAddr>,
    /// The way home of decisions, as metrics show it and as requests may depend on it.
    pub audit: Audit,
    /// Not held: connections to backends end with the gateway.
    gateway: Weak<Gateway>,
}

impl Running {
    /// Whom a gateway that stands alone refuses from now on, although their tokens are good.
    pub fn deny(&self, denied: DeniedFile) {
        let Some(gateway) = self.gateway.upgrade() else { return };
        if let Trust::Issuer(issuer) = gateway.identities.trust() {
            issuer.deny(denied, &gateway.registry);
        }
    }
}

/// How decisions get home.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    /// Records that were lost.
    pub(crate) dropped: Counter,
    /// Bytes that wait on disk.
    pub(crate) spool_bytes: Gauge,
    /// Records may be lost soon, or are being lost.
    pub(crate) is_full: Arc<AtomicBool>,
    /// The last records could not be written.
    pub(crate) is_failing: Arc<AtomicBool>,
    /// Whether requests are then refused.
    fails_closed: bool,
}

impl Audit {
    /// Refuses a request whose record might be lost, if the operator wants it so.
    ///
    /// # Errors
    /// [`Reject::AuditFull`].
    fn check(&self) -> Result<(), Reject> {
        if self.fails_closed
            && (self.is_full.load(Ordering::Relaxed) || self.is_failing.load(Ordering::Relaxed))
        {
            Err(Reject::AuditFull)
        } else {
            Ok(())
        }
    }
}

impl Gateway {
    /// Starts a gateway whose tasks belong to `tasks`, which also stops it: listeners close at
    /// once, requests in flight get the drain time.
    ///
    /// It refuses every request until `follower` has brought a snapshot.
    ///
    /// # Errors
    /// [`StartError`] if a listener cannot be opened.
    pub async fn start(config: Config, follower: Follower, tasks: &Tasks) -> Result<Running, StartError> {
        let tls = match config.tls {
            None => None,
            Some(files) => Some(listener::Tls::open(files).await?),
        };
        let tcp = listen(config.tcp).await?;
        let admin = listen(config.admin).await?;
        let audit = Audit { fails_closed: config.fails_closed, ..Audit::default() };
        let own = [address(tcp.as_ref()), address(admin.as_ref())];
        own.into_iter().flatten().for_each(|own| config.upstreams.never_ourselves(own));
        let mut registered = telemetry::registry();
        let metrics = Metrics::register(&mut registered, &audit);
        if let Trust::Issuer(issuer) = &config.trust {
            issuer::keep_keys(issuer, config.extra_authorities.clone(), tasks)?;
        }
        let dropped = metrics.access_dropped.clone();
        let access = config.access_log.map(|to| AccessLines::start(to, dropped, tasks));
        let spans = config.spans.as_ref().map(|export| {
            let authorities = config.extra_authorities.clone();
            Spans::start(export, authorities, metrics.spans_dropped.clone(), tasks)
        });
        let spans = spans.transpose()?;
        let reports = filters::Reports { metrics: metrics.filters.clone(), lines: follower.lines };
        let gateway = Arc::new(Self {
            identities: Identities::new(config.trust),
            registry: Registry::default(),
            rules: ArcSwap::default(),
            surroundings: Surroundings {
                upstreams: config.upstreams.clone(),
                engines: filters::Engines::new(config.artefact_key).map_err(StartError::Filters)?,
                waits: config.waits,
                ceilings: config.ceilings,
                budgets: follower.budgets,
                echoed: metrics.echoed.clone(),
            },
            upstream: Upstream::new(&config.upstreams, config.extra_authorities, tasks)?,
            files: config
                .files
                .map(|api| files::Way::new(api, tasks))
                .transpose()
                .map_err(StartError::Files)?,
            freshness: Freshness::new(config.staleness, follower.presence),
            unserved: Unserved::default(),
            decisions: follower.decisions,
            metrics,
            reports,
            access,
            spans,
            asserter: Asserter::new(follower.assertions).ok_or(StartError::Random)?,
            audit: audit.clone(),
            registered,
            tasks: tasks.clone(),
            bodies: Arc::new(Room::new(config::BODY_ROOM)),
            drain: config.drain,
            tls,
        });
        gateway.work((follower.deliveries, follower.link), tcp, admin);
        let [tcp, admin] = own;
        Ok(Running { tcp, admin, audit, gateway: Arc::downgrade(&gateway) })
    }

    /// Begins to follow and to serve.
    fn work(
        self: &Arc<Self>,
        (deliveries, link): (mpsc::Receiver<Delivery>, Link),
        tcp: Option<TcpListener>,
        admin: Option<TcpListener>,
    ) {
        let (following, sweeping) = (Arc::clone(self), Arc::clone(self));
        self.tasks.spawn(move |stop| control::follow(following, deliveries, link, stop));
        self.tasks.spawn(move |stop| control::sweep(sweeping, stop));
        if let Some(tls) = self.tls.clone() {
            let metrics = self.metrics.certificates.clone();
            self.tasks.spawn(move |stop| tls.follow(metrics, stop));
        }
        if let Some(listener) = tcp {
            let served = Arc::clone(self);
            self.tasks.spawn(move |stop| listener::accept_tcp(served, listener, stop));
        }
        if let Some(listener) = admin {
            let served = Arc::clone(self);
            self.tasks.spawn(move |stop| listener::accept_admin(served, listener, stop));
        }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.rules.load_full()
    }

    fn swap(&self, change: impl Fn(Snapshot) -> Snapshot) {
        self.rules.rcu(|snapshot| change(Snapshot::clone(snapshot)));
    }

    /// Hands a record on; if there is no room it is dropped and counted.
    fn record(&self, record: DecisionRecord, place: Option<&Place>) {
        if let (Some(spans), Some(place)) = (&self.spans, place) {
            spans.note(&record, place);
        }
        if let Some(access) = &self.access {
            access.note(&record);
        }
        if self.decisions.try_send(record).is_err() {
            self.audit.dropped.inc();
            // Until the next batch is written, which looks again.
            self.audit.is_full.store(true, Ordering::Relaxed);
        }
    }
}

async fn listen(address: Option<SocketAddr>) -> Result<Option<TcpListener>, StartError> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|source| StartError::Listen { address, source })
}

fn address(listener: Option<&TcpListener>) -> Option<SocketAddr> {
    listener.and_then(|listener| listener.local_addr().ok())
}
