// SPDX-License-Identifier: Apache-2.0
//! What is in force for each tenant, compiled and immutable.
//!
//! A tenant's rules are built whole, off the request path, and swapped as one; if anything in
//! them is wrong, every mistake is told and what was in force stays. Levels of buckets survive a
//! change that does not concern them. The session registry is not part of this.

use crate::authorize::{Policies, Sources};
use crate::broker::BackendCredential;
use crate::config::{
    ANSWER_TIME, BODY_ROOM, Ceilings, HEAVY_BODY_BYTES, JUDGED_BODY_BYTES, LARGEST_JUDGED_BODY_BYTES,
    STREAMED_BODY_BYTES, Waits,
};
use crate::echo::Needles;
use crate::filters::{AttachedFilter, Engines};
use crate::headers;
use crate::identify::Caller;
use crate::identity::IdentityNames;
use crate::limits::{
    BACKEND_CONCURRENT, Budget, Judging, Limiter, OperationLimiter, Room, Rooms, SESSION_DEFAULT,
    TENANT_DEFAULT, semaphore,
};
use crate::reject::Reject;
use crate::route::Call;
use crate::upstream::address::UpstreamRules;
use crate::upstream::circuit::Circuit;
use http::uri::{Authority, Scheme};
use postern_common::control::budgets::{Budgets, Share};
use postern_common::control::{BackendConfig, TenantConfig};
use postern_common::decision::Versions;
use postern_common::folder::{Additional, OperationLimits, Rate, UpstreamProtocol};
use postern_common::id::{BackendName, FilterName, TenantId};
use postern_filter_engine::Digest;
use postern_openapi::path::Segment;
use postern_openapi::{Document, Method, Operation};
use prometheus_client::metrics::counter::Counter;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Filters that are no more whose versions are remembered, for each tenant: far more than anybody
/// removes while an orchestrator runs.
const GONE_FILTERS: usize = 1_000;

/// What is in force for all tenants. One request sees one of these.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    tenants: HashMap<TenantId, Arc<TenantRules>>,
}

impl Snapshot {
    /// The rules of a caller's tenant.
    ///
    /// # Errors
    /// [`Reject::NoConfiguration`] for a tenant without any.
    pub(crate) fn rules_of(&self, caller: &Caller) -> Result<Arc<TenantRules>, Reject> {
        let rules = self.tenants.get(&caller.session.session.tenant);
        rules.map(Arc::clone).ok_or(Reject::NoConfiguration)
    }

    pub(crate) fn tenant(&self, tenant: &TenantId) -> Option<&Arc<TenantRules>> {
        self.tenants.get(tenant)
    }

    pub(crate) fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        self.tenants.keys()
    }

    /// The rules of all tenants.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &Arc<TenantRules>> {
        self.tenants.values()
    }

    pub(crate) fn with(mut self, rules: Arc<TenantRules>) -> Self {
        self.tenants.insert(rules.tenant.clone(), rules);
        self
    }

    pub(crate) fn without(mut self, keep: impl Fn(&TenantId) -> bool) -> Self {
        self.tenants.retain(|tenant, _| keep(tenant));
        self
    }
}

/// One tenant's rules.
#[derive(Debug)]
pub(crate) struct TenantRules {
    pub(crate) tenant: TenantId,
    pub(crate) versions: Versions,
    pub(crate) backends: BTreeMap<BackendName, Arc<Backend>>,
    pub(crate) default_backend: Option<Arc<Backend>>,
    pub(crate) policies: Policies,
    /// What filter versions may not go back behind, while the epoch lasts: also of filters that are no
    /// more, up to [`GONE_FILTERS`] of them.
    filter_versions: BTreeMap<FilterName, u64>,
    /// Every filter, attached or not.
    filters: LoadedFilters,
    /// What the backends' documents were read from.
    documents: Documents,
    epoch: u64,
    session_rate: Rate,
    limiter: Arc<Limiter>,
    /// This gateway's part of what the limiter gives.
    share: Arc<Share>,
    /// What judged bodies of all its sessions hold.
    bodies: Arc<Room>,
    /// Turns for judging its requests.
    pub(crate) judging: Arc<Judging>,
}

impl TenantRules {
    /// What this tenant's filters have counted: filter, counter, count.
    pub(crate) fn filter_counters(&self) -> impl Iterator<Item = (&FilterName, &str, u64)> {
        let filters = self.filters.iter();
        filters
            .flat_map(|(name, filter)| filter.counters().map(move |(counter, count)| (name, counter, count)))
    }

    /// The buckets and permits that count for this caller.
    pub(crate) fn budget(&self, caller: &Caller, now: Instant) -> Budget {
        Budget::new(&caller.session.limiter, self.session_rate, (&self.limiter, &self.share), now)
    }

    /// Whether judging a request may take more than a few milliseconds.
    pub(crate) fn is_heavy(&self, call: &Call) -> bool {
        call.room.as_ref().is_some_and(|room| room.bytes() > HEAVY_BODY_BYTES)
            || self.policies.is_heavy(&call.backend.name, &call.operation.operation.id)
    }

    /// Where this caller's judged bodies must find room.
    pub(crate) fn rooms(&self, caller: &Caller, all: &Arc<Room>) -> Rooms {
        Rooms::new(Arc::clone(&caller.session.limiter), Arc::clone(&self.bodies), Arc::clone(all))
    }
}

/// One backend, ready to be routed to.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) name: BackendName,
    pub(crate) document: Document,
    /// In the order of the document's operations.
    pub(crate) operations: Vec<Arc<OperationRules>>,
    pub(crate) identity: IdentityNames,
    pub(crate) additional_query: Additional,
    pub(crate) additional_headers: Additional,
    pub(crate) protocol: UpstreamProtocol,
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
    /// The URL's own path, without a slash at its end.
    pub(crate) base_path: String,
    pub(crate) credential: Option<BackendCredential>,
    pub(crate) judged_body_bytes: u64,
    pub(crate) streamed_body_bytes: u64,
    pub(crate) timeout: Duration,
    /// How long a sandbox may keep a body waiting.
    pub(crate) waits: Waits,
    pub(crate) concurrent: Arc<Semaphore>,
    concurrent_limit: u32,
    pub(crate) circuit: Arc<Circuit>,
}

impl Backend {
    /// What of its credential may not come back.
    pub(crate) fn needles(&self) -> Option<Arc<Needles>> {
        self.credential.as_ref().and_then(|credential| credential.needles.clone())
    }

    /// Whether a request may bring it a trailer of this folded name, which no document declares.
    pub(crate) fn takes_trailer(&self, folded: &str) -> bool {
        let credential = self.credential.as_ref().map(|header| headers::folded(header.name().as_str()));
        self.additional_headers == Additional::Pass
            && !self.identity.has_folded(folded)
            && credential.is_none_or(|name| name != folded)
    }
}

/// One operation and what belongs to it.
#[derive(Debug)]
pub(crate) struct OperationRules {
    pub(crate) operation: Operation,
    pub(crate) path_template: Arc<str>,
    pub(crate) limiter: Option<Arc<OperationLimiter>>,
    /// Filters that apply, in order.
    pub(crate) filters: Vec<Arc<AttachedFilter>>,
    /// Whether one of them reads what the backend answers.
    pub(crate) is_response_read: bool,
    /// Whether it may be asked for a WebSocket.
    pub(crate) takes_websockets: bool,
}

/// What rules are built with, besides the tenant's own configuration.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub(crate) upstreams: UpstreamRules,
    pub(crate) engines: Engines,
    /// How long peers may keep us waiting.
    pub(crate) waits: Waits,
    pub(crate) ceilings: Ceilings,
    /// Parts of tenants' budgets.
    pub(crate) budgets: Budgets,
    /// Counts credentials that backends echoed.
    pub(crate) echoed: Counter,
}

/// Builds a tenant's rules. CPU-heavy: schemas, patterns and policies are compiled here.
///
/// Within an epoch of the control stream a filter's version may not go back.
///
/// # Errors
/// Every mistake, for the tenant's people.
pub(crate) fn build(
    config: &TenantConfig,
    before: Option<&TenantRules>,
    around: &Surroundings,
    epoch: u64,
) -> Result<TenantRules, Vec<String>> {
    let mut building = Building::new(config, before, around, epoch);
    let filters = building.filters();
    let mut backends = BTreeMap::new();
    for (name, backend) in &config.backends {
        if let Some(backend) = building.backend(name, backend, &filters) {
            backends.insert(name.clone(), Arc::new(backend));
        }
    }
    let default_backend = building.default_backend(&backends);
    let session_rate = building.rate("session", config.limits.session, SESSION_DEFAULT);
    let tenant_rate = building.rate("tenant", config.limits.tenant, TENANT_DEFAULT);
    let refused = std::mem::take(&mut building.refused);
    let documents = backends.iter().map(|(name, backend)| (name, &backend.document)).chain(&refused);
    let policies = building.try_all(Policies::load(
        &config.tenant,
        documents,
        Sources { enforced: config.policies.as_ref(), shadow: &config.shadow_policies },
        before.map(|before| &before.policies),
    ));
    match policies {
        Some(policies) if building.mistakes.is_empty() => Ok(TenantRules {
            tenant: config.tenant.clone(),
            versions: config.versions.clone(),
            backends,
            default_backend,
            policies,
            filter_versions: filter_versions(config, before, epoch),
            filters,
            documents: building.documents,
            epoch,
            session_rate,
            // These outlive a change of configuration, as what they count does.
            bodies: before
                .map_or_else(|| Arc::new(Room::new(BODY_ROOM)), |before| Arc::clone(&before.bodies)),
            judging: before.map_or_else(Arc::default, |before| Arc::clone(&before.judging)),
            limiter: Limiter::like(before.map(|before| &before.limiter), tenant_rate, building.now),
            share: around.budgets.of(&config.tenant),
        }),
        _ => Err(building.mistakes),
    }
}

/// What filters may not go back behind from now on: their versions, and the last ones of those that
/// are no more.
fn filter_versions(
    config: &TenantConfig,
    before: Option<&TenantRules>,
    epoch: u64,
) -> BTreeMap<FilterName, u64> {
    let before = before.filter(|before| before.epoch == epoch);
    let known = before.into_iter().flat_map(|before| &before.filter_versions);
    let gone = known.filter(|(name, _)| !config.filters.contains_key(*name)).take(GONE_FILTERS);
    let mut versions: BTreeMap<_, _> = gone.map(|(name, version)| (name.clone(), *version)).collect();
    versions.extend(config.filters.iter().map(|(name, artefact)| (name.clone(), artefact.version)));
    versions
}

struct Building<'b> {
    config: &'b TenantConfig,
    before: Option<&'b TenantRules>,
    around: &'b Surroundings,
    epoch: u64,
    mistakes: Vec<String>,
    /// Documents of backends that cannot be served. Policies are checked against them all the same:
    /// what they say of such a backend is no mistake of theirs.
    refused: BTreeMap<BackendName, Document>,
    documents: Documents,
    now: Instant,
}

type LoadedFilters = BTreeMap<FilterName, crate::filters::Loaded>;
/// By the text that each was read from, which a change of anything else need not have read again.
type Documents = BTreeMap<Digest, Document>;

impl<'b> Building<'b> {
    fn new(
        config: &'b TenantConfig,
        before: Option<&'b TenantRules>,
        around: &'b Surroundings,
        epoch: u64,
    ) -> Self {
        let (mistakes, refused, documents) = (Vec::new(), BTreeMap::new(), Documents::new());
        Self { config, before, around, epoch, mistakes, refused, documents, now: Instant::now() }
    }

    fn try_all<Value>(&mut self, built: Result<Value, Vec<String>>) -> Option<Value> {
        built.map_err(|mistakes| self.mistakes.extend(mistakes)).ok()
    }

    fn try_one<Value, Mistake: std::fmt::Display>(
        &mut self,
        place: &str,
        built: Result<Value, Mistake>,
    ) -> Option<Value> {
        built.map_err(|mistake| self.mistakes.push(format!("{place}: {mistake}"))).ok()
    }

    fn filters(&mut self) -> LoadedFilters {
        let mut loaded = LoadedFilters::new();
        let before = self.before.filter(|before| before.epoch == self.epoch);
        for (name, artefact) in &self.config.filters {
            let newest = before.and_then(|before| before.filter_versions.get(name));
            if let Some(newest) = newest.filter(|newest| artefact.version < **newest) {
                self.mistakes.push(format!(
                    "filters/{name}: version {} is older than version {newest}, which has been in force",
                    artefact.version
                ));
                continue;
            }
            let same = self.before.and_then(|before| before.filters.get(name));
            let built = self.around.engines.load(&self.config.tenant, name, artefact, same);
            if let Some(filter) = self.try_one(&format!("filters/{name}"), built) {
                loaded.insert(name.clone(), filter);
            }
        }
        loaded
    }

    fn backend(
        &mut self,
        name: &BackendName,
        config: &BackendConfig,
        filters: &LoadedFilters,
    ) -> Option<Backend> {
        let place = format!("backends/{name}");
        let file = &config.file;
        let at = self.place_of(&place, &file.url);
        let document = self.document(&place, config)?;
        let before = self.before.and_then(|before| before.backends.get(name));
        let identity = self.try_one(&place, IdentityNames::new(&file.identity));
        let credential = match &file.credential {
            None => Some(None),
            Some(declared) => {
                let of = (&self.config.tenant, &self.around.echoed);
                let header = BackendCredential::new(declared, &self.config.secrets, of);
                self.try_one(&place, header).map(Some)
            }
        };
        let operations = self.operations(&place, config, &document, filters, before);
        let judged =
            file.limits.body.map_or(JUDGED_BODY_BYTES, |body| body.as_u64().min(LARGEST_JUDGED_BODY_BYTES));
        let limit = self.concurrent(&place, file.limits.concurrent).unwrap_or(BACKEND_CONCURRENT);
        let timeout = self.timeout(&place, file.limits.timeout);
        let concurrent = match before {
            Some(before) if before.concurrent_limit == limit => Arc::clone(&before.concurrent),
            _ => semaphore(limit),
        };
        let (Some((scheme, authority, base_path)), Some(identity), Some(credential)) =
            (at, identity, credential)
        else {
            self.refused.insert(name.clone(), document);
            return None;
        };
        // What was learnt of a place says nothing of another.
        let circuit = before.filter(|before| before.scheme == scheme && before.authority == authority);
        let circuit = circuit.map_or_else(Arc::default, |before| Arc::clone(&before.circuit));
        Some(Backend {
            name: name.clone(),
            document,
            operations,
            identity,
            additional_query: file.additional_query,
            additional_headers: file.additional_headers,
            protocol: file.protocol,
            scheme,
            authority,
            base_path,
            credential,
            judged_body_bytes: judged,
            streamed_body_bytes: file.limits.body.map_or(STREAMED_BODY_BYTES, |body| body.as_u64()),
            timeout,
            waits: self.around.waits,
            concurrent,
            concurrent_limit: limit,
            circuit,
        })
    }

    fn document(&mut self, place: &str, config: &BackendConfig) -> Option<Document> {
        let Some(text) = &config.document else { return Some(Document::any_path()) };
        let digest = Digest::of(text.as_bytes());
        let before = self.before.and_then(|before| before.documents.get(&digest));
        let parsed = match self.documents.get(&digest).or(before) {
            Some(known) => Ok(known.clone()),
            None => Document::parse(text),
        };
        let document = self.try_all(parsed.map_err(|mistakes| {
            mistakes.iter().map(|mistake| format!("{place}/openapi: {mistake}")).collect()
        }))?;
        self.documents.insert(digest, document.clone());
        Some(document)
    }

    fn place_of(&mut self, place: &str, url: &url::Url) -> Option<(Scheme, Authority, String)> {
        self.try_one(place, self.around.upstreams.check_url(url))?;
        let scheme = if url.scheme() == "https" { Scheme::HTTPS } else { Scheme::HTTP };
        let host = url.host_str().unwrap_or_default();
        let host = host.strip_suffix('.').unwrap_or(host);
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let authority = self.try_one(place, Authority::try_from(authority))?;
        Some((scheme, authority, url.path().trim_end_matches('/').to_owned()))
    }

    fn operations(
        &mut self,
        place: &str,
        config: &BackendConfig,
        document: &Document,
        filters: &LoadedFilters,
        before: Option<&Arc<Backend>>,
    ) -> Vec<Arc<OperationRules>> {
        for id in config.file.operations.keys() {
            if document.operation(id).is_none() {
                self.mistakes.push(format!("{place}: [operations.{id}] is no operation of the document"));
            }
        }
        for id in &config.file.websockets {
            let named = document.operations().iter().find(|operation| operation.id == *id);
            if named.is_none_or(|operation| operation.method != Method::Get) {
                self.mistakes.push(format!("{place}: `{id}` of `websockets` is no operation by GET"));
            }
        }
        let attached = self.attached(place, config, document, filters);
        let mut rules = Vec::with_capacity(document.operations().len());
        for operation in document.operations() {
            let limits = config.file.operations.get(&operation.id).copied();
            let limits = limits.filter(|limits| self.is_possible(place, limits));
            let old = before
                .and_then(|before| before.operations.iter().find(|old| old.operation.id == operation.id));
            let old = old.and_then(|old| old.limiter.as_ref());
            let filters: Vec<_> =
                attached.iter().filter(|filter| filter.applies_to(operation)).map(Arc::clone).collect();
            let takes_websockets = config.file.websockets.contains(&operation.id);
            if takes_websockets {
                self.blind(place, operation, &filters);
            }
            rules.push(Arc::new(OperationRules {
                operation: operation.clone(),
                path_template: operation.path.to_string().into(),
                limiter: limits.map(|limits| OperationLimiter::like(old, limits, self.now)),
                is_response_read: filters.iter().any(|filter| filter.needs_plain_response()),
                takes_websockets,
                filters,
            }));
        }
        rules
    }

    /// Tells of filters that would not see what they are attached for.
    fn blind(&mut self, place: &str, operation: &Operation, filters: &[Arc<AttachedFilter>]) {
        for filter in filters.iter().filter(|filter| filter.needs_body() || filter.needs_plain_response()) {
            self.mistakes.push(format!(
                "{place}: filter `{}` reads bodies, but sees nothing of WebSockets, which `{}` takes; attach it to other operations",
                filter.name(),
                operation.id
            ));
        }
    }

    fn attached(
        &mut self,
        place: &str,
        config: &BackendConfig,
        document: &Document,
        filters: &LoadedFilters,
    ) -> Vec<Arc<AttachedFilter>> {
        let mut attached = Vec::new();
        for attachment in &config.file.filters {
            let name = attachment.name();
            let Some(loaded) = filters.get(name) else {
                // One that could not be loaded is told of already.
                if !self.config.filters.contains_key(name) {
                    self.mistakes.push(format!(
                        "{place}: filter `{name}` is attached, but there is none of this name"
                    ));
                }
                continue;
            };
            let built = AttachedFilter::new(name, loaded, attachment, document);
            attached.extend(self.try_one(place, built).map(Arc::new));
        }
        attached
    }

    fn is_possible(&mut self, place: &str, limits: &OperationLimits) -> bool {
        let is_rate = limits.per_second.is_none_or(|rate| rate.is_finite() && rate > 0.0);
        if !is_rate {
            self.mistakes.push(format!("{place}: per_second must be above 0; leave the limit out for none"));
        }
        let is_used = limits.per_second.is_some() || limits.burst.is_none();
        if !is_used {
            self.mistakes.push(format!("{place}: burst says nothing without per_second"));
        }
        is_rate && is_used
    }

    fn rate(&mut self, scope: &str, declared: Option<Rate>, default: Rate) -> Rate {
        let Some(rate) = declared else { return default };
        if !rate.per_second.is_finite() || rate.per_second <= 0.0 || rate.concurrent == Some(0) {
            self.mistakes.push(format!("limits.toml: [{scope}] per_second and concurrent must be above 0"));
        }
        let concurrent = self.concurrent(&format!("limits.toml: [{scope}]"), rate.concurrent);
        Rate { concurrent: concurrent.or(default.concurrent), ..rate }
    }

    /// What is declared, if the operator lets tenants set so much.
    fn concurrent(&mut self, place: &str, declared: Option<u32>) -> Option<u32> {
        let most = self.around.ceilings.concurrent;
        let declared = declared?;
        if declared > most {
            self.mistakes.push(format!("{place}: concurrent is {declared}; the operator allows {most}"));
        }
        Some(declared.min(most))
    }

    fn timeout(&mut self, place: &str, declared: Option<Duration>) -> Duration {
        let most = self.around.ceilings.timeout;
        let Some(declared) = declared else { return ANSWER_TIME.min(most) };
        if declared > most || declared.is_zero() {
            self.mistakes.push(format!(
                "{place}: limits.timeout is {declared:?}; the operator allows more than 0s, up to {most:?}"
            ));
        }
        declared.min(most)
    }

    /// The backend of paths that begin with no backend's name.
    fn default_backend(&mut self, backends: &BTreeMap<BackendName, Arc<Backend>>) -> Option<Arc<Backend>> {
        let name = match (&self.config.default_backend, self.config.backends.len()) {
            (Some(name), _) => name,
            (None, 1) => self.config.backends.keys().next()?,
            (None, _) => return None,
        };
        if !self.config.backends.contains_key(name) {
            self.mistakes.push(format!("the default backend `{name}` does not exist"));
        }
        let backend = backends.get(name)?;
        for operation in backend.document.operations() {
            if let Some(Segment::Literal(first)) = operation.path.segments().first()
                && self.config.backends.contains_key(first.as_str())
                && first != name.as_str()
            {
                let path = operation.path.to_string();
                self.mistakes.push(format!(
                    "backends/{name}: `{path}` begins with the name of another backend; rename one"
                ));
            }
        }
        Some(Arc::clone(backend))
    }
}
