// SPDX-License-Identifier: Apache-2.0
//! The gateway's metrics (contracts: Metrics). Labels come from configuration, never from a
//! request's own text, so their number is bounded by what tenants declare: names that no
//! configuration has any more are dropped with it.

use crate::Audit;
use crate::snapshot::Snapshot;
use postern_common::decision::{ShadowPart, ShadowScope, Verdict};
use postern_common::id::FilterName;
use postern_common::problem::Code;
use postern_common::telemetry::SECONDS;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    backend: String,
    operation: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShadowLabels {
    scope: &'static str,
    policy: String,
    would: &'static str,
    enforced: &'static str,
}

/// Policies in shadow that are counted by their name; the rest are `other`.
const SHADOW_NAMES: usize = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabel {
    how: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FilterLabel {
    filter: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    filter: String,
    cause: String,
}

/// A family that knows its labels, so that those of names that are gone can go too.
#[derive(Debug)]
struct Named<Labels, Metric> {
    family: Family<Labels, Metric, fn() -> Metric>,
    known: Mutex<HashSet<Labels>>,
}

impl<Labels: Clone + Eq + Hash + std::fmt::Debug, Metric: Clone> Named<Labels, Metric> {
    fn new(make: fn() -> Metric) -> Self {
        Self { family: Family::new_with_constructor(make), known: Mutex::default() }
    }

    fn with<Noted>(&self, labels: &Labels, note: impl FnOnce(&Metric) -> Noted) -> Noted {
        if let Some(metric) = self.family.get(labels) {
            return note(&metric);
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(labels.clone());
        note(&self.family.get_or_create(labels))
    }

    fn keep(&self, is_kept: impl Fn(&Labels) -> bool) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|labels| {
            let is_kept = is_kept(labels);
            if !is_kept {
                self.family.remove(labels);
            }
            is_kept
        });
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CounterLabels {
    filter: String,
    counter: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabel {
    certificate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabel {
    result: &'static str,
}

/// What is told of the gateway's own certificate, if it has one. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct CertificateMetrics {
    expiry: Family<CertificateLabel, Gauge<f64, std::sync::atomic::AtomicU64>>,
    reloads: Family<ReloadLabel, Counter>,
}

impl CertificateMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "cert_expiry_seconds",
            "How long a certificate is good for from now on",
            metrics.expiry.clone(),
        );
        registry.register("cert_reloads", "Certificates that were read again", metrics.reloads.clone());
        metrics
    }

    pub(crate) fn expire_in(&self, seconds: f64) {
        self.expiry.get_or_create(&CertificateLabel { certificate: "gateway" }).set(seconds);
    }

    /// How reading it again ended: `ok` or `refused`.
    pub(crate) fn reloaded(&self, result: &'static str) {
        self.reloads.get_or_create(&ReloadLabel { result }).inc();
    }
}

/// What is counted of WebSockets. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct WebSocketMetrics {
    pub(crate) open: Gauge,
    pub(crate) from_sandboxes: Counter,
    pub(crate) to_sandboxes: Counter,
}

impl WebSocketMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("gateway_websockets", "WebSockets that are open", metrics.open.clone());
        registry.register(
            "gateway_websocket_received_bytes",
            "Bytes that came from sandboxes by WebSocket",
            metrics.from_sandboxes.clone(),
        );
        registry.register(
            "gateway_websocket_sent_bytes",
            "Bytes that went to sandboxes by WebSocket",
            metrics.to_sandboxes.clone(),
        );
        metrics
    }
}

/// What is counted and measured of filters. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct FilterMetrics {
    seconds: Arc<Named<FilterLabel, Histogram>>,
    failures: Arc<Named<FailureLabels, Counter>>,
    counted: Family<CounterLabels, Gauge<u64, std::sync::atomic::AtomicU64>>,
    instances: Gauge,
    pub(crate) lines_dropped: Counter,
}

impl FilterMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            seconds: Arc::new(Named::new(seconds)),
            failures: Arc::new(Named::new(Counter::default)),
            counted: Family::default(),
            instances: Gauge::default(),
            lines_dropped: Counter::default(),
        };
        registry.register("filter_call_seconds", "One call of a filter", metrics.seconds.family.clone());
        registry.register(
            "filter_failures",
            "Filters that failed, by cause",
            metrics.failures.family.clone(),
        );
        registry.register(
            "filter_counter",
            "What filters count, since each was loaded",
            metrics.counted.clone(),
        );
        registry.register("filter_instances", "Filter calls that are under way", metrics.instances.clone());
        registry.register("filter_log_dropped", "Lines of filters' logs lost", metrics.lines_dropped.clone());
        metrics
    }

    /// Where the times of a filter's calls go: looked up once for each place where it is attached.
    pub(crate) fn seconds_of(&self, filter: &str) -> Histogram {
        let labels = FilterLabel { filter: filter.to_owned() };
        self.seconds.with(&labels, Histogram::clone)
    }

    pub(crate) fn failed(&self, filter: &str, cause: &str) {
        let labels = FailureLabels { filter: filter.to_owned(), cause: cause.to_owned() };
        self.failures.with(&labels, |count| {
            count.inc();
        });
    }

    /// What is read when somebody looks: counts of filters of one name are added up.
    pub(crate) fn look<'f>(
        &self,
        in_flight: u32,
        counters: impl Iterator<Item = (&'f FilterName, &'f str, u64)>,
    ) {
        self.instances.set(i64::from(in_flight));
        self.counted.clear();
        for (filter, counter, count) in counters {
            let labels = CounterLabels { filter: filter.to_string(), counter: counter.to_owned() };
            self.counted.get_or_create(&labels).inc_by(count);
        }
    }
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// What is counted and measured.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Named<RequestLabels, Counter>,
    request_seconds: Histogram,
    refusals: Family<CodeLabel, Counter>,
    policy_seconds: Histogram,
    shadow: Family<ShadowLabels, Counter>,
    shadow_names: Mutex<HashSet<String>>,
    pub(crate) filters: FilterMetrics,
    pub(crate) websockets: WebSocketMetrics,
    pub(crate) certificates: CertificateMetrics,
    connections_dropped: Family<DropLabel, Counter>,
    pub(crate) access_dropped: Counter,
    pub(crate) spans_dropped: Counter,
    pub(crate) echoed: Counter,
    pub(crate) control_version: Gauge,
    pub(crate) control_age: Gauge<f64, std::sync::atomic::AtomicU64>,
}

impl Metrics {
    /// What was lost on its way to whoever watches, and what was kept from a sandbox.
    fn register_losses(&self, registry: &mut Registry, audit: &Audit) {
        let counters = [
            ("audit_dropped", "Decision records that were lost", &audit.dropped),
            ("gateway_access_lines_dropped", "Lines of the access log that were lost", &self.access_dropped),
            ("gateway_spans_dropped", "Spans that no collector has taken", &self.spans_dropped),
            (
                "gateway_credential_echoes",
                "Credentials that backends answered with, and that were covered",
                &self.echoed,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register("spool_bytes", "Decision records that wait on disk", audit.spool_bytes.clone());
    }

    /// Makes them and registers them in the process's registry.
    pub(crate) fn register(registry: &mut Registry, audit: &Audit) -> Self {
        let metrics = Self {
            requests: Named::new(Counter::default),
            request_seconds: seconds(),
            refusals: Family::default(),
            policy_seconds: seconds(),
            shadow: Family::default(),
            shadow_names: Mutex::default(),
            filters: FilterMetrics::register(registry),
            websockets: WebSocketMetrics::register(registry),
            certificates: CertificateMetrics::register(registry),
            connections_dropped: Family::default(),
            access_dropped: Counter::default(),
            spans_dropped: Counter::default(),
            echoed: Counter::default(),
            control_version: Gauge::default(),
            control_age: Gauge::default(),
        };
        registry.register("gateway_requests", "Requests, by how they ended", metrics.requests.family.clone());
        registry.register(
            "gateway_request_seconds",
            "From head to head of the answer",
            metrics.request_seconds.clone(),
        );
        registry.register("gateway_refusals", "Refusals, by problem code", metrics.refusals.clone());
        registry.register("policy_decision_seconds", "One policy decision", metrics.policy_seconds.clone());
        registry.register(
            "policy_shadow_decisions",
            "What policies in shadow would have made of requests, beside what was enforced",
            metrics.shadow.clone(),
        );
        metrics.register_losses(registry, audit);
        registry.register(
            "control_stream_version",
            "The last message in force",
            metrics.control_version.clone(),
        );
        registry.register(
            "control_stream_age_seconds",
            "Since the orchestrator was last heard",
            metrics.control_age.clone(),
        );
        registry.register(
            "gateway_connections_dropped",
            "Connections that ended before they were served: too many were open, or no TLS came of them",
            metrics.connections_dropped.clone(),
        );
        let build = Info::new([("version", env!("CARGO_PKG_VERSION")), ("part", "gateway")]);
        registry.register("build", "The build of this process", build);
        metrics
    }

    pub(crate) fn request(
        &self,
        (backend, operation): (String, String),
        outcome: &'static str,
        took: Duration,
    ) {
        self.requests.with(&RequestLabels { backend, operation, outcome }, |count| {
            count.inc();
        });
        self.request_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn refusal(&self, code: Code) {
        self.refusals.get_or_create(&CodeLabel { code: code.as_str() }).inc();
    }

    pub(crate) fn policy(&self, took: Duration) {
        self.policy_seconds.observe(took.as_secs_f64());
    }

    /// Counts what policies in shadow would have allowed or denied; of a whole set, once.
    pub(crate) fn shadow(&self, parts: &[ShadowPart], is_allowed: bool) {
        let word = |is_allowed: bool| if is_allowed { "allow" } else { "deny" };
        for part in parts {
            let count = |policy: String, scope: &'static str| {
                let (would, enforced) = (word(part.verdict == Verdict::Allow), word(is_allowed));
                self.shadow.get_or_create(&ShadowLabels { scope, policy, would, enforced }).inc();
            };
            match part.scope {
                ShadowScope::Set => count(String::new(), "set"),
                ShadowScope::Policies => {
                    part.policies.iter().for_each(|id| count(self.bounded(id), "policy"));
                }
            }
        }
    }

    /// The name of a policy, or `other` once there are too many.
    fn bounded(&self, id: &str) -> String {
        let mut names = self.shadow_names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() < SHADOW_NAMES || names.contains(id) {
            names.insert(id.to_owned());
            return id.to_owned();
        }
        "other".to_owned()
    }

    /// A connection that had to go, could not come, or shook no hands: `evicted`, `refused` or
    /// `handshake`.
    pub(crate) fn connection_dropped(&self, how: &'static str) {
        self.connections_dropped.get_or_create(&DropLabel { how }).inc();
    }

    /// Forgets the labels of names that the snapshot does not have.
    pub(crate) fn keep(&self, snapshot: &Snapshot) {
        let (mut operations, mut filters) = (HashSet::new(), HashSet::new());
        for backend in snapshot.rules().flat_map(|rules| rules.backends.values()) {
            for rule in &backend.operations {
                operations.insert((backend.name.as_str(), rule.operation.id.as_str()));
                filters.extend(rule.filters.iter().map(|filter| filter.name()));
            }
        }
        self.requests.keep(|labels| {
            let names = (labels.backend.as_str(), labels.operation.as_str());
            names == ("", "") || operations.contains(&names)
        });
        self.filters.seconds.keep(|labels| filters.contains(labels.filter.as_str()));
        self.filters.failures.keep(|labels| filters.contains(labels.filter.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::telemetry::{exposition, registry};

    #[test]
    fn labels_of_names_that_no_configuration_has_are_dropped() {
        let mut registered = registry();
        let metrics = Metrics::register(&mut registered, &Audit::default());
        for number in 0..100 {
            metrics.request((format!("desk-{number}"), "list".to_owned()), "allow", Duration::ZERO);
            metrics.filters.seconds_of(&format!("filter-{number}")).observe(0.0);
            metrics.filters.failed(&format!("filter-{number}"), "trap");
        }
        metrics.request((String::new(), String::new()), "deny", Duration::ZERO);
        metrics.keep(&Snapshot::default());
        let told = exposition(&registered);
        assert!(!told.contains("desk-") && !told.contains("filter-"), "{told}");
        assert!(told.contains("backend=\"\""), "what has no name stays: {told}");
        assert!(told.contains("postern_build_info{"), "{told}");
    }
}
