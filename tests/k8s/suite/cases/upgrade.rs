// SPDX-License-Identifier: Apache-2.0
//! An upgrade under load, and the way back: helm puts a release of a lower version, then this one, then the
//! first again, while an agent asks its backend without a pause.
//!
//! Orchestrator, gateways and Jobs are pods that the cluster's own controllers make; the node runs them, asks
//! them whether they are ready and lets them leave as a kubelet would. Both versions run the same programs,
//! those of this build: what an upgrade changes here is everything around them. `make prove-upgrade` has
//! them run from our images.

use super::chart::{RELEASE, helm, helm_log, keys};
use super::lifecycle::{address_in, id};
use super::replicas::postgres;
use crate::cluster::{Cluster, NODE_ADDRESS, until};
use crate::node::pod::{Network, export};
use crate::parts::{Part, folder};
use crate::running::{copy_folder, project, try_http};
use kube::api::{DynamicObject, ListParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

const RELEASES: &str = "upgrade";
const SANDBOXES: &str = "sandbox-upgrade";
/// The version before, of chart and images.
const BEFORE: &str = "0.0.1";
/// The backend, where no pod is.
const BACKEND: &str = "10.77.0.6";
const VALUES: [&str; 10] = [
    "--set=image.registry=registry.test",
    "--set=sandbox.namespace=sandbox-upgrade",
    "--set=sandbox.templates.default.warmPool.replicas=0",
    "--set=orchestrator.env.STORAGE_BACKEND=local",
    "--set=orchestrator.env.BACKEND_URL=http://10.77.0.6:9000",
    "--set=orchestrator.secrets.DATABASE_URL.name=postern-database",
    "--set=orchestrator.secrets.DATABASE_URL.key=url",
    "--set=gateway.replicas=2",
    "--set=cache.nfs.server=nfs.test",
    "--set=cache.nfs.path=/files",
];
/// Requests that must have been made at least: fewer would not be load.
const AT_LEAST: u64 = 500;
/// Asks at the sandbox's own door until the file is there: two at a time, each on a connection of its own.
const LOAD: &str = "
import http.client, json, os, sys, threading, time
done, failed = [], []
def ask():
    while not os.path.exists(sys.argv[1]):
        try:
            door = http.client.HTTPConnection('127.0.0.1', 49980, timeout=30)
            door.request('GET', '/orders')
            answer = door.getresponse()
            said = answer.read()
            done.append(answer.status)
            if answer.status != 200: failed.append(f'{time.time():.2f} {answer.status} {said[:300]!r}')
            door.close()
        except Exception as error: failed.append(f'{time.time():.2f} {error!r}')
        time.sleep(0.04)
threads = [threading.Thread(target=ask) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps({'done': len(done), 'failed': failed}))
";

/// An agent that asks on and on. Dropped, it ends.
#[derive(Debug)]
struct Load {
    child: Option<Child>,
    stop: PathBuf,
}

impl Load {
    fn start(cluster: &Cluster, pod: IpAddr) -> Self {
        let stop = folder().join("upgrade-is-over");
        let mut command = cluster.node.command_in(pod);
        command.args(["python3", "-I", "-c", LOAD]).arg(&stop).stdout(Stdio::piped());
        Self { child: Some(command.spawn().expect("nsenter starts")), stop }
    }

    /// How many were answered, and what went wrong.
    fn end(mut self) -> (u64, Vec<Value>) {
        fs::write(&self.stop, "").expect("writes");
        let output = self.child.take().expect("runs").wait_with_output().expect("ends");
        let told: Value = serde_json::from_slice(&output.stdout).expect("it tells");
        (told["done"].as_u64().expect("a number"), told["failed"].as_array().expect("a list").clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The version of a chart, which is its images' too.
fn version(chart: &Path) -> String {
    let text = fs::read_to_string(chart.join("Chart.yaml")).expect("reads");
    let found = text.lines().find_map(|line| line.strip_prefix("version: "));
    found.expect("has one").to_owned()
}

/// The same chart, as if it had been released before.
fn chart_of_before(chart: &Path) -> PathBuf {
    let before = folder().join("chart-of-before");
    copy_folder(chart, &before);
    let text = fs::read_to_string(chart.join("Chart.yaml")).expect("reads");
    let lines = text.lines().map(|line| match line.split_once(": ") {
        Some((field @ ("version" | "appVersion"), _)) => format!("{field}: \"{BEFORE}\"\n"),
        _ => format!("{line}\n"),
    });
    fs::write(before.join("Chart.yaml"), lines.collect::<String>()).expect("writes");
    before
}

/// Runs helm to its end; it must do what it is told.
async fn run_helm(arguments: &[&str]) {
    let mut child = helm(RELEASES, arguments);
    let ended = until("helm ends", async || child.try_wait().expect("can be asked")).await;
    let said = fs::read_to_string(helm_log()).unwrap_or_default();
    assert!(ended.success(), "helm {arguments:?}: {said}");
}

/// Installs or upgrades the release from a chart.
async fn put(verb: &str, chart: &Path) {
    let chart = chart.to_str().expect("is text");
    run_helm(&[&[verb, RELEASE, chart][..], &VALUES].concat()).await;
}

fn image(spec: &Value) -> &str {
    spec["containers"][0]["image"].as_str().unwrap_or_default()
}

/// Pods of the release's Deployments, leaving ones too.
async fn serving(cluster: &Cluster) -> Vec<DynamicObject> {
    let labels = ListParams::default().labels("app.kubernetes.io/component in (gateway, orchestrator)");
    cluster.api("v1", "Pod", RELEASES).list(&labels).await.expect("is told").items
}

/// Waits until this version serves, and nothing of another is there any more.
async fn has_rolled(cluster: &Cluster, version: &str) {
    let tag = format!(":{version}");
    for part in ["orchestrator", "gateway"] {
        let deployments = cluster.api("apps/v1", "Deployment", RELEASES);
        let name = format!("{RELEASE}-{part}");
        until(&format!("{part} of {version}"), async || {
            let found = deployments.get(&name).await.ok()?;
            let (spec, status) = (&found.data["spec"], &found.data["status"]);
            let wanted = spec["replicas"].as_i64()?;
            let counts = ["replicas", "updatedReplicas", "availableReplicas"];
            let is_whole = counts.iter().all(|count| status[*count].as_i64() == Some(wanted));
            let is_seen = status["observedGeneration"].as_i64() >= found.metadata.generation;
            (is_whole && is_seen && image(&spec["template"]["spec"]).ends_with(&tag)).then_some(())
        })
        .await;
    }
    until("pods of another version are gone", async || {
        let pods = serving(cluster).await;
        pods.iter().all(|pod| image(&pod.data["spec"]).ends_with(&tag)).then_some(())
    })
    .await;
}

/// What is there before a release.
async fn prepare(cluster: &Cluster, database: &str) {
    let object =
        |kind: &str, name: &str| json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name } });
    cluster.apply(&object("Namespace", RELEASES), "").await;
    let mut secret = object("Secret", "postern-database");
    secret["stringData"] = json!({ "url": database });
    cluster.apply(&secret, RELEASES).await;
    let mut class = object("RuntimeClass", "gvisor");
    class["apiVersion"] = "node.k8s.io/v1".into();
    class["handler"] = "runsc".into();
    cluster.apply(&class, "").await;
}

/// What answers to requests, alone in its network.
fn backend(home: &Path) -> (Network, Part) {
    let served = home.join("served");
    fs::create_dir(&served).expect("a folder");
    fs::write(served.join("orders"), "[]").expect("writes");
    let network = Network::new("upgrade-backend", BACKEND.parse().expect("an address"));
    let mut command = network.command("python3");
    command.args(["-m", "http.server", "--bind", BACKEND, "9000", "--directory"]).arg(served);
    let part = Part::start("upgrade-backend", &command);
    (network, part)
}

/// A sandbox that runs, by the API behind its Service; the address of its pod.
async fn sandbox(cluster: &Cluster, keys: &BTreeMap<String, Vec<u8>>) -> IpAddr {
    let services = cluster.api("v1", "Service", RELEASES);
    let service = services.get(&format!("{RELEASE}-orchestrator")).await.expect("is there");
    let url = format!("http://{}:8080", service.data["spec"]["clusterIP"].as_str().expect("an address"));
    let key = String::from_utf8(keys["POSTERN_API_KEY"].clone()).expect("is text");
    let authorization = format!("Bearer {key}");
    let wanted = json!({ "user_id": "alice", "conversation_id": "c1" });
    let made = until("a sandbox", async || {
        let headers = [("Authorization", authorization.as_str())];
        let answer = try_http(&url, "POST", "/sandbox?wait=running", &headers, Some(&wanted)).ok()?;
        matches!(answer.status, 200 | 201).then(|| answer.json())
    })
    .await;
    assert_eq!(made["status"], "running", "{made}");
    address_in(cluster, SANDBOXES, &id(&made)).await
}

pub(crate) async fn an_upgrade_under_load_and_the_way_back_fail_no_request_and_change_no_key(
    cluster: &Cluster,
) {
    // Sockets have short names.
    let home = tempfile::tempdir().expect("a folder");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("is ours");
    let (_database, url) = postgres(&home.path().join("pg"), Some(NODE_ADDRESS));
    let _backend = backend(home.path());
    let _workloads = cluster.run_workloads();
    prepare(cluster, &url).await;
    let chart = project().join("charts/agent-sandbox-kit");
    let (before, now) = (chart_of_before(&chart), version(&chart));
    assert_ne!(now, BEFORE);

    put("install", &before).await;
    has_rolled(cluster, BEFORE).await;
    let made = keys(cluster, RELEASES).await;
    let pod = sandbox(cluster, &made).await;
    let cache = export("nfs.test", "/files").join("postern-cache");
    assert!(cache.is_dir(), "orchestrators' claim is bound to the export, and the cache is on it");

    let load = Load::start(cluster, pod);
    put("upgrade", &chart).await;
    has_rolled(cluster, &now).await;
    assert_eq!(keys(cluster, RELEASES).await, made, "an upgrade changes no key");
    run_helm(&["rollback", RELEASE, "1"]).await;
    has_rolled(cluster, BEFORE).await;
    assert_eq!(keys(cluster, RELEASES).await, made, "a rollback changes no key");
    let (done, failed) = load.end();
    println!("k8s: {done} requests while two versions took turns, {} failed", failed.len());
    assert!(failed.is_empty(), "of {done}: {failed:#?}");
    assert!(done >= AT_LEAST, "only {done} requests");

    run_helm(&["uninstall", RELEASE]).await;
    until("the release's pods are gone", async || serving(cluster).await.is_empty().then_some(())).await;
    assert_eq!(keys(cluster, RELEASES).await, made, "what is over takes no key along");
}
