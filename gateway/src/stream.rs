// SPDX-License-Identifier: Apache-2.0
//! Follows an orchestrator of another process, and keeps what outlives this one.
//!
//! ```text
//!              ┌ client ◀── TLS, signed messages ──▶ orchestrator
//!  Publisher ──┤   └──▶ kept: what is in force, without secrets, for a warm restart
//!              └ spool ◀── decisions, until the orchestrator has kept them
//! ```
//! It is an adapter: the rest of the gateway sees the same in-process link as within `postern up`.

mod client;
mod kept;
mod spool;

use crate::{Audit, UpstreamRules};
use client::Client;
use kept::Keeper;
use postern_common::control::Publisher;
use postern_common::stream::secrets::UnwrappingKey;
use postern_common::stream::{Credential, NoRandomness};
use postern_common::tasks::Tasks;
use rustls::pki_types::CertificateDer;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use spool::Spool;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Decisions that may wait on disk, unless the operator says otherwise: about 60,000 records.
pub const SPOOL_BYTES: u64 = 64 * 1024 * 1024;

/// Where the orchestrator is, and what this gateway shows it.
#[derive(Debug)]
pub struct Settings {
    /// Host and port of the control stream.
    pub orchestrator: String,
    /// This gateway's own credential.
    pub credential: Credential,
    /// Where state and decisions are kept; made with mode 0700.
    pub folder: PathBuf,
    /// How old kept state may be to serve from.
    pub staleness: Duration,
    /// Decisions that may wait on disk.
    pub spool_bytes: u64,
    /// Whether sandboxes of this machine are served by their unix sockets: at most one gateway of a
    /// machine may.
    pub serves_sockets: bool,
    /// Learns where the orchestrator is, so that no backend is ever there.
    pub upstreams: UpstreamRules,
}

/// Why the stream cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The folder.
    #[error("could not use `{}`; choose another data folder or free some space", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The authority in the credential.
    #[error(
        "the credential holds no certificate authority that TLS can use; make a new one with `postern gateways add NAME`"
    )]
    Authority(#[source] rustls::Error),
    /// The wrapping key.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// Follows until `tasks` are stopped, which must be after the gateway's own: decisions that fall
/// while it drains are still kept.
///
/// `heard` is the third part of [`postern_common::control::distant_link`], `audit` the running
/// gateway's.
///
/// # Errors
/// [`FollowError`]; afterwards it retries by itself for as long as it takes.
pub fn follow(
    settings: Settings,
    publisher: Publisher,
    heard: watch::Sender<Option<Instant>>,
    audit: Audit,
    tasks: &Tasks,
) -> Result<(), FollowError> {
    let folder = |path: PathBuf| {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map(|()| path.clone()).map_err(|source| FollowError::Folder { path, source })
    };
    let state = folder(settings.folder.join("state"))?;
    let spooled = folder(settings.folder.join("spool"))?;
    let open = |source| FollowError::Folder { path: spooled.clone(), source };
    let spool = Spool::open(&spooled, settings.spool_bytes, audit).map_err(open)?;
    let tls = believing(&settings.credential.authority).map_err(FollowError::Authority)?;
    let keeper = Keeper::start(state.clone(), tasks);
    let sender = publisher.sender();
    let client = Client {
        own: UnwrappingKey::generate()?,
        settings,
        tls,
        sender,
        heard,
        keeper,
        spool: Arc::clone(&spool),
        budgets: publisher.budgets,
        assertions: publisher.assertions,
        last: None,
        attempts: 0,
        never: Vec::new(),
    };
    tasks.spawn(move |stop| spool::collect(spool, publisher.decisions, stop));
    tasks.spawn(move |stop| client.run(state, publisher.lines, stop));
    Ok(())
}

/// TLS 1.3 that believes this authority (DER), a credential's, and no other.
///
/// # Errors
/// If it is none.
pub(crate) fn believing(authority: &[u8]) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority.to_vec()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
