// SPDX-License-Identifier: Apache-2.0
//! What an operator decides: listeners, keys, bounds, and where requests may go.
//!
//! [`Settings`] is what was read; [`Config`] is checked and cannot be wrong. Nothing here reads a
//! file or the environment. What a tenant decides is in [`crate::snapshot`].

use crate::access::AccessLog;
use crate::identify::Trust;
use crate::issuer::Issuer;
use crate::spans::SpanExport;
use crate::upstream::address::{MistakenRule, UpstreamRules};
use postern_common::secret::Secret;
use postern_common::settings::{ClientCertificates, Settings as ProcessSettings, name};
use postern_common::token::{SigningKey, Verifier};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a request's head. Common servers stop at 8 KiB a line; tokens may take 8 KiB alone.
pub(crate) const HEADER_BYTES: usize = 64 * 1024;
/// Header lines of a request; hyper's own default.
pub(crate) const HEADER_COUNT: usize = 100;
/// Time for the head of each request, and for a new connection to send one (nginx: 60 s).
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(30);
/// How long a connection may have nothing in flight after a request (nginx's `keepalive_timeout`:
/// 75 s). HTTP/1.1 waits for the next head for [`HEAD_TIME`] only.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(60);
/// Time for a whole body that is judged, after which the answer is 408.
pub(crate) const BODY_TIME: Duration = Duration::from_secs(60);
/// How long a peer may keep us waiting in the middle of a streamed body or of an answer (nginx's
/// `client_body_timeout` and `send_timeout`: 60 s).
pub(crate) const STALL_TIME: Duration = Duration::from_secs(60);
/// The same in the middle of a body that is judged, for which we hold memory.
pub(crate) const JUDGED_STALL_TIME: Duration = Duration::from_secs(30);
/// How long a WebSocket may carry nothing (Envoy's `stream_idle_timeout`: 5 min).
const WEBSOCKET_TIME: Duration = Duration::from_secs(5 * 60);
/// The pace below which a peer uses that time up (Apache's `mod_reqtimeout`: `MinRate=500`).
pub(crate) const STALL_BYTES_PER_SECOND: u64 = 500;
/// How long a request waits until its tenant's others are judged.
pub(crate) const TURN_TIME: Duration = Duration::from_secs(5);
/// A judged body beyond which judging leaves the runtime's workers: some 3 ms to read and check.
pub(crate) const HEAVY_BODY_BYTES: u64 = 256 * 1024;
/// Expressions in the conditions of an operation's policies beyond which it does too (some 2 ms).
pub(crate) const HEAVY_EXPRESSIONS: usize = 10_000;
/// The same of policies.
pub(crate) const HEAVY_CANDIDATES: usize = 500;
/// A body that is judged, unless the backend's `limits.body` says otherwise.
pub(crate) const JUDGED_BODY_BYTES: u64 = 1024 * 1024;
/// A body that is streamed, unless the backend's `limits.body` says otherwise.
pub(crate) const STREAMED_BODY_BYTES: u64 = 64 * 1024 * 1024;
/// The most that a backend may ask us to hold for one judged body.
pub(crate) const LARGEST_JUDGED_BODY_BYTES: u64 = 32 * 1024 * 1024;
/// Judged bodies of one session that are held at a time: one of the largest.
pub(crate) const BODY_ROOM_OF_SESSION: u64 = LARGEST_JUDGED_BODY_BYTES;
/// Judged bodies of all sessions that are held at a time.
pub(crate) const BODY_ROOM: u64 = 512 * 1024 * 1024;
/// From a request's head to the head of the backend's answer, unless `limits.timeout` says
/// otherwise (nginx's `proxy_read_timeout`: 60 s).
pub(crate) const ANSWER_TIME: Duration = Duration::from_secs(60);
/// The longest `limits.timeout` that a tenant may set, unless the operator says otherwise.
pub const TIMEOUT_CEILING: Duration = Duration::from_secs(10 * 60);
/// The largest `concurrent` that a tenant may set, unless the operator says otherwise: each request
/// in flight holds some 100 KiB.
pub const CONCURRENT_CEILING: u32 = 4096;
/// The longest ceiling: instants of a machine that has just started must hold it.
const LONGEST_CEILING: Duration = Duration::from_secs(24 * 60 * 60);
/// Time to reach a backend, look-up and TLS included.
pub(crate) const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long an idle connection to a backend is kept (below common servers' 60 to 75 s).
pub(crate) const POOL_IDLE_TIME: Duration = Duration::from_secs(30);
/// Idle connections kept for each backend.
pub(crate) const POOL_IDLE_CONNECTIONS: usize = 64;
/// What a backend may send on one HTTP/2 stream before we ask for more: what a sandbox that reads
/// slowly makes us hold.
pub(crate) const HTTP2_STREAM_WINDOW: u32 = 128 * 1024;
/// The same for a whole HTTP/2 connection: more than its streams can hold together, so that those
/// that nobody reads never stop the others (of other tenants, it may be).
pub(crate) const HTTP2_CONNECTION_WINDOW: u32 = 1024 * 1024 * 1024;
/// How often a backend is asked whether it still is there, and how long it has to answer.
pub(crate) const HTTP2_PING_TIME: Duration = Duration::from_secs(20);
/// How often certificates are looked at: 100 bytes of digest from some KiB that are in memory.
const CERTIFICATE_LOOK_TIME: Duration = Duration::from_secs(2);
/// Connections of one peer: browsers use 6, agents a few dozen.
pub(crate) const CONNECTIONS_OF_PEER: usize = 256;
/// Connections of all TCP peers together.
pub(crate) const CONNECTIONS: usize = 16 * 1024;
/// Streams of one HTTP/2 connection at a time (RFC 9113 §6.5.2 recommends at least 100).
pub(crate) const STREAMS: u32 = 128;
/// Streams that a peer may have reset before we had begun them (CVE-2023-44487; h2's own default).
pub(crate) const PENDING_RESETS: usize = 20;
/// How long a request waits for a session that has not been heard of (design.md 3, Sessions).
pub(crate) const UNKNOWN_SESSION_WAIT: Duration = Duration::from_millis(500);
/// How often ended and expired sessions are looked for; streams must end within 1 s.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// How old the gateway's state may grow without its orchestrator (design.md 3, Control stream).
pub const STALENESS: Duration = Duration::from_secs(10);
/// Requests in flight get this long to finish when the gateway stops.
pub const DRAIN: Duration = Duration::from_secs(10);

/// What tenants may set at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceilings {
    /// `limits.timeout` of a backend.
    pub timeout: Duration,
    /// `concurrent` of a backend, of a session and of the tenant.
    pub concurrent: u32,
}

impl Default for Ceilings {
    fn default() -> Self {
        Self { timeout: TIMEOUT_CEILING, concurrent: CONCURRENT_CEILING }
    }
}

/// How long peers may keep us waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// For the head of a request, and for a new connection's first one.
    pub head: Duration,
    /// For the next request of a connection.
    pub idle: Duration,
    /// For the whole of a body that is judged.
    pub body: Duration,
    /// In the middle of a streamed body or of an answer.
    pub stall: Duration,
    /// For anything to go through a WebSocket.
    pub websocket: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            head: HEAD_TIME,
            idle: IDLE_TIME,
            body: BODY_TIME,
            stall: STALL_TIME,
            websocket: WEBSOCKET_TIME,
        }
    }
}

/// TLS of the door over TCP. The files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate and what leads to its authority, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// Who may connect; everybody if absent.
    pub clients: Option<Clients>,
    /// How often the files are looked at.
    pub look_every: Duration,
}

/// Certificates of those who connect. They let in and say nothing of who a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clients {
    /// The authorities that sign them, in PEM.
    pub authorities: PathBuf,
    /// Whether nobody is let in without one.
    pub are_required: bool,
}

impl Tls {
    /// What the process's settings say of it; `None` if the door speaks no TLS.
    #[must_use]
    pub fn of(settings: &ProcessSettings) -> Option<Self> {
        let clients = settings.path(name::GATEWAY_TLS_CLIENT_CA).map(|authorities| Clients {
            authorities,
            are_required: settings.client_certificates() == ClientCertificates::Required,
        });
        Some(Self {
            certificate: settings.path(name::GATEWAY_TLS_CERT)?,
            key: settings.path(name::GATEWAY_TLS_KEY)?,
            clients,
            look_every: CERTIFICATE_LOOK_TIME,
        })
    }
}

/// What was read from flags, environment and file, not yet checked.
#[derive(Debug)]
pub struct Settings {
    /// Where sandboxes connect by TCP; none where each has a unix socket.
    pub tcp: Option<SocketAddr>,
    /// TLS there; none for plain HTTP.
    pub tls: Option<Tls>,
    /// Where `/healthz`, `/readyz` and `/metrics` are; none to have no such listener.
    pub admin: Option<SocketAddr>,
    /// Keys whose session tokens are believed: the one that signs, then replaced ones.
    pub token_keys: Vec<SigningKey>,
    /// Whose tokens are believed instead, in a gateway that stands alone.
    pub issuer: Option<Issuer>,
    /// Where the access log goes; none for none.
    pub access_log: Option<AccessLog>,
    /// Where spans go; none for none.
    pub spans: Option<SpanExport>,
    /// Where requests may go. Keep a clone to change it while the gateway runs.
    pub upstreams: UpstreamRules,
    /// Certificate authorities that backends may have besides the system's.
    pub extra_authorities: Vec<CertificateDer<'static>>,
    /// How old the state may grow without the orchestrator.
    pub staleness: Duration,
    /// Whether requests are refused while their records might be lost.
    pub fails_closed: bool,
    /// How long requests in flight get when the gateway stops.
    pub drain: Duration,
    /// How long peers may keep us waiting.
    pub waits: Waits,
    /// What tenants may set at most.
    pub ceilings: Ceilings,
    /// Whose filters are believed: the orchestrator's public artefact key (Ed25519, 32 bytes).
    /// Without one no filter is loaded.
    pub artefact_key: Option<[u8; 32]>,
    /// Where the orchestrator's files API is, for sandboxes' syncs; without it they are refused.
    pub files: Option<FilesApi>,
}

/// Where the orchestrator's files API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesApi {
    /// On a unix socket, which only we can reach.
    Socket(PathBuf),
    /// At `HOST:PORT`, or where that is away at the next.
    Hosts {
        /// Where.
        hosts: Vec<String>,
        /// The certificate authority (DER) that it is known by, as the control stream is. No other is believed.
        authority: Vec<u8>,
    },
}

impl Settings {
    /// The defaults, which still lack keys and a place to send requests.
    #[must_use]
    pub fn new(token_keys: Vec<SigningKey>, upstreams: UpstreamRules) -> Self {
        Self {
            tcp: None,
            tls: None,
            admin: None,
            token_keys,
            issuer: None,
            access_log: None,
            spans: None,
            upstreams,
            extra_authorities: Vec::new(),
            staleness: STALENESS,
            fails_closed: false,
            drain: DRAIN,
            waits: Waits::default(),
            ceilings: Ceilings::default(),
            artefact_key: None,
            files: None,
        }
    }
}

impl Settings {
    /// Takes over where the operator wants the access log and spans.
    ///
    /// # Errors
    /// What is wrong, with the name of the setting and without its value.
    pub fn observed_as(&mut self, said: &postern_common::settings::Settings) -> Result<(), String> {
        self.access_log = match said.text(name::ACCESS_LOG) {
            None | Some("off") => None,
            Some("stdout") => Some(AccessLog::Stdout),
            Some(path) => Some(AccessLog::File(path.into())),
        };
        let Some(endpoint) = said.text(name::OTLP_ENDPOINT) else { return Ok(()) };
        let endpoint = endpoint.parse().map_err(|_malformed| {
            format!("{} is no URL: expected one such as http://collector:4318", name::OTLP_ENDPOINT.variable)
        })?;
        let headers = said.secret(name::OTLP_HEADERS);
        let headers = headers.as_ref().map_or("", |headers| headers.reveal().as_str());
        let header = |text: &str| {
            let (header, value) = text.split_once('=')?;
            Some((header.trim().parse().ok()?, Secret::new(value.trim().to_owned())))
        };
        let parts = headers.split(',').filter(|part| !part.trim().is_empty());
        let headers: Option<Vec<_>> = parts.map(header).collect();
        let headers = headers.ok_or_else(|| {
            format!("{} cannot be read: expected NAME=VALUE,NAME=VALUE", name::OTLP_HEADERS.variable)
        })?;
        self.spans = Some(SpanExport { endpoint, headers });
        Ok(())
    }
}

/// A mistake in the gateway's settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigMistake {
    /// No token could ever be believed.
    #[error("no token key is given: set TOKEN_SIGNING_KEY to the orchestrator's value")]
    NoKey,
    /// The staleness bound would outlive tokens.
    #[error("a staleness bound of {0:?} is longer than a token lives: use at most 1h")]
    Staleness(Duration),
    /// A ceiling that ends nothing, or allows nothing.
    #[error("a ceiling of {0:?} for timeouts and {1} for requests in flight: use 1s to 24h, and at least 1")]
    Ceilings(Duration, u32),
    /// An entry of `gateway.upstreams` cannot be read.
    #[error(transparent)]
    Upstream(#[from] MistakenRule),
    /// Two listeners want one port.
    #[error("the door and the admin listener are both at {0}: give them ports of their own")]
    SameAddress(SocketAddr),
}

/// Checked settings.
#[derive(Debug)]
pub struct Config {
    pub(crate) tcp: Option<SocketAddr>,
    pub(crate) tls: Option<Tls>,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) trust: Trust,
    pub(crate) access_log: Option<AccessLog>,
    pub(crate) spans: Option<SpanExport>,
    pub(crate) upstreams: UpstreamRules,
    pub(crate) extra_authorities: Vec<CertificateDer<'static>>,
    pub(crate) staleness: Duration,
    pub(crate) fails_closed: bool,
    pub(crate) drain: Duration,
    pub(crate) waits: Waits,
    pub(crate) ceilings: Ceilings,
    pub(crate) artefact_key: Option<[u8; 32]>,
    pub(crate) files: Option<FilesApi>,
}

impl Config {
    /// Checks settings.
    ///
    /// # Errors
    /// Every mistake, not the first.
    pub fn check(settings: Settings) -> Result<Self, Vec<ConfigMistake>> {
        let mut mistakes = Vec::new();
        if settings.token_keys.is_empty() && settings.issuer.is_none() {
            mistakes.push(ConfigMistake::NoKey);
        }
        if settings.staleness > postern_common::token::MAX_TTL {
            mistakes.push(ConfigMistake::Staleness(settings.staleness));
        }
        let Ceilings { timeout, concurrent } = settings.ceilings;
        if !(Duration::from_secs(1)..=LONGEST_CEILING).contains(&timeout) || concurrent == 0 {
            mistakes.push(ConfigMistake::Ceilings(timeout, concurrent));
        }
        if let (Some(tcp), Some(admin)) = (settings.tcp, settings.admin)
            && tcp == admin
            && tcp.port() != 0
        {
            mistakes.push(ConfigMistake::SameAddress(tcp));
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self {
            tcp: settings.tcp,
            tls: settings.tls,
            admin: settings.admin,
            trust: match settings.issuer {
                Some(issuer) => Trust::Issuer(Arc::new(issuer)),
                None => Trust::Installation(Box::new(Verifier::new(&settings.token_keys))),
            },
            access_log: settings.access_log,
            spans: settings.spans,
            upstreams: settings.upstreams,
            extra_authorities: settings.extra_authorities,
            staleness: settings.staleness,
            fails_closed: settings.fails_closed,
            drain: settings.drain,
            waits: settings.waits,
            ceilings: settings.ceilings,
            artefact_key: settings.artefact_key,
            files: settings.files,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let mut settings = Settings::new(Vec::new(), UpstreamRules::default());
        settings.staleness = Duration::from_secs(7200);
        settings.tcp = Some(([127, 0, 0, 1], 9091).into());
        settings.admin = settings.tcp;
        settings.ceilings.timeout = Duration::MAX;
        let mistakes = Config::check(settings).expect_err("four mistakes");
        assert_eq!(mistakes.len(), 4);
        assert!(mistakes.contains(&ConfigMistake::NoKey));
    }

    #[test]
    fn one_key_is_enough() {
        let key = SigningKey::new(vec![7; 32]).expect("long enough");
        assert!(Config::check(Settings::new(vec![key], UpstreamRules::default())).is_ok());
    }
}
