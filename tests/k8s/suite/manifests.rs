// SPDX-License-Identifier: Apache-2.0
//! The objects that sandboxes need in their namespace, as the chart makes them, for a namespace and
//! with a control key of a test's own.

use crate::postern::{ACCOUNT, RELEASE};
use serde_json::{Value, json};

/// The labels of a part of the release, by which network policies know it.
pub(crate) fn labels(part: &str) -> Vec<(&'static str, &str)> {
    vec![
        ("app.kubernetes.io/name", "agent-sandbox-kit"),
        ("app.kubernetes.io/instance", "agent-sandbox-kit"),
        ("app.kubernetes.io/component", part),
    ]
}

fn of_part(part: &str, port: &[u16]) -> Value {
    let labels: serde_json::Map<_, _> =
        labels(part).into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let ports: Vec<_> = port.iter().map(|port| json!({ "port": port, "protocol": "TCP" })).collect();
    json!({
        "peers": [{
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": RELEASE } },
            "podSelector": { "matchLabels": labels },
        }],
        "ports": ports,
    })
}

/// Everything, in the order in which it can be applied; so many pods are kept ready.
pub(crate) fn all(namespace: &str, control_key: &str, warm: u32) -> Vec<Value> {
    let mut objects = vec![
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": RELEASE } }),
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": namespace,
            "labels": { "pod-security.kubernetes.io/enforce": "restricted" },
        } }),
        json!({ "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": { "name": "gvisor" },
            "handler": "runsc" }),
    ];
    objects.extend(rights(namespace));
    objects.push(template("default", control_key));
    objects.push(pool("default", warm));
    objects
}

fn rights(namespace: &str) -> [Value; 2] {
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({ "apiGroups": [group], "resources": resources, "verbs": verbs });
    let (read, extensions) = (["get", "list", "watch"], "extensions.agents.x-k8s.io");
    let group = "rbac.authorization.k8s.io";
    [
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": ACCOUNT, "namespace": namespace },
            "rules": [
                rule(extensions, &["sandboxclaims"], &["create", "delete", "get", "list", "watch", "patch"]),
                rule("agents.x-k8s.io", &["sandboxes"], &["get", "list", "watch", "patch"]),
                rule("", &["pods"], &read),
                rule(extensions, &["sandboxtemplates", "sandboxwarmpools"], &read),
            ] }),
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": ACCOUNT, "namespace": namespace },
            "roleRef": { "apiGroup": group, "kind": "Role", "name": ACCOUNT },
            "subjects": [{ "kind": "ServiceAccount", "name": ACCOUNT, "namespace": RELEASE }] }),
    ]
}

/// A pool that is filled from the template of its name.
pub(crate) fn pool(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "extensions.agents.x-k8s.io/v1beta1",
        "kind": "SandboxWarmPool",
        "metadata": { "name": name },
        "spec": { "replicas": replicas, "sandboxTemplateRef": { "name": name } },
    })
}

/// A template whose pods reach the gateway and nothing else.
pub(crate) fn template(name: &str, control_key: &str) -> Value {
    let (inward, outward) = (of_part("orchestrator", &[49983, 49984]), of_part("gateway", &[8081]));
    json!({
        "apiVersion": "extensions.agents.x-k8s.io/v1beta1",
        "kind": "SandboxTemplate",
        "metadata": { "name": name },
        "spec": {
            "service": false,
            "envVarsInjectionPolicy": "Disallowed",
            "networkPolicyManagement": "Managed",
            "networkPolicy": {
                "ingress": [{ "from": inward["peers"], "ports": inward["ports"] }],
                "egress": [{ "to": outward["peers"], "ports": outward["ports"] }],
            },
            "podTemplate": { "metadata": { "labels": { "postern/template": name } }, "spec": pod(control_key) },
        },
    })
}

fn pod(control_key: &str) -> Value {
    let security = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    });
    let limits = json!({ "cpu": "1", "memory": "512Mi", "ephemeral-storage": "2Gi" });
    let volume = |name: &str| json!({ "name": name, "emptyDir": { "sizeLimit": "2Gi" } });
    let mount = |name: &str, path: &str| json!({ "name": name, "mountPath": path });
    json!({
        "runtimeClassName": "gvisor",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "shareProcessNamespace": false,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "None",
        "dnsConfig": { "nameservers": ["127.0.0.1"] },
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "initContainers": [{
            "name": "install",
            "image": "registry.test/postern-sandbox:test",
            "args": ["install", "/postern"],
            "securityContext": security,
            "volumeMounts": [mount("postern", "/postern")],
        }],
        "containers": [{
            "name": "sandbox",
            "image": "registry.test/python:3",
            "command": ["/postern/postern-sandboxd"],
            "args": ["--listen", "0.0.0.0:49983", "--pod", "$(POD_UID)", "--control-key", control_key],
            "env": [{ "name": "POD_UID", "valueFrom": { "fieldRef": { "fieldPath": "metadata.uid" } } }],
            "ports": [{ "name": "sandboxd", "containerPort": 49983 }],
            "securityContext": security,
            "resources": { "requests": limits, "limits": limits },
            "volumeMounts": [
                { "name": "postern", "mountPath": "/postern", "readOnly": true },
                { "name": "data", "mountPath": "/data", "subPath": "data" },
                mount("home", "/home/user"), mount("tmp", "/tmp"),
            ],
        }, {
            "name": "sync",
            "image": "registry.test/postern-sandbox:test",
            "args": ["sync", "/slot", "--listen", "0.0.0.0:49984", "--pod", "$(POD_UID)", "--control-key", control_key],
            "env": [{ "name": "POD_UID", "valueFrom": { "fieldRef": { "fieldPath": "metadata.uid" } } }],
            "ports": [{ "name": "sync", "containerPort": 49984 }],
            "securityContext": security,
            "volumeMounts": [mount("data", "/slot")],
        }],
        "volumes": [volume("postern"), volume("data"), volume("home"), volume("tmp")],
    })
}
