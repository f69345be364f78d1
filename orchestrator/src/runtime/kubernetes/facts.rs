// SPDX-License-Identifier: Apache-2.0
//! What is kept of the cluster's objects, and what follows from it. Pure: no cluster is needed to
//! say how a claim stands.

use super::objects::{
    Claim, Condition, Container, ContainerStatus, Pod, PodStatus, SANDBOX_KIND, Template, WarmPool,
};
use crate::runtime::{Enforced, Isolation, Limits, Trouble};
use postern_common::id::SandboxId;
use std::net::IpAddr;

/// What is kept of a message of the cluster: it may be long, and there may be thousands.
const MESSAGE_CHARACTERS: usize = 300;
/// The container that `sandboxd` is process 1 of; where none has this name, the first.
const SANDBOX_CONTAINER: &str = "sandbox";
/// The container beside it, in which files are carried.
const SYNC_CONTAINER: &str = "sync";
/// The volume of `/data`.
const DATA_VOLUME: &str = "data";
/// A volume without a size is the node's disk; nothing holds it to any size.
const NO_LIMIT: u64 = 0;
/// Kubelets bound processes by a setting of the node, which no object says.
const NODES_PIDS: u32 = 0;

/// Reasons of a claim's condition after which waiting is of no use, with what they mean.
const FINAL_REASONS: [(&str, Trouble); 8] = [
    ("WarmPoolNotFound", Trouble::NoPool),
    ("TemplateNotFound", Trouble::NoTemplate),
    ("InvalidMetadata", Trouble::Refused),
    ("EnvVarsInjectionRejected", Trouble::Refused),
    ("VolumeClaimTemplatesError", Trouble::Refused),
    ("ClaimExpired", Trouble::Ended),
    ("SandboxExpired", Trouble::Ended),
    ("MultiplePods", Trouble::Refused),
];
/// Reasons of a waiting container that do not pass by themselves.
const IMAGE_REASONS: [&str; 3] = ["ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"];
const CONTAINER_REASONS: [&str; 4] =
    ["CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"];

/// What is kept of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClaimFacts {
    /// The pool that it was made against.
    pub(super) pool: String,
    /// The controller's sandbox for it.
    pub(super) sandbox: Option<String>,
    pub(super) ready: Answer,
    pub(super) finished: bool,
    /// It is being deleted.
    pub(super) is_leaving: bool,
    /// When it was made, in seconds.
    pub(super) made_at: i64,
}

/// A condition, boiled down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Answer {
    pub(super) is_true: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

/// What is kept of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) addresses: Vec<IpAddr>,
    /// It is being deleted.
    pub(super) is_leaving: bool,
    /// There is a container in it that carries files, and has not ended.
    pub(super) has_sync: bool,
    pub(super) state: PodState,
}

/// How a pod stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PodState {
    /// It comes up, or runs.
    Good,
    /// No node will have it.
    Unschedulable(String),
    /// It does not start, and will not by itself.
    Stuck(Trouble, String),
    /// Its first process has ended, perhaps to be begun again without what it knew.
    Over(String),
}

/// What is kept of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TemplateFacts {
    /// Whether it says itself what its pods may reach, and the controller makes that so.
    pub(super) has_network_policy: bool,
    pub(super) isolation: Isolation,
    pub(super) limits: Limits,
    pub(super) enforced: Enforced,
}

/// A claim's sandbox, found and running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bound {
    /// The controller's sandbox.
    pub(super) sandbox: String,
    /// The pod's UID.
    pub(super) pod: String,
    /// All its addresses; there is at least one.
    pub(super) addresses: Vec<IpAddr>,
}

/// How far a claim is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not yet; what it waits for, in case it takes too long.
    Waiting(Trouble, String),
    /// It has its pod, which is ready.
    Ready(Bound),
    /// It will never be.
    Failed(Trouble, String),
}

impl ClaimFacts {
    pub(super) fn of(claim: &Claim) -> Option<(SandboxId, Self)> {
        let id = SandboxId::parse(claim.metadata.name.as_deref()?).ok()?;
        let conditions = &claim.status.conditions;
        let sandbox = claim.status.sandbox.as_ref().map(|sandbox| sandbox.name.clone());
        let facts = Self {
            pool: claim.spec.warm_pool_ref.name.clone(),
            sandbox: sandbox.filter(|name| !name.is_empty()),
            ready: Answer::of(conditions, "Ready"),
            finished: Answer::of(conditions, "Finished").is_true,
            is_leaving: claim.metadata.deletion_timestamp.is_some(),
            made_at: claim.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        };
        Some((id, facts))
    }
}

impl Answer {
    fn of(conditions: &[Condition], which: &str) -> Self {
        let found = conditions.iter().find(|condition| condition.of == which);
        found.map_or_else(Self::default, |condition| Self {
            is_true: condition.status == "True",
            reason: short(&condition.reason),
            message: short(&condition.message),
        })
    }
}

impl PodFacts {
    /// With the name of the sandbox that owns it.
    pub(super) fn of(pod: &Pod) -> Option<(String, Self)> {
        let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
        let owner = owners.iter().find(|owner| owner.kind == SANDBOX_KIND)?.name.clone();
        let has_ended = is_over(&pod.status) || ended(&pod.status).any(|it| it.name == SYNC_CONTAINER);
        let facts = Self {
            name: pod.metadata.name.clone()?,
            uid: pod.metadata.uid.clone()?,
            addresses: pod.status.pod_ips.iter().map(|it| it.ip).collect(),
            is_leaving: pod.metadata.deletion_timestamp.is_some(),
            has_sync: !has_ended && pod.spec.containers.iter().any(|it| it.name == SYNC_CONTAINER),
            state: PodState::of(pod),
        };
        Some((owner, facts))
    }

    /// Whether its sync, told to end, may still carry files.
    pub(super) const fn is_flushing(&self) -> bool {
        self.is_leaving && self.has_sync
    }
}

impl PodState {
    fn of(pod: &Pod) -> Self {
        let status = &pod.status;
        if is_over(status) {
            return Self::Over(format!("the pod has ended ({})", status.phase));
        }
        let all = || status.init_container_statuses.iter().chain(&status.container_statuses);
        if let Some(stuck) = all().find_map(stuck) {
            return stuck;
        }
        // Init containers may try again; whoever was process 1 has forgotten who it is.
        if let Some(again) = status.container_statuses.iter().find(|container| container.restart_count > 0) {
            return Self::Over(format!("container `{}` has ended and was begun again", short(&again.name)));
        }
        // The pod runs on for as long as another container of it does.
        if let Some(ended) = ended(status).next() {
            return Self::Over(format!("container `{}` has ended", short(&ended.name)));
        }
        let scheduled = Answer::of(&status.conditions, "PodScheduled");
        if scheduled.reason == "Unschedulable" && !scheduled.is_true {
            return Self::Unschedulable(scheduled.message);
        }
        Self::Good
    }
}

fn is_over(status: &PodStatus) -> bool {
    matches!(status.phase.as_str(), "Failed" | "Succeeded")
}

/// Its containers that have ended.
fn ended(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    status.container_statuses.iter().filter(|container| container.state.terminated.is_some())
}

fn stuck(container: &ContainerStatus) -> Option<PodState> {
    let waiting = container.state.waiting.as_ref()?;
    let trouble = if IMAGE_REASONS.contains(&waiting.reason.as_str()) {
        Trouble::Image
    } else if CONTAINER_REASONS.contains(&waiting.reason.as_str()) {
        Trouble::Container
    } else {
        return None;
    };
    let text = format!("container `{}`: {}: {}", container.name, waiting.reason, waiting.message);
    Some(PodState::Stuck(trouble, short(&text)))
}

/// How far a claim is, from what is known of it and of its pod.
pub(super) fn progress(claim: Option<&ClaimFacts>, pod: Option<&PodFacts>) -> Progress {
    let Some(claim) = claim else {
        return Progress::Waiting(Trouble::Slow, "the claim has not been seen on the watch".to_owned());
    };
    let ready = &claim.ready;
    let told = || format!("{}: {}", ready.reason, ready.message);
    if claim.is_leaving {
        return Progress::Failed(Trouble::Ended, "the claim is being deleted".to_owned());
    }
    if let Some((_, trouble)) = FINAL_REASONS.iter().find(|(reason, _)| *reason == ready.reason)
        && !ready.is_true
    {
        return Progress::Failed(*trouble, told());
    }
    if is_quota(&ready.message) {
        return Progress::Failed(Trouble::Quota, told());
    }
    let Some(pod) = pod.filter(|pod| !pod.is_leaving) else {
        return Progress::Waiting(Trouble::Slow, format!("there is no pod yet ({})", told()));
    };
    match (&pod.state, &claim.sandbox) {
        (PodState::Stuck(trouble, why), _) => Progress::Failed(*trouble, why.clone()),
        (PodState::Over(why), _) => Progress::Failed(Trouble::Container, why.clone()),
        (PodState::Unschedulable(why), _) => Progress::Waiting(Trouble::Unschedulable, why.clone()),
        (PodState::Good, Some(sandbox)) if ready.is_true && !pod.addresses.is_empty() => {
            let (sandbox, pod, addresses) = (sandbox.clone(), pod.uid.clone(), pod.addresses.clone());
            Progress::Ready(Bound { sandbox, pod, addresses })
        }
        (PodState::Good, _) => Progress::Waiting(Trouble::Slow, told()),
    }
}

/// Admission says so in words, wherever the refusal comes out.
pub(super) fn is_quota(message: &str) -> bool {
    message.contains("exceeded quota")
}

impl TemplateFacts {
    pub(super) fn of(template: &Template) -> Self {
        let spec = &template.spec;
        let is_managed = spec.network_policy_management.as_deref().is_none_or(|by| by == "Managed");
        let pod = &spec.pod_template.spec;
        let named = pod.containers.iter().find(|container| container.name == SANDBOX_CONTAINER);
        let container = named.or_else(|| pod.containers.first());
        let limit = |name| container.and_then(|container: &Container| container.resources.limits.get(name));
        let memory = limit("memory").and_then(quantity);
        let cpu = limit("cpu").and_then(milli_quantity);
        let data = pod.volumes.iter().find(|volume| volume.name == DATA_VOLUME);
        let disk = data.and_then(|volume| volume.empty_dir.as_ref()?.size_limit.as_ref()).and_then(quantity);
        Self {
            has_network_policy: spec.network_policy.is_some() && is_managed,
            isolation: isolation_of(pod.runtime_class_name.as_deref()),
            limits: Limits {
                memory_bytes: memory.unwrap_or(NO_LIMIT),
                cpu_millis: cpu.and_then(|cpu| u32::try_from(cpu).ok()).unwrap_or_default(),
                pids: NODES_PIDS,
                disk_bytes: disk.unwrap_or(NO_LIMIT),
            },
            enforced: Enforced {
                memory: memory.is_some(),
                cpu: cpu.is_some(),
                pids: false,
                disk: disk.is_some(),
            },
        }
    }
}

/// The template that a pool is filled from.
pub(super) fn template_of(pool: &WarmPool) -> String {
    pool.spec.sandbox_template_ref.name.clone()
}

/// What a `RuntimeClass` of this name gives, by the names that GKE, AKS and the runtimes' own
/// documents use; any other is the node's plain runtime as far as we know.
fn isolation_of(runtime_class: Option<&str>) -> Isolation {
    match runtime_class {
        Some(name) if name.contains("gvisor") || name.contains("runsc") => Isolation::Gvisor,
        Some(name) if name.starts_with("kata") => Isolation::Kata,
        _ => Isolation::Namespaces,
    }
}

/// A Kubernetes quantity in whole units, such as `512Mi`.
fn quantity(value: &serde_json::Value) -> Option<u64> {
    milli_quantity(value).map(|thousandths| thousandths / 1000)
}

/// A Kubernetes quantity in thousandths, such as 500 for `0.5` or `500m`.
fn milli_quantity(value: &serde_json::Value) -> Option<u64> {
    const SUFFIXES: [(&str, u128); 14] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("Ei", 1 << 60),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("E", 1_000_000_000_000_000_000),
        ("m", 0),
        ("", 1),
    ];
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let (number, factor) =
        SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || whole.len() > 18 || fraction.len() > 9 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let nanos: u128 = format!("{whole}{fraction:0<9}").parse().ok()?;
    let thousandths = if factor == 0 { nanos / 1_000_000_000 } else { nanos * factor / 1_000_000 };
    u64::try_from(thousandths).ok()
}

fn short(text: &str) -> String {
    text.chars().take(MESSAGE_CHARACTERS).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests;
