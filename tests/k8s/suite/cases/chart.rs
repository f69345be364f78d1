// SPDX-License-Identifier: Apache-2.0
//! The chart on a real API server: its objects are read strictly and its pods are taken at the level
//! `restricted`; helm installs, upgrades, rolls back and uninstalls it while its Jobs run our program
//! with the rights that the chart gives them, and no key changes.

use super::rights;
use crate::cluster::{Cluster, documents, until};
use crate::parts::{folder, program};
use crate::running::{programs, project};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::Api;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams, ValidationDirective};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Where releases are. Sandboxes are in `sandbox-…`, which is cleared after each case.
const RELEASES: &str = "chart";
const SANDBOXES: &str = "sandbox-chart";
const TESTED: &str = "sandbox-tested";
pub(super) const RELEASE: &str = "agent-sandbox-kit";

/// Values that turn on whatever can be turned on.
const EVERYTHING: &[&str] = &[
    "--set=gateway.autoscaling.enabled=true",
    "--set=api.ingress.enabled=true",
    "--set=api.ingress.host=postern.example",
    "--set=api.ingress.tlsSecretName=tls",
    "--set=metrics.dashboards.enabled=true",
    "--set=sandbox.snapshots.enabled=true",
    "--set=sandbox.runtimeClass.create=true",
    "--set=gateway.tls.secretName=door",
    "--set=cache.nfs.server=10.0.0.2",
    "--set=sandbox.controlKey=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "--set=orchestrator.env.TOKEN_SIGNING_KEY=0123456789abcdef0123456789abcdef",
];

/// The objects that the chart renders with these values.
fn rendered(kind: &str, more: &[&str]) -> Vec<Value> {
    let output =
        Command::new(project().join("scripts/chart.sh")).args(["template", kind]).args(more).output();
    let output = output.expect("bash starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    documents(&text).into_iter().filter(|object| !object.is_null()).collect()
}

/// Whether the API server would take this object, every field of it.
async fn is_taken(cluster: &Cluster, object: &Value) -> Result<(), String> {
    let text = |place: &str| object.pointer(place).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let (resource, _) =
        kube::discovery::pinned_kind(&cluster.client, &GroupVersionKind::gvk(group, version, &kind))
            .await
            .map_err(|error| format!("{kind} {name}: {error}"))?;
    let api: Api<DynamicObject> = match text("/metadata/namespace") {
        namespace if namespace.is_empty() => Api::all_with(cluster.client.clone(), &resource),
        namespace => Api::namespaced_with(cluster.client.clone(), &namespace, &resource),
    };
    let how = PatchParams {
        dry_run: true,
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply("test").force()
    };
    let applied = api.patch(&name, &how, &Patch::Apply(object)).await;
    applied.map(drop).map_err(|error| format!("{kind} {name}: {error}"))
}

/// The pod that an object would make, in a namespace.
fn pod_of(object: &Value, namespace: &str) -> Option<Value> {
    let places = ["/spec/template", "/spec/jobTemplate/spec/template", "/spec/podTemplate"];
    let template = places.iter().find_map(|place| object.pointer(place))?;
    let mut spec = template["spec"].clone();
    // What a StatefulSet's controller adds.
    let claims = object["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten();
    for claim in claims {
        let volume = json!({ "name": claim["metadata"]["name"], "emptyDir": {} });
        spec["volumes"].as_array_mut().expect("volumes").push(volume);
    }
    Some(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "tried", "namespace": namespace, "labels": template["metadata"]["labels"] },
        "spec": spec,
    }))
}

pub(crate) async fn every_object_of_the_chart_is_taken_as_it_is_written(cluster: &Cluster) {
    let restricted = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
    for namespace in ["postern", "sandbox-system"] {
        let object = json!({ "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": namespace, "labels": restricted } });
        cluster.apply(&object, "").await;
    }
    for class in ["gvisor", "kata-mshv-vm-isolation"] {
        let object = json!({ "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": { "name": class }, "handler": "runsc" });
        cluster.apply(&object, "").await;
    }
    let (mut objects, mut pods) = (0, 0);
    for (kind, more) in
        [("gcp", &[][..]), ("gcp", EVERYTHING), ("azure", &[]), ("azure-government", &[]), ("trial", &[])]
    {
        for object in rendered(kind, more) {
            is_taken(cluster, &object).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
            objects += 1;
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
            if let Some(mut pod) = pod_of(&object, namespace) {
                // Accounts are no part of a dry run.
                pod["spec"].as_object_mut().expect("a spec").remove("serviceAccountName");
                is_taken(cluster, &pod).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
                pods += 1;
            }
        }
    }
    assert!(objects > 100 && pods > 20, "{objects} objects, {pods} pods");
    // The controls: a word that no kind has, and a pod that may be root.
    let mut wrong = rendered("gcp", &[]).into_iter().find(|it| it["kind"] == "SandboxTemplate").expect("one");
    let mut pod = pod_of(&wrong, "sandbox-system").expect("a pod");
    pod["spec"]["securityContext"]["runAsNonRoot"] = json!(false);
    let refused = is_taken(cluster, &pod).await.expect_err("is not restricted");
    assert!(refused.contains("violates PodSecurity"), "{refused}");
    wrong["spec"]["networkPolicies"] = json!({});
    assert!(is_taken(cluster, &wrong).await.is_err(), "fields are not looked at");
}

/// helm, as an administrator of the cluster, as a child that the test goes on beside.
pub(super) fn helm(namespace: &str, arguments: &[&str]) -> Child {
    let home = folder().join("helm");
    let chart = project().join("charts/agent-sandbox-kit");
    let arguments = arguments.iter().map(|argument| argument.replace("CHART", &chart.display().to_string()));
    let log = fs::File::create(helm_log()).expect("a file");
    Command::new(program("helm"))
        .args(arguments)
        .args(["--namespace", namespace, "--kubeconfig"])
        .arg(folder().join("admin.kubeconfig"))
        .env("HELM_CACHE_HOME", &home)
        .env("HELM_CONFIG_HOME", &home)
        .env("HELM_DATA_HOME", &home)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file"))
        .stderr(log)
        .spawn()
        .expect("helm starts")
}

/// What helm said last.
pub(super) fn helm_log() -> PathBuf {
    folder().join("helm.log")
}

/// Every key that was made for the release of a namespace, by its name.
pub(super) async fn keys(cluster: &Cluster, namespace: &str) -> BTreeMap<String, Vec<u8>> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let mut keys = BTreeMap::new();
    for suffix in ["keys", "access"] {
        let secret = secrets.get(&format!("{RELEASE}-{suffix}")).await.expect("was made");
        keys.extend(secret.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)));
    }
    keys
}

/// A release, and the Jobs that were run for it.
struct Release<'a> {
    cluster: &'a Cluster,
    /// The namespace of its sandboxes.
    sandboxes: &'static str,
    ran: BTreeSet<String>,
}

impl Release<'_> {
    /// Installs or upgrades it.
    async fn put(&mut self, verb: &str, more: &[&str]) {
        let sandboxes = format!("--set=sandbox.namespace={}", self.sandboxes);
        let enough = [
            "--set=orchestrator.env.STORAGE_BUCKET=bucket",
            "--set=orchestrator.secrets.DATABASE_URL.name=postern-database",
            "--set=orchestrator.secrets.DATABASE_URL.key=url",
            sandboxes.as_str(),
        ];
        self.helm(&[&[verb, RELEASE, "CHART"][..], &enough, more].concat()).await;
    }

    /// Runs helm to its end, and its Jobs as they come; it must do what it is told.
    async fn helm(&mut self, arguments: &[&str]) {
        let (is_done, said) = self.tried(arguments).await;
        assert!(is_done, "helm {arguments:?}: {said}");
    }

    /// Whether helm did it, and what it said.
    async fn tried(&mut self, arguments: &[&str]) -> (bool, String) {
        let mut child = helm(RELEASES, arguments);
        let ended = until("helm ends", async || {
            self.run_jobs().await;
            child.try_wait().expect("can be asked")
        })
        .await;
        self.run_jobs().await;
        (ended.success(), fs::read_to_string(helm_log()).expect("a log"))
    }

    /// As the Job controller and a node would: runs each Job that was not run, and says how it ended.
    async fn run_jobs(&mut self) {
        let jobs = self.cluster.api("batch/v1", "Job", RELEASES);
        for job in jobs.list(&ListParams::default()).await.expect("is told").items {
            let (name, uid) = (job.metadata.name.expect("a name"), job.metadata.uid.expect("a UID"));
            // A release of before may have left some, which have run.
            let is_over = job.data["status"]["completionTime"].is_string();
            if is_over || job.metadata.deletion_timestamp.is_some() || !self.ran.insert(uid) {
                continue;
            }
            let output = self.run(&name, &job.data["spec"]["template"]["spec"]).await;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{name}: {said}");
            let now = "2026-01-01T00:00:00Z";
            let condition = |of: &str| json!({ "type": of, "status": "True", "lastTransitionTime": now, "lastProbeTime": now });
            let status = json!({ "status": { "succeeded": 1, "startTime": now, "completionTime": now,
                "conditions": [condition("SuccessCriteriaMet"), condition("Complete")] } });
            let told = jobs.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await;
            told.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    /// The Job's container, with its own arguments, settings, files and account.
    async fn run(&self, name: &str, pod: &Value) -> std::process::Output {
        let place = folder().join("jobs").join(name);
        fs::create_dir_all(place.join("data")).expect("a folder");
        let container = &pod["containers"][0];
        let mut command = Command::new(programs().join("postern-orchestrator"));
        command.args(container["args"].as_array().expect("arguments").iter().filter_map(Value::as_str));
        command.env_clear().env("POSTERN_DATA_DIR", place.join("data"));
        let secrets = self.files(pod).await;
        for variable in container["env"].as_array().into_iter().flatten() {
            let variable = variable["name"].as_str().expect("a name");
            if let Some(setting) = variable.strip_suffix("_FILE") {
                let file = place.join(setting);
                fs::write(&file, secrets.get(setting).unwrap_or_else(|| panic!("{name}: no {setting}")))
                    .expect("writes");
                command.env(variable, file);
            }
        }
        if pod["automountServiceAccountToken"] == true {
            let account = pod["serviceAccountName"].as_str().expect("an account");
            command.env("KUBECONFIG", self.account(account).await);
        }
        command.output().expect("it starts")
    }

    /// What the pod's projected volumes hold, by file.
    async fn files(&self, pod: &Value) -> BTreeMap<String, Vec<u8>> {
        let secrets: Api<Secret> = Api::namespaced(self.cluster.client.clone(), RELEASES);
        let mut files = BTreeMap::new();
        let volumes = pod["volumes"].as_array().into_iter().flatten();
        for source in volumes.filter_map(|volume| volume["projected"]["sources"].as_array()).flatten() {
            let secret = source["secret"]["name"].as_str().expect("a Secret");
            let held = secrets.get(secret).await.unwrap_or_else(|error| panic!("{secret}: {error}"));
            for item in source["secret"]["items"].as_array().expect("items") {
                let (key, path) =
                    (item["key"].as_str().expect("a key"), item["path"].as_str().expect("a path"));
                let bytes = held.data.as_ref().and_then(|data| data.get(key));
                files
                    .insert(path.to_owned(), bytes.unwrap_or_else(|| panic!("{secret}: no {key}")).0.clone());
            }
        }
        files
    }

    /// A kubeconfig for a service account of the release.
    async fn account(&self, name: &str) -> PathBuf {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.cluster.client.clone(), RELEASES);
        let wanted = TokenRequest::default();
        let made = accounts.create_token_request(name, &PostParams::default(), &wanted).await;
        let token = made.expect("a token").status.expect("is told").token;
        let path = crate::cluster::kubeconfig(&format!("chart-{name}"), &token);
        let mut text: Value = serde_json::from_slice(&fs::read(&path).expect("reads")).expect("JSON");
        text["contexts"][0]["context"]["namespace"] = json!(RELEASES);
        fs::write(&path, text.to_string()).expect("writes");
        path
    }

    async fn keys(&self) -> BTreeMap<String, Vec<u8>> {
        keys(self.cluster, RELEASES).await
    }

    async fn image(&self) -> String {
        let deployments = self.cluster.api("apps/v1", "Deployment", RELEASES);
        let gateway = deployments.get(&format!("{RELEASE}-gateway")).await.expect("is there");
        gateway.data["spec"]["template"]["spec"]["containers"][0]["image"]
            .as_str()
            .expect("an image")
            .to_owned()
    }
}

/// What is there before a release, and nothing of it yet.
async fn prepared<'a>(cluster: &'a Cluster, sandboxes: &'static str) -> Release<'a> {
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": RELEASES } });
    cluster.apply(&namespace, "").await;
    let database = folder().join("chart.db");
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "postern-database" },
        "stringData": { "url": format!("sqlite://{}", database.display()) } });
    cluster.apply(&secret, RELEASES).await;
    Release { cluster, sandboxes, ran: BTreeSet::new() }
}

pub(crate) async fn helm_installs_upgrades_and_rolls_back_without_a_changed_key(cluster: &Cluster) {
    let mut release = prepared(cluster, SANDBOXES).await;
    release.put("install", &[]).await;
    let made = release.keys().await;
    let names: Vec<_> = made.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "POSTERN_API_KEY",
            "POSTERN_GATEWAY_CREDENTIAL",
            "POSTERN_MASTER_KEY",
            "POSTERN_SANDBOX_CONTROL_KEY",
            "TOKEN_SIGNING_KEY"
        ]
    );
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), SANDBOXES);
    let told = maps.get(&format!("{RELEASE}-control-key")).await.expect("sandboxes are told whom to believe");
    let public = told.data.and_then(|data| data.get("public").cloned()).expect("a key");
    assert_eq!(STANDARD.decode(&public).expect("base64").len(), 32);
    let first = release.image().await;
    let account = format!("system:serviceaccount:{RELEASES}:{RELEASE}-orchestrator");
    rights::are_just_what_is_used(cluster, &account, SANDBOXES).await;

    release.put("upgrade", &["--set=image.tag=0.1.1", "--set=sandbox.snapshots.enabled=true"]).await;
    assert!(release.image().await.ends_with(":0.1.1"));
    until("it may make snapshots, and no more of them", async || {
        rights::may_snapshot(cluster, &account, SANDBOXES).await.then_some(())
    })
    .await;
    assert_eq!(release.keys().await, made, "an upgrade changes no key");
    release.helm(&["rollback", RELEASE, "1"]).await;
    assert_eq!(release.image().await, first);
    assert_eq!(release.keys().await, made, "a rollback changes no key");
    release.helm(&["uninstall", RELEASE]).await;
    assert_eq!(release.keys().await, made, "what is over takes no key along");
    let namespaces = Api::<DynamicObject>::all_with(
        cluster.client.clone(),
        &ApiResource::erase::<k8s_openapi::api::core::v1::Namespace>(&()),
    );
    assert!(namespaces.get(SANDBOXES).await.is_ok(), "sandboxes outlive a release");
}

/// `helm test` asks from where sandboxes are, and from where the release is.
pub(crate) async fn helm_s_own_test_finds_walls_and_finds_them_missing(cluster: &Cluster) {
    let class = json!({ "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": { "name": "gvisor" }, "handler": "runsc" });
    cluster.apply(&class, "").await;
    let mut release = prepared(cluster, TESTED).await;
    release.put("install", &[]).await;
    let (is_shut, said) = release.tried(&["test", RELEASE]).await;
    let control = log_of(&format!("{RELEASE}-test-network-control"));
    assert!(is_shut, "{said}\n{control}");
    assert_eq!(control.matches("ok: ").count(), 2, "{control}");
    let probe = log_of(&format!("{RELEASE}-test-network"));
    assert_eq!(probe.matches("is closed").count(), 6, "{probe}");

    // The walls are taken away.
    let policies = cluster.api("networking.k8s.io/v1", "NetworkPolicy", TESTED);
    let name = format!("{RELEASE}-sandboxes");
    policies.delete(&name, &kube::api::DeleteParams::default()).await.expect("is deleted");
    let (is_shut, said) = release.tried(&["test", RELEASE]).await;
    let probe = log_of(&format!("{RELEASE}-test-network"));
    assert!(!is_shut, "{said}\n{probe}");
    for told in
        ["NOT OK: ApiServer is open", "NOT OK: Names is open", "NOT OK: Address(169.254.169.254:80) is open"]
    {
        assert!(probe.contains(told), "{told}: {probe}");
    }
    release.helm(&["uninstall", RELEASE]).await;
}

/// What the only container of a pod of `helm test` has written, all runs together.
fn log_of(pod: &str) -> String {
    fs::read_to_string(folder().join(format!("pod-{pod}-probe.log"))).unwrap_or_default()
}
