// SPDX-License-Identifier: Apache-2.0
//! A sandbox's life over the runtime of a cluster.

use crate::cluster::{Cluster, until};
use crate::postern::Postern;
use crate::{manifests, node};
use kube::api::{DynamicObject, ListParams};
use serde_json::{Value, json};
use std::net::IpAddr;

/// The API version of what we claim and name.
pub(super) const EXTENSIONS: &str = "extensions.agents.x-k8s.io/v1beta1";

/// Claims that there are, of anybody.
pub(super) async fn claims(postern: &Postern<'_>) -> Vec<DynamicObject> {
    let api = postern.cluster.api(EXTENSIONS, "SandboxClaim", &postern.namespace);
    api.list(&ListParams::default()).await.expect("is told").items
}

/// Waits until the warm pool has this many pods.
pub(super) async fn pool_of(postern: &Postern<'_>, count: usize) {
    until("the warm pool is full", async || {
        (node::count(&postern.cluster.client, &postern.namespace).await == count).then_some(())
    })
    .await;
}

/// The address of a sandbox's pod, by its claim.
pub(super) async fn address(postern: &Postern<'_>, id: &str) -> IpAddr {
    address_in(postern.cluster, &postern.namespace, id).await
}

/// The same in a namespace.
pub(super) async fn address_in(cluster: &Cluster, namespace: &str, id: &str) -> IpAddr {
    let claim = cluster.api(EXTENSIONS, "SandboxClaim", namespace).get(id).await.expect("is there");
    let name = claim.data["status"]["sandbox"]["name"].as_str().expect("is bound").to_owned();
    let pod = cluster.api("v1", "Pod", namespace).get(&name).await.expect("is there");
    pod.data["status"]["podIP"].as_str().and_then(|text| text.parse().ok()).expect("an address")
}

pub(super) fn id(sandbox: &Value) -> String {
    sandbox["sandbox_id"].as_str().expect("an id").to_owned()
}

fn status(postern: &Postern<'_>, id: &str) -> Value {
    postern.call("GET", &format!("/sandbox/{id}"), None).json()
}

pub(crate) async fn a_conversation_gets_a_warm_pod_and_its_agent_reaches_the_backend(cluster: &Cluster) {
    let postern = Postern::start(cluster, "first").await;
    pool_of(&postern, 3).await;
    let made = postern.sandbox("alice", "c1");
    let id = id(&made);
    assert_eq!((made["status"].as_str(), made["runtime"].as_str()), (Some("running"), Some("kubernetes")));
    assert_eq!(made["isolation"], "gvisor", "as its RuntimeClass says: {made}");
    let claims_now = claims(&postern).await;
    let bound = claims_now[0].data["status"]["sandbox"]["name"].as_str().expect("is bound");
    assert!(claims_now.len() == 1 && bound.starts_with("default-"), "a warm one was taken: {bound}");
    let said = postern.exec(&id, &["sh", "-c", "echo $SANDBOX_ID $CONVERSATION_ID $DESK_LANGUAGE $(id -u)"]);
    assert_eq!(said.trim(), format!("{id} c1 en 1000"));
    assert_eq!(postern.agent(&id, &["GET", "/orders"])["status"], 200, "by TLS, as who it is");
    assert_eq!(postern.sandbox("alice", "c1")["sandbox_id"], id, "a repeat finds it");
    postern.told(&["sandbox", "rm", &id]);
    assert_eq!(claims(&postern).await.len(), 0);
    assert_eq!(status(&postern, &id)["status"], "destroyed");
}

pub(crate) async fn without_a_warm_pod_one_is_made(cluster: &Cluster) {
    let postern = Postern::start(cluster, "cold").await;
    cluster.apply(&manifests::pool("default", 0), &postern.namespace).await;
    pool_of(&postern, 0).await;
    let made = postern.sandbox("alice", "c1");
    assert_eq!(postern.agent(&id(&made), &["GET", "/orders"])["status"], 200);
    postern.told(&["sandbox", "rm", &id(&made)]);
    pool_of(&postern, 0).await;
}

pub(crate) async fn a_pause_takes_the_pod_and_a_resume_brings_another_with_the_same_identity(
    cluster: &Cluster,
) {
    let postern = Postern::start(cluster, "pause").await;
    let id = id(&postern.sandbox("alice", "c1"));
    let before = address(&postern, &id).await;
    let paused = postern.call("POST", &format!("/sandbox/{id}/pause"), None);
    assert_eq!((paused.status, paused.json()["status"].as_str()), (200, Some("paused")), "{}", postern.log());
    let sandboxes = cluster.api("agents.x-k8s.io/v1beta1", "Sandbox", &postern.namespace);
    let claim = claims(&postern).await.remove(0);
    let name = claim.data["status"]["sandbox"]["name"].as_str().expect("is bound").to_owned();
    let pods = cluster.api("v1", "Pod", &postern.namespace);
    assert!(pods.get_opt(&name).await.expect("is told").is_none(), "its pod is gone");
    assert_eq!(sandboxes.get(&name).await.expect("is there").data["spec"]["operatingMode"], "Suspended");
    let resumed = postern.call("POST", &format!("/sandbox/{id}/resume"), None);
    assert_eq!(
        (resumed.status, resumed.json()["status"].as_str()),
        (200, Some("running")),
        "{}",
        postern.log()
    );
    assert_eq!(postern.exec(&id, &["sh", "-c", "echo $SANDBOX_ID"]).trim(), id);
    let after = address(&postern, &id).await;
    assert_ne!(before, after, "it is another pod");
    assert_eq!(postern.agent(&id, &["GET", "/orders"])["status"], 200, "bound anew");
    postern.told(&["sandbox", "rm", &id]);
}

pub(crate) async fn a_pod_that_dies_ends_its_sandbox_and_leaves_nothing(cluster: &Cluster) {
    let postern = Postern::start(cluster, "death").await;
    let id = id(&postern.sandbox("alice", "c1"));
    cluster.node.kill_processes(address(&postern, &id).await);
    until("the sandbox is over", async || (status(&postern, &id)["status"] == "destroyed").then_some(()))
        .await;
    assert_eq!(claims(&postern).await.len(), 0);
    let refused = postern.call("POST", &format!("/tokens/{id}/refresh"), None);
    assert_ne!(refused.status, 200, "{refused:?}");
}

/// Templates of the cluster that are no good, each in its way, with pools but for the last.
fn bad_templates(key: &str) -> Vec<Value> {
    let changed = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut template = manifests::template(name, key);
        change(&mut template["spec"]);
        template
    };
    let container = |spec: &mut Value, field: &str, value: Value| {
        spec["podTemplate"]["spec"]["containers"][0][field] = value;
    };
    vec![
        changed("open", &|spec| {
            spec.as_object_mut().expect("an object").remove("networkPolicy");
        }),
        changed("unmanaged", &|spec| spec["networkPolicyManagement"] = json!("Unmanaged")),
        changed("no-image", &|spec| container(spec, "image", json!("registry.invalid/none:1"))),
        changed("too-large", &|spec| {
            let size = json!({ "cpu": "1000", "memory": "512Mi" });
            container(spec, "resources", json!({ "requests": size, "limits": size }));
        }),
        changed("no-pool", &|_spec| {}),
    ]
}

/// What a create call for this template is told.
fn refusal(postern: &Postern<'_>, template: &str) -> String {
    let wanted = json!({ "user_id": "alice", "conversation_id": template, "template": template });
    let answer = postern.call("POST", "/sandbox?wait=running", Some(&wanted));
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "runtime-unavailable"),
        "{template}: {answer:?}"
    );
    answer.json()["detail"].as_str().expect("is told").to_owned()
}

/// What a template's author or the cluster's operator has to mend is told, whatever it is.
pub(crate) async fn each_trouble_of_a_cluster_is_told_with_what_to_do(cluster: &Cluster) {
    let postern = Postern::start(cluster, "trouble").await;
    for template in &bad_templates(&postern.control_key()) {
        cluster.apply(template, &postern.namespace).await;
        let name = template["metadata"]["name"].as_str().expect("a name");
        if name != "no-pool" {
            cluster.apply(&manifests::pool(name, 0), &postern.namespace).await;
        }
    }
    postern.add_templates(&["open", "unmanaged", "no-image", "too-large", "no-pool", "no-template"]);
    for (name, told) in [
        ("open", "`spec.networkPolicy`"),
        ("unmanaged", "`spec.networkPolicy`"),
        ("no-pool", "SandboxWarmPool"),
        ("no-template", "no such SandboxTemplate"),
        ("no-image", "image cannot be pulled"),
        ("too-large", "no node has room"),
    ] {
        let detail = refusal(&postern, name);
        assert!(detail.contains(told), "{name}: {detail}");
    }
    let quota = json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "none" },
        "spec": { "hard": { "count/sandboxclaims.extensions.agents.x-k8s.io": "0" } } });
    cluster.apply(&quota, &postern.namespace).await;
    let quotas = cluster.api("v1", "ResourceQuota", &postern.namespace);
    until("the quota is counted", async || {
        quotas.get("none").await.ok()?.data["status"]["hard"].as_object().map(drop)
    })
    .await;
    let detail = refusal(&postern, "default");
    assert!(detail.contains("quota"), "{detail}");
    until("nothing is left", async || claims(&postern).await.is_empty().then_some(())).await;
}
