// SPDX-License-Identifier: Apache-2.0
//! One node: for each pod that is bound to it, the pod's containers are really started, in a network
//! namespace at an address of their own and in namespaces of bubblewrap; its status is written, and
//! on deletion they end and the pod is gone.
//!
//! It is not a kubelet: images are names (`image`), probes but for readiness are not asked, and what has
//! ended is not started again. What a pod's spec says of commands, environment, users, volumes and
//! security is taken from the spec, and what it cannot honour is refused, so that a template which
//! would not do on a cluster does not do here.

mod container;
mod given;
mod image;
pub(crate) mod pod;
mod ready;

use crate::cluster::{NODE_ADDRESS, pod_address};
use crate::policy::{Allowed, Walls, Way};
use crate::services::Names;
use futures_util::StreamExt as _;
use given::Given;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use pod::{Ended, Running, Wrong};
use ready::{Leave, Probe};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;

/// The node's name.
pub(crate) const NAME: &str = "node-1";
/// How often is looked whether a pod's processes still run.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Addresses are given out again from here on after this many.
const ADDRESSES: u16 = 200;

/// The node, and what runs on it.
#[derive(Debug)]
pub(crate) struct Node {
    works: Vec<JoinHandle<()>>,
    inner: Arc<Inner>,
    names: Names,
}

struct Inner {
    client: Client,
    /// By UID.
    pods: Mutex<BTreeMap<String, Running>>,
    /// Addresses in use, and the one that was given last.
    addresses: Mutex<(BTreeSet<u16>, u16)>,
    walls: Arc<Mutex<Walls>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Inner").field("pods", &self.pods).finish_non_exhaustive()
    }
}

impl Node {
    /// Registers it, and begins to look for pods.
    pub(crate) async fn start(client: Client) -> Self {
        let nodes: Api<NodeObject> = Api::all(client.clone());
        let node: NodeObject = serde_json::from_value(json!({
            "metadata": { "name": NAME, "labels": { "kubernetes.io/hostname": NAME } },
        }))
        .expect("is one");
        nodes.create(&PostParams::default(), &node).await.expect("is registered");
        let room = json!({ "cpu": "64", "memory": "256Gi", "pods": "5000", "ephemeral-storage": "100Gi" });
        let status = json!({ "status": {
            "capacity": room,
            "allocatable": room,
            "conditions": [{ "type": "Ready", "status": "True", "reason": "Test", "message": "" }],
            "addresses": [{ "type": "InternalIP", "address": NODE_ADDRESS }],
        } });
        nodes.patch_status(NAME, &PatchParams::default(), &Patch::Merge(status)).await.expect("is ready");
        // Admission taints what is new; the controller that takes that away again is not here.
        let untainted = Patch::Merge(json!({ "spec": { "taints": null } }));
        nodes.patch(NAME, &PatchParams::default(), &untainted).await.expect("is usable");
        let inner = Arc::new(Inner {
            client: client.clone(),
            pods: Mutex::default(),
            addresses: Mutex::default(),
            walls: Arc::new(Mutex::new(Walls::new())),
        });
        let names = Names::default();
        #[expect(clippy::disallowed_methods, reason = "the handles are kept, and aborted when the node ends")]
        let works = vec![
            tokio::spawn(Arc::clone(&inner).follow()),
            tokio::spawn(Arc::clone(&inner).look_after()),
            tokio::spawn(crate::policy::follow(client.clone(), Arc::clone(&inner.walls))),
            tokio::spawn(crate::services::follow(client, Arc::clone(&names))),
        ];
        Self { works, inner, names }
    }

    /// Where Services are.
    pub(crate) fn names(&self) -> Names {
        Arc::clone(&self.names)
    }

    /// Kills the processes of a pod as a node's trouble would, and leaves the rest to the cluster.
    pub(crate) fn kill_processes(&self, address: IpAddr) {
        let mut pods = self.inner.pods.lock().expect("no panic");
        pods.values_mut().filter(|pod| pod.address() == address).for_each(|pod| pod.kill(None));
    }

    /// The same for one container.
    pub(crate) fn kill_container(&self, address: IpAddr, name: &str) {
        let mut pods = self.inner.pods.lock().expect("no panic");
        pods.values_mut().filter(|pod| pod.address() == address).for_each(|pod| pod.kill(Some(name)));
    }

    /// The next pods get this address, once it is free.
    pub(crate) fn give_next(&self, address: IpAddr) {
        let IpAddr::V4(address) = address else { panic!("pods have IPv4") };
        let [_, _, high, low] = address.octets();
        let number = u16::from_be_bytes([high - 1, low]);
        self.inner.addresses.lock().expect("no panic").1 = number - 1;
    }

    /// Something that is no pod of this node's, and has an address and labels as one.
    pub(crate) fn add_neighbour(
        &self,
        name: &str,
        namespace: &str,
        labels: &[(&str, &str)],
        address: IpAddr,
    ) {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.inner.walls.lock().expect("no panic").add_pod(name, namespace, labels, address);
    }

    /// It has no address any more.
    pub(crate) fn remove_neighbour(&self, name: &str) {
        // A case that failed in the middle of a change has said so already.
        if let Ok(mut walls) = self.inner.walls.lock() {
            walls.remove_pod(name);
        }
    }

    /// What all policies together allow the pod at this address.
    pub(crate) fn allowed(&self, address: IpAddr, way: Way) -> Allowed {
        self.inner.walls.lock().expect("no panic").allowed(address, way)
    }

    /// Runs a command in a pod's network, as a process of the pod's would be.
    pub(crate) fn in_network(&self, address: IpAddr, arguments: &[&str]) -> std::process::Output {
        self.command_in(address).args(arguments).output().expect("nsenter starts")
    }

    /// The same, to be started: what follows are the command's own words.
    pub(crate) fn command_in(&self, address: IpAddr) -> std::process::Command {
        let pods = self.inner.pods.lock().expect("no panic");
        let pod = pods.values().find(|pod| pod.address() == address).expect("a pod has this address");
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", pod.network()));
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.works.iter().for_each(JoinHandle::abort);
        self.inner.pods.lock().expect("no panic").clear();
    }
}

impl Inner {
    async fn follow(self: Arc<Self>) {
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={NAME}"));
        let pods = Api::<Pod>::all(self.client.clone());
        let mut events = std::pin::pin!(watcher(pods, mine).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => self.see(&pod).await,
                Ok(watcher::Event::Delete(pod)) => self.end(&pod.uid().unwrap_or_default()),
                Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                Err(error) => println!("node: {error}"),
            }
        }
    }

    async fn see(self: &Arc<Self>, pod: &Pod) {
        let uid = pod.uid().expect("has one");
        if pod.metadata.deletion_timestamp.is_some() {
            self.see_off(pod, &uid).await;
            return;
        }
        if self.pods.lock().expect("no panic").contains_key(&uid) {
            return;
        }
        let number = self.address();
        let address = pod_address(number);
        // Nothing of it runs before the walls around it stand.
        self.wall(pod, address);
        let started = match Given::read(&self.client, pod).await {
            Ok(given) => Running::start(pod, &given, address),
            Err(wrong) => Err(wrong),
        };
        match started {
            Ok(running) => {
                let is_ready = running.is_ready();
                self.pods.lock().expect("no panic").insert(uid.clone(), running);
                self.write(pod, &up(pod, address, is_ready)).await;
                // INVARIANT: an end is written after the beginning, or the pod would seem to run for ever.
                if let Some(running) = self.pods.lock().expect("no panic").get_mut(&uid) {
                    running.told();
                }
            }
            Err(wrong) => {
                self.walls.lock().expect("no panic").remove_pod(&uid);
                self.addresses.lock().expect("no panic").0.remove(&number);
                self.write(pod, &refused(pod, &wrong)).await;
            }
        }
    }

    /// A pod is deleted: one that asks for a pause gets it, beside whatever else goes on.
    async fn see_off(self: &Arc<Self>, pod: &Pod, uid: &str) {
        let is_first = self.pods.lock().expect("no panic").get_mut(uid).map(Running::begin_to_leave);
        match (Leave::of(pod), is_first) {
            (Some(leave), Some(true)) => {
                let gone = Arc::clone(self).let_leave(pod.clone(), leave);
                #[expect(clippy::disallowed_methods, reason = "it ends within the pod's grace period")]
                drop(tokio::spawn(gone));
            }
            (Some(_), Some(false)) => {}
            _ => self.remove(pod, uid).await,
        }
    }

    /// As a kubelet: the pause, the word to end, and what is left of its time.
    async fn let_leave(self: Arc<Self>, pod: Pod, leave: Leave) {
        let uid = pod.uid().unwrap_or_default();
        let deadline = tokio::time::Instant::now() + leave.grace;
        tokio::time::sleep(leave.pause).await;
        self.pods.lock().expect("no panic").get(&uid).into_iter().for_each(Running::ask_to_end);
        while tokio::time::Instant::now() < deadline {
            let has_left = self.pods.lock().expect("no panic").get_mut(&uid).is_none_or(Running::has_left);
            if has_left {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.remove(&pod, &uid).await;
    }

    async fn remove(&self, pod: &Pod, uid: &str) {
        self.end(uid);
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        // It may be gone already.
        drop(self.pods_of(pod).delete(&pod.name_any(), &now).await);
    }

    fn wall(&self, pod: &Pod, address: IpAddr) {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let namespace = pod.namespace().unwrap_or_default();
        self.walls.lock().expect("no panic").add_pod(
            &pod.uid().unwrap_or_default(),
            &namespace,
            labels,
            address,
        );
    }

    fn address(&self) -> u16 {
        let mut addresses = self.addresses.lock().expect("no panic");
        loop {
            addresses.1 = addresses.1 % ADDRESSES + 1;
            let next = addresses.1;
            if addresses.0.insert(next) {
                return next;
            }
        }
    }

    fn end(&self, uid: &str) {
        let ended = self.pods.lock().expect("no panic").remove(uid);
        let Some(ended) = ended else { return };
        self.walls.lock().expect("no panic").remove_pod(uid);
        let IpAddr::V4(address) = ended.address() else { return };
        let [_, _, high, low] = address.octets();
        drop(ended);
        self.addresses.lock().expect("no panic").0.remove(&u16::from_be_bytes([high - 1, low]));
    }

    /// Tells of containers that have ended, and of pods that are ready or not any more.
    async fn look_after(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let ended: Vec<Ended> = {
                let mut pods = self.pods.lock().expect("no panic");
                pods.values_mut().filter_map(Running::has_ended).collect()
            };
            for it in ended {
                self.write(&it.pod, &over(&it)).await;
            }
            self.ask_whether_ready().await;
        }
    }

    async fn ask_whether_ready(&self) {
        let probes: Vec<(String, Probe)> = {
            let pods = self.pods.lock().expect("no panic");
            pods.iter().filter_map(|(uid, pod)| Some((uid.clone(), pod.probe()?))).collect()
        };
        let answers =
            futures_util::future::join_all(probes.iter().map(|(_, probe)| probe.is_answered())).await;
        let changed: Vec<(Pod, Value)> = {
            let mut pods = self.pods.lock().expect("no panic");
            let heard = probes.iter().zip(answers).filter_map(|((uid, _), is_good)| {
                let pod = pods.get_mut(uid)?;
                pod.heard(is_good).then(|| (pod.pod().clone(), up(pod.pod(), pod.address(), pod.is_ready())))
            });
            heard.collect()
        };
        for (pod, status) in &changed {
            self.write(pod, status).await;
        }
    }

    fn pods_of(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &pod.namespace().expect("has one"))
    }

    async fn write(&self, pod: &Pod, status: &Value) {
        let patch = Patch::Merge(json!({ "status": status }));
        let written = self.pods_of(pod).patch_status(&pod.name_any(), &PatchParams::default(), &patch).await;
        if let Err(error) = written {
            // Deleted meanwhile.
            println!("node: status of {}: {error}", pod.name_any());
        }
    }
}

/// Pods everywhere, for whoever counts them.
pub(crate) async fn count(client: &Client, namespace: &str) -> usize {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    pods.list(&ListParams::default()).await.expect("is told").items.len()
}

fn up(pod: &Pod, address: IpAddr, is_ready: bool) -> Value {
    let ready = if is_ready { "True" } else { "False" };
    let conditions =
        [("PodScheduled", "True"), ("Initialized", "True"), ("ContainersReady", ready), ("Ready", ready)];
    let conditions = conditions.map(|(of, status)| json!({ "type": of, "status": status }));
    let containers = pod.spec.as_ref().map(|spec| spec.containers.clone()).unwrap_or_default();
    let containers: Vec<_> = containers
        .iter()
        .map(|container| {
            json!({
                "name": container.name, "ready": is_ready, "restartCount": 0, "image": container.image,
                "imageID": "", "started": true, "state": { "running": {} },
            })
        })
        .collect();
    json!({
        "phase": "Running",
        "podIP": address,
        "podIPs": [{ "ip": address }],
        "hostIP": NODE_ADDRESS,
        "conditions": conditions,
        "containerStatuses": containers,
    })
}

/// A pod runs until its last container has ended (as with `restartPolicy: Never`, whatever its own says), and
/// is not ready without one.
fn over(ended: &Ended) -> Value {
    let containers = ended.pod.spec.as_ref().map(|spec| spec.containers.clone()).unwrap_or_default();
    let is_over = containers.iter().all(|it| ended.over.contains_key(&it.name));
    let is_good = ended.over.values().all(|(code, _)| *code == 0);
    let phase = match (is_over, is_good) {
        (false, _) => "Running",
        (true, true) => "Succeeded",
        (true, false) => "Failed",
    };
    let containers: Vec<_> = containers
        .iter()
        .map(|container| {
            let state = match ended.over.get(&container.name) {
                None => json!({ "running": {} }),
                Some((code, said)) => {
                    let reason = if *code == 0 { "Completed" } else { "Error" };
                    let terminated = json!({ "exitCode": code, "reason": reason, "message": said });
                    json!({ "running": null, "terminated": terminated })
                }
            };
            json!({
                "name": container.name, "ready": !ended.over.contains_key(&container.name), "restartCount": 0,
                "image": container.image, "imageID": "", "state": state,
            })
        })
        .collect();
    json!({
        "phase": phase,
        "conditions": [{ "type": "Ready", "status": "False" }],
        "containerStatuses": containers,
    })
}

fn refused(pod: &Pod, wrong: &Wrong) -> Value {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.clone()).unwrap_or_default();
    let (reason, message) = wrong.told();
    let containers: Vec<_> = containers
        .iter()
        .map(|container| {
            json!({
                "name": container.name, "ready": false, "restartCount": 0, "image": container.image,
                "imageID": "", "state": { "waiting": { "reason": reason, "message": message } },
            })
        })
        .collect();
    json!({ "phase": "Pending", "containerStatuses": containers })
}
