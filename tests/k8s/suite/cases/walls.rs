// SPDX-License-Identifier: Apache-2.0
//! What a sandbox's pod can reach, and who can reach it: as the union of all network policies says,
//! whoever made them, and as packets find it.

use super::lifecycle::{address, claims, id, pool_of};
use crate::cluster::{Cluster, NODE_ADDRESS, until};
use crate::manifests;
use crate::policy::{Opening, Way};
use crate::postern::{GATEWAY_ADDRESS, ORCHESTRATOR_ADDRESS, Postern};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Tries to open a connection from within a pod's network; whether it stood.
fn connects(cluster: &Cluster, from: IpAddr, to: &str, port: u16) -> bool {
    let script =
        format!("import socket; socket.create_connection(('{to}', {port}), 1).close(); print('open')");
    let output = cluster.node.in_network(from, &["python3", "-I", "-c", &script]);
    String::from_utf8_lossy(&output.stdout).contains("open")
}

/// Speaks HTTP/2 to a port of its own pod, and tells how many bytes came back.
const SPEAKS: &str = r"
import socket
s = socket.create_connection(('127.0.0.1', PORT), 5)
s.settimeout(20)
try:
    s.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    print(len(s.recv(1)))
except OSError:
    print(0)
";

fn opening(address: &str, ports: &[u16]) -> Opening {
    let ports = ports.iter().map(|port| ("tcp".to_owned(), port.to_string())).collect();
    Opening { network: address.to_owned(), except: Vec::new(), ports }
}

pub(crate) async fn only_the_gateway_is_reachable_from_a_sandbox(cluster: &Cluster) {
    let postern = Postern::start(cluster, "walls").await;
    let (first, second) = (id(&postern.sandbox("alice", "c1")), id(&postern.sandbox("bob", "c2")));
    let (pod, neighbour) = (address(&postern, &first).await, address(&postern, &second).await);
    let outward = cluster.node.allowed(pod, Way::Out).expect("a policy selects it");
    assert_eq!(outward, BTreeSet::from([opening(GATEWAY_ADDRESS, &[8081])]), "the union of all policies");
    let inward = cluster.node.allowed(pod, Way::In).expect("a policy selects it");
    assert_eq!(inward, BTreeSet::from([opening(ORCHESTRATOR_ADDRESS, &[49983, 49984])]));

    let elsewhere = [
        ("the API server", NODE_ADDRESS, 6443),
        ("the orchestrator's API", ORCHESTRATOR_ADDRESS, 8080),
        ("the control stream", ORCHESTRATOR_ADDRESS, 8082),
        ("a neighbour", &neighbour.to_string(), 49983),
    ];
    assert!(connects(cluster, pod, GATEWAY_ADDRESS, 8081));
    for (what, address, port) in elsewhere {
        assert!(!connects(cluster, pod, address, port), "{what}");
    }
    // The control: the same without policies, in a pod whose template leaves the controller out.
    let mut open = manifests::template("walled-off", &postern.control_key());
    open["spec"]["networkPolicyManagement"] = "Unmanaged".into();
    open["spec"].as_object_mut().expect("an object").remove("networkPolicy");
    cluster.apply(&open, &postern.namespace).await;
    cluster.apply(&manifests::pool("walled-off", 1), &postern.namespace).await;
    let name = until("a pod without walls", async || {
        let pods = cluster.api("v1", "Pod", &postern.namespace);
        let all = pods.list(&kube::api::ListParams::default()).await.ok()?;
        let is_it = |pod: &kube::api::DynamicObject| {
            pod.metadata.name.as_deref().is_some_and(|name| name.starts_with("walled-off-"))
        };
        let found = all.items.into_iter().find(is_it)?;
        found.data["status"]["podIP"].as_str()?.parse::<IpAddr>().ok()
    })
    .await;
    for (what, address, port) in elsewhere.iter().take(3) {
        assert!(connects(cluster, name, address, *port), "without walls there is {what}");
    }
}

pub(crate) async fn a_destroyed_pod_s_address_opens_nothing_with_the_old_token(cluster: &Cluster) {
    let postern = Postern::start(cluster, "address").await;
    cluster.apply(&manifests::pool("default", 0), &postern.namespace).await;
    pool_of(&postern, 0).await;
    let first = postern.sandbox("alice", "c1");
    let token = first["token"].as_str().expect("create shows it").to_owned();
    let pod = address(&postern, &id(&first)).await;
    let ask = || postern.ask_gateway(pod, &token);
    assert_eq!(ask(), "200", "the control: from its own pod the token is good");
    let gateway: IpAddr = ORCHESTRATOR_ADDRESS.parse().expect("an address");
    assert_ne!(pod, gateway);
    postern.told(&["sandbox", "rm", &id(&first)]);
    assert!(claims(&postern).await.is_empty());
    cluster.node.give_next(pod);
    let second = postern.sandbox("mallory", "c2");
    assert_eq!(address(&postern, &id(&second)).await, pod, "the new one has the old one's address");
    assert_eq!(ask(), "401 token-revoked");
    let own = second["token"].as_str().expect("create shows it");
    assert_eq!(postern.ask_gateway(pod, own), "200");
    let third = id(&postern.sandbox("carol", "c3"));
    let other = address(&postern, &third).await;
    assert_eq!(postern.ask_gateway(other, own), "403 token-wrong-peer", "a token is its own pod's alone");
}

pub(crate) async fn orders_to_a_pod_are_heard_from_the_orchestrator_alone(cluster: &Cluster) {
    let postern = Postern::start(cluster, "orders").await;
    let sandbox = id(&postern.sandbox("alice", "c1"));
    let pod = address(&postern, &sandbox).await;
    for order in ["49983/process.Process/Start", "49984/postern.Sync/Begin"] {
        let told = postern.unsigned_order(pod, order);
        assert!(told.contains("only requests that the orchestrator has signed are heard here"), "{told}");
    }
    // The agent is in the same network as its sync, and is not even answered.
    let answers =
        |port: &str| postern.exec(&sandbox, &["python3", "-I", "-c", &SPEAKS.replace("PORT", port)]);
    assert_eq!(answers("49984").trim(), "0");
    assert_eq!(answers("49983").trim(), "1", "the control: its own process 1 speaks HTTP/2 to it");
}
