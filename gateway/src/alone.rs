// SPDX-License-Identifier: Apache-2.0
//! A gateway that stands alone: it serves a tenant's folder, without an orchestrator.
//!
//! ```text
//!  folder ─▶ read, compile filters ─▶ the in-process link ─▶ the gateway, as from an orchestrator
//!     └ changes: all of it in force, or the last good one stays and the log says what is wrong
//! ```
//! Whoever owns the folder is believed as an operator is: filters are signed with a key of this
//! process, and the backends that the folder names may be reached. Secrets are files of a folder of
//! their own. Decisions go to the access log; there is nobody to keep them.

use crate::{Running, UpstreamRules};
use aws_lc_rs::rand;
use postern_common::control::{Applied, BackendConfig, Change, FilterArtefact, Message, Publisher, State};
use postern_common::control::{DeliverySender, TenantConfig};
use postern_common::decision::Versions;
use postern_common::folder::watched::{OpenFolderError, WatchedFolder};
use postern_common::folder::{Credential, FilterFiles, TenantFiles};
use postern_common::id::{FilterName, SecretName, TenantId};
use postern_common::secret::Secret;
use postern_common::tasks::{Stop, Tasks};
use postern_filter_engine::Digest;
use postern_filter_engine::artefact::{Compiled, SigningKey};
use postern_filter_engine::child::{Bounds, compile_in_child};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use url::Url;

/// The longest secret: keys and tokens are short.
const SECRET_BYTES: u64 = 64 * 1024;

/// What a gateway that stands alone serves from.
#[derive(Debug)]
pub struct Settings {
    /// The tenant's folder.
    pub folder: PathBuf,
    /// The tenant's name, which policies see.
    pub tenant: TenantId,
    /// The folder with a file for each secret.
    pub secrets: Option<PathBuf>,
    /// The compiler of filters.
    pub compiler: PathBuf,
    /// What the operator allows besides the folder's backends.
    pub allowed: Vec<String>,
    /// The gateway's own view of where it may go.
    pub upstreams: UpstreamRules,
}

/// Why it cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum AloneError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] OpenFolderError),
    /// No key to sign filters with.
    #[error("this machine gives no random numbers")]
    Random,
    /// What is wrong with what the folder says.
    #[error("the folder cannot be served:\n  {}", .0.join("\n  "))]
    Refused(Vec<String>),
}

/// A folder that was read and is not served yet.
#[derive(Debug)]
pub struct Alone {
    settings: Settings,
    watched: WatchedFolder,
    key: SigningKey,
    revision: u64,
    compiled: BTreeMap<Digest, Arc<[u8]>>,
    /// The backends of what is in force.
    served: Vec<Url>,
}

impl Alone {
    /// Reads the folder and begins to watch it.
    ///
    /// # Errors
    /// [`AloneError`] with every mistake of it.
    pub async fn open(settings: Settings) -> Result<Self, AloneError> {
        let watched = WatchedFolder::open(&settings.folder).await?;
        let mut seed = [0; 32];
        rand::fill(&mut seed).map_err(|_unspecified| AloneError::Random)?;
        let key = SigningKey::from_seed(&seed).map_err(|_invalid| AloneError::Random)?;
        Ok(Self { settings, watched, key, revision: 0, compiled: BTreeMap::new(), served: Vec::new() })
    }

    /// Whose filters the gateway must believe.
    #[must_use]
    pub fn artefact_key(&self) -> [u8; 32] {
        *self.key.verifying_key().as_bytes()
    }

    /// Puts the folder in force, then follows its changes until `tasks` are stopped.
    ///
    /// # Errors
    /// [`AloneError::Refused`] if what it says first cannot be served.
    pub async fn serve(
        mut self,
        publisher: Publisher,
        running: Running,
        tasks: &Tasks,
    ) -> Result<(), AloneError> {
        let sender = publisher.sender();
        self.put(self.watched.files().clone(), &sender, &running).await.map_err(AloneError::Refused)?;
        tasks.spawn(move |stop| drain(publisher, stop));
        tasks.spawn(async move |stop: Stop| {
            let _: Option<()> = stop.run_until_cancelled(self.follow(sender, running)).await;
        });
        Ok(())
    }

    async fn follow(mut self, sender: DeliverySender, running: Running) {
        loop {
            let told = match self.watched.changed().await {
                Ok(files) => {
                    let files = files.clone();
                    self.put(files, &sender, &running).await
                }
                Err(mistakes) => {
                    if let Some(denied) = self.watched.denied().await {
                        running.deny(denied);
                    }
                    Err(mistakes.0.iter().map(ToString::to_string).collect())
                }
            };
            match told {
                Ok(()) => {
                    tracing::info!(revision = self.revision, "the folder's new configuration is in force");
                }
                Err(mistakes) => {
                    for mistake in mistakes {
                        tracing::error!(%mistake, "configuration refused; the last good one stays in force");
                    }
                }
            }
        }
    }

    /// Puts what the folder says in force, all or nothing. Backends may be reached before they are
    /// named, and the old ones no more once they are not.
    async fn put(
        &mut self,
        files: TenantFiles,
        sender: &DeliverySender,
        running: &Running,
    ) -> Result<(), Vec<String>> {
        let named: Vec<Url> = files.backends.values().map(|backend| backend.backend.url.clone()).collect();
        self.allow(named.iter().chain(&self.served))?;
        // Whatever else is wrong: who is denied is denied.
        running.deny(files.denied.clone());
        let put = self.put_config(files, sender).await;
        if put.is_ok() {
            self.served = named;
        } else {
            // The same again is news: what was missing may be there by then.
            self.watched.forget();
        }
        self.allow(self.served.iter())?;
        put
    }

    async fn put_config(&mut self, files: TenantFiles, sender: &DeliverySender) -> Result<(), Vec<String>> {
        let config = Arc::new(self.config(files).await?);
        let version = self.revision + 1;
        let change = if self.revision == 0 {
            Change::Snapshot(Box::new(State { tenants: vec![config], ..State::default() }))
        } else {
            Change::Tenant(config)
        };
        let gone = || vec!["the gateway is ending".to_owned()];
        let answer = sender.send(Message { epoch: 1, version, change }).await.map_err(|_gone| gone())?;
        // A refused one was heard of all the same: the next must be newer.
        self.revision = version;
        match answer.await.map_err(|_ended| gone())? {
            Applied::Refused(mistakes) => Err(mistakes),
            Applied::InForce => Ok(()),
        }
    }

    fn allow<'a>(&self, urls: impl Iterator<Item = &'a Url>) -> Result<(), Vec<String>> {
        let spelled = |url: &Url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?));
        let all: Vec<String> =
            self.settings.allowed.iter().cloned().chain(urls.filter_map(spelled)).collect();
        let replaced = self.settings.upstreams.replace(&all, &[]);
        replaced.map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    async fn config(&mut self, files: TenantFiles) -> Result<TenantConfig, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut filters = BTreeMap::new();
        for (name, filter) in &files.filters {
            match self.artefact(name, filter).await {
                Ok(artefact) => drop(filters.insert(name.clone(), artefact)),
                Err(mistake) => mistakes.push(format!("filters/{name}: {mistake}")),
            }
        }
        let (secrets, missing) = self.secrets(&files);
        mistakes.extend(missing);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let text = |part: Result<Vec<u8>, serde_json::Error>| {
            part.map_or_else(|_no_form| String::new(), |bytes| Digest::of(&bytes).to_string())
        };
        Ok(TenantConfig {
            tenant: self.settings.tenant.clone(),
            revision: self.revision + 1,
            versions: Versions {
                routes: text(serde_json::to_vec(&files.backends)),
                policies: text(serde_json::to_vec(&files.policies)),
                filters: text(serde_json::to_vec(&files.filters)),
            },
            default_backend: None,
            backends: files
                .backends
                .into_iter()
                .map(|(name, files)| {
                    (name, BackendConfig { file: files.backend, document: files.document.map(Arc::from) })
                })
                .collect(),
            policies: files.policies,
            shadow_policies: files.shadow_policies,
            filters,
            secrets,
            limits: files.limits,
        })
    }

    /// A filter, compiled once and signed anew each time: its version is that of the folder.
    async fn artefact(&mut self, name: &FilterName, filter: &FilterFiles) -> Result<FilterArtefact, String> {
        let digest = Digest::of(&filter.component);
        let bytes = match self.compiled.get(&digest) {
            Some(bytes) => Arc::clone(bytes),
            None => {
                let bounds = Bounds::default();
                let made = compile_in_child(&self.settings.compiler, &filter.component, &bounds).await;
                let made: Arc<[u8]> = Arc::from(made.map_err(|error| error.to_string())?);
                self.compiled.insert(digest, Arc::clone(&made));
                made
            }
        };
        let compiled = Compiled::parse(&bytes, &filter.component).map_err(|error| error.to_string())?;
        let version = self.revision + 1;
        let signed = self.key.sign(&compiled, (&self.settings.tenant, name), version, &filter.manifest);
        let manifest = Arc::from(filter.manifest.as_str());
        Ok(FilterArtefact { manifest, artefact: Arc::from(signed), version })
    }

    /// The secrets that credentials name, and what is wrong with those that are not there.
    fn secrets(&self, files: &TenantFiles) -> (BTreeMap<SecretName, Secret<String>>, Vec<String>) {
        let declared = files.backends.values().filter_map(|files| files.backend.credential.as_ref());
        let named = declared.filter_map(Credential::secret);
        let (mut secrets, mut missing) = (BTreeMap::new(), Vec::new());
        for name in named {
            let Some(folder) = &self.settings.secrets else {
                missing.push(format!(
                    "secret `{name}`: set POSTERN_GATEWAY_SECRETS_DIR to the folder that holds it"
                ));
                continue;
            };
            match secret(&folder.join(name.as_str())) {
                Ok(value) => drop(secrets.insert(name.clone(), value)),
                Err(error) => missing
                    .push(format!("secret `{name}` cannot be read from `{}`: {error}", folder.display())),
            }
        }
        (secrets, missing)
    }
}

/// A secret's file, without the line break that editors put at its end.
fn secret(path: &Path) -> std::io::Result<Secret<String>> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(SECRET_BYTES).read_to_string(&mut text)?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(Secret::new(text))
}

/// Takes what an orchestrator would keep: decisions are in the access log, filters' lines in ours.
async fn drain(mut publisher: Publisher, stop: Stop) {
    let taken = async {
        loop {
            tokio::select! {
                decision = publisher.decisions.recv() => if decision.is_none() { return },
                line = publisher.lines.recv() => {
                    let Some(line) = line else { return };
                    tracing::info!(filter = %line.filter, level = %line.level, said = line.message, "filter log");
                }
            }
        }
    };
    let _: Option<()> = stop.run_until_cancelled(taken).await;
}
