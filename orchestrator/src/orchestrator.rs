// SPDX-License-Identifier: Apache-2.0
//! Puts the parts together, in the one order that is safe.

mod kept;

use crate::admin::{self, Admin};
use crate::api::{self, Api, Drain, Ports};
use crate::artefacts::{Artefacts, UnusableCompiler};
use crate::audit::Audit;
use crate::check::MadeOn;
use crate::config::Config;
use crate::configuration::{self, Configuration, ConfigurationError, DEFAULT_TENANT, Edit, Edited, Edition};
use crate::control::Gateways;
use crate::driver::{Driver, Parts, Reconciled};
use crate::files::{Bounds, UserFiles};
use crate::host::Host;
use crate::keys::api::{WantedKey, mint, verify};
use crate::keys::{InstallationKeys, KeysError, random};
use crate::pool::{Pool, Wants};
use crate::replicas::{Heard, Replicas};
use crate::retention::{self, FileRetention, Retention, StepError};
use crate::rights::Rights;
use crate::seal::SealError;
use crate::sessions::peers::PeerSessions;
use crate::sessions::sync::SyncSessions;
use crate::sessions::{self, Sessions};
use crate::storage::ConnectError;
use crate::store::{
    Action, Actor, AuditEntry, KeyScope, MadeTenant, OpenError, Owner, Released, Role, Store, StoreError,
};
use crate::stream::{AuthorityError, ControlStream};
use crate::sync::processes::Syncs;
use crate::sync::{self, FilesApi, FilesListener};
use postern_common::clock;
use postern_common::control::Publisher;
use postern_common::folder::TenantFiles;
use postern_common::id::{SandboxId, TenantId};
use postern_common::retention::Report;
use postern_common::secret::Secret;
use postern_common::tasks::{Stop, Tasks};
use postern_shim::spec::Installation;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Characters of an installation's id: 50 bits, and short enough for the names that hold it.
const INSTALLATION_CHARACTERS: usize = 10;

/// Where the data folder notes how new the database was when it was last used here.
const EPOCH_FILE: &str = "epoch";
/// Where it notes which place it is, where a database has several.
const PLACE_FILE: &str = "place";
/// Where it notes by which name its orchestrator is known to others.
const REPLICA_FILE: &str = "replica";

/// Which tenants a watched folder may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// One that is its own, or where nothing that somebody else wants would be lost.
    Own,
    /// Any: what is in force gives way to what the folder says.
    TakeOver,
}

/// The orchestrator could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder or file in the data folder.
    #[error("could not use `{}`; choose another data folder or free some space", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The database.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// A key.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A query.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The policies of the control plane.
    #[error("this release's own policies of the control plane cannot be used: {0}")]
    Rights(String),
    /// The store of users' files.
    #[error(transparent)]
    Storage(#[from] ConnectError),
    /// The control stream's certificates.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A compiler of another release.
    #[error(transparent)]
    Compiler(#[from] UnusableCompiler),
    /// The id of this installation is not one.
    #[error("the database holds an installation id that cannot be read; was it edited by hand?")]
    Installation,
}

/// Database and keys are open; nothing runs yet.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    store: Store,
    keys: Arc<InstallationKeys>,
    /// Whose database it is, as the audit logs are signed.
    signs_as: Installation,
    /// Where its sandboxes run.
    place: Installation,
}

impl Prepared {
    /// Opens, or makes, database and keys.
    ///
    /// # Errors
    /// [`StartError`] says what to mend.
    pub async fn open(mut config: Config) -> Result<Self, StartError> {
        let data = &config.data_dir;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(data);
        made.map_err(|source| StartError::Folder { path: data.clone(), source })?;
        let store = Store::open_at(&config.database(), config.migrate).await?;
        let given = std::mem::take(&mut config.keys);
        let keys = InstallationKeys::open(given, &data.join("keys"), &store).await?;
        let fresh = new_installation().map_err(KeysError::from)?;
        let id = store.fact("installation", fresh.into_bytes()).await?;
        let id = String::from_utf8(id).map_err(|_malformed| StartError::Installation)?;
        let installation = Installation::parse(&id).map_err(|_malformed| StartError::Installation)?;
        let place = place(&config, &store, &installation)?;
        let store = store.at(place.as_str());
        Ok(Self { config, store, keys: Arc::new(keys), signs_as: installation, place })
    }

    /// The installation that a runtime is to work for: what bears another's name is left alone. On
    /// machines that share a database each is its own.
    #[must_use]
    pub const fn installation(&self) -> &Installation {
        &self.place
    }

    /// This installation's keys.
    #[must_use]
    pub fn keys(&self) -> &Arc<InstallationKeys> {
        &self.keys
    }

    /// Database and keys.
    pub(crate) const fn parts(&self) -> (&Store, &Arc<InstallationKeys>) {
        (&self.store, &self.keys)
    }

    /// Archives or deletes users' files whose time has come; `each` is told how many went so far.
    ///
    /// # Errors
    /// [`StartError`]; what was done by then stays done, and another run does the rest.
    pub async fn retire_files(&self, dry_run: bool, mut each: impl FnMut(u64)) -> Result<Report, StartError> {
        let storage = kept::files_alone(&self.config, &self.store)?;
        let retention = FileRetention::new(self.store.clone(), storage);
        let mut report = Report::new(dry_run);
        let actor = Actor::Orchestrator;
        let mut wanted = retention::Wanted { tenant: None, dry_run, after: None, actor };
        loop {
            let step = retention.step(&wanted, clock::now()).await.map_err(|error| match error {
                StepError::Store(error) => StartError::Store(error),
                // It is our own.
                StepError::Place(_) => StartError::Store(StoreError::Corrupt { what: "place" }),
            })?;
            wanted.after = report.add(step);
            if wanted.after.is_none() {
                return Ok(report);
            }
            each(report.count());
        }
    }

    /// Makes reality match the database, then begins to work. Sandboxes that run are adopted.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(self, host: Arc<dyn Host>, tasks: &Tasks) -> Result<Orchestrator, StartError> {
        let Self { config, store, keys, signs_as, .. } = self;
        succeed(&store, &config.data_dir.join(REPLICA_FILE)).await?;
        let (epoch, spares_unknown) = next_epoch(&store, &config.data_dir.join(EPOCH_FILE)).await?;
        let state = sessions::known(&store, clock::now(), None).await?;
        let (gateways, uses) = Gateways::start(epoch, state, store.clone(), tasks);
        let sessions = Sessions::new(store.clone(), Arc::clone(&keys), gateways.clone(), config.token_ttl);
        let made_on = if host.has_own_pool() { MadeOn::Machine } else { MadeOn::Cluster };
        let (storage, folder) = kept::storage(&config, &store, (host.has_syncs(), made_on)).await?;
        let (configuration, artefacts) =
            configurations(&config, (&store, &keys), &gateways, (made_on, tasks)).await?;
        let audit = Audit::new(store.clone(), signs_as.as_str(), &keys);
        let retention = Retention::new(store.clone(), storage.clone(), artefacts, audit.clone(), config.kept);
        let pool = Pool::new(store.clone(), Arc::clone(&host), tasks.clone());
        let files_api = FilesApi::new(store.clone(), storage.clone(), gateways.clone(), tasks.stop_token());
        let syncs = SyncSessions::new(store.clone(), Arc::clone(&keys), gateways.clone(), config.token_ttl);
        let memory = kept::memory(&store, &keys, config.data_dir.join("memory"), spares_unknown).await?;
        let driver = Driver::new(Parts {
            memory,
            syncs: Syncs::new(Arc::clone(&host), syncs, storage.clone(), tasks.clone()),
            store: store.clone(),
            host: Arc::clone(&host),
            sessions,
            files: UserFiles::new(folder, Bounds::default()),
            pool: pool.clone(),
            keys: Arc::clone(&keys),
            spares_unknown,
            tasks: tasks.clone(),
        });
        driver.begin_keeping_claims();
        let reconciled = driver.reconcile().await?;
        let wants = Wants { configuration: configuration.clone(), isolation: config.isolation };
        let wants = host.has_own_pool().then_some(wants);
        watch(tasks, (driver.clone(), uses), retention.clone(), (pool.clone(), wants));
        let told = (configuration.clone(), gateways.clone(), driver.clone());
        let stream = control_stream(config.database(), (&store, &keys), told, tasks).await?;
        let snapshots = kept::snapshots(&store, &keys, config.data_dir.join("snapshots"), tasks).await?;
        let api = Api {
            peers: PeerSessions::new(store.clone(), Arc::clone(&keys), gateways.clone()),
            snapshots,
            store,
            storage,
            keys,
            audit,
            configuration,
            filter_log: gateways.filter_log().clone(),
            gateways: gateways.clone(),
            driver,
            pool,
            retention,
            host,
            isolation: config.isolation,
            rights: Rights::shipped().map_err(StartError::Rights)?,
            drain: Drain::default(),
            stream,
            ports: Ports::default(),
            tasks: tasks.clone(),
        };
        Ok(Orchestrator { api: Arc::new(api), files_api, gateways, reconciled, tasks: tasks.clone() })
    }
}

/// What judges configurations and tells gateways of them, with what compiles filters. Everything that
/// there is is told.
async fn configurations(
    config: &Config,
    (store, keys): (&Store, &Arc<InstallationKeys>),
    gateways: &Gateways,
    (made_on, tasks): (MadeOn, &Tasks),
) -> Result<(Configuration, Artefacts), StartError> {
    let artefacts = Artefacts::new(config.compiler.clone(), config.data_dir.join("artefacts"), keys)?;
    let artefacts = artefacts.within(config.compiling).with_others(&config.other_compilers).await?;
    let configuration = Configuration::new(configuration::Parts {
        store: store.clone(),
        keys: Arc::clone(keys),
        gateways: gateways.clone(),
        artefacts: artefacts.clone(),
        backend_url: config.backend_url.clone(),
        caps: config.caps,
        made_on,
        tasks: tasks.clone(),
    });
    configuration.publish_all().await?;
    let following = configuration.clone();
    tasks.spawn(async move |stop: Stop| following.follow_engines(stop).await);
    Ok((configuration, artefacts))
}

/// The control stream, and beside it what hears of other orchestrators.
async fn control_stream(
    url: Secret<String>,
    (store, keys): (&Store, &Arc<InstallationKeys>),
    (configuration, gateways, driver): (Configuration, Gateways, Driver),
    tasks: &Tasks,
) -> Result<Arc<ControlStream>, StartError> {
    let (store, heard) = (store.clone(), Heard::new(store.clone()));
    let stream = ControlStream::open(store.clone(), Arc::clone(keys), gateways.clone(), heard.clone());
    let stream = Arc::new(stream.await?);
    let replicas = Replicas {
        store,
        url,
        configuration,
        gateways,
        stream: Arc::clone(&stream),
        driver,
        heard,
        tasks: tasks.clone(),
    };
    tasks.spawn(async move |stop: Stop| replicas.follow(stop).await);
    Ok(stream)
}

/// Keeps reality at what the database says, until the tasks are stopped.
fn watch(
    tasks: &Tasks,
    (driver, uses): (Driver, mpsc::Receiver<SandboxId>),
    retention: Retention,
    (pool, wants): (Pool, Option<Wants>),
) {
    tasks.spawn(async move |stop: Stop| driver.watch(stop, uses).await);
    tasks.spawn(async move |stop: Stop| retention.watch(stop).await);
    if let Some(wants) = wants {
        tasks.spawn(async move |stop: Stop| pool.watch(stop, wants).await);
    }
}

/// A working orchestrator.
#[derive(Debug)]
pub struct Orchestrator {
    api: Arc<Api>,
    files_api: FilesApi,
    gateways: Gateways,
    reconciled: Reconciled,
    tasks: Tasks,
}

impl Orchestrator {
    /// What the start found.
    #[must_use]
    pub const fn reconciled(&self) -> &Reconciled {
        &self.reconciled
    }

    /// This installation's keys.
    #[must_use]
    pub fn keys(&self) -> &Arc<InstallationKeys> {
        &self.api.keys
    }

    /// Connects a gateway.
    pub async fn connect(&self, publisher: Publisher) {
        self.gateways.connect(publisher).await;
    }

    /// Serves the REST API on `listener`.
    pub fn serve(&self, listener: TcpListener) {
        api::serve(Arc::clone(&self.api), listener, &self.tasks);
    }

    /// Lets gateways of other processes follow, on `listener`.
    pub fn serve_control(&self, listener: TcpListener) {
        Arc::clone(&self.api.stream).serve(listener, &self.tasks);
    }

    /// Serves the files API on `listener`, where gateways bring sandboxes' syncs.
    pub fn serve_files(&self, listener: FilesListener) {
        sync::serve(self.files_api.clone(), listener, Arc::clone(&self.api.stream), &self.tasks);
    }

    /// Serves the admin port on `listener`.
    pub fn serve_admin(&self, listener: TcpListener) {
        let Api { store, pool, driver, .. } = &*self.api;
        let (store, gateways, pool) = (store.clone(), self.gateways.clone(), pool.clone());
        let (driver, syncs) = (driver.clone(), driver.syncs());
        let admin = Admin { store, gateways, pool, driver, syncs };
        admin::serve(admin, listener, &self.tasks);
    }

    /// The installation's first admin key: the one in `file` if it is still good, else a new one,
    /// which is written there with mode 0600.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn admin_key(&self, file: &Path) -> Result<Secret<String>, StartError> {
        let failed = |source| StartError::Folder { path: file.to_owned(), source };
        let Api { store, keys, .. } = &*self.api;
        if let Some(kept) = read_key(file).map_err(failed)?
            && verify(keys, store, &kept).await.is_ok_and(|caller| caller.tenant.is_none())
        {
            return Ok(kept);
        }
        let now = clock::now();
        let label = "first admin key".to_owned();
        let created_by = Actor::Orchestrator.to_string();
        let scope = KeyScope::default();
        let wanted =
            WantedKey { tenant: None, role: Role::Admin, label, operations: None, scope, created_by };
        let minted = mint(keys, wanted, now).map_err(KeysError::from)?;
        write_key(file, &minted.key).map_err(failed)?;
        let audit = AuditEntry::new(now, None, Action::KeyCreated, Actor::Orchestrator);
        store.add_key(&minted.row, &audit.subject(format!("key/{}", minted.row.id))).await?;
        Ok(minted.key)
    }

    /// Puts a watched folder's files in force for a tenant, all or nothing. The folder owns the
    /// tenant from then on.
    ///
    /// It takes a tenant that is its own, that nobody has configured, that it let go and nobody has
    /// changed since, or whose configuration is already what the files say; with
    /// [`Claim::TakeOver`] any, if its files are good.
    ///
    /// # Errors
    /// [`ConfigurationError::OwnedElsewhere`] if the API has put something there, or another
    /// folder owns it; else what is wrong with the files, and what was in force stays.
    pub async fn apply_folder(
        &self,
        tenant: &TenantId,
        folder: &Path,
        files: TenantFiles,
        claim: Claim,
    ) -> Result<Edited, ConfigurationError> {
        let owner = Owner::Folder(folder.display().to_string());
        let edit = Edit::Whole { files: Box::new(files), prune: true, expected: None };
        self.own(tenant, &owner, &edit, claim).await?;
        let edition = Edition { owner, actor: Actor::Folder, request: None, dry_run: false };
        self.api.configuration.edit(tenant, &edit, &edition).await
    }

    /// Lets a watched folder go: the API owns the tenant again, with the configuration as it is.
    /// The folder may have it back until somebody changes that.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub async fn release_folder(&self, tenant: &TenantId) -> Result<(), ConfigurationError> {
        let Some(row) = self.api.store.tenant(tenant).await? else { return Ok(()) };
        if let Owner::Folder(folder) = row.owner {
            self.api.store.release_tenant(tenant, &Released { folder, version: row.version }).await?;
        }
        Ok(())
    }

    /// Makes a folder the owner of a tenant that it may have.
    async fn own(
        &self,
        tenant: &TenantId,
        owner: &Owner,
        edit: &Edit,
        claim: Claim,
    ) -> Result<(), ConfigurationError> {
        let Api { store, configuration, .. } = &*self.api;
        match configuration.make(tenant, owner, Actor::Folder, None).await? {
            MadeTenant::Made => return Ok(()),
            MadeTenant::Exists => {}
            MadeTenant::Retired => return Err(ConfigurationError::Retired(tenant.clone())),
        }
        let row =
            store.tenant(tenant).await?.ok_or_else(|| ConfigurationError::UnknownTenant(tenant.clone()))?;
        if row.owner == *owner {
            return Ok(());
        }
        let is_untouched = row.owner == Owner::Api && row.version == 1 && tenant.as_str() == DEFAULT_TENANT;
        let is_as_it_left = row
            .released
            .as_ref()
            .is_some_and(|left| Owner::Folder(left.folder.clone()) == *owner && left.version == row.version);
        if !is_untouched && !is_as_it_left {
            // Only tried, as whoever owns it now: a folder with mistakes takes nothing over.
            let trial =
                Edition { owner: row.owner.clone(), actor: Actor::Folder, request: None, dry_run: true };
            let tried = configuration.edit(tenant, edit, &trial).await;
            let is_same = row.owner == Owner::Api && tried.as_ref().is_ok_and(|it| it.changes.is_empty());
            match claim {
                Claim::TakeOver => drop(tried?),
                Claim::Own if is_same => {}
                Claim::Own => {
                    return Err(ConfigurationError::OwnedElsewhere {
                        tenant: tenant.clone(),
                        owner: row.owner,
                    });
                }
            }
        }
        Ok(store.give_tenant(tenant, owner).await?)
    }

    /// Takes no new work from now on, destroys every sandbox, keeping its files, and waits at most
    /// `patience`; returns how many were not gone by then.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn destroy_all(&self, patience: Duration) -> Result<usize, StoreError> {
        self.api.drain.close().await;
        self.api.driver.destroy_all("the orchestrator was stopped", patience).await
    }

    /// Closes the database, after the tasks have ended.
    pub async fn close(self) {
        if let Err(error) = self.api.store.give_leases_back().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "leases end by themselves");
        }
        if let Err(error) = self.api.store.say_no_more().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what gateways ask for is forgotten later"
            );
        }
        self.api.store.close().await;
    }
}

/// The number of this start, and whether the database was restored since the last one.
async fn next_epoch(store: &Store, file: &Path) -> Result<(u64, bool), StartError> {
    // Never below the clock's seconds: a database that was restored counts on from before, and
    // gateways refuse what is older than they know.
    let before = store.number("epoch").await?;
    let epoch = store.next_number("epoch", clock::unix_seconds(clock::now())).await?;
    Ok((epoch, is_restored(file, before, epoch)?))
}

/// Whether the database is older than what this data folder has seen of it: then it was restored from
/// a backup. Notes how new it is now.
fn is_restored(file: &Path, before: u64, epoch: u64) -> Result<bool, StartError> {
    let failed = |source| StartError::Folder { path: file.to_owned(), source };
    let seen = match std::fs::read_to_string(file) {
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(failed(error)),
    };
    let draft = file.with_extension("draft");
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft);
    opened.and_then(|mut draft| draft.write_all(epoch.to_string().as_bytes())).map_err(failed)?;
    std::fs::rename(&draft, file).map_err(failed)?;
    Ok(before < seen)
}

/// Where the sandboxes of this orchestrator run. A cluster is one place for all who share its database,
/// and a database that only one can use has one; else it is this machine, by its data folder. A folder
/// that was used before there were places is the installation's.
fn place(config: &Config, store: &Store, installation: &Installation) -> Result<Installation, StartError> {
    if config.on_cluster || !store.has_others() {
        return Ok(installation.clone());
    }
    let file = config.data_dir.join(PLACE_FILE);
    let failed = |source| StartError::Folder { path: file.clone(), source };
    if let Some(kept) = read_key(&file).map_err(failed)? {
        return Installation::parse(kept.reveal()).map_err(|_malformed| StartError::Installation);
    }
    let fresh = match config.data_dir.join(EPOCH_FILE).exists() {
        true => installation.as_str().to_owned(),
        false => new_installation().map_err(KeysError::from)?,
    };
    write_key(&file, &Secret::new(fresh.clone())).map_err(failed)?;
    Installation::parse(&fresh).map_err(|_malformed| StartError::Installation)
}

/// Takes the place of the orchestrator that used this data folder before, which is no more: what it had
/// claimed is free at once.
async fn succeed(store: &Store, file: &Path) -> Result<(), StartError> {
    if !store.has_others() {
        return Ok(());
    }
    let failed = |source| StartError::Folder { path: file.to_owned(), source };
    if let Some(before) = read_key(file).map_err(failed)? {
        store.end_leases_of(before.reveal()).await?;
    }
    write_key(file, &Secret::new(store.replica().to_owned())).map_err(failed)
}

fn new_installation() -> Result<String, SealError> {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let random = random(INSTALLATION_CHARACTERS)?;
    let letter = |byte: &u8| LETTERS.get(usize::from(byte & 31)).copied().map(char::from);
    Ok(random.reveal().iter().filter_map(letter).collect())
}

fn read_key(file: &Path) -> io::Result<Option<Secret<String>>> {
    const KEY_FILE_BYTES: u64 = 1024;
    let mut text = String::new();
    match std::fs::File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?.take(KEY_FILE_BYTES).read_to_string(&mut text)?,
    };
    Ok(Some(Secret::new(text.trim().to_owned())))
}

fn write_key(file: &Path, key: &Secret<String>) -> io::Result<()> {
    let draft = file.with_extension("draft");
    let mut opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    opened.write_all(key.reveal().as_bytes())?;
    opened.write_all(b"\n")?;
    opened.sync_all()?;
    std::fs::rename(draft, file)
}
