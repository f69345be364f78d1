// SPDX-License-Identifier: Apache-2.0
//! Services as a node's proxy makes them: for each port of a Service one of its `EndpointSlices`'
//! addresses, translated by nftables before any network policy sees the packet.

use crate::policy::nft;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

/// The label by which a slice names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A Service's namespace, and its own name.
type Name = (String, String);

/// The address of each Service that has one.
pub(crate) type Names = Arc<Mutex<BTreeMap<Name, Ipv4Addr>>>;

/// Everything that decides where packets for a Service go.
#[derive(Debug, Default)]
struct Services {
    services: BTreeMap<Name, Service>,
    slices: BTreeMap<Name, EndpointSlice>,
}

enum Seen {
    Service(Box<watcher::Event<Service>>),
    Slice(Box<watcher::Event<EndpointSlice>>),
}

/// Keeps the translation, and the names, at what the API server says.
pub(crate) async fn follow(client: Client, names: Names) {
    let services = watcher(Api::<Service>::all(client.clone()), watcher::Config::default());
    let slices = watcher(Api::<EndpointSlice>::all(client), watcher::Config::default());
    let services =
        services.default_backoff().filter_map(async |event| Some(Seen::Service(Box::new(event.ok()?))));
    let slices = slices.default_backoff().filter_map(async |event| Some(Seen::Slice(Box::new(event.ok()?))));
    let mut events = std::pin::pin!(futures_util::stream::select(services, slices));
    let mut known = Services::default();
    while let Some(event) = events.next().await {
        let is_changed = match event {
            Seen::Service(event) => keep(&mut known.services, *event),
            Seen::Slice(event) => keep(&mut known.slices, *event),
        };
        if is_changed {
            nft(&known.table());
            *names.lock().expect("no panic") = known.names();
        }
    }
}

/// Whether an event changed anything.
fn keep<Object: kube::Resource>(known: &mut BTreeMap<Name, Object>, event: watcher::Event<Object>) -> bool {
    let name = |object: &Object| (object.namespace().unwrap_or_default(), object.name_any());
    match event {
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
            known.insert(name(&object), object);
            true
        }
        watcher::Event::Delete(object) => known.remove(&name(&object)).is_some(),
        watcher::Event::Init | watcher::Event::InitDone => false,
    }
}

impl Services {
    fn names(&self) -> BTreeMap<Name, Ipv4Addr> {
        let address =
            |service: &Service| service.spec.as_ref()?.cluster_ip.as_ref()?.parse::<Ipv4Addr>().ok();
        self.services.iter().filter_map(|(name, service)| Some((name.clone(), address(service)?))).collect()
    }

    fn table(&self) -> String {
        let mut rules = String::new();
        for (name, service) in &self.services {
            let Some(spec) = &service.spec else { continue };
            let address = spec.cluster_ip.as_deref().filter(|address| address.contains('.'));
            for port in spec.ports.iter().flatten() {
                let targets = self.targets(name, port);
                let (Some(address), false) = (address, targets.is_empty()) else { continue };
                let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
                let map: Vec<String> = targets
                    .iter()
                    .enumerate()
                    .map(|(number, target)| format!("{number} : {target}"))
                    .collect();
                let (count, map) = (targets.len(), map.join(", "));
                writeln!(
                    rules,
                    "ip daddr {address} {protocol} dport {} dnat to numgen random mod {count} map {{ {map} }}",
                    port.port
                )
                .expect("is text");
            }
        }
        let chains = ["prerouting", "output"].map(|hook| {
            format!("chain {hook} {{\ntype nat hook {hook} priority -100; policy accept;\n{rules}}}\n")
        });
        format!("table ip services\ndelete table ip services\ntable ip services {{\n{}}}\n", chains.concat())
    }

    /// Where a port of a Service leads: `ADDRESS . PORT` of each that is ready.
    fn targets(&self, service: &Name, port: &ServicePort) -> Vec<String> {
        let named = |name: &Option<String>| name.clone().unwrap_or_default();
        let mut targets = Vec::new();
        for ((namespace, _), slice) in &self.slices {
            let of = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
            if *namespace != service.0 || of != Some(&service.1) {
                continue;
            }
            let ports = slice.ports.iter().flatten().filter(|it| named(&it.name) == named(&port.name));
            for number in ports.filter_map(|it| it.port) {
                let is_ready = |it: &&k8s_openapi::api::discovery::v1::Endpoint| {
                    it.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false))
                };
                let addresses = slice.endpoints.iter().filter(is_ready).flat_map(|it| &it.addresses);
                targets.extend(addresses.map(|address| format!("{address} . {number}")));
            }
        }
        targets
    }
}
