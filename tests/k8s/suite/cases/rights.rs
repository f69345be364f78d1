// SPDX-License-Identifier: Apache-2.0
//! What the orchestrator's service account may do, asked of the API server's own authorizer in its name
//! (impersonation): with the rights that the other cases run with, and with those that the chart gives.

use crate::cluster::Cluster;
use crate::postern::{Postern, user};
use serde_json::{Value, json};

/// Group, resource, verbs: everything that the runtime uses.
const USED: &[(&str, &str, &[&str])] = &[
    ("extensions.agents.x-k8s.io", "sandboxclaims", &["create", "delete", "list", "watch", "patch"]),
    ("agents.x-k8s.io", "sandboxes", &["patch"]),
    ("", "pods", &["list", "watch"]),
    ("extensions.agents.x-k8s.io", "sandboxtemplates", &["list", "watch"]),
    ("extensions.agents.x-k8s.io", "sandboxwarmpools", &["list", "watch"]),
];

/// What it has no use for, in its own namespace.
const DENIED: &[(&str, &str, &[&str])] = &[
    ("", "secrets", &["get", "list", "watch", "create", "update", "patch", "delete"]),
    ("", "configmaps", &["get", "list", "create", "update"]),
    ("", "pods", &["create", "update", "patch", "delete", "deletecollection"]),
    ("", "pods/exec", &["create", "get"]),
    ("", "pods/log", &["get"]),
    ("", "pods/ephemeralcontainers", &["update", "patch"]),
    ("", "pods/portforward", &["create"]),
    ("", "serviceaccounts", &["get", "create", "impersonate"]),
    ("", "serviceaccounts/token", &["create"]),
    ("", "services", &["create", "list"]),
    ("", "persistentvolumeclaims", &["create", "delete"]),
    ("", "nodes", &["get", "list"]),
    ("", "nodes/proxy", &["get", "create"]),
    ("", "namespaces", &["create", "delete"]),
    ("extensions.agents.x-k8s.io", "sandboxclaims", &["update", "deletecollection"]),
    ("extensions.agents.x-k8s.io", "sandboxtemplates", &["create", "update", "patch", "delete"]),
    ("extensions.agents.x-k8s.io", "sandboxwarmpools", &["create", "update", "patch", "delete"]),
    ("agents.x-k8s.io", "sandboxes", &["create", "update", "delete", "deletecollection"]),
    ("networking.k8s.io", "networkpolicies", &["get", "create", "update", "patch", "delete"]),
    ("rbac.authorization.k8s.io", "roles", &["create", "bind", "escalate"]),
    ("rbac.authorization.k8s.io", "rolebindings", &["create", "patch"]),
    ("rbac.authorization.k8s.io", "clusterrolebindings", &["create"]),
    ("apps", "deployments", &["create", "patch"]),
    ("snapshot.storage.k8s.io", "volumesnapshots", &["create", "delete"]),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", &["create"]),
];

/// What the API server says to somebody's question whether they may do something.
async fn is_allowed(
    cluster: &Cluster,
    who: Option<&str>,
    namespace: &str,
    (group, resource, verb): (&str, &str, &str),
) -> bool {
    let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": {
            "namespace": namespace, "group": group, "resource": resource, "subresource": part, "verb": verb,
        } },
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let mut request = http::Request::post(path).header("content-type", "application/json");
    if let Some(who) = who {
        // Of an account the API server knows the groups by itself.
        request = request.header("impersonate-user", who);
    }
    let request = request.body(serde_json::to_vec(&review).expect("JSON")).expect("a request");
    let answer: Value = cluster.client.request(request).await.expect("is answered");
    answer["status"]["allowed"].as_bool().expect("is told")
}

/// Whether somebody may work with snapshots of volumes as the orchestrator would, and no more than that.
pub(super) async fn may_snapshot(cluster: &Cluster, who: &str, namespace: &str) -> bool {
    let verbs = ["create", "delete", "get", "list", "watch", "update", "patch"];
    let mut allowed = Vec::new();
    for verb in verbs {
        let asked = ("snapshot.storage.k8s.io", "volumesnapshots", verb);
        allowed.extend(is_allowed(cluster, Some(who), namespace, asked).await.then_some(verb));
    }
    allowed == ["create", "delete", "get"]
}

/// Fails unless somebody may do in a namespace what the orchestrator does, and nothing else.
pub(super) async fn are_just_what_is_used(cluster: &Cluster, who: &str, namespace: &str) {
    for (group, resource, verbs) in USED {
        for verb in *verbs {
            let asked = (*group, *resource, *verb);
            assert!(is_allowed(cluster, Some(who), namespace, asked).await, "{asked:?} is used");
            assert!(!is_allowed(cluster, Some(who), "default", asked).await, "{asked:?} elsewhere");
        }
    }
    let mut denied = 0;
    for (group, resource, verbs) in DENIED {
        for verb in *verbs {
            let asked = (*group, *resource, *verb);
            assert!(!is_allowed(cluster, Some(who), namespace, asked).await, "{asked:?}");
            // The control: who may do everything is told so by the same question.
            assert!(is_allowed(cluster, None, namespace, asked).await, "{asked:?} of an administrator");
            denied += 1;
        }
    }
    assert!(denied > 60, "{denied}");
}

pub(crate) async fn the_orchestrator_may_do_what_it_does_and_nothing_else(cluster: &Cluster) {
    let postern = Postern::start(cluster, "rights").await;
    are_just_what_is_used(cluster, &user(), &postern.namespace).await;
}
