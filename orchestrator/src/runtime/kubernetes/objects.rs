// SPDX-License-Identifier: Apache-2.0
//! The cluster's objects, as far as we read them: agent-sandbox `v1beta1`, and pods. What is not
//! named here is skipped while reading and never kept.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

macro_rules! resource {
    ($name:ident, $kind:literal, $group:literal, $version:literal, $plural:literal) => {
        impl Resource for $name {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                $version.into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(Claim, "SandboxClaim", "extensions.agents.x-k8s.io", "v1beta1", "sandboxclaims");
resource!(Template, "SandboxTemplate", "extensions.agents.x-k8s.io", "v1beta1", "sandboxtemplates");
resource!(WarmPool, "SandboxWarmPool", "extensions.agents.x-k8s.io", "v1beta1", "sandboxwarmpools");
resource!(Sandbox, "Sandbox", "agents.x-k8s.io", "v1beta1", "sandboxes");
resource!(Pod, "Pod", "", "v1", "pods");

/// The API version that claims are written in.
pub(super) const CLAIM_VERSION: &str = "extensions.agents.x-k8s.io/v1beta1";
/// The kind that owns a sandbox's pod.
pub(super) const SANDBOX_KIND: &str = "Sandbox";

/// Our wish for a sandbox, and what the controller made of it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Claim {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: ClaimSpec,
    #[serde(default)]
    pub(super) status: ClaimStatus,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClaimSpec {
    pub(super) warm_pool_ref: Reference,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct ClaimStatus {
    #[serde(default)]
    pub(super) conditions: Vec<Condition>,
    pub(super) sandbox: Option<Reference>,
}

/// Something, by name.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Reference {
    #[serde(default)]
    pub(super) name: String,
}

/// One answer of a controller or kubelet.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) of: String,
    pub(super) status: String,
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    pub(super) message: String,
}

/// What a claim's sandbox is made from.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Template {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: TemplateSpec,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TemplateSpec {
    pub(super) pod_template: PodTemplate,
    /// Its content is the cluster's affair; that it is there is ours.
    pub(super) network_policy: Option<serde::de::IgnoredAny>,
    pub(super) network_policy_management: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct PodTemplate {
    pub(super) spec: PodSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) runtime_class_name: Option<String>,
    #[serde(default)]
    pub(super) containers: Vec<Container>,
    #[serde(default)]
    pub(super) volumes: Vec<Volume>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Container {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) resources: Resources,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Resources {
    #[serde(default)]
    pub(super) limits: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Volume {
    #[serde(default)]
    pub(super) name: String,
    pub(super) empty_dir: Option<EmptyDir>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EmptyDir {
    pub(super) size_limit: Option<serde_json::Value>,
}

/// Sandboxes that the controller keeps ready from a template.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct WarmPool {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: WarmPoolSpec,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WarmPoolSpec {
    pub(super) sandbox_template_ref: Reference,
}

/// The controller's sandbox, of which we change one field.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Sandbox {
    pub(super) metadata: ObjectMeta,
}

/// A pod.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: PodContainers,
    #[serde(default)]
    pub(super) status: PodStatus,
}

/// What a pod is made of, by name.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct PodContainers {
    #[serde(default)]
    pub(super) containers: Vec<Reference>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodStatus {
    #[serde(default)]
    pub(super) phase: String,
    #[serde(default, rename = "podIPs")]
    pub(super) pod_ips: Vec<PodIp>,
    #[serde(default)]
    pub(super) conditions: Vec<Condition>,
    #[serde(default)]
    pub(super) container_statuses: Vec<ContainerStatus>,
    #[serde(default)]
    pub(super) init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct PodIp {
    pub(super) ip: IpAddr,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerStatus {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) restart_count: u32,
    #[serde(default)]
    pub(super) state: ContainerState,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct ContainerState {
    pub(super) waiting: Option<Waiting>,
    pub(super) terminated: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Waiting {
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    pub(super) message: String,
}
