// SPDX-License-Identifier: Apache-2.0

use super::*;
use serde_json::{Value, json};

fn claim(ready: &Value, sandbox: &str) -> ClaimFacts {
    let claim: Claim = serde_json::from_value(json!({
        "metadata": { "name": "sandbox-abcdefghijkl", "creationTimestamp": "2026-11-26T10:00:00Z" },
        "spec": { "warmPoolRef": { "name": "default" } },
        "status": { "conditions": [ready], "sandbox": { "name": sandbox, "podIPs": ["10.0.0.7"] } },
    }))
    .expect("is a claim");
    ClaimFacts::of(&claim).expect("has our kind of name").1
}

fn ready(status: &str, reason: &str, message: &str) -> Value {
    json!({ "type": "Ready", "status": status, "reason": reason, "message": message })
}

fn pod(status: &Value) -> PodFacts {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": "default-x7k2p",
            "uid": "0f8b",
            "ownerReferences": [
                { "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "name": "default-x7k2p", "uid": "u" },
            ],
        },
        "status": status,
    }))
    .expect("is a pod");
    let (owner, facts) = PodFacts::of(&pod).expect("is a sandbox's");
    assert_eq!(owner, "default-x7k2p");
    facts
}

fn up() -> PodFacts {
    pod(&json!({ "phase": "Running", "podIPs": [{ "ip": "10.0.0.7" }, { "ip": "fd00::7" }] }))
}

#[test]
fn a_claim_is_bound_when_it_is_ready_and_its_pod_has_addresses() {
    let bound = claim(&ready("True", "DependenciesReady", ""), "default-x7k2p");
    let Progress::Ready(found) = progress(Some(&bound), Some(&up())) else { panic!("is ready") };
    assert_eq!(
        (found.sandbox.as_str(), found.pod.as_str(), found.addresses.len()),
        ("default-x7k2p", "0f8b", 2)
    );
    assert_eq!(bound.made_at, 1_795_687_200);
}

#[test]
fn what_is_not_there_yet_is_waited_for() {
    let is_waiting = |claim: Option<&ClaimFacts>, pod: Option<&PodFacts>| {
        matches!(progress(claim, pod), Progress::Waiting(Trouble::Slow, _))
    };
    let bound = claim(&ready("True", "DependenciesReady", ""), "default-x7k2p");
    assert!(is_waiting(None, None));
    assert!(is_waiting(Some(&bound), None));
    let without_address = pod(&json!({ "phase": "Running", "podIPs": [] }));
    assert!(is_waiting(Some(&bound), Some(&without_address)));
    let leaving = PodFacts { is_leaving: true, ..up() };
    assert!(is_waiting(Some(&bound), Some(&leaving)), "a pod on its way out is nobody's");
    let not_ready = claim(&ready("False", "DependenciesNotReady", "pod is Pending"), "default-x7k2p");
    assert!(is_waiting(Some(&not_ready), Some(&up())));
    let unnamed = claim(&ready("True", "DependenciesReady", ""), "");
    assert!(is_waiting(Some(&unnamed), Some(&up())));
}

#[test]
fn each_trouble_of_a_cluster_is_told_apart() {
    let fails = |reason: &str, message: &str| match progress(
        Some(&claim(&ready("False", reason, message), "")),
        None,
    ) {
        Progress::Failed(trouble, _) => trouble,
        other => panic!("{reason}: {other:?}"),
    };
    assert_eq!(fails("WarmPoolNotFound", "no pool"), Trouble::NoPool);
    assert_eq!(fails("TemplateNotFound", "no template"), Trouble::NoTemplate);
    assert_eq!(fails("InvalidMetadata", "a label"), Trouble::Refused);
    assert_eq!(fails("ClaimExpired", ""), Trouble::Ended);
    assert_eq!(fails("ReconcilerError", "pods \"a\" is forbidden: exceeded quota: pods"), Trouble::Quota);

    let waiting = claim(&ready("False", "DependenciesNotReady", ""), "default-x7k2p");
    let of_pod = |status: &Value| progress(Some(&waiting), Some(&pod(status)));
    let container = |reason: &str| {
        json!({ "phase": "Pending", "containerStatuses": [
            { "name": "sandbox", "restartCount": 0, "state": { "waiting": { "reason": reason, "message": "m" } } },
        ] })
    };
    assert!(matches!(of_pod(&container("ImagePullBackOff")), Progress::Failed(Trouble::Image, _)));
    assert!(matches!(of_pod(&container("ErrImagePull")), Progress::Waiting(..)), "it is tried again");
    assert!(matches!(
        of_pod(&container("CreateContainerConfigError")),
        Progress::Failed(Trouble::Container, _)
    ));
    let nowhere = json!({ "phase": "Pending", "conditions": [
        { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes" },
    ] });
    let Progress::Waiting(Trouble::Unschedulable, why) = of_pod(&nowhere) else { panic!("is waited for") };
    assert_eq!(why, "0/3 nodes", "an autoscaler may bring a node");
}

#[test]
fn a_pod_that_has_ended_or_was_begun_again_is_over() {
    for status in [
        json!({ "phase": "Failed" }),
        json!({ "phase": "Succeeded" }),
        json!({ "phase": "Running", "containerStatuses": [{ "name": "sandbox", "restartCount": 1 }] }),
        json!({ "phase": "Running", "containerStatuses": [
            { "name": "sync", "state": { "running": {} } }, { "name": "sandbox", "state": { "terminated": {} } },
        ] }),
    ] {
        assert!(matches!(pod(&status).state, PodState::Over(_)), "{status}");
    }
    let init =
        json!({ "phase": "Pending", "initContainerStatuses": [{ "name": "copy", "restartCount": 1 }] });
    assert_eq!(pod(&init).state, PodState::Good, "an init container may try again");
}

#[test]
fn a_pod_s_sync_is_there_until_it_has_ended_whatever_became_of_the_sandbox() {
    let has_sync = |containers: &[&str], status: &Value| {
        let containers: Vec<_> = containers.iter().map(|name| json!({ "name": name })).collect();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "a", "uid": "u", "ownerReferences": [
                { "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "name": "a", "uid": "s" },
            ] },
            "spec": { "containers": containers }, "status": status,
        }))
        .expect("is a pod");
        PodFacts::of(&pod).expect("is a sandbox's").1.has_sync
    };
    let ended = |name: &str| json!({ "phase": "Running", "containerStatuses": [{ "name": name, "state": { "terminated": {} } }] });
    let both = ["sandbox", "sync"];
    assert!(has_sync(&both, &json!({ "phase": "Running" })));
    assert!(has_sync(&both, &ended("sandbox")), "its files can still be carried");
    assert!(!has_sync(&both, &ended("sync")));
    assert!(!has_sync(&both, &json!({ "phase": "Failed" })));
    assert!(!has_sync(&["sandbox"], &json!({ "phase": "Running" })));
}

#[test]
fn a_pod_that_is_deleted_flushes_until_its_sync_has_ended() {
    let is_flushing = |metadata: Value, status: Value| {
        let mut pod = json!({
            "metadata": { "name": "a", "uid": "u", "ownerReferences": [
                { "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "name": "a", "uid": "s" },
            ] },
            "spec": { "containers": [{ "name": "sandbox" }, { "name": "sync" }] }, "status": status,
        });
        for (name, value) in metadata.as_object().expect("an object") {
            pod["metadata"][name] = value.clone();
        }
        let pod: Pod = serde_json::from_value(pod).expect("is a pod");
        PodFacts::of(&pod).expect("is a sandbox's").1.is_flushing()
    };
    let ended = |name: &str| json!({ "phase": "Running", "containerStatuses": [{ "name": name, "state": { "terminated": {} } }] });
    let leaving = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
    assert!(is_flushing(leaving.clone(), ended("sandbox")), "the sandbox ends at once, its sync does not");
    assert!(!is_flushing(leaving.clone(), ended("sync")));
    assert!(!is_flushing(leaving, json!({ "phase": "Failed" })));
    assert!(!is_flushing(json!({}), ended("sandbox")), "it is there to be ordered to flush");
}

#[test]
fn what_a_cluster_says_is_kept_short_and_plain() {
    let long = format!("\u{1b}[31m{}", "x".repeat(10_000));
    let found = claim(&ready("False", "DependenciesNotReady", &long), "");
    assert!(found.ready.message.len() < 400 && !found.ready.message.contains('\u{1b}'));
}

#[test]
fn names_that_are_not_ours_are_nobody_s() {
    let other: Claim = serde_json::from_value(json!({
        "metadata": { "name": "somebody-else" }, "spec": { "warmPoolRef": { "name": "default" } },
    }))
    .expect("is a claim");
    assert_eq!(ClaimFacts::of(&other), None);
    let plain: Pod =
        serde_json::from_value(json!({ "metadata": { "name": "a", "uid": "u" } })).expect("a pod");
    assert_eq!(PodFacts::of(&plain), None);
}

fn template(spec: &Value) -> TemplateFacts {
    let object = json!({ "metadata": { "name": "default" }, "spec": spec });
    TemplateFacts::of(&serde_json::from_value(object).expect("is a template"))
}

#[test]
fn a_template_is_usable_only_with_a_network_policy_that_the_controller_makes() {
    let pod = json!({ "spec": { "containers": [{ "name": "sandbox" }] } });
    let with = |policy: Value, by: Value| {
        template(&json!({ "podTemplate": pod, "networkPolicy": policy, "networkPolicyManagement": by }))
            .has_network_policy
    };
    assert!(with(json!({}), Value::Null), "denies all");
    assert!(with(json!({ "egress": [] }), json!("Managed")));
    assert!(!with(Value::Null, Value::Null), "the controller's default allows the internet");
    assert!(!with(json!({}), json!("Unmanaged")), "nobody makes it");
}

#[test]
fn limits_are_those_of_the_sandbox_s_container_and_its_data_volume() {
    let found = template(&json!({ "podTemplate": { "spec": {
        "runtimeClassName": "gvisor",
        "containers": [
            { "name": "sync", "resources": { "limits": { "memory": "64Mi" } } },
            { "name": "sandbox", "resources": { "limits": { "memory": "1Gi", "cpu": "500m" } } },
        ],
        "volumes": [{ "name": "data", "emptyDir": { "sizeLimit": "2Gi" } }],
    } } }));
    assert_eq!(found.isolation, Isolation::Gvisor);
    let Limits { memory_bytes, cpu_millis, pids, disk_bytes } = found.limits;
    assert_eq!((memory_bytes, cpu_millis, pids, disk_bytes), (1 << 30, 500, 0, 2 << 30));
    assert_eq!(found.enforced, Enforced { memory: true, cpu: true, pids: false, disk: true });
    let bare = template(&json!({ "podTemplate": { "spec": { "containers": [{ "name": "a" }] } } }));
    assert_eq!((bare.isolation, bare.enforced), (Isolation::Namespaces, Enforced::default()));
}

#[test]
fn runtime_classes_have_the_names_of_their_documents() {
    for (name, level) in [
        ("gvisor", Isolation::Gvisor),
        ("runsc", Isolation::Gvisor),
        ("kata", Isolation::Kata),
        ("kata-vm-isolation", Isolation::Kata),
        ("nvidia", Isolation::Namespaces),
    ] {
        assert_eq!(isolation_of(Some(name)), level, "{name}");
    }
    assert_eq!(isolation_of(None), Isolation::Namespaces);
}

#[test]
fn quantities_are_read_as_kubernetes_writes_them() {
    let cases = [
        (json!("512Mi"), Some(512 << 20)),
        (json!("1Gi"), Some(1 << 30)),
        (json!("1.5Gi"), Some(3 << 29)),
        (json!("1G"), Some(1_000_000_000)),
        (json!(1024), Some(1024)),
        (json!("2"), Some(2)),
        (json!("500m"), Some(0)),
        (json!(""), None),
        (json!("Mi"), None),
        (json!("-1"), None),
        (json!("1e3"), None),
        (json!("99999999999999999999Ei"), None),
    ];
    for (text, bytes) in cases {
        assert_eq!(quantity(&text), bytes, "{text}");
    }
    assert_eq!(milli_quantity(&json!("0.25")), Some(250));
    assert_eq!(milli_quantity(&json!("250m")), Some(250));
    assert_eq!(milli_quantity(&json!(2)), Some(2000));
}
