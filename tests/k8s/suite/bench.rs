// SPDX-License-Identifier: Apache-2.0
//! What the orchestrator adds to the cluster's own time. Nodes are kwok's here: their pods run
//! nothing, so orders to them are taken by one answerer at all their addresses. There are two orchestrators
//! on one Postgres; each figure but the rate is the first one's.
//!
//! The figures are the orchestrator's share: the time from the request to the claim, and from the
//! pod's being ready to the answer. What the API server and the controller take in between is theirs,
//! and is measured by the orchestrator's own clock (`cluster_micros` in its log). A cluster has other machines for
//! its own work, such as the next pod of a pool: while the share is measured, that leaves the cores to us.

use crate::cases::replicas::postgres;
use crate::cluster::{Cluster, NODE_ADDRESS, kubeconfig, until};
use crate::manifests;
use crate::parts::{Part, cache, folder, program};
use crate::postern::{ORCHESTRATOR_ADDRESS, Postern, RELEASE, SECOND_ADDRESS};
use crate::running::project;
use futures_util::StreamExt as _;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Addresses of kwok's pods.
const PODS: &str = "198.18.0.0/16";
const TEMPLATE: &str = "bench";
/// Sandboxes made one after the other for the share.
const SHARED: usize = 200;
/// Conversations at the same time for the rate, in both loops.
const AT_ONCE: usize = 8;
/// How long each loop of the rate runs.
const RATE_TIME: Duration = Duration::from_secs(60);
/// Lifecycles whose writes are counted.
const COUNTED: usize = 20;

/// One figure, what was measured beside it, and its bar.
struct Row {
    name: &'static str,
    value: f64,
    unit: &'static str,
    against: Option<f64>,
    /// What is held to the bar: the value, or its ratio to what was measured beside it.
    is_met: bool,
    bar: &'static str,
}

impl Row {
    fn most(name: &'static str, value: f64, unit: &'static str, most: f64, bar: &'static str) -> Self {
        Self { name, value, unit, against: None, is_met: value <= most, bar }
    }

    fn ratio(&self) -> Option<f64> {
        self.against.map(|against| self.value / against)
    }

    fn json(&self) -> Value {
        let Self { name, value, unit, against, .. } = self;
        json!({ "name": name, "value": value, "unit": unit, "against": against, "ratio": self.ratio() })
    }

    fn print(&self) {
        let Self { name, value, unit, bar, .. } = self;
        let beside = self.against.map_or_else(String::new, |against| format!("beside {against:.1}"));
        let verdict = if self.is_met { "ok" } else { "MISSED" };
        println!("{name:<22} {value:>9.2} {unit:<9} {beside:<14} bar {bar}: {verdict}");
    }
}

/// Measures, prints a table, and writes `target/bench/kubernetes.json`; whether every bar was met.
pub(crate) async fn run(cluster: &Cluster) -> bool {
    // Sockets have short names.
    let home = tempfile::tempdir().expect("a folder");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("is ours");
    let (_database, url) = postgres(&home.path().join("pg"), None);
    let postern = Postern::start_bench(cluster, "bench", url).await;
    let kwok = start_kwok(cluster).await;
    let _answerers = postern.answer_for(PODS);
    let template = on_kwok(manifests::template(TEMPLATE, &postern.control_key()));
    cluster.apply(&template, &postern.namespace).await;
    postern.add_templates(&[TEMPLATE]);
    let mut rows = Vec::new();
    // Each is told as soon as it is known: all of them take ten minutes.
    let mut add = |row: Row| {
        row.print();
        rows.push(row);
    };
    let make_way = |does| cluster.parts().chain([&kwok]).for_each(|part| part.make_way(does));
    make_way(true);
    let share = share(&postern).await;
    make_way(false);
    add(Row::most("our_share.p50", quantile(&share, 50), "ms", 15.0, "15 ms"));
    add(Row::most("our_share.p99", quantile(&share, 99), "ms", 50.0, "50 ms"));
    add(Row::most("writes_per_lifecycle", writes(&postern).await, "writes", 4.0, "4"));
    let (bare, ours) = (bare_rate(&postern).await, our_rate(&postern).await);
    add(Row {
        name: "sustained_rate",
        value: ours,
        unit: "claims/s",
        against: Some(bare),
        is_met: ours >= 0.9 * bare,
        bar: "0.9 x",
    });
    let (at_1000, at_2000) = memory(&postern).await;
    let growth = at_2000.saturating_sub(at_1000) / 1000;
    add(Row::most("live_1000", whole(at_1000) / 1e6, "MB", 120.0, "120 MB"));
    add(Row::most("live_1000.growth", whole(growth) / 1024.0, "KiB", 20.0, "20 KiB"));
    let to = project().join("target/bench");
    fs::create_dir_all(&to).expect("a folder");
    let all: Vec<_> = rows.iter().map(Row::json).collect();
    let text = serde_json::to_string_pretty(&all).expect("JSON");
    fs::write(to.join("kubernetes.json"), text).expect("writes");
    let missed: Vec<_> = rows.iter().filter(|row| !row.is_met).map(|row| row.name).collect();
    if !missed.is_empty() {
        println!("bench: missed: {}", missed.join(", "));
    }
    missed.is_empty()
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
const fn whole(number: u64) -> f64 {
    number as f64
}

fn quantile(sorted: &[f64], percent: usize) -> f64 {
    let place = (sorted.len() * percent / 100).min(sorted.len() - 1);
    sorted[place]
}

async fn start_kwok(cluster: &Cluster) -> Part {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "kwok-0", "annotations": { "kwok.x-k8s.io/node": "fake" } },
        "spec": { "taints": [{ "key": "kwok.x-k8s.io/node", "effect": "NoSchedule" }] },
    });
    cluster.apply(&node, "").await;
    let mut kwok = std::process::Command::new(program("kwok"));
    kwok.arg(format!("--kubeconfig={}", kubeconfig("admin", crate::cluster::ADMIN).display()))
        .arg(format!("--config={}", cache().join("stages.yaml").display()))
        .arg(format!("--cidr={PODS}"))
        .arg(format!("--node-ip={NODE_ADDRESS}"))
        .args([
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=40",
        ])
        .env("HOME", folder());
    Part::start("kwok", &kwok)
}

/// Pods of this template are kwok's, whose node takes any number.
fn on_kwok(mut template: Value) -> Value {
    let pod = &mut template["spec"]["podTemplate"]["spec"];
    pod["nodeName"] = "kwok-0".into();
    pod["tolerations"] = json!([{ "operator": "Exists" }]);
    template
}

/// Has the pool keep this many, and waits until it does.
async fn fill(postern: &Postern<'_>, count: usize) {
    let replicas = u32::try_from(count).expect("fits");
    postern.cluster.apply(&manifests::pool(TEMPLATE, replicas), &postern.namespace).await;
    let pools =
        postern.cluster.api("extensions.agents.x-k8s.io/v1beta1", "SandboxWarmPool", &postern.namespace);
    until("the pool is filled", async || {
        let pool = pools.get(TEMPLATE).await.ok()?;
        (pool.data["status"]["readyReplicas"].as_u64() == Some(u64::from(replicas))).then_some(())
    })
    .await;
}

fn wanted(conversation: &str) -> Value {
    json!({ "user_id": "bench", "conversation_id": conversation, "template": TEMPLATE })
}

/// One sandbox by the replica at this address: its id, and how long the call took.
fn made(postern: &Postern<'_>, at: &str, conversation: &str) -> (String, Duration) {
    let begun = Instant::now();
    let answer = postern.call_at(at, "POST", "/sandbox?wait=running", Some(&wanted(conversation)));
    let took = begun.elapsed();
    assert_eq!(answer.status, 201, "{answer:?}");
    (answer.json()["sandbox_id"].as_str().expect("an id").to_owned(), took)
}

/// Waits until nothing of what was measured before is left.
async fn settle(postern: &Postern<'_>) {
    let claims =
        postern.cluster.api("extensions.agents.x-k8s.io/v1beta1", "SandboxClaim", &postern.namespace);
    until("no claim is left", async || {
        claims.list(&ListParams::default()).await.ok()?.items.is_empty().then_some(())
    })
    .await;
}

/// Milliseconds of each call that were not the cluster's, sorted.
async fn share(postern: &Postern<'_>) -> Vec<f64> {
    fill(postern, 20).await;
    let mut calls = BTreeMap::new();
    for number in 0..SHARED {
        let (id, took) = made(postern, ORCHESTRATOR_ADDRESS, &format!("share-{number}"));
        calls.insert(id.clone(), took);
        drop(postern.call("DELETE", &format!("/sandbox/{id}?wait=no"), None));
    }
    let of_cluster = postern.times_of_cluster();
    let mut share: Vec<f64> =
        calls.iter().map(|(id, took)| (took.as_secs_f64() - of_cluster[id].as_secs_f64()) * 1000.0).collect();
    share.sort_by(f64::total_cmp);
    share
}

/// Writes to the API server by our account, for each lifecycle.
async fn writes(postern: &Postern<'_>) -> f64 {
    settle(postern).await;
    let count = || fs::read_to_string(folder().join("audit.log")).unwrap_or_default().lines().count();
    let before = count();
    for number in 0..COUNTED {
        let (id, _) = made(postern, ORCHESTRATOR_ADDRESS, &format!("writes-{number}"));
        assert_eq!(postern.call("DELETE", &format!("/sandbox/{id}"), None).status, 200);
    }
    let counted = u64::try_from(count() - before).expect("fits");
    whole(counted) / whole(u64::try_from(COUNTED).expect("fits"))
}

/// Sandboxes for each second through the API, made and destroyed; each replica has half of the callers.
async fn our_rate(postern: &Postern<'_>) -> f64 {
    settle(postern).await;
    fill(postern, 50).await;
    let begun = Instant::now();
    let count: usize = std::thread::scope(|scope| {
        let loops: Vec<_> = (0..AT_ONCE)
            .map(|place| {
                scope.spawn(move || {
                    let mut count = 0;
                    let at = [ORCHESTRATOR_ADDRESS, SECOND_ADDRESS][place % 2];
                    while begun.elapsed() < RATE_TIME {
                        let (id, _) = made(postern, at, &format!("rate-{place}-{count}"));
                        let ended = postern.call_at(at, "DELETE", &format!("/sandbox/{id}?wait=no"), None);
                        assert!(matches!(ended.status, 200 | 202), "{ended:?}");
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        loops.into_iter().map(|it| it.join().expect("no panic")).sum()
    });
    whole(u64::try_from(count).expect("fits")) / begun.elapsed().as_secs_f64()
}

/// Claims for each second by nothing but a client and a watch, made, seen ready and deleted.
async fn bare_rate(postern: &Postern<'_>) -> f64 {
    fill(postern, 50).await;
    let claims =
        postern.cluster.api("extensions.agents.x-k8s.io/v1beta1", "SandboxClaim", &postern.namespace);
    let ready: Arc<(Mutex<BTreeSet<String>>, Notify)> = Arc::default();
    let seen = see_ready(claims.clone(), Arc::clone(&ready));
    let begun = Instant::now();
    let one = async |place: usize| {
        let mut count: u64 = 0;
        while begun.elapsed() < RATE_TIME {
            let name = format!("bare-{place}-{count}");
            let claim = serde_json::from_value(json!({
                "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxClaim",
                "metadata": { "name": name }, "spec": { "warmPoolRef": { "name": TEMPLATE } },
            }));
            claims.create(&PostParams::default(), &claim.expect("is one")).await.expect("is made");
            loop {
                let told = ready.1.notified();
                if ready.0.lock().expect("no panic").remove(&name) {
                    break;
                }
                // Told between the two lines above: looked at again soon.
                drop(tokio::time::timeout(Duration::from_millis(20), told).await);
            }
            claims.delete(&name, &DeleteParams::background()).await.expect("is deleted");
            count += 1;
        }
        count
    };
    let loops = futures_util::future::join_all((0..AT_ONCE).map(one));
    let counts = tokio::select! {
        counts = loops => counts,
        () = seen => panic!("the watch ended"),
    };
    whole(counts.iter().sum()) / begun.elapsed().as_secs_f64()
}

async fn see_ready(claims: Api<DynamicObject>, ready: Arc<(Mutex<BTreeSet<String>>, Notify)>) {
    let mut events = std::pin::pin!(watcher(claims, watcher::Config::default()).default_backoff());
    while let Some(event) = events.next().await {
        let Ok(watcher::Event::Apply(claim)) = event else { continue };
        let conditions = claim.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is_ready = conditions.iter().any(|it| it["type"] == "Ready" && it["status"] == "True");
        if let Some(name) = claim.metadata.name.filter(|_| is_ready) {
            ready.0.lock().expect("no panic").insert(name);
            ready.1.notify_waiters();
        }
    }
}

/// The orchestrator's memory with 1,000 and with 2,000 live sandboxes.
async fn memory(postern: &Postern<'_>) -> (u64, u64) {
    settle(postern).await;
    fill(postern, 50).await;
    let mut at = [0, 0];
    for (round, memory) in at.iter_mut().enumerate() {
        std::thread::scope(|scope| {
            for place in 0..AT_ONCE {
                scope.spawn(move || {
                    for number in (place..1000).step_by(AT_ONCE) {
                        made(postern, ORCHESTRATOR_ADDRESS, &format!("live-{round}-{number}"));
                    }
                });
            }
        });
        let claims =
            postern.cluster.api("extensions.agents.x-k8s.io/v1beta1", "SandboxClaim", &postern.namespace);
        let count = claims.list(&ListParams::default()).await.expect("is told").items.len();
        assert_eq!(count, 1000 * (round + 1), "in {RELEASE}");
        *memory = postern.memory();
    }
    (at[0], at[1])
}
