// SPDX-License-Identifier: Apache-2.0
//! Network policies as they are meant: the union of all that select a pod, computed, and written as
//! rules of nftables into this namespace, so that what is not allowed really does not pass.
//!
//! It reads the objects that the API server has, whoever made them; it knows no object of ours.

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

type Labels = BTreeMap<String, String>;
/// One rule's peers and ports.
type Rule<'a> = (Option<&'a Vec<NetworkPolicyPeer>>, Option<&'a Vec<NetworkPolicyPort>>);

/// Everything that decides who may speak to whom.
#[derive(Debug, Default)]
pub(crate) struct Walls {
    /// By UID.
    pods: BTreeMap<String, PodFacts>,
    namespaces: BTreeMap<String, Labels>,
    policies: BTreeMap<(String, String), NetworkPolicy>,
}

#[derive(Debug, Clone)]
struct PodFacts {
    namespace: String,
    labels: Labels,
    address: IpAddr,
}

/// One way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    In,
    Out,
}

/// What a pod may be spoken to by, or speak to; `None`: no policy selects it, so everything.
pub(crate) type Allowed = Option<BTreeSet<Opening>>;

/// One opening: a network, what of it is left out, and ports (none: every port).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Opening {
    pub(crate) network: String,
    pub(crate) except: Vec<String>,
    pub(crate) ports: Vec<(String, String)>,
}

impl Walls {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn add_pod(&mut self, uid: &str, namespace: &str, labels: Labels, address: IpAddr) {
        let facts = PodFacts { namespace: namespace.to_owned(), labels, address };
        self.pods.insert(uid.to_owned(), facts);
        self.build();
    }

    pub(crate) fn remove_pod(&mut self, uid: &str) {
        if self.pods.remove(uid).is_some() {
            self.build();
        }
    }

    /// The union of all policies that select the pod at this address.
    pub(crate) fn allowed(&self, address: IpAddr, way: Way) -> Allowed {
        let pod = self.pods.values().find(|pod| pod.address == address).expect("a pod has this address");
        self.union(pod, way)
    }

    fn union(&self, pod: &PodFacts, way: Way) -> Allowed {
        let mut is_selected = false;
        let mut openings = BTreeSet::new();
        for ((namespace, _), policy) in &self.policies {
            let Some(spec) = policy.spec.as_ref().filter(|_| *namespace == pod.namespace) else { continue };
            if !spec.pod_selector.as_ref().is_none_or(|it| selects(it, &pod.labels)) || !is_about(spec, way) {
                continue;
            }
            is_selected = true;
            let rules: Vec<Rule<'_>> = match way {
                Way::In => {
                    spec.ingress.iter().flatten().map(|it| (it.from.as_ref(), it.ports.as_ref())).collect()
                }
                Way::Out => {
                    spec.egress.iter().flatten().map(|it| (it.to.as_ref(), it.ports.as_ref())).collect()
                }
            };
            for (peers, ports) in rules {
                let ports: Vec<_> = ports.into_iter().flatten().map(port).collect();
                openings.extend(self.openings(peers, namespace, &ports));
            }
        }
        is_selected.then_some(openings)
    }

    fn openings(
        &self,
        peers: Option<&Vec<NetworkPolicyPeer>>,
        namespace: &str,
        ports: &[(String, String)],
    ) -> Vec<Opening> {
        let opening =
            |network: String, except: Vec<String>| Opening { network, except, ports: ports.to_vec() };
        let Some(peers) = peers.filter(|peers| !peers.is_empty()) else {
            return vec![opening("0.0.0.0/0".to_owned(), Vec::new())];
        };
        let of_peer = |peer: &NetworkPolicyPeer| -> Vec<Opening> {
            if let Some(block) = &peer.ip_block {
                let is_four = block.cidr.contains('.');
                let except = block.except.clone().unwrap_or_default();
                return Vec::from_iter(is_four.then(|| opening(block.cidr.clone(), except)));
            }
            let fits = |pod: &&PodFacts| {
                let in_namespace = match &peer.namespace_selector {
                    Some(selector) => {
                        self.namespaces.get(&pod.namespace).is_some_and(|labels| selects(selector, labels))
                    }
                    None => pod.namespace == namespace,
                };
                in_namespace && peer.pod_selector.as_ref().is_none_or(|it| selects(it, &pod.labels))
            };
            self.pods.values().filter(fits).map(|pod| opening(pod.address.to_string(), Vec::new())).collect()
        };
        peers.iter().flat_map(of_peer).collect()
    }

    /// Writes the rules anew, all at once.
    fn build(&self) {
        let mut chains = String::new();
        let mut jumps = String::new();
        for (number, pod) in self.pods.values().enumerate() {
            for (way, hook, field, other) in
                [(Way::Out, "out", "saddr", "daddr"), (Way::In, "in", "daddr", "saddr")]
            {
                let Some(openings) = self.union(pod, way) else { continue };
                writeln!(jumps, "ip {field} {} jump {hook}{number}", pod.address).expect("is text");
                writeln!(chains, "chain {hook}{number} {{").expect("is text");
                for opening in &openings {
                    chains.push_str(&rules(opening, other));
                }
                chains.push_str("drop\n}\n");
            }
        }
        let hooks = ["forward", "input"].map(|hook| {
            format!(
                "chain {hook} {{\ntype filter hook {hook} priority 0; policy accept;\n\
                 ct state established,related accept\niifname \"lo\" accept\n{jumps}}}\n"
            )
        });
        let table = format!(
            "table inet walls\ndelete table inet walls\ntable inet walls {{\n{chains}{}}}\n",
            hooks.concat()
        );
        nft(&table);
    }
}

/// Has the kernel take these rules, all at once.
pub(crate) fn nft(table: &str) {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nft starts (`scripts/setup.sh test` installs it)");
    nft.stdin.take().expect("is piped").write_all(table.as_bytes()).expect("is taken");
    let output = nft.wait_with_output().expect("ends");
    assert!(output.status.success(), "{table}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// One opening as rules that let the packet go on to the next check.
fn rules(opening: &Opening, field: &str) -> String {
    let except = match opening.except.as_slice() {
        [] => String::new(),
        except => format!(" ip {field} != {{ {} }}", except.join(", ")),
    };
    let network = format!("ip {field} {}{except}", opening.network);
    if opening.ports.is_empty() {
        return format!("{network} return\n");
    }
    opening
        .ports
        .iter()
        .map(|(protocol, port)| match port.as_str() {
            "" => format!("{network} meta l4proto {protocol} return\n"),
            port => format!("{network} {protocol} dport {port} return\n"),
        })
        .collect()
}

fn port(port: &NetworkPolicyPort) -> (String, String) {
    let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
    let number = match (&port.port, port.end_port) {
        (None, _) => String::new(),
        (Some(IntOrString::Int(first)), Some(last)) => format!("{first}-{last}"),
        (Some(IntOrString::Int(number)), None) => number.to_string(),
        (Some(IntOrString::String(name)), _) => panic!("port `{name}` is a name; ours are numbers"),
    };
    (protocol, number)
}

fn is_about(spec: &k8s_openapi::api::networking::v1::NetworkPolicySpec, way: Way) -> bool {
    match (&spec.policy_types, way) {
        (Some(types), Way::In) => types.iter().any(|it| it == "Ingress"),
        (Some(types), Way::Out) => types.iter().any(|it| it == "Egress"),
        (None, Way::In) => true,
        (None, Way::Out) => spec.egress.is_some(),
    }
}

fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let all = selector.match_labels.iter().flatten().all(|(name, value)| labels.get(name) == Some(value));
    let expressions = selector.match_expressions.iter().flatten().all(|it| {
        let value = labels.get(&it.key);
        let listed = || value.is_some_and(|value| it.values.iter().flatten().any(|one| one == value));
        match it.operator.as_str() {
            "In" => listed(),
            "NotIn" => !listed(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            other => panic!("operator `{other}`"),
        }
    });
    all && expressions
}

/// Keeps the walls at what the API server says.
pub(crate) async fn follow(client: Client, walls: Arc<Mutex<Walls>>) {
    let namespaces = async {
        let api = Api::<Namespace>::all(client.clone());
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        while let Some(event) = events.next().await {
            let Ok(watcher::Event::Apply(it) | watcher::Event::InitApply(it)) = event else { continue };
            let mut walls = walls.lock().expect("no panic");
            walls.namespaces.insert(it.name_any(), it.metadata.labels.clone().unwrap_or_default());
            walls.build();
        }
    };
    let policies = async {
        let api = Api::<NetworkPolicy>::all(client.clone());
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        while let Some(event) = events.next().await {
            let mut walls = walls.lock().expect("no panic");
            let key = |it: &NetworkPolicy| (it.namespace().unwrap_or_default(), it.name_any());
            match event {
                Ok(watcher::Event::Apply(it) | watcher::Event::InitApply(it)) => {
                    walls.policies.insert(key(&it), it);
                }
                Ok(watcher::Event::Delete(it)) => {
                    walls.policies.remove(&key(&it));
                }
                _ => continue,
            }
            walls.build();
        }
    };
    futures_util::future::join(namespaces, policies).await;
}
