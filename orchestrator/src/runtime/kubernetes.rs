// SPDX-License-Identifier: Apache-2.0
//! Sandboxes on a cluster: a `SandboxClaim` each, which the agent-sandbox controller answers with a
//! pod, from a warm pool where there is one.
//!
//! Nothing is remembered here that the API server does not say: claims bear this installation's id,
//! have the sandbox's name, and are written by server-side apply. A claim's pod is found through its
//! status and watched, never polled; what is said to the pod is signed for its UID.
//!
//! ```text
//! apply claim ──▶ watch: claim is Ready, its pod has a UID and addresses ──▶ sandboxd answers on 49983
//! files: the pod's second container, on 49984; begun and flushed from here, by itself in between
//! pause: the controller's Sandbox is `Suspended` and its pod gone; resume: a new pod, a new identity
//! destroy: delete claim ──▶ watch: claim and pod are gone
//! ```

mod cluster;
mod facts;
mod objects;
mod refusal;

use super::agent::{GatewayAt, Remote, Seal};
use super::{
    Agent, AgentError, Create, Enforced, Found, Isolation, Kind, Limits, Offer, Probed, Running, Runtime,
    RuntimeError, Swept, Trouble, Wanted,
};
use aws_lc_rs::signature::Ed25519KeyPair;
use cluster::{Cluster, View};
use facts::{Bound, PodFacts, PodState, Progress, TemplateFacts, progress};
use futures_util::future::BoxFuture;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use objects::{CLAIM_VERSION, Claim, Sandbox};
use postern_common::clock;
use postern_common::id::SandboxId;
use postern_common::session::Peer;
use postern_common::tasks::Tasks;
use postern_shim::spec::Installation;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Who writes, as the API server records it.
const FIELD_MANAGER: &str = "postern-orchestrator";
/// The label of whatever is this installation's.
pub const INSTALLATION_LABEL: &str = "postern.dev/installation";
/// Where `sandboxd` listens in a pod (contracts.md, ports).
const AGENT_PORT: u16 = 49983;
/// Where the sync beside it does.
const SYNC_PORT: u16 = 49984;
/// How long the API server may take to tell everything once, at start.
const LIST_TIME: Duration = Duration::from_secs(30);
/// How long a claim may take to have its pod: a cold start pulls an image.
const BIND_TIME: Duration = Duration::from_secs(50);
/// How long a ready pod's `sandboxd` may take to answer.
const REACH_TIME: Duration = Duration::from_secs(5);
/// A pod that is Ready is asked again this soon: its network may be a moment behind.
const REACH_AGAIN: Duration = Duration::from_millis(20);
/// How long a claim and its pod may take to go: kubelets give 30 s.
const GONE_TIME: Duration = Duration::from_secs(45);
/// How long a pod that was told to end may still flush: what it is given for that, and some.
const LEAVE_TIME: Duration = Duration::from_secs(35);
/// A claim that is younger belongs to a replica that is at work, whatever was read before.
const YOUNG: i64 = 60;

/// What this runtime is given.
#[derive(Debug)]
pub struct KubernetesSettings {
    /// Whose sandboxes these are.
    pub installation: Installation,
    /// The namespace that they are in.
    pub namespace: String,
    /// The SandboxTemplate of templates that name none.
    pub template: String,
    /// A kubeconfig; `None`: the pod's own service account.
    pub kubeconfig: Option<PathBuf>,
    /// Signs what is said to pods.
    pub control_key: Arc<Ed25519KeyPair>,
    /// Where sandboxes find the gateway.
    pub gateway: Option<GatewayAt>,
    /// Whether gateways bring here what syncs say.
    pub brings_syncs: bool,
}

/// The cluster could not be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no way to it.
    #[error("there is no way to a Kubernetes API: give a kubeconfig, or run in a pod with a service account")]
    Config(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The way there leads nowhere.
    #[error("the Kubernetes API cannot be spoken to")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It does not tell what there is.
    #[error("{trouble} ({detail})")]
    Refused {
        /// What to do.
        trouble: Trouble,
        /// What the API server said.
        detail: String,
    },
}

/// Sandboxes on a cluster.
#[derive(Debug)]
pub struct KubernetesRuntime {
    settings: KubernetesSettings,
    claims: Api<Claim>,
    sandboxes: Api<Sandbox>,
    cluster: Cluster,
    tasks: Tasks,
}

impl KubernetesRuntime {
    /// Connects, and learns what there is.
    ///
    /// # Errors
    /// [`OpenError`] says what to do.
    pub async fn open(settings: KubernetesSettings, tasks: Tasks) -> Result<Self, OpenError> {
        let config = config(&settings).await?;
        let client = Client::try_from(config).map_err(|error| OpenError::Client(Box::new(error)))?;
        let namespace = settings.namespace.clone();
        let labels = format!("{INSTALLATION_LABEL}={}", settings.installation.as_str());
        let claims = Api::<Claim>::namespaced(client.clone(), &namespace);
        // One small question first: the watches would try again for ever.
        let asked = claims.list(&kube::api::ListParams::default().labels(&labels).limit(1)).await;
        asked.map_err(|error| {
            let (trouble, detail) = refusal::of(&error);
            OpenError::Refused { trouble, detail }
        })?;
        let cluster = Cluster::watch(&client, &namespace, &labels, &tasks);
        if !cluster.is_listed(LIST_TIME).await {
            let detail = "not every watch of pods, claims, templates and pools was answered".to_owned();
            return Err(OpenError::Refused { trouble: Trouble::Rights, detail });
        }
        let sandboxes = Api::namespaced(client, &namespace);
        Ok(Self { settings, claims, sandboxes, cluster, tasks })
    }

    /// What a template makes; `None` names the default one.
    ///
    /// # Errors
    /// [`RuntimeError::Template`] if no sandbox may be made from it.
    pub fn offer_of(&self, template: Option<&str>) -> Result<Offer, RuntimeError> {
        let (_, facts) = self.usable(template)?;
        Ok(Offer { isolation: facts.isolation, limits: facts.limits })
    }

    /// The pool of a template from which sandboxes may be made, and the template.
    fn usable(&self, template: Option<&str>) -> Result<(String, TemplateFacts), RuntimeError> {
        let name = template.unwrap_or(&self.settings.template);
        let refused = |trouble| RuntimeError::Template { template: name.to_owned(), trouble };
        let facts = self.cluster.template(name).ok_or_else(|| refused(Trouble::NoTemplate))?;
        if !facts.has_network_policy {
            return Err(refused(Trouble::OpenNetwork));
        }
        let pool = self.cluster.pool_of(name).ok_or_else(|| refused(Trouble::NoPool))?;
        Ok((pool, facts))
    }

    /// Where the requests of a running sandbox come from.
    #[must_use]
    pub fn peer_of(&self, sandbox: &SandboxId) -> Option<Peer> {
        let Bound { pod, addresses, .. } = self.bound(sandbox).ok()?;
        Some(Peer::Pod { uid: pod, addresses })
    }

    /// Whether files are carried by syncs in pods.
    #[must_use]
    pub const fn brings_syncs(&self) -> bool {
        self.settings.brings_syncs
    }

    /// Whether a sandbox's files are carried by a sync in its pod, now.
    #[must_use]
    pub fn has_sync(&self, sandbox: &SandboxId) -> bool {
        self.sync_of(sandbox).is_some()
    }

    /// The pod in which a sandbox's sync runs; what is in it besides may have ended.
    fn sync_of(&self, sandbox: &SandboxId) -> Option<Bound> {
        let View { claim, pod } = self.cluster.view(sandbox);
        let is_there = |pod: &PodFacts| pod.has_sync && !pod.is_leaving && !pod.addresses.is_empty();
        let pod = pod.filter(|pod| self.settings.brings_syncs && is_there(pod))?;
        Some(Bound { sandbox: claim?.sandbox?, pod: pod.uid, addresses: pod.addresses })
    }

    /// Waits while a pod is being deleted in which a sync runs: it was told to flush, and its session has to
    /// last for that. A node that is gone tells nothing, and is not waited for any longer.
    pub(crate) async fn wait_for_leaving_sync(&self, sandbox: &SandboxId) {
        if self.settings.brings_syncs {
            let has_left =
                |view: &View| (!view.pod.as_ref().is_some_and(PodFacts::is_flushing)).then_some(());
            if self.cluster.wait(sandbox, LEAVE_TIME, has_left).await.is_err() {
                tracing::warn!(%sandbox, "its pod was told to end, and it is not known whether its files were flushed");
            }
        }
    }

    /// A connection to a sandbox's sync, and where its requests come from.
    pub(crate) async fn reach_sync(
        &self,
        sandbox: &SandboxId,
    ) -> Result<Option<(Agent, Peer)>, RuntimeError> {
        let Some(bound) = self.sync_of(sandbox) else { return Ok(None) };
        let agent = self.reach(sandbox, &bound, SYNC_PORT).await?;
        Ok(Some((agent, Peer::Pod { uid: bound.pod, addresses: bound.addresses })))
    }

    fn bound(&self, sandbox: &SandboxId) -> Result<Bound, RuntimeError> {
        let view = self.cluster.view(sandbox);
        match progress(view.claim.as_ref(), view.pod.as_ref()) {
            Progress::Ready(bound) => Ok(bound),
            Progress::Waiting(..) | Progress::Failed(..) => {
                Err(RuntimeError::NotRunning { sandbox: sandbox.clone() })
            }
        }
    }

    /// Writes the claim: the same words again change nothing.
    async fn apply(&self, sandbox: &SandboxId, pool: &str) -> Result<(), RuntimeError> {
        let claim = serde_json::json!({
            "apiVersion": CLAIM_VERSION,
            "kind": "SandboxClaim",
            "metadata": {
                "name": sandbox.as_str(),
                "labels": {
                    INSTALLATION_LABEL: self.settings.installation.as_str(),
                    "app.kubernetes.io/managed-by": FIELD_MANAGER,
                },
            },
            "spec": { "warmPoolRef": { "name": pool } },
        });
        let as_us = PatchParams::apply(FIELD_MANAGER).force();
        let applied = self.claims.patch(sandbox.as_str(), &as_us, &Patch::Apply(&claim)).await;
        applied.map(drop).map_err(|error| refused(sandbox, &error))
    }

    /// Waits until a claim has its pod.
    async fn until_bound(&self, sandbox: &SandboxId, patience: Duration) -> Result<Bound, RuntimeError> {
        let look = |view: &View| match progress(view.claim.as_ref(), view.pod.as_ref()) {
            Progress::Ready(bound) => Some(Ok(bound)),
            Progress::Failed(trouble, detail) => Some(Err((trouble, detail))),
            Progress::Waiting(..) => None,
        };
        let (trouble, detail) = match self.cluster.wait(sandbox, patience, look).await {
            Ok(Ok(bound)) => return Ok(bound),
            Ok(Err(failed)) => failed,
            Err(view) => match progress(view.claim.as_ref(), view.pod.as_ref()) {
                Progress::Ready(bound) => return Ok(bound),
                Progress::Waiting(trouble, detail) | Progress::Failed(trouble, detail) => (trouble, detail),
            },
        };
        Err(RuntimeError::Cluster { sandbox: sandbox.clone(), trouble, detail })
    }

    /// A connection to `sandboxd` in this pod, or to its sync; its network may come up a moment after it.
    async fn reach(&self, sandbox: &SandboxId, bound: &Bound, port: u16) -> Result<Agent, RuntimeError> {
        let addresses: Vec<SocketAddr> =
            bound.addresses.iter().map(|address: &IpAddr| SocketAddr::new(*address, port)).collect();
        let deadline = tokio::time::Instant::now() + REACH_TIME;
        let stream = loop {
            let connected = tokio::time::timeout_at(deadline, TcpStream::connect(&*addresses)).await;
            match connected {
                Ok(Ok(stream)) => break stream,
                Ok(Err(_)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(REACH_AGAIN).await;
                }
                Ok(Err(_)) | Err(_) => {
                    return Err(RuntimeError::Cluster {
                        sandbox: sandbox.clone(),
                        trouble: Trouble::Silent,
                        detail: format!("nothing answers on {addresses:?}"),
                    });
                }
            }
        };
        stream.set_nodelay(true).map_err(|source| RuntimeError::Machine {
            sandbox: sandbox.clone(),
            what: "set up the connection",
            source,
        })?;
        let agent = Agent::on(stream, &self.tasks).await.map_err(failed(sandbox))?;
        let seal = Seal::new(Arc::clone(&self.settings.control_key), bound.pod.clone(), sandbox.clone());
        Ok(agent.remote(Remote { seal, gateway: self.settings.gateway.clone() }))
    }

    fn running(&self, sandbox: &SandboxId, facts: Option<TemplateFacts>) -> Running {
        // A template that is gone tells nothing any more: the least is assumed.
        let (isolation, limits, enforced) = facts.map_or_else(
            || {
                (
                    Isolation::Namespaces,
                    Limits { memory_bytes: 0, cpu_millis: 0, pids: 0, disk_bytes: 0 },
                    Enforced::default(),
                )
            },
            |facts| (facts.isolation, facts.limits, facts.enforced),
        );
        Running { sandbox: sandbox.clone(), isolation, limits, enforced }
    }

    async fn make(&self, create: &Create) -> Result<Running, RuntimeError> {
        let sandbox = &create.sandbox;
        let (pool, facts) = self.usable(create.kubernetes.as_deref())?;
        let fits = match create.isolation {
            Wanted::AtLeast(least) => facts.isolation >= least,
            Wanted::Exactly(exact) => facts.isolation == exact,
        };
        if !fits {
            let wanted = match create.isolation {
                Wanted::AtLeast(level) | Wanted::Exactly(level) => level.as_str(),
            };
            let why = format!("the SandboxTemplate's RuntimeClass gives `{}`", facts.isolation);
            return Err(RuntimeError::IsolationUnavailable { wanted, why });
        }
        let asked = Instant::now();
        self.apply(sandbox, &pool).await?;
        self.until_bound(sandbox, BIND_TIME).await?;
        let cluster_micros = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(%sandbox, cluster_micros, "the cluster has bound a claim");
        Ok(self.running(sandbox, Some(facts)))
    }

    /// What there is of one claim of ours.
    fn look(&self, sandbox: &SandboxId) -> Option<Found> {
        let View { claim, pod } = self.cluster.view(sandbox);
        let claim = claim?;
        let ended = Found::Ended { sandbox: sandbox.clone(), exit: None };
        let is_over = matches!(pod.as_ref().map(|pod| &pod.state), Some(PodState::Over(_)));
        if claim.is_leaving || claim.finished || is_over {
            return Some(ended);
        }
        let running = || self.running(sandbox, self.cluster.template_of(&claim.pool));
        match claim.ready.reason.as_str() {
            "SandboxSuspended" => Some(Found::Paused(running())),
            "ClaimExpired" | "SandboxExpired" | "SandboxMissing" => Some(ended),
            _ => Some(Found::Running(running())),
        }
    }

    /// Has the controller's sandbox run, or not.
    async fn operate(&self, sandbox: &SandboxId, mode: &'static str) -> Result<(), RuntimeError> {
        let view = self.cluster.view(sandbox);
        let gone = || RuntimeError::NotRunning { sandbox: sandbox.clone() };
        let name = view.claim.and_then(|claim| claim.sandbox).ok_or_else(gone)?;
        let patch = serde_json::json!({ "spec": { "operatingMode": mode } });
        let as_us = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patched = self.sandboxes.patch(&name, &as_us, &Patch::Merge(&patch)).await;
        patched.map(drop).map_err(|error| refused(sandbox, &error))
    }

    async fn suspend(&self, sandbox: &SandboxId) -> Result<(), RuntimeError> {
        if matches!(self.look(sandbox), Some(Found::Paused(_))) {
            return Ok(());
        }
        self.operate(sandbox, "Suspended").await?;
        let is_gone = |view: &View| {
            let is_suspended =
                view.claim.as_ref().is_some_and(|claim| claim.ready.reason == "SandboxSuspended");
            (is_suspended && view.pod.is_none()).then_some(())
        };
        self.cluster.wait(sandbox, GONE_TIME, is_gone).await.map_err(|_view| RuntimeError::Cluster {
            sandbox: sandbox.clone(),
            trouble: Trouble::Slow,
            detail: "its pod was not ended".to_owned(),
        })
    }

    async fn wake(&self, sandbox: &SandboxId) -> Result<(), RuntimeError> {
        if self.bound(sandbox).is_ok() {
            return Ok(());
        }
        self.operate(sandbox, "Running").await?;
        self.until_bound(sandbox, BIND_TIME).await.map(drop)
    }

    /// Deletes the claim and waits until it and its pod are gone. `false`: there was none.
    async fn remove(&self, sandbox: &SandboxId) -> Result<bool, RuntimeError> {
        let cluster_sandbox = self.cluster.view(sandbox).claim.and_then(|claim| claim.sandbox);
        let deleted = self.claims.delete(sandbox.as_str(), &DeleteParams::background()).await;
        match deleted {
            Ok(_) => {}
            Err(error) if refusal::is_absent(&error) => return Ok(false),
            Err(error) => return Err(refused(sandbox, &error)),
        }
        let is_gone = |view: &View| {
            let pod = cluster_sandbox.as_deref().and_then(|name| self.cluster.pod_of(name));
            (view.claim.is_none() && view.pod.is_none() && pod.is_none()).then_some(())
        };
        match self.cluster.wait(sandbox, GONE_TIME, is_gone).await {
            Ok(()) => Ok(true),
            Err(_view) => Err(RuntimeError::Cluster {
                sandbox: sandbox.clone(),
                trouble: Trouble::Slow,
                detail: "its pod does not go; is its node still there?".to_owned(),
            }),
        }
    }
}

impl Runtime for KubernetesRuntime {
    /// Every level that a template of the namespace gives.
    fn probe(&self) -> BoxFuture<'_, Vec<Probed>> {
        Box::pin(async {
            let mut probed: Vec<Probed> = Vec::new();
            for name in self.cluster.templates() {
                let Some(facts) = self.cluster.template(&name) else { continue };
                let outcome = match self.usable(Some(&name)) {
                    Ok(_) => Ok(facts.enforced),
                    Err(error) => Err(error.to_string()),
                };
                let level = facts.isolation;
                match probed.iter_mut().find(|it| it.level == level) {
                    Some(found) if found.outcome.is_err() => found.outcome = outcome,
                    Some(_) => {}
                    None => probed.push(Probed { level, outcome }),
                }
            }
            probed.sort_by_key(|it| std::cmp::Reverse(it.level));
            probed
        })
    }

    fn create(&self, create: Create) -> BoxFuture<'_, Result<Running, RuntimeError>> {
        Box::pin(async move { self.make(&create).await })
    }

    fn connect<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<Agent, RuntimeError>> {
        Box::pin(async {
            let bound = self.bound(sandbox)?;
            self.reach(sandbox, &bound, AGENT_PORT).await
        })
    }

    fn status<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Option<Found>> {
        Box::pin(async { self.look(sandbox) })
    }

    fn list(&self) -> BoxFuture<'_, Vec<Found>> {
        Box::pin(async { self.cluster.claims().iter().filter_map(|id| self.look(id)).collect() })
    }

    fn pause<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.suspend(sandbox))
    }

    fn resume<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.wake(sandbox))
    }

    /// They only stand still: what ends a pod's processes takes its files too, which sync is yet to carry
    /// away. Who does not answer is the agent's own, and is not waited for.
    fn end<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async {
            if self.has_sync(sandbox)
                && let Ok(bound) = self.bound(sandbox)
                && let Ok(agent) = self.reach(sandbox, &bound, AGENT_PORT).await
            {
                drop(tokio::time::timeout(REACH_TIME, agent.sleep()).await);
            }
            Ok(())
        })
    }

    fn destroy<'a>(&'a self, sandbox: &'a SandboxId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async { self.remove(sandbox).await.map(drop) })
    }

    fn sweep<'a>(&'a self, known: &'a [SandboxId]) -> BoxFuture<'a, Vec<Swept>> {
        Box::pin(async move {
            let now = clock::now().as_second();
            let is_old =
                |id: &SandboxId| self.cluster.view(id).claim.is_some_and(|claim| now - claim.made_at > YOUNG);
            let unknown = self.cluster.claims().into_iter().filter(|id| !known.contains(id) && is_old(id));
            let mut swept = Vec::new();
            for sandbox in unknown {
                match self.remove(&sandbox).await {
                    Ok(_) => swept.push(Swept { sandbox, kind: Kind::Claim }),
                    Err(error) => {
                        tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "could not sweep");
                    }
                }
            }
            swept
        })
    }
}

/// The way to the API server.
async fn config(settings: &KubernetesSettings) -> Result<Config, OpenError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| OpenError::Config(error);
    match &settings.kubeconfig {
        None => Config::incluster().map_err(|error| failed(Box::new(error))),
        Some(path) => {
            let read = Kubeconfig::read_from(path).map_err(|error| failed(Box::new(error)))?;
            let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
            config.map_err(|error| failed(Box::new(error)))
        }
    }
}

fn refused(sandbox: &SandboxId, error: &kube::Error) -> RuntimeError {
    let (trouble, detail) = refusal::of(error);
    RuntimeError::Cluster { sandbox: sandbox.clone(), trouble, detail }
}

fn failed(sandbox: &SandboxId) -> impl Fn(AgentError) -> RuntimeError {
    |source| RuntimeError::Agent { sandbox: sandbox.clone(), source }
}
