// SPDX-License-Identifier: Apache-2.0
//! The control stream's listener: gateways of other processes, let in by their credential.
//!
//! Each connection is an adapter between one end of the in-process link, which the rest of the
//! orchestrator knows, and the wire of [`postern_common::stream`]. Who a gateway is, and taking
//! that back, is here; what gateways are told is [`crate::control`]'s.

mod authority;
mod connection;

pub use authority::AuthorityError;

use crate::control::Gateways;
use crate::keys::{InstallationKeys, random};
use crate::replicas::Heard;
use crate::seal::SealError;
use crate::store::{AuditEntry, GatewayRow, Store, StoreError};
use authority::{Authority, RENEW_HOURS};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use postern_common::clock;
use postern_common::id::GatewayName;
use postern_common::secret::Secret;
use postern_common::stream::{Credential, Signer, SignerKey};
use postern_common::tasks::{Stop, Tasks};
use rustls::ServerConfig;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections at the same time, those that have not shown a credential included.
const CONNECTIONS: usize = 1024;
/// Connections of one address that have shown no credential yet: strangers take no other's place.
const GREETINGS: usize = 32;
/// After a failed accept (out of descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a gateway's secret: 256 bits, so that it cannot be tried out.
const SECRET_BYTES: usize = 32;

/// The listener's state.
#[derive(Debug)]
pub(crate) struct ControlStream {
    store: Store,
    keys: Arc<InstallationKeys>,
    gateways: Gateways,
    /// What other orchestrators have changed.
    heard: Heard,
    signer: Arc<Signer>,
    issuer: CredentialIssuer,
    tls: Mutex<(Timestamp, Arc<ServerConfig>)>,
    connections: Mutex<Vec<Arc<Connected>>>,
    /// Connections by address that have shown no credential yet.
    greeting: Mutex<BTreeMap<IpAddr, usize>>,
}

/// A gateway that is connected.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) name: GatewayName,
    pub(crate) from: SocketAddr,
    pub(crate) since: Timestamp,
    pub(crate) engine: String,
    /// The last message that it answered.
    pub(crate) version: AtomicU64,
    /// Cancelled when its credential is revoked.
    revoked: CancellationToken,
}

impl ControlStream {
    /// Opens the installation's certificate authority, or makes it.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub(crate) async fn open(
        store: Store,
        keys: Arc<InstallationKeys>,
        gateways: Gateways,
        heard: Heard,
    ) -> Result<Self, AuthorityError> {
        let now = clock::now();
        let issuer = CredentialIssuer::open(&store, &keys).await?;
        let signer = signer(&keys)?;
        let tls = Mutex::new((now, issuer.authority.server(now)?));
        let (signer, connections) = (Arc::new(signer), Mutex::default());
        let greeting = Mutex::default();
        Ok(Self { store, keys, gateways, heard, signer, issuer, tls, connections, greeting })
    }

    /// Accepts gateways on `listener` until the tasks are stopped.
    pub(crate) fn serve(self: Arc<Self>, listener: TcpListener, tasks: &Tasks) {
        let group = tasks.clone();
        tasks.spawn(async move |stop: Stop| {
            let free = Arc::new(Semaphore::new(CONNECTIONS));
            loop {
                let Some(Ok(room)) = stop.run_until_cancelled(Arc::clone(&free).acquire_owned()).await else {
                    return;
                };
                let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { return };
                let Ok((socket, from)) = accepted else {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                // Dropped: too many of this address have shown no credential yet.
                let Some(greeting) = Greeting::of(&self, from.ip()) else { continue };
                let stream = Arc::clone(&self);
                group.spawn(async move |stop: Stop| {
                    connection::serve(&stream, (socket, from), greeting, stop).await;
                    drop(room);
                });
            }
        });
    }

    /// TLS with a certificate that is not older than a day; by it gateways know whatever they come to here.
    pub(crate) fn acceptor(&self, now: Timestamp) -> TlsAcceptor {
        let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(tls.0) > SignedDuration::from_hours(RENEW_HOURS) {
            match self.issuer.authority.server(now) {
                Ok(server) => *tls = (now, server),
                // The one there is good for months.
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "the control stream's certificate was not renewed");
                }
            }
        }
        TlsAcceptor::from(Arc::clone(&tls.1))
    }

    /// Makes a gateway and its credential, which is shown this once; `None` if there is one of this
    /// name already.
    ///
    /// # Errors
    /// [`AddGatewayError`].
    pub(crate) async fn add(
        &self,
        name: &GatewayName,
        created_by: String,
        audit: &AuditEntry,
    ) -> Result<Option<(GatewayRow, Secret<String>)>, AddGatewayError> {
        self.issuer.add(&self.store, &self.keys, name, created_by, audit).await
    }

    /// Takes a gateway's credential back and cuts its connections; `false` if there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn revoke(&self, name: &GatewayName, audit: &AuditEntry) -> Result<bool, StoreError> {
        let was_there = self.store.remove_gateway(name, audit).await?;
        let connected = self.connected();
        connected.iter().filter(|it| it.name == *name).for_each(|it| it.revoked.cancel());
        self.gateways.revoked(name);
        Ok(was_there)
    }

    /// Cuts a gateway's connections if its credential is no more: another orchestrator took it back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn cut_unless_there(&self, name: &GatewayName) -> Result<(), StoreError> {
        if self.store.gateway(name).await?.is_none() {
            self.connected().iter().filter(|it| it.name == *name).for_each(|it| it.revoked.cancel());
            self.gateways.revoked(name);
        }
        Ok(())
    }

    /// Whether a gateway may follow. Unknown names take as long as wrong secrets.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn believes(&self, name: &GatewayName, secret: &Secret<String>) -> Result<bool, StoreError> {
        believes(&self.store, &self.keys, name, secret).await
    }

    /// The gateways that are connected.
    pub(crate) fn connected(&self) -> Vec<Arc<Connected>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn enter(&self, connected: &Arc<Connected>) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(connected));
    }

    fn leave(&self, connected: &Arc<Connected>) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|it| !Arc::ptr_eq(it, connected));
    }
}

/// Whether this is the secret of that gateway. Unknown names take as long as wrong secrets.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn believes(
    store: &Store,
    keys: &InstallationKeys,
    name: &GatewayName,
    secret: &Secret<String>,
) -> Result<bool, StoreError> {
    let row = store.gateway(name).await?;
    let hash = row.as_ref().map_or(&[][..], |row| &row.hash);
    Ok(keys.is_gateway_hash(secret.reveal().as_bytes(), hash) && row.is_some())
}

fn signer(keys: &InstallationKeys) -> Result<Signer, AuthorityError> {
    Signer::from_seed(keys.artefact_seed()?.reveal()).map_err(|_invalid| AuthorityError::Malformed)
}

/// Makes credentials, also where nothing listens.
#[derive(Debug)]
pub(crate) struct CredentialIssuer {
    authority: Authority,
    signer: SignerKey,
}

impl CredentialIssuer {
    /// Opens the installation's certificate authority, or makes it.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub(crate) async fn open(store: &Store, keys: &InstallationKeys) -> Result<Self, AuthorityError> {
        let authority = Authority::open(store, keys, clock::now()).await?;
        Ok(Self { authority, signer: signer(keys)?.key() })
    }

    /// Makes a gateway and its credential; `None` if there is one of this name already.
    ///
    /// # Errors
    /// [`AddGatewayError`].
    pub(crate) async fn add(
        &self,
        store: &Store,
        keys: &InstallationKeys,
        name: &GatewayName,
        created_by: String,
        audit: &AuditEntry,
    ) -> Result<Option<(GatewayRow, Secret<String>)>, AddGatewayError> {
        let secret = Secret::new(URL_SAFE_NO_PAD.encode(random(SECRET_BYTES)?.reveal()));
        let hash = keys.gateway_hash(secret.reveal().as_bytes());
        let row = GatewayRow { name: name.clone(), hash, created_by, created_at: audit.at };
        if !store.add_gateway(&row, audit).await? {
            return Ok(None);
        }
        let credential = Credential {
            name: name.clone(),
            secret,
            authority: self.authority.certificate().to_vec(),
            signer: self.signer,
        };
        Ok(Some((row, credential.to_line())))
    }
}

/// A connection that has shown no credential yet, counted by its address.
#[derive(Debug)]
struct Greeting {
    stream: Arc<ControlStream>,
    from: IpAddr,
}

impl Greeting {
    fn of(stream: &Arc<ControlStream>, from: IpAddr) -> Option<Self> {
        let mut greeting = stream.greeting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = greeting.entry(from).or_insert(0);
        if *count >= GREETINGS {
            return None;
        }
        *count += 1;
        Some(Self { stream: Arc::clone(stream), from })
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        let mut greeting = self.stream.greeting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = greeting.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                greeting.remove(&self.from);
            }
        }
    }
}

impl Connected {
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }
}

/// A gateway could not be added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddGatewayError {
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] SealError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests;
