// SPDX-License-Identifier: Apache-2.0
//! The signed part of a message, and the change in it.
//!
//! What is written here is what is signed: it mirrors [`crate::control`] field by field, without
//! secrets (they are wrapped apart) and with the code of filters by digest (the bytes follow).
//! Unknown fields are refused: what a gateway does not understand it cannot enforce.

use super::{Digest, Nonce};
use crate::control::{BackendConfig, Change, EndedSession, FilterArtefact, State, TenantConfig};
use crate::decision::Versions;
use crate::folder::{BackendFile, LimitsFile};
use crate::id::{BackendName, FilterName, GatewayName, PolicyName, SandboxId, SecretName, TenantId};
use crate::secret::Secret;
use crate::session::Session;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the signature is over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub(super) gateway: GatewayName,
    pub(super) nonce: Nonce,
    /// Counts the messages of a connection, from 1.
    pub(super) sequence: u64,
    pub(super) epoch: u64,
    pub(super) version: u64,
    /// The digest of the head before; of the welcome for the first.
    pub(super) previous: Digest,
    pub(super) at: Timestamp,
    pub(super) change: SignedChange,
    /// What follows, in order.
    pub(super) blobs: Vec<BlobHead>,
    /// The digest of the wrapped secrets.
    pub(super) secrets: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlobHead {
    pub(super) digest: Digest,
    pub(super) bytes: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SignedChange {
    Snapshot(SignedState),
    Session(Box<Session>),
    SessionEnded(SignedEnd),
    Tenant(Box<SignedTenant>),
    Try(Box<SignedTenant>),
    TenantRemoved(TenantId),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignedEnd {
    sandbox_id: SandboxId,
    until: Timestamp,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignedState {
    tenants: Vec<SignedTenant>,
    sessions: Vec<Session>,
    ended: Vec<SignedEnd>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignedTenant {
    tenant: TenantId,
    revision: u64,
    versions: Versions,
    backends: BTreeMap<BackendName, SignedBackend>,
    default_backend: Option<BackendName>,
    policies: Option<BTreeMap<PolicyName, String>>,
    shadow_policies: BTreeMap<PolicyName, String>,
    filters: BTreeMap<FilterName, SignedFilter>,
    limits: LimitsFile,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedBackend {
    file: BackendFile,
    document: Option<Arc<str>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedFilter {
    manifest: Arc<str>,
    artefact: Digest,
    version: u64,
}

/// The code of filters, by digest.
pub(super) type Blobs = BTreeMap<Digest, Arc<[u8]>>;
/// Unwrapped secrets by place.
pub(super) type Secrets = BTreeMap<(TenantId, SecretName), Secret<String>>;

/// A filter whose code did not come with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MissingBlob;

impl From<&EndedSession> for SignedEnd {
    fn from(ended: &EndedSession) -> Self {
        Self { sandbox_id: ended.sandbox_id.clone(), until: ended.until }
    }
}

impl From<SignedEnd> for EndedSession {
    fn from(ended: SignedEnd) -> Self {
        Self { sandbox_id: ended.sandbox_id, until: ended.until }
    }
}

impl SignedTenant {
    fn new(config: &TenantConfig, blobs: &mut Blobs) -> Self {
        // Named one by one, so that a new field cannot be left out unnoticed. Secrets are.
        let TenantConfig {
            tenant,
            revision,
            versions,
            backends,
            default_backend,
            policies,
            shadow_policies,
            filters,
            secrets: _,
            limits,
        } = config;
        let backends = backends.iter().map(|(name, BackendConfig { file, document })| {
            (name.clone(), SignedBackend { file: file.clone(), document: document.clone() })
        });
        let filters = filters.iter().map(|(name, FilterArtefact { manifest, artefact, version })| {
            let digest = Digest::of(artefact);
            blobs.insert(digest, Arc::clone(artefact));
            (
                name.clone(),
                SignedFilter { manifest: Arc::clone(manifest), artefact: digest, version: *version },
            )
        });
        Self {
            tenant: tenant.clone(),
            revision: *revision,
            versions: versions.clone(),
            backends: backends.collect(),
            default_backend: default_backend.clone(),
            policies: policies.clone(),
            shadow_policies: shadow_policies.clone(),
            filters: filters.collect(),
            limits: limits.clone(),
        }
    }

    fn into_config(self, blobs: &Blobs, secrets: &mut Secrets) -> Result<TenantConfig, MissingBlob> {
        let Self {
            tenant,
            revision,
            versions,
            backends,
            default_backend,
            policies,
            shadow_policies,
            filters,
            limits,
        } = self;
        let filter = |(name, SignedFilter { manifest, artefact, version })| {
            let artefact = blobs.get(&artefact).map(Arc::clone).ok_or(MissingBlob)?;
            Ok((name, FilterArtefact { manifest, artefact, version }))
        };
        let own: Vec<_> = secrets.keys().filter(|(of, _)| *of == tenant).cloned().collect();
        let own = own.into_iter().filter_map(|place| Some((place.1.clone(), secrets.remove(&place)?)));
        Ok(TenantConfig {
            secrets: own.collect(),
            filters: filters.into_iter().map(filter).collect::<Result<_, _>>()?,
            backends: backends
                .into_iter()
                .map(|(name, SignedBackend { file, document })| (name, BackendConfig { file, document }))
                .collect(),
            tenant,
            revision,
            versions,
            default_backend,
            policies,
            shadow_policies,
            limits,
        })
    }
}

impl SignedChange {
    /// The change without secrets; the code of its filters goes to `blobs`.
    pub(super) fn new(change: &Change, blobs: &mut Blobs) -> Self {
        match change {
            Change::Snapshot(state) => Self::Snapshot(SignedState {
                tenants: state.tenants.iter().map(|config| SignedTenant::new(config, blobs)).collect(),
                sessions: state.sessions.clone(),
                ended: state.ended.iter().map(SignedEnd::from).collect(),
            }),
            Change::Session(session) => Self::Session(session.clone()),
            Change::SessionEnded(ended) => Self::SessionEnded(ended.into()),
            Change::Tenant(config) => Self::Tenant(Box::new(SignedTenant::new(config, blobs))),
            Change::Try(config) => Self::Try(Box::new(SignedTenant::new(config, blobs))),
            Change::TenantRemoved(tenant) => Self::TenantRemoved(tenant.clone()),
        }
    }

    /// The change again, with the code of its filters and its secrets.
    pub(super) fn into_change(self, blobs: &Blobs, mut secrets: Secrets) -> Result<Change, MissingBlob> {
        Ok(match self {
            Self::Snapshot(state) => {
                let tenants = state.tenants.into_iter();
                let tenants = tenants.map(|tenant| tenant.into_config(blobs, &mut secrets).map(Arc::new));
                Change::Snapshot(Box::new(State {
                    tenants: tenants.collect::<Result<_, _>>()?,
                    sessions: state.sessions,
                    ended: state.ended.into_iter().map(EndedSession::from).collect(),
                }))
            }
            Self::Session(session) => Change::Session(session),
            Self::SessionEnded(ended) => Change::SessionEnded(ended.into()),
            Self::Tenant(tenant) => Change::Tenant(Arc::new(tenant.into_config(blobs, &mut secrets)?)),
            Self::Try(tenant) => Change::Try(Arc::new(tenant.into_config(blobs, &mut secrets)?)),
            Self::TenantRemoved(tenant) => Change::TenantRemoved(tenant),
        })
    }
}
