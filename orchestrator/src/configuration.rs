// SPDX-License-Identifier: Apache-2.0
//! Tenants' configurations: checked whole, changed all or nothing, told to the gateways.
//!
//! A tenant is owned by the API or by a watched folder, never by both. Each change rests on a
//! version: of two that are made at the same time, the second is judged again on top of the first.
//! Gateways that are connected judge it too, before it is written; `publish` tells them of it.
//!
//! It is long because the kinds of change, and how each is judged, are told as one.

mod filters;
mod publish;

pub(crate) use filters::Wanted;
pub(crate) use publish::Telling;

use crate::artefacts::{Artefacts, NotSigned};
use crate::check::{self, Cases, MadeOn};
use crate::control::{Gateways, OtherEngines};
use crate::keys::InstallationKeys;
use crate::operations::Catalogue;
use crate::policy_set::{PolicySetChange, version_of};
use crate::seal::{Place, SealError};
use crate::store::{
    Action, Actor, AuditEntry, Kind, MadeTenant, Owner, RemovedTenant, Resource, ResourceChange, Store,
    StoreError, TenantRow,
};
use crate::tenant::{Sealing, Tenant, files_of, parts_of};
use postern_common::clock;
use postern_common::control::{BackendConfig, Change, TenantConfig};
use postern_common::decision::Versions;
use postern_common::folder::{
    BackendFile, BackendFiles, FileRetention, IdentityFields, LimitsFile, TenantFiles,
};
use postern_common::id::{BackendName, FilterName, RequestId, SecretName, TenantId};
use postern_common::problem::FieldError;
use postern_common::secret::Secret;
use postern_common::settings::SandboxCaps;
use postern_common::tasks::Tasks;
use postern_filter_engine::settings::fingerprint;
use publish::Lines;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use url::Url;

/// The tenant that is always there.
pub(crate) const DEFAULT_TENANT: &str = "default";
/// The backend that `BACKEND_URL` makes.
const DEFAULT_BACKEND: &str = "default";
/// How long a change waits for gateways to judge it. One that does not answer judges it when it
/// is told of it.
const TRY_TIME: Duration = Duration::from_secs(10);
/// How often a change is judged anew because another was faster: each time, one other got through.
const ATTEMPTS: u32 = 20;

/// A configuration could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// There is no such tenant.
    #[error("there is no tenant `{0}`")]
    UnknownTenant(TenantId),
    /// A tenant of this name was removed.
    #[error("a tenant `{0}` was removed, and its name is never given again")]
    Retired(TenantId),
    /// There is no such thing.
    #[error("there is no {} `{name}`", kind.as_str())]
    Unknown {
        /// What was looked for.
        kind: Kind,
        /// By which name.
        name: String,
    },
    /// A filter has no version that would do.
    #[error("filter `{name}`: {why}")]
    NoVersion {
        /// The filter.
        name: FilterName,
        /// Why none will do, and what will.
        why: String,
    },
    /// Somebody else owns the tenant's configuration.
    #[error("the configuration of tenant `{tenant}` is owned by {owner}")]
    OwnedElsewhere {
        /// The tenant.
        tenant: TenantId,
        /// Who owns it.
        owner: Owner,
    },
    /// It is wrong.
    #[error("the configuration has {} mistakes", .0.len())]
    Mistakes(Vec<FieldError>),
    /// The caller saw another version.
    #[error("{} `{name}` is not what the request expects it to be", kind.as_str())]
    Precondition {
        /// What was to change.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The caller saw another version of the whole.
    #[error(
        "the configuration of tenant `{tenant}` is at version {found}, not {expected}: somebody changed it"
    )]
    Moved {
        /// The tenant.
        tenant: TenantId,
        /// What the caller saw.
        expected: i64,
        /// What there is.
        found: i64,
    },
    /// Others changed it all the time.
    #[error("the configuration of tenant `{0}` is being changed by others; try again")]
    Busy(TenantId),
    /// A secret could not be sealed or opened.
    #[error("a secret of tenant `{tenant}` could not be sealed or opened")]
    Seal {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        source: SealError,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Filters could not be compiled or signed here, whatever they are.
    #[error("{0}")]
    Compiler(String),
}

impl ConfigurationError {
    /// What is wrong with the configuration, where that is the error.
    #[must_use]
    pub fn mistakes(&self) -> &[FieldError] {
        match self {
            Self::Mistakes(mistakes) => mistakes,
            _ => &[],
        }
    }
}

/// What the caller expects to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Anything, or nothing.
    Anything,
    /// Nothing (`If-None-Match: *`).
    Nothing,
    /// Something (`If-Match: *`).
    Something,
    /// Something with one of these digests (`If-Match`).
    OneOf(Vec<String>),
}

impl Expected {
    fn holds(&self, digest: Option<&String>) -> bool {
        match (self, digest) {
            (Self::Anything, _) | (Self::Nothing, None) | (Self::Something, Some(_)) => true,
            (Self::OneOf(wanted), Some(digest)) => wanted.contains(digest),
            (Self::Nothing, Some(_)) | (Self::Something | Self::OneOf(_), None) => false,
        }
    }
}

/// A change of a tenant's configuration.
pub(crate) enum Edit {
    /// All of it: with `prune`, what is not in the files goes.
    Whole {
        /// The files.
        files: Box<TenantFiles>,
        /// Whether what they do not name goes.
        prune: bool,
        /// The version of the configuration that the author saw.
        expected: Option<i64>,
    },
    /// The policy set as a whole.
    PolicySet(PolicySetChange),
    /// One part; the function puts it into, or takes it out of, the files.
    Part {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// What must be there for the change to be made.
        expected: Expected,
        /// The change.
        change: Box<dyn Fn(&mut TenantFiles) -> bool + Send + Sync>,
    },
}

/// Who edits, and how.
#[derive(Debug, Clone)]
pub(crate) struct Edition {
    /// As whom: the tenant's owner must be the same.
    pub(crate) owner: Owner,
    /// Who, for the log.
    pub(crate) actor: Actor,
    /// The request, for the log.
    pub(crate) request: Option<RequestId>,
    /// Only check and compare.
    pub(crate) dry_run: bool,
}

/// What a change does to one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Difference {
    /// It was not there.
    Added,
    /// It was different.
    Changed,
    /// It goes.
    Removed,
}

/// One line of the difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Changed {
    /// What it is: `backend`, `policy`, `policy-test`, `filter`, `template` or `limits`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What happens to it.
    pub change: Difference,
}

/// A part that a change left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Kept {
    /// What it is, as in [`Changed`].
    pub kind: &'static str,
    /// Its name.
    pub name: String,
}

/// What a change did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Edited {
    /// Each part that is different.
    pub changes: Vec<Changed>,
    /// What the tenant has and an applied configuration does not name, where it was not pruned.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<Kept>,
    /// The configuration's version; it rises with each change.
    pub version: i64,
    /// Whether it was only tried.
    pub dry_run: bool,
    /// Gateways that have it in force.
    pub gateways_in_force: usize,
    /// Gateways that had not answered yet.
    pub gateways_pending: usize,
    /// What gateways say that keep to the configuration before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused_by_gateways: Vec<String>,
}

/// All tenants' configurations. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Configuration(Arc<Inner>);

/// Everything that configurations take.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The database.
    pub(crate) store: Store,
    /// Seal secrets.
    pub(crate) keys: Arc<InstallationKeys>,
    /// Judge configurations, and are told of them.
    pub(crate) gateways: Gateways,
    /// Compiles filters.
    pub(crate) artefacts: Artefacts,
    /// Makes the backend `default` of tenant `default`.
    pub(crate) backend_url: Option<Url>,
    /// What a template may ask for at most.
    pub(crate) caps: SandboxCaps,
    /// Where sandboxes are made.
    pub(crate) made_on: MadeOn,
    /// Owns what goes on when a caller has left.
    pub(crate) tasks: Tasks,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
    loaded: RwLock<BTreeMap<TenantId, Arc<Tenant>>>,
    lines: Lines,
}

impl std::ops::Deref for Inner {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// A configuration that was judged, with what it would change.
struct Judged {
    changes: Vec<ResourceChange>,
    lines: Vec<Changed>,
    kept: Vec<Kept>,
    /// What the tenant will be.
    tenant: Tenant,
}

impl Configuration {
    /// Nothing is loaded yet; see [`Configuration::publish_all`].
    #[must_use]
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner { parts, loaded: RwLock::default(), lines: Lines::default() }))
    }

    /// What a template may ask for at most.
    pub(crate) fn caps(&self) -> &SandboxCaps {
        &self.0.caps
    }

    /// Makes the default tenant if it is not there, loads every tenant and tells the gateways.
    ///
    /// # Errors
    /// [`StoreError`]. A tenant whose configuration does not pass any more, or that a gateway
    /// refuses, is logged and left out.
    pub(crate) async fn publish_all(&self) -> Result<(), StoreError> {
        if let Ok(name) = TenantId::parse(DEFAULT_TENANT) {
            self.make(&name, &Owner::Api, Actor::Orchestrator, None).await?;
        }
        for row in self.0.store.tenants().await? {
            drop(self.tell(&row.name).outcome().await);
        }
        Ok(())
    }

    /// Makes a tenant.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn make(
        &self,
        name: &TenantId,
        owner: &Owner,
        actor: Actor,
        request: Option<RequestId>,
    ) -> Result<MadeTenant, StoreError> {
        let audit =
            AuditEntry::new(clock::now(), Some(name.clone()), Action::TenantCreated, actor).request(request);
        self.0.store.add_tenant(name, owner, &audit).await
    }

    /// Removes a tenant and tells the gateways.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn remove(
        &self,
        name: &TenantId,
        audit: AuditEntry,
    ) -> Result<RemovedTenant, ConfigurationError> {
        let (store, gone) = (self.0.store.clone(), name.clone());
        let is_change = |removed: &RemovedTenant| *removed == RemovedTenant::Removed;
        let change = async move { store.remove_tenant(&gone, &audit).await };
        let (removed, _) = self.commit(name, is_change, change).await?;
        if is_change(&removed) {
            self.0.gateways.filter_log().forget(name);
        }
        Ok(removed)
    }

    /// A tenant with its configuration as it is now.
    ///
    /// # Errors
    /// [`ConfigurationError::UnknownTenant`].
    pub(crate) async fn tenant(&self, name: &TenantId) -> Result<Arc<Tenant>, ConfigurationError> {
        let row = self.0.store.tenant(name).await?;
        self.loaded(row.ok_or_else(|| ConfigurationError::UnknownTenant(name.clone()))?).await
    }

    /// Every tenant with its configuration. One that cannot be loaded is left out: whoever asks for
    /// it by name is told why.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn tenants(&self) -> Result<Vec<Arc<Tenant>>, StoreError> {
        let mut tenants = Vec::new();
        for row in self.0.store.tenants().await? {
            tenants.extend(self.loaded(row).await.ok());
        }
        Ok(tenants)
    }

    async fn loaded(&self, row: TenantRow) -> Result<Arc<Tenant>, ConfigurationError> {
        let loaded = self.0.loaded.read().unwrap_or_else(PoisonError::into_inner).get(&row.name).cloned();
        match loaded {
            Some(tenant) if tenant.row == row => Ok(tenant),
            _ => self.load(row).await,
        }
    }

    async fn load(&self, row: TenantRow) -> Result<Arc<Tenant>, ConfigurationError> {
        let parts = self.0.store.resources(&row.name).await?;
        let files = files_of(&parts, row.has_policies, self.sealing(&row.name))?;
        let digests = digests(&parts);
        let (files, default_backend) = self.with_backend_url(&row.name, files);
        let (files, catalogue) = checked(row.name.clone(), files, self.0.made_on, None).await?;
        let tenant = Arc::new(Tenant { row, files, catalogue, default_backend, digests });
        let mut loaded = self.0.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.insert(tenant.row.name.clone(), Arc::clone(&tenant));
        Ok(tenant)
    }

    /// `BACKEND_URL` makes the backend `default` of tenant `default`, unless it has one.
    fn with_backend_url(
        &self,
        tenant: &TenantId,
        mut files: TenantFiles,
    ) -> (TenantFiles, Option<BackendName>) {
        let (Some(url), DEFAULT_TENANT, Ok(name)) =
            (&self.0.backend_url, tenant.as_str(), BackendName::parse(DEFAULT_BACKEND))
        else {
            return (files, None);
        };
        files.backends.entry(name.clone()).or_insert_with(|| plain_backend(url.clone()));
        (files, Some(name))
    }

    /// Judges a change and, unless it is only tried, puts it in force, all or nothing.
    ///
    /// # Errors
    /// [`ConfigurationError`]; then nothing has changed.
    pub(crate) async fn edit(
        &self,
        tenant: &TenantId,
        edit: &Edit,
        edition: &Edition,
    ) -> Result<Edited, ConfigurationError> {
        for _ in 0..ATTEMPTS {
            let row = self.0.store.tenant(tenant).await?;
            let row = row.ok_or_else(|| ConfigurationError::UnknownTenant(tenant.clone()))?;
            if row.owner != edition.owner {
                return Err(ConfigurationError::OwnedElsewhere { tenant: tenant.clone(), owner: row.owner });
            }
            let judged = self.judge(&row, edit).await?;
            let mut edited = Edited {
                changes: judged.lines,
                kept: judged.kept,
                version: row.version,
                dry_run: edition.dry_run,
                gateways_in_force: 0,
                gateways_pending: 0,
                refused_by_gateways: Vec::new(),
            };
            let has_policies = judged.tenant.row.has_policies;
            let is_same = edited.changes.is_empty() && has_policies == row.has_policies;
            if !is_same {
                self.try_out(&judged.tenant).await?;
            }
            if edition.dry_run {
                return Ok(edited);
            }
            let told = if is_same {
                // Told again: what a gateway once refused it may take by now.
                self.tell(tenant).outcome().await
            } else {
                let audit = audit(tenant, edit, &edited.changes, edition);
                let (store, name, expected) = (self.0.store.clone(), tenant.clone(), row.version);
                let changes = judged.changes;
                let change = async move {
                    store.change_resources(&name, expected, has_policies, &changes, &audit).await
                };
                let (is_changed, told) = self.commit(tenant, |changed| *changed, change).await?;
                if !is_changed {
                    continue;
                }
                edited.version = row.version + 1;
                told
            };
            edited.gateways_in_force = told.in_force;
            edited.gateways_pending = told.pending;
            edited.refused_by_gateways = told.refused;
            return Ok(edited);
        }
        Err(ConfigurationError::Busy(tenant.clone()))
    }

    /// Has the gateways that are connected judge what a tenant is to be.
    async fn try_out(&self, tenant: &Tenant) -> Result<(), ConfigurationError> {
        let (config, others) = self.gateway_config(tenant).await?;
        let tried = self.0.gateways.publish_for_all(Change::Try(Arc::new(config)), others, TRY_TIME);
        let mut refused = tried.await.refused;
        refused.sort();
        refused.dedup();
        if refused.is_empty() {
            return Ok(());
        }
        Err(ConfigurationError::Mistakes(refused.into_iter().map(placed).collect()))
    }

    async fn judge(&self, row: &TenantRow, edit: &Edit) -> Result<Judged, ConfigurationError> {
        let before = self.0.store.resources(&row.name).await?;
        let mut files = files_of(&before, row.has_policies, self.sealing(&row.name))?;
        let mut kept = Vec::new();
        match edit {
            Edit::Whole { expected: Some(expected), .. } if *expected != row.version => {
                let tenant = row.name.clone();
                return Err(ConfigurationError::Moved { tenant, expected: *expected, found: row.version });
            }
            Edit::Whole { files: wanted, prune: true, .. } => files = TenantFiles::clone(wanted),
            Edit::Whole { files: wanted, prune: false, .. } => {
                kept = left_out(&before, &parts_of(wanted, self.sealing(&row.name))?);
                merge(&mut files, wanted);
            }
            Edit::PolicySet(change) => change.apply(&mut files)?,
            Edit::Part { kind, name, expected, change } => {
                let there = before.iter().find(|part| part.kind == *kind && part.name == *name);
                if !expected.holds(there.map(|part| &part.digest)) {
                    return Err(ConfigurationError::Precondition { kind: *kind, name: name.clone() });
                }
                if !change(&mut files) {
                    return Err(ConfigurationError::Unknown { kind: *kind, name: name.clone() });
                }
            }
        }
        let is_sent_whole = matches!(edit, Edit::Whole { .. }) && row.owner == Owner::Api;
        let cases = if is_sent_whole { Cases::Refuse } else { Cases::Tell };
        // Judged as it will be used, stored as it was put.
        let (used, default_backend) = self.with_backend_url(&row.name, files.clone());
        let put = Some((self.0.caps, cases));
        let (used, catalogue) = checked(row.name.clone(), used, self.0.made_on, put).await?;
        self.0.artefacts.check(&used).await.map_err(ConfigurationError::Mistakes)?;
        let after = parts_of(&files, self.sealing(&row.name))?;
        let row = TenantRow {
            version: row.version + 1,
            revision: row.revision + 1,
            has_policies: files.policies.is_some(),
            ..row.clone()
        };
        let digests = digests(&after);
        let (changes, lines) = difference(&before, after);
        let tenant = Tenant { row, files: used, catalogue, default_backend, digests };
        Ok(Judged { changes, lines, kept, tenant })
    }

    fn sealing<'a>(&'a self, tenant: &'a TenantId) -> Sealing<'a> {
        Sealing { keys: &self.0.keys, tenant }
    }

    /// What a gateway enforces for a tenant, and its filters as gateways of other releases that are
    /// connected take them.
    async fn gateway_config(
        &self,
        tenant: &Tenant,
    ) -> Result<(TenantConfig, OtherEngines), ConfigurationError> {
        let name = &tenant.row.name;
        let backend = |(name, files): (&BackendName, &BackendFiles)| {
            let document = files.document.as_deref().map(Arc::from);
            (name.clone(), BackendConfig { file: files.backend.clone(), document })
        };
        let versions = self.0.store.filter_versions_in_force(name).await?;
        let filters = self.0.artefacts.signed(name, &tenant.files, &versions, fingerprint()).await;
        let filters = filters.map_err(|error| match error {
            NotSigned::Mistakes(mistakes) => ConfigurationError::Mistakes(mistakes),
            NotSigned::Ours(words) => ConfigurationError::Compiler(words),
        })?;
        let others = self.for_other_engines(tenant, &versions).await;
        let config = TenantConfig {
            tenant: name.clone(),
            revision: u64::try_from(tenant.row.revision).unwrap_or(0),
            versions: Versions {
                routes: version_of(tenant, Kind::Backend),
                policies: version_of(tenant, Kind::Policy),
                filters: version_of(tenant, Kind::Filter),
            },
            backends: tenant.files.backends.iter().map(backend).collect(),
            default_backend: tenant.default_backend.clone(),
            policies: tenant.files.policies.clone(),
            shadow_policies: tenant.files.shadow_policies.clone(),
            filters,
            secrets: self.needed_secrets(tenant).await?,
            // How long files stay is nothing that a gateway enforces.
            limits: LimitsFile { retention: FileRetention::default(), ..tenant.files.limits.clone() },
        };
        Ok((config, others))
    }

    /// The filters of a tenant for the engines of other releases that gateways run which are
    /// connected. One that they cannot be compiled for is left out: its gateways say so.
    async fn for_other_engines(&self, tenant: &Tenant, versions: &BTreeMap<FilterName, u64>) -> OtherEngines {
        let mut others = OtherEngines::new();
        if tenant.files.filters.is_empty() {
            return others;
        }
        let wanted = self.0.gateways.other_engines().borrow().clone();
        for engine in self.0.artefacts.other_engines() {
            let announced = engine.to_string();
            if !wanted.contains(&announced) {
                continue;
            }
            let name = &tenant.row.name;
            match self.0.artefacts.signed(name, &tenant.files, versions, engine).await {
                Ok(filters) => drop(others.insert(announced, filters)),
                Err(error) => tracing::error!(
                    tenant = %name, %engine, ?error,
                    "filters are not compiled for gateways of another release, which keep their last good ones"
                ),
            }
        }
        others
    }

    /// The secrets that credentials of backends name: a gateway gets no other.
    async fn needed_secrets(
        &self,
        tenant: &Tenant,
    ) -> Result<BTreeMap<SecretName, Secret<String>>, ConfigurationError> {
        let name = &tenant.row.name;
        let backends = tenant.files.backends.values();
        let needed = backends.filter_map(|files| files.backend.credential.as_ref()?.secret());
        let needed: BTreeSet<&SecretName> = needed.collect();
        let failed = |source| ConfigurationError::Seal { tenant: name.clone(), source };
        let mut secrets = BTreeMap::new();
        for stored in self.0.store.secrets(name).await? {
            if !needed.contains(&stored.name) {
                continue;
            }
            let place = Place::Secret { tenant: name.as_str(), name: stored.name.as_str() };
            let value = self.0.keys.data.open(place, &stored.sealed).map_err(failed)?;
            let value = String::from_utf8(value.reveal().clone());
            let value = value.map_err(|_malformed| failed(SealError::Damaged))?;
            secrets.insert(stored.name, Secret::new(value));
        }
        Ok(secrets)
    }

    /// Gives a secret a value and tells the gateways.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub(crate) async fn set_secret(
        &self,
        tenant: &TenantId,
        name: &SecretName,
        value: &Secret<String>,
        edition: &Edition,
    ) -> Result<(), ConfigurationError> {
        let place = Place::Secret { tenant: tenant.as_str(), name: name.as_str() };
        let sealed = self.0.keys.data.seal(place, value.reveal().as_bytes());
        let sealed = sealed.map_err(|source| ConfigurationError::Seal { tenant: tenant.clone(), source })?;
        let audit =
            AuditEntry::new(clock::now(), Some(tenant.clone()), Action::SecretSet, edition.actor.clone());
        let audit = audit.subject(format!("secret/{name}")).request(edition.request.clone());
        let (store, of, name) = (self.0.store.clone(), tenant.clone(), name.clone());
        let change = async move { store.set_secret(&of, &name, sealed, &audit).await };
        let (is_set, _) = self.commit(tenant, |set| *set, change).await?;
        if is_set { Ok(()) } else { Err(ConfigurationError::UnknownTenant(tenant.clone())) }
    }

    /// Removes a secret and tells the gateways; `false` if there is none.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub(crate) async fn remove_secret(
        &self,
        tenant: &TenantId,
        name: &SecretName,
        edition: &Edition,
    ) -> Result<bool, ConfigurationError> {
        self.tenant(tenant).await?;
        let audit =
            AuditEntry::new(clock::now(), Some(tenant.clone()), Action::SecretRemoved, edition.actor.clone());
        let audit = audit.subject(format!("secret/{name}")).request(edition.request.clone());
        let (store, of, name) = (self.0.store.clone(), tenant.clone(), name.clone());
        let change = async move { store.remove_secret(&of, &name, &audit).await };
        Ok(self.commit(tenant, |removed| *removed, change).await?.0)
    }
}

/// A backend that is nothing but a URL.
fn plain_backend(url: Url) -> BackendFiles {
    let backend = BackendFile {
        url,
        openapi: None,
        protocol: postern_common::folder::UpstreamProtocol::default(),
        websockets: Vec::new(),
        identity: IdentityFields::default(),
        additional_query: postern_common::folder::Additional::default(),
        additional_headers: postern_common::folder::Additional::Pass,
        credential: None,
        filters: Vec::new(),
        limits: postern_common::folder::BackendLimits::default(),
        operations: BTreeMap::new(),
    };
    BackendFiles { backend, document: None }
}

/// Judges off the async threads: documents and policies are compiled on the way.
async fn checked(
    tenant: TenantId,
    files: TenantFiles,
    on: MadeOn,
    put: Option<(SandboxCaps, Cases)>,
) -> Result<(TenantFiles, Catalogue), ConfigurationError> {
    let judged = tokio::task::spawn_blocking(move || {
        let put = put.as_ref().map(|(caps, cases)| (caps, *cases));
        check::check(&tenant, &files, on, put).map(|catalogue| (files, catalogue))
    });
    match judged.await {
        Ok(judged) => judged.map_err(ConfigurationError::Mistakes),
        Err(_panicked) => {
            let message = "it could not be judged; simplify it".to_owned();
            Err(ConfigurationError::Mistakes(vec![FieldError { pointer: String::new(), message }]))
        }
    }
}

/// Puts `wanted` over what is there and takes nothing away.
fn merge(files: &mut TenantFiles, wanted: &TenantFiles) {
    files.backends.extend(wanted.backends.clone());
    if let Some(policies) = &wanted.policies {
        files.policies.get_or_insert_default().extend(policies.clone());
    }
    files.shadow_policies.extend(wanted.shadow_policies.clone());
    files.policy_tests.extend(wanted.policy_tests.clone());
    files.filters.extend(wanted.filters.clone());
    files.templates.extend(wanted.templates.clone());
    if wanted.limits != LimitsFile::default() {
        files.limits = wanted.limits.clone();
    }
}

/// What is there and not wanted.
fn left_out(before: &[Resource], wanted: &[Resource]) -> Vec<Kept> {
    let is_wanted = |part: &Resource| wanted.iter().any(|it| it.kind == part.kind && it.name == part.name);
    let kept = |part: &Resource| Kept { kind: part.kind.as_str(), name: part.name.clone() };
    before.iter().filter(|part| !is_wanted(part)).map(kept).collect()
}

/// What has to be written to get from `before` to `after`, and the same for people.
fn difference(before: &[Resource], after: Vec<Resource>) -> (Vec<ResourceChange>, Vec<Changed>) {
    let (mut changes, mut lines) = (Vec::new(), Vec::new());
    for part in before {
        if !after.iter().any(|new| new.kind == part.kind && new.name == part.name) {
            lines.push(Changed {
                kind: part.kind.as_str(),
                name: part.name.clone(),
                change: Difference::Removed,
            });
            changes.push(ResourceChange::Remove(part.kind, part.name.clone()));
        }
    }
    for part in after {
        let there = before.iter().find(|old| old.kind == part.kind && old.name == part.name);
        let change = match there {
            Some(old) if old.digest == part.digest => continue,
            Some(_) => Difference::Changed,
            None => Difference::Added,
        };
        lines.push(Changed { kind: part.kind.as_str(), name: part.name.clone(), change });
        changes.push(ResourceChange::Put(part));
    }
    (changes, lines)
}

/// The digest of each part.
fn digests(parts: &[Resource]) -> BTreeMap<(Kind, String), String> {
    parts.iter().map(|part| ((part.kind, part.name.clone()), part.digest.clone())).collect()
}

/// A gateway's words as a mistake: they begin with the place, such as `backends/desk: …`.
fn placed(words: String) -> FieldError {
    match words.split_once(": ") {
        Some((place, message))
            if place.starts_with(|first: char| first.is_ascii_lowercase()) && !place.contains(' ') =>
        {
            FieldError { pointer: format!("/{place}"), message: message.to_owned() }
        }
        _ => FieldError { pointer: String::new(), message: words },
    }
}

fn audit(tenant: &TenantId, edit: &Edit, changes: &[Changed], edition: &Edition) -> Vec<AuditEntry> {
    let entry = |action, subject: String| {
        AuditEntry::new(clock::now(), Some(tenant.clone()), action, edition.actor.clone())
            .subject(subject)
            .request(edition.request.clone())
    };
    let mut entries: Vec<AuditEntry> = changes
        .iter()
        .map(|line| {
            let action = match line.change {
                Difference::Removed => Action::ResourceRemoved,
                Difference::Added | Difference::Changed => Action::ResourcePut,
            };
            entry(action, format!("{}/{}", line.kind, line.name))
        })
        .collect();
    match edit {
        Edit::Whole { .. } => {
            entries.push(entry(Action::ConfigurationApplied, format!("{} changes", changes.len())));
        }
        Edit::PolicySet(change) => entries.push(entry(change.action(), change.subject())),
        Edit::Part { .. } => {}
    }
    entries
}
