// SPDX-License-Identifier: Apache-2.0
//! What values turn on, rendered by helm: that it is there, that it finds what it is for, and that it is
//! not there otherwise. Kinds whose CRDs no cluster of ours has (`ServiceMonitor`, `HTTPRoute`) are looked
//! at here only.

use super::{CHART, containers, helm, keep_to_restricted, name, of_kind, pod, template};
use crate::running::project;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Names of the release's objects begin with this.
const NAME: &str = "kit-agent-sandbox-kit";
/// A database of somebody's, in the place of the embedded one.
const DATABASE: [&str; 6] = [
    "--set",
    "database.embedded.enabled=false",
    "--set",
    "orchestrator.secrets.DATABASE_URL.name=database",
    "--set",
    "orchestrator.secrets.DATABASE_URL.key=url",
];

/// The objects with a database of somebody's, and these values.
fn rendered(helm: &Path, more: &[&str]) -> Vec<Value> {
    objects(helm, &[&DATABASE[..], more].concat())
}

fn objects(helm: &Path, values: &[&str]) -> Vec<Value> {
    let output = template(helm, values);
    assert!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    objects.into_iter().filter(|object| !object.is_null()).collect()
}

fn one<'a>(objects: &'a [Value], kind: &'static str, part: &str) -> &'a Value {
    let called = format!("{NAME}{part}");
    let found = of_kind(objects, kind).find(|object| name(object) == called);
    found.unwrap_or_else(|| panic!("no {kind} {called}"))
}

/// Whether labels are what a selector asks for.
fn has(labels: &Value, wanted: &Value) -> bool {
    wanted.as_object().expect("a selector").iter().all(|(name, value)| labels[name] == *value)
}

/// Looks that a port of a Service leads to a port of the pods that it selects.
fn leads_somewhere(objects: &[Value], service: &Value, port: &str) {
    let of_pods = |object: &&Value| {
        has(&object["spec"]["template"]["metadata"]["labels"], &service["spec"]["selector"])
    };
    let made: Vec<_> =
        objects.iter().filter(|object| object["spec"]["template"].is_object()).filter(of_pods).collect();
    assert_eq!(made.len(), 1, "{} selects the pods of one object", name(service));
    let ports = service["spec"]["ports"].as_array().expect("ports");
    let target = &ports.iter().find(|it| it["name"] == port).expect("has the port")["targetPort"];
    let mut open = made
        .into_iter()
        .filter_map(pod)
        .flat_map(containers)
        .filter_map(|it| it["ports"].as_array())
        .flatten();
    assert!(open.any(|it| it["name"] == *target), "{}: nobody listens on {target}", name(service));
}

#[test]
fn prometheus_is_led_to_both_programs() {
    let Some(helm) = helm() else { return };
    assert_eq!(of_kind(&rendered(&helm, &[]), "ServiceMonitor").count(), 0);
    let values = [
        "--set=metrics.serviceMonitor.enabled=true",
        "--set=metrics.serviceMonitor.interval=15s",
        "--set=metrics.serviceMonitor.labels.release=prometheus",
    ];
    let objects = rendered(&helm, &values);
    let monitor = one(&objects, "ServiceMonitor", "");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    let wanted = json!([{"port": "admin", "path": "/metrics", "interval": "15s"}]);
    assert_eq!(monitor["spec"]["endpoints"], wanted);
    let selector = &monitor["spec"]["selector"]["matchLabels"];
    let services: Vec<_> =
        of_kind(&objects, "Service").filter(|it| has(&it["metadata"]["labels"], selector)).collect();
    let found: BTreeSet<_> = services.iter().map(|service| name(service).to_owned()).collect();
    let metrics = ["gateway", "orchestrator"].map(|part| format!("{NAME}-{part}-metrics"));
    assert_eq!(found, BTreeSet::from(metrics));
    services.into_iter().for_each(|service| leads_somewhere(&objects, service, "admin"));
}

#[test]
fn grafana_finds_the_dashboard_that_is_documented() {
    let Some(helm) = helm() else { return };
    assert_eq!(of_kind(&rendered(&helm, &[]), "ConfigMap").count(), 0);
    let objects = rendered(&helm, &["--set=metrics.dashboards.enabled=true"]);
    let map = one(&objects, "ConfigMap", "-dashboard");
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let told: Value =
        serde_json::from_str(map["data"]["postern.json"].as_str().expect("text")).expect("JSON");
    let file = fs::read_to_string(project().join("manifests/grafana-dashboard.json")).expect("reads");
    assert_eq!(told, serde_json::from_str::<Value>(&file).expect("JSON"));
}

#[test]
fn the_api_is_published_by_an_ingress_with_tls_or_a_gateway_of_the_cluster() {
    let Some(helm) = helm() else { return };
    let plain = rendered(&helm, &[]);
    assert_eq!(of_kind(&plain, "Ingress").count() + of_kind(&plain, "HTTPRoute").count(), 0);
    let values = [
        "--set=api.ingress.enabled=true",
        "--set=api.ingress.host=postern.example",
        "--set=api.ingress.tlsSecretName=tls",
        "--set=api.ingress.className=nginx",
        "--set=api.httpRoute.enabled=true",
        "--set=api.httpRoute.parentRefs[0].name=public",
        "--set=api.httpRoute.parentRefs[0].namespace=gateways",
        "--set=api.httpRoute.hostnames[0]=postern.example",
    ];
    let objects = rendered(&helm, &values);
    let service = one(&objects, "Service", "-orchestrator");
    leads_somewhere(&objects, service, "http");
    let ingress = &one(&objects, "Ingress", "-orchestrator")["spec"];
    assert_eq!(ingress["ingressClassName"], "nginx");
    assert_eq!(ingress["tls"], json!([{"hosts": ["postern.example"], "secretName": "tls"}]));
    let rule = &ingress["rules"][0];
    assert_eq!(rule["host"], "postern.example");
    let to = json!({"service": {"name": name(service), "port": {"name": "http"}}});
    assert_eq!(rule["http"]["paths"], json!([{"path": "/", "pathType": "Prefix", "backend": to}]));

    let route = &one(&objects, "HTTPRoute", "-orchestrator")["spec"];
    assert_eq!(route["parentRefs"], json!([{"name": "public", "namespace": "gateways"}]));
    assert_eq!(route["hostnames"], json!(["postern.example"]));
    let rule = &route["rules"][0];
    assert_eq!(rule["backendRefs"], json!([{"name": name(service), "port": 8080}]));
    assert_eq!(rule["timeouts"]["request"], "0s", "streams stay open");
    let ports = service["spec"]["ports"].as_array().expect("ports");
    assert!(ports.iter().any(|port| port["port"] == 8080));
}

#[test]
fn programs_are_spread_go_one_at_a_time_and_scale() {
    let Some(helm) = helm() else { return };
    let scaled = rendered(&helm, &["--set=gateway.autoscaling.enabled=true"]);
    let plain = rendered(&helm, &[]);
    assert_eq!(of_kind(&plain, "HorizontalPodAutoscaler").count(), 0);
    for part in ["-gateway", "-orchestrator"] {
        let deployment = one(&scaled, "Deployment", part);
        let selector = &deployment["spec"]["selector"];
        let budget = &one(&scaled, "PodDisruptionBudget", part)["spec"];
        assert_eq!((&budget["selector"], &budget["maxUnavailable"]), (selector, &json!(1)), "{part}");
        let spread =
            pod(deployment).expect("pods")["topologySpreadConstraints"].as_array().expect("is spread");
        let over: Vec<_> = spread.iter().filter_map(|it| it["topologyKey"].as_str()).collect();
        assert_eq!(over, ["topology.kubernetes.io/zone", "kubernetes.io/hostname"], "{part}");
        for constraint in spread {
            assert_eq!(&constraint["labelSelector"], selector, "{part}");
            assert_eq!(constraint["matchLabelKeys"], json!(["pod-template-hash"]), "{part}");
        }
        let rolling = &deployment["spec"]["strategy"]["rollingUpdate"];
        assert_eq!(*rolling, json!({"maxSurge": 1, "maxUnavailable": 0}), "{part}");
    }
    let scaler = &one(&scaled, "HorizontalPodAutoscaler", "-gateway")["spec"];
    assert_eq!(scaler["scaleTargetRef"]["name"], format!("{NAME}-gateway"));
    assert_eq!((&scaler["minReplicas"], &scaler["maxReplicas"]), (&json!(2), &json!(10)));
    assert!(one(&scaled, "Deployment", "-gateway")["spec"]["replicas"].is_null(), "the scaler says how many");
    assert_eq!(one(&plain, "Deployment", "-gateway")["spec"]["replicas"], 2);
    let service = &one(&plain, "Service", "-gateway")["spec"];
    assert_eq!(service["sessionAffinity"], "ClientIP", "a session's limits are counted at one gateway");
}

#[test]
fn a_trials_database_is_one_pod_that_jobs_wait_for() {
    let Some(helm) = helm() else { return };
    assert_eq!(of_kind(&rendered(&helm, &[]), "StatefulSet").count(), 0);
    let objects = objects(&helm, &[]);
    let database = one(&objects, "StatefulSet", "-postgres");
    let service = one(&objects, "Service", "-postgres");
    assert_eq!(
        (&service["spec"]["clusterIP"], &database["spec"]["serviceName"]),
        (&json!("None"), &json!(name(service)))
    );
    leads_somewhere(&objects, service, "postgres");
    let volumes = pod(database).expect("pods")["volumes"].as_array().expect("volumes");
    let password = volumes.iter().find(|it| it["name"] == "password").expect("has one");
    assert_eq!(password["secret"]["secretName"], format!("{NAME}-keys"));

    let jobs: Vec<_> = of_kind(&objects, "Job").collect();
    assert!(
        !jobs.iter().any(|job| name(job).contains("-migrate")),
        "the database is not there when hooks run"
    );
    for job in &jobs {
        assert!(job["metadata"]["annotations"].is_null(), "{} would run before the database", name(job));
    }
    let keys =
        jobs.iter().find(|job| name(job).starts_with(&format!("{NAME}-setup-keys-"))).expect("is made");
    let arguments = pod(keys).expect("a pod")["containers"][0]["args"].as_array().expect("arguments");
    let made = arguments.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
    assert!(
        made.contains("DATABASE_URL") && made.ends_with(&format!("--database {NAME}-postgres:5432")),
        "{made}"
    );
    let migrates = pod(one(&objects, "Deployment", "-orchestrator")).expect("pods");
    assert_eq!(migrates["initContainers"][0]["args"], json!(["migrate"]));

    let walls = &one(&objects, "NetworkPolicy", "-postgres")["spec"];
    assert_eq!(walls["policyTypes"], json!(["Ingress", "Egress"]));
    assert!(walls.get("egress").is_none(), "it asks nobody");
    let from = walls["ingress"][0]["from"][0]["podSelector"]["matchExpressions"].as_array().expect("who may");
    let parts = from.iter().find(|it| it["key"] == "app.kubernetes.io/component").expect("by part");
    assert_eq!(parts["values"], json!(["orchestrator", "setup", "retention"]));
}

#[test]
fn the_cache_of_files_is_a_part_of_the_data_folder_or_on_an_export_that_only_orchestrators_see() {
    let Some(helm) = helm() else { return };
    let settings = |objects: &[Value]| {
        let deployment = one(objects, "Deployment", "-orchestrator");
        let container = &pod(deployment).expect("pods")["containers"][0];
        let all = container["env"].as_array().expect("settings").clone();
        move |name: &str| all.iter().find(|it| it["name"] == name).map(|it| it["value"].clone())
    };
    let plain = rendered(&helm, &[]);
    assert_eq!(
        of_kind(&plain, "PersistentVolume").count() + of_kind(&plain, "PersistentVolumeClaim").count(),
        0
    );
    let of = settings(&plain);
    assert_eq!((of("NFS_SERVER"), of("POSTERN_FILES_CACHE_SIZE")), (None, Some(json!("512MiB"))));

    let values = ["--set=cache.nfs.server=10.0.0.2", "--set=cache.nfs.path=/files", "--set=cache.size=80GiB"];
    let objects = rendered(&helm, &values);
    let of = settings(&objects);
    assert_eq!(of("POSTERN_FILES_CACHE_SIZE"), Some(json!("80GiB")));
    let volume = of_kind(&objects, "PersistentVolume").next().expect("is made");
    let claim = of_kind(&objects, "PersistentVolumeClaim").next().expect("is made");
    assert_eq!(volume["spec"]["nfs"], json!({ "server": "10.0.0.2", "path": "/files" }));
    assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Retain", "it is the operator's");
    assert_eq!(volume["spec"]["claimRef"]["name"], claim["metadata"]["name"]);
    assert_eq!(volume["spec"]["claimRef"]["namespace"], claim["metadata"]["namespace"]);
    assert_eq!(claim["spec"]["volumeName"], volume["metadata"]["name"]);
    for object in [volume, claim] {
        let kept = &object["metadata"]["annotations"]["helm.sh/resource-policy"];
        assert_eq!(kept, "keep", "pods may run on it when a release has another");
    }
    for part in [&volume["spec"], &claim["spec"]] {
        assert_eq!(
            (&part["accessModes"], &part["storageClassName"]),
            (&json!(["ReadWriteMany"]), &json!(""))
        );
    }
    let is_of = |pod: &Value, claim: &Value| {
        let volumes = pod["volumes"].as_array().into_iter().flatten();
        let mut found =
            volumes.filter(|it| it["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]);
        found.next().is_some_and(|volume| {
            let mounts = pod["containers"][0]["volumeMounts"].as_array().into_iter().flatten();
            let mount = mounts.filter(|it| it["name"] == volume["name"]).map(|it| it["mountPath"].clone());
            mount.collect::<Vec<_>>() == [of("NFS_SERVER").expect("is set")]
        })
    };
    let mounting: Vec<_> =
        objects.iter().filter(|it| pod(it).is_some_and(|pod| is_of(pod, claim))).map(name).collect();
    assert_eq!(mounting, [format!("{NAME}-orchestrator")]);
    // What a volume is of cannot be changed: another export is another volume.
    let other = rendered(&helm, &["--set=cache.nfs.server=10.0.0.3", "--set=cache.nfs.path=/files"]);
    assert_ne!(name(of_kind(&other, "PersistentVolume").next().expect("is made")), name(volume));

    let given = rendered(&helm, &["--set=cache.existingClaim=shared"]);
    assert_eq!(of_kind(&given, "PersistentVolume").count(), 0);
    let shared = json!({ "metadata": { "name": "shared" } });
    assert!(is_of(pod(one(&given, "Deployment", "-orchestrator")).expect("pods"), &shared));
}

#[test]
fn whatever_is_turned_on_keeps_to_restricted() {
    let Some(helm) = helm() else { return };
    let file = |name: &str| project().join(CHART).join(name).display().to_string();
    let (azure, government) = (file("values-azure.yaml"), file("values-azure-government.yaml"));
    let everything = [
        "--set=gateway.tls.secretName=door",
        "--set=gateway.autoscaling.enabled=true",
        "--set=sandbox.snapshots.enabled=true",
        "--set=orchestrator.storageSecret=store",
        "--set=retention.dryRun=true",
    ];
    let azure = ["-f", azure.as_str(), "-f", government.as_str()];
    for objects in [objects(&helm, &[]), rendered(&helm, &everything), rendered(&helm, &azure)] {
        let looked_at = keep_to_restricted(&objects);
        assert!(looked_at >= 9, "only {looked_at} containers");
    }
    let objects = rendered(&helm, &azure);
    let orchestrator = one(&objects, "Deployment", "-orchestrator");
    let labels = &orchestrator["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["azure.workload.identity/use"], "true");
    let settings = pod(orchestrator).expect("pods")["containers"][0]["env"].as_array().expect("settings");
    let of = |variable: &str| settings.iter().find(|it| it["name"] == variable).map(|it| it["value"].clone());
    assert_eq!(of("POSTERN_AZURE_CLOUD"), Some(json!("government")));
    assert_eq!(of("STORAGE_BACKEND"), Some(json!("azure")));
    for template in of_kind(&objects, "SandboxTemplate") {
        assert_eq!(pod(template).expect("pods")["runtimeClassName"], "kata-mshv-vm-isolation");
    }
}
