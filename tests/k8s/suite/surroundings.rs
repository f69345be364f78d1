// SPDX-License-Identifier: Apache-2.0
//! What there is around pods in a real cluster, to be reached or not: a kubelet's port, the names of the
//! cluster, a metadata service, and an internet of two addresses. They only answer; none does anything.

use crate::cluster::{NODE_ADDRESS, apply};
use crate::node::Node;
use crate::parts::must;
use crate::services::Names;
use kube::Client;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

/// The Service of the cluster's names.
pub(crate) const DNS_SERVICE: &str = "10.96.0.10";
/// Who answers for it.
const DNS: &str = "10.77.0.4";
/// The API server's Service.
const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Addresses that are elsewhere for a pod, and what listens there.
const LISTENERS: [(&str, u16); 6] = [
    (NODE_ADDRESS, 10250),
    (DNS, 53),
    ("169.254.169.254", 80),
    ("1.1.1.1", 443),
    ("8.8.8.8", 443),
    ("8.8.8.8", 53),
];

/// All of it. Dropped, it is silent.
#[derive(Debug)]
pub(crate) struct Surroundings {
    works: Vec<JoinHandle<()>>,
}

impl Surroundings {
    pub(crate) async fn start(client: &Client, node: &Node) -> Self {
        for address in [DNS, "169.254.169.254", "1.1.1.1", "8.8.8.8"] {
            must("ip", &["address", "add", &format!("{address}/32"), "dev", "pods0"]);
        }
        let labels = [("k8s-app", "kube-dns")];
        node.add_neighbour("dns", "kube-system", &labels, DNS.parse::<IpAddr>().expect("an address"));
        let port =
            |protocol: &str| json!({ "name": protocol.to_lowercase(), "port": 53, "protocol": protocol });
        let ports = [port("UDP"), port("TCP")];
        let service = json!({ "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kube-dns", "labels": { "k8s-app": "kube-dns" } },
            "spec": { "clusterIP": DNS_SERVICE, "ports": ports } });
        let slice = json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "kube-dns", "labels": { "kubernetes.io/service-name": "kube-dns" } },
            "addressType": "IPv4", "ports": ports, "endpoints": [{ "addresses": [DNS] }] });
        for object in [service, slice] {
            apply(client, &object, "kube-system").await;
        }
        let mut works = Vec::new();
        for (address, port) in LISTENERS {
            let listener = TcpListener::bind((address, port)).await.expect("listens");
            #[expect(clippy::disallowed_methods, reason = "the handles are kept, and aborted at the end")]
            works.push(tokio::spawn(greet(listener)));
        }
        let socket = UdpSocket::bind((DNS, 53)).await.expect("listens");
        #[expect(clippy::disallowed_methods, reason = "the handles are kept, and aborted at the end")]
        works.push(tokio::spawn(answer(socket, node.names())));
        Self { works }
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        self.works.iter().for_each(JoinHandle::abort);
    }
}

async fn greet(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        drop(stream.write_all(b"hello\n").await);
    }
}

/// Answers every question for an address: with a Service's where it is one's name, else with that of the
/// API server's Service; others, and names of Services that there are not, with nothing.
async fn answer(socket: UdpSocket, names: Names) {
    let mut asked = [0; 512];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut asked).await else { continue };
        let question = asked.get(..length).unwrap_or_default();
        let reply = reply(question, |name| names.lock().expect("no panic").get(&name).copied());
        drop(socket.send_to(&reply, from).await);
    }
}

fn reply(question: &[u8], known: impl Fn((String, String)) -> Option<Ipv4Addr>) -> Vec<u8> {
    let Some((head, body)) = question.split_at_checked(12) else { return Vec::new() };
    let Some(end) = body.iter().position(|byte| *byte == 0).map(|zero| zero + 5) else { return Vec::new() };
    let asked = body.get(..end).unwrap_or_default();
    // A query for an address (type 1) has one answer.
    let is_address = asked.get(end.saturating_sub(4)..end.saturating_sub(2)) == Some(&[0, 1]);
    let address = match service_of(body) {
        Some(name) => known(name),
        None => Some(API_SERVICE),
    };
    let address = address.filter(|_| is_address);
    let mut answer = head.get(..2).unwrap_or_default().to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    answer.extend(asked);
    if let Some(address) = address {
        // The name of the question, an internet address, good for a minute, four bytes long.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    answer
}

/// Namespace and name of the Service that a question is for: `NAME.NAMESPACE.svc.…`.
fn service_of(mut question: &[u8]) -> Option<(String, String)> {
    let mut labels = Vec::new();
    while let Some((length, rest)) = question.split_first().filter(|(length, _)| **length > 0) {
        let (label, after) = rest.split_at_checked(usize::from(*length))?;
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        question = after;
    }
    let [name, namespace, of, ..] = labels.as_slice() else { return None };
    (of == "svc").then(|| (namespace.clone(), name.clone()))
}
