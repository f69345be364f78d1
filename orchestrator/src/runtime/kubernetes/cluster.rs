// SPDX-License-Identifier: Apache-2.0
//! What the API server has told us, kept up by four watches, and waiting for a change of one claim.
//!
//! Nothing is asked twice: each watch begins with a list and goes on with what changes. What is kept
//! of an object are the few facts that decide something, and the number of objects is bounded: of
//! more than that this installation would not be the master anyway.

use super::facts::{ClaimFacts, PodFacts, TemplateFacts, template_of};
use super::objects::{Claim, Pod, Template, WarmPool};
use futures_util::StreamExt as _;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use postern_common::id::SandboxId;
use postern_common::tasks::{Stop, Tasks};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Objects of one kind that are kept; further ones are counted and logged, never kept.
const KEPT_OBJECTS: usize = 50_000;
/// Objects of one page of a list: some megabytes at most.
const PAGE: u32 = 500;
/// Watches that there are.
const WATCHES: usize = 4;

/// One claim with its pod, as of now.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    pub(super) claim: Option<ClaimFacts>,
    pub(super) pod: Option<PodFacts>,
}

/// Everything that is known. Clones are the same.
#[derive(Clone)]
pub(super) struct Cluster(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Which watches have told everything once.
    listed: watch::Sender<[bool; WATCHES]>,
}

#[derive(Default)]
struct State {
    claims: HashMap<SandboxId, ClaimFacts>,
    /// The claim that has this sandbox of the controller's.
    claimed: HashMap<String, SandboxId>,
    /// By the sandbox of the controller's that owns it.
    pods: HashMap<String, PodFacts>,
    templates: BTreeMap<String, TemplateFacts>,
    /// Pools, each with its template.
    pools: BTreeMap<String, String>,
    waiting: HashMap<SandboxId, Arc<Notify>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        let (claims, pods) = (state.claims.len(), state.pods.len());
        formatter
            .debug_struct("Cluster")
            .field("claims", &claims)
            .field("pods", &pods)
            .finish_non_exhaustive()
    }
}

/// An object that is kept.
trait Kept: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + 'static {
    /// Its watch's place in [`Inner::listed`].
    const WATCH: usize;
    /// Takes it up, in place of what had its name; the claim that may be waiting for it.
    fn put(&self, state: &mut State) -> Option<SandboxId>;
    /// Takes it away; the same.
    fn remove(name: &str, state: &mut State) -> Option<SandboxId>;
    /// The names of those that are kept.
    fn names(state: &State) -> Vec<String>;
}

impl Cluster {
    /// Begins to watch; the claims are those with these labels.
    pub(super) fn watch(client: &kube::Client, namespace: &str, labels: &str, tasks: &Tasks) -> Self {
        let (listed, _) = watch::channel([false; WATCHES]);
        let cluster = Self(Arc::new(Inner { state: Mutex::default(), listed }));
        let all = || watcher::Config::default().page_size(PAGE);
        cluster.follow(Api::<Claim>::namespaced(client.clone(), namespace), all().labels(labels), tasks);
        cluster.follow(Api::<Pod>::namespaced(client.clone(), namespace), all(), tasks);
        cluster.follow(Api::<Template>::namespaced(client.clone(), namespace), all(), tasks);
        cluster.follow(Api::<WarmPool>::namespaced(client.clone(), namespace), all(), tasks);
        cluster
    }

    fn follow<Object: Kept>(&self, api: Api<Object>, config: watcher::Config, tasks: &Tasks) {
        let cluster = self.clone();
        tasks.spawn(async move |stop: Stop| {
            let mut events = std::pin::pin!(watcher(api, config).default_backoff());
            let mut fresh = BTreeSet::new();
            while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
                match event {
                    Ok(event) => cluster.take(event, &mut fresh),
                    Err(error) => {
                        let kind = Object::kind(&());
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(%kind, error, cause = error.source(), "a watch was broken off; it goes on soon");
                    }
                }
            }
        });
    }

    fn take<Object: Kept>(&self, event: watcher::Event<Object>, fresh: &mut BTreeSet<String>) {
        let mut state = self.state();
        let changed = match event {
            watcher::Event::Init => {
                fresh.clear();
                Vec::new()
            }
            watcher::Event::InitApply(object) => {
                fresh.extend(object.meta().name.clone());
                Vec::from_iter(state.put(&object))
            }
            watcher::Event::InitDone => {
                let gone = Object::names(&state).into_iter().filter(|name| !fresh.contains(name));
                let gone: Vec<String> = gone.collect();
                fresh.clear();
                self.0.listed.send_modify(|listed| {
                    if let Some(mine) = listed.get_mut(Object::WATCH) {
                        *mine = true;
                    }
                });
                gone.iter().filter_map(|name| Object::remove(name, &mut state)).collect()
            }
            watcher::Event::Apply(object) => Vec::from_iter(state.put(&object)),
            watcher::Event::Delete(object) => {
                let name = object.meta().name.as_deref().unwrap_or_default();
                Vec::from_iter(Object::remove(name, &mut state))
            }
        };
        for notify in changed.iter().filter_map(|id| state.waiting.get(id)) {
            notify.notify_waiters();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every watch has told everything once; `false` if it takes longer than `patience`.
    pub(super) async fn is_listed(&self, patience: Duration) -> bool {
        let mut listed = self.0.listed.subscribe();
        let all = listed.wait_for(|listed| listed.iter().all(|it| *it));
        tokio::time::timeout(patience, all).await.is_ok_and(|told| told.is_ok())
    }

    /// A claim and its pod.
    pub(super) fn view(&self, id: &SandboxId) -> View {
        self.state().view(id)
    }

    /// The pod of a sandbox of the controller's.
    pub(super) fn pod_of(&self, sandbox: &str) -> Option<PodFacts> {
        self.state().pods.get(sandbox).cloned()
    }

    /// Every claim of ours.
    pub(super) fn claims(&self) -> Vec<SandboxId> {
        self.state().claims.keys().cloned().collect()
    }

    /// A template.
    pub(super) fn template(&self, name: &str) -> Option<TemplateFacts> {
        self.state().templates.get(name).cloned()
    }

    /// Every template's name.
    pub(super) fn templates(&self) -> Vec<String> {
        self.state().templates.keys().cloned().collect()
    }

    /// The pool that is filled from a template: one of the template's own name first.
    pub(super) fn pool_of(&self, template: &str) -> Option<String> {
        let state = self.state();
        let fits = |pool: &&String| state.pools.get(*pool).is_some_and(|of| of == template);
        let own = template.to_owned();
        let found = Some(&own).filter(fits).or_else(|| state.pools.keys().find(fits));
        found.cloned()
    }

    /// The template of a pool.
    pub(super) fn template_of(&self, pool: &str) -> Option<TemplateFacts> {
        let state = self.state();
        state.templates.get(state.pools.get(pool)?).cloned()
    }

    /// Looks at a claim now and at each change of it or its pod, until `look` finds something or
    /// `patience` is over. The last look is returned with what was seen.
    pub(super) async fn wait<Found>(
        &self,
        id: &SandboxId,
        patience: Duration,
        mut look: impl FnMut(&View) -> Option<Found>,
    ) -> Result<Found, View> {
        let deadline = Instant::now() + patience;
        let waiter = Waiter::new(self, id);
        loop {
            let mut changed = std::pin::pin!(waiter.notify.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let view = self.view(id);
            if let Some(found) = look(&view) {
                return Ok(found);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Err(view);
            }
        }
    }
}

impl State {
    fn put<Object: Kept>(&mut self, object: &Object) -> Option<SandboxId> {
        let is_full = [self.claims.len(), self.pods.len(), self.templates.len(), self.pools.len()]
            .get(Object::WATCH)
            >= Some(&KEPT_OBJECTS);
        if is_full {
            let (kind, name) = (Object::kind(&()), object.meta().name.as_deref());
            tracing::error!(%kind, name, "too many objects in the namespace: one is not looked at");
            return None;
        }
        object.put(self)
    }

    fn view(&self, id: &SandboxId) -> View {
        let claim = self.claims.get(id).cloned();
        let sandbox = claim.as_ref().and_then(|claim| claim.sandbox.as_deref());
        // Before the claim names it, a sandbox that is made for it alone has its name.
        let pod = self.pods.get(sandbox.unwrap_or(id.as_str())).cloned();
        View { claim, pod }
    }

    /// The claim of a sandbox of the controller's.
    fn owner(&self, sandbox: &str) -> Option<SandboxId> {
        self.claimed.get(sandbox).cloned().or_else(|| SandboxId::parse(sandbox).ok())
    }
}

/// Somebody who waits for a claim; forgotten when it is dropped.
struct Waiter<'a> {
    cluster: &'a Cluster,
    id: &'a SandboxId,
    notify: Arc<Notify>,
}

impl<'a> Waiter<'a> {
    fn new(cluster: &'a Cluster, id: &'a SandboxId) -> Self {
        let notify = Arc::clone(cluster.state().waiting.entry(id.clone()).or_default());
        Self { cluster, id, notify }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut state = self.cluster.state();
        // Ours and the table's: nobody else waits.
        if Arc::strong_count(&self.notify) <= 2 {
            state.waiting.remove(self.id);
        }
    }
}

impl Kept for Claim {
    const WATCH: usize = 0;

    fn put(&self, state: &mut State) -> Option<SandboxId> {
        let (id, facts) = ClaimFacts::of(self)?;
        if let Some(sandbox) = &facts.sandbox {
            state.claimed.insert(sandbox.clone(), id.clone());
        }
        state.claims.insert(id.clone(), facts);
        Some(id)
    }

    fn remove(name: &str, state: &mut State) -> Option<SandboxId> {
        let id = SandboxId::parse(name).ok()?;
        let sandbox = state.claims.remove(&id).and_then(|facts| facts.sandbox);
        // Whoever waits for the end waits for the pod too, which goes later.
        if let Some(sandbox) = sandbox.filter(|sandbox| !state.pods.contains_key(sandbox)) {
            state.claimed.remove(&sandbox);
        }
        Some(id)
    }

    fn names(state: &State) -> Vec<String> {
        state.claims.keys().map(ToString::to_string).collect()
    }
}

impl Kept for Pod {
    const WATCH: usize = 1;

    fn put(&self, state: &mut State) -> Option<SandboxId> {
        let (sandbox, facts) = PodFacts::of(self)?;
        let owner = state.owner(&sandbox);
        state.pods.insert(sandbox, facts);
        owner
    }

    fn remove(name: &str, state: &mut State) -> Option<SandboxId> {
        // Nearly always the sandbox's own name.
        let by_name = state.pods.get(name).filter(|pod| pod.name == name).map(|_| name.to_owned());
        let sandbox = by_name.or_else(|| {
            let found = state.pods.iter().find(|(_, pod)| pod.name == name);
            found.map(|(sandbox, _)| sandbox.clone())
        })?;
        state.pods.remove(&sandbox);
        let owner = state.owner(&sandbox);
        if owner.as_ref().is_some_and(|owner| !state.claims.contains_key(owner)) {
            state.claimed.remove(&sandbox);
        }
        owner
    }

    fn names(state: &State) -> Vec<String> {
        state.pods.values().map(|pod| pod.name.clone()).collect()
    }
}

impl Kept for Template {
    const WATCH: usize = 2;

    fn put(&self, state: &mut State) -> Option<SandboxId> {
        let name = self.metadata.name.clone()?;
        state.templates.insert(name, TemplateFacts::of(self));
        None
    }

    fn remove(name: &str, state: &mut State) -> Option<SandboxId> {
        state.templates.remove(name);
        None
    }

    fn names(state: &State) -> Vec<String> {
        state.templates.keys().cloned().collect()
    }
}

impl Kept for WarmPool {
    const WATCH: usize = 3;

    fn put(&self, state: &mut State) -> Option<SandboxId> {
        let name = self.metadata.name.clone()?;
        state.pools.insert(name, template_of(self));
        None
    }

    fn remove(name: &str, state: &mut State) -> Option<SandboxId> {
        state.pools.remove(name);
        None
    }

    fn names(state: &State) -> Vec<String> {
        state.pools.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
