// SPDX-License-Identifier: Apache-2.0
//! What the orchestrator's service account may do, asked of the API server's own authorizer.

use crate::cluster::{Cluster, client};
use crate::postern::{Postern, TOKEN};
use kube::Client;
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

async fn is_allowed(client: &Client, namespace: &str, (group, resource, verb): (&str, &str, &str)) -> bool {
    let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": {
            "namespace": namespace, "group": group, "resource": resource, "subresource": part, "verb": verb,
        } },
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(serde_json::to_vec(&review).expect("JSON")).expect("a request");
    let answer: Value = client.request(request).await.expect("is answered");
    answer["status"]["allowed"].as_bool().expect("is told")
}

pub(crate) async fn the_orchestrator_may_do_what_it_does_and_nothing_else(cluster: &Cluster) {
    let postern = Postern::start(cluster, "rights").await;
    let account = client(TOKEN).await;
    for (group, resource, verbs) in USED {
        for verb in *verbs {
            let asked = (*group, *resource, *verb);
            assert!(is_allowed(&account, &postern.namespace, asked).await, "{asked:?} is used");
            assert!(!is_allowed(&account, "default", asked).await, "{asked:?} elsewhere");
        }
    }
    let mut denied = 0;
    for (group, resource, verbs) in DENIED {
        for verb in *verbs {
            let asked = (*group, *resource, *verb);
            assert!(!is_allowed(&account, &postern.namespace, asked).await, "{asked:?}");
            denied += 1;
        }
    }
    assert!(denied >= 30, "{denied}");
    // The control: who may do everything is told so by the same question.
    let asked = ("", "secrets", "get");
    assert!(is_allowed(&cluster.client, &postern.namespace, asked).await);
}
