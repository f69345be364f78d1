// SPDX-License-Identifier: Apache-2.0
//! Where requests may go: the operator's list, and addresses that no list can open.
//!
//! A backend is checked twice by the same rules: by name when its configuration is put in force
//! ([`UpstreamRules::check_url`]), and by each address that its name gives right before we connect
//! to exactly that address ([`UpstreamRules::check_address`]). There is no look-up in between, so
//! a name that changes its address gains nothing.
//!
//! Entries of the list are `HOST:PORT`, `HOST` (any port), `NETWORK/BITS:PORT`, `NETWORK/BITS`;
//! IPv6 stands in brackets where a port follows. A host that is listed by name may have any
//! address that is not always refused, loopback excepted: loopback must be listed as such
//! (`localhost`, `127.0.0.1` or a network that holds it).

use arc_swap::ArcSwap;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use url::{Host, Url};

/// An entry that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no host or network: write `desk.internal:8443`, `10.0.0.0/8:443` or `[fd00::/8]:443`")]
pub struct MistakenRule(String);

/// Why a backend may not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedAddress {
    /// Not `http` or `https`, or with user, query or fragment.
    #[error("a backend's URL is `http://` or `https://` with host, port and path only")]
    Url,
    /// Not in `gateway.upstreams.allow`.
    #[error(
        "`{host}:{port}` is not in gateway.upstreams.allow; the operator adds it with POSTERN_UPSTREAMS_ALLOW={host}:{port}"
    )]
    NotAllowed {
        /// The host or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// An address that no list can open.
    #[error("{address} can never be a backend: {reason}")]
    Never {
        /// The address.
        address: IpAddr,
        /// What it is.
        reason: &'static str,
    },
}

impl RefusedAddress {
    pub(crate) const fn ours(address: IpAddr) -> Self {
        Self::Never { address, reason: "it belongs to Postern itself, or the operator closed it" }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Name(String),
    Network(IpNet),
}

/// One entry: a place, and a port or all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    place: Place,
    port: Option<u16>,
}

impl Entry {
    fn parse(text: &str) -> Result<Self, MistakenRule> {
        let mistaken = || MistakenRule(text.to_owned());
        let (place, port) = split_port(text).ok_or_else(mistaken)?;
        let place = if let Ok(network) = place.parse::<IpNet>() {
            Place::Network(network)
        } else {
            match Host::parse(&bracketed(place)).map_err(|_unreadable| mistaken())? {
                Host::Ipv4(address) => Place::Network(IpAddr::V4(address).into()),
                Host::Ipv6(address) => Place::Network(IpAddr::V6(address).into()),
                Host::Domain(name) => Place::Name(canonical(&name)),
            }
        };
        Ok(Self { place, port })
    }

    fn has_port(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(&self.place, Place::Name(own) if own == name)
    }

    fn holds(&self, address: IpAddr) -> bool {
        matches!(&self.place, Place::Network(network) if network.contains(&address))
    }
}

/// `[fd00::1]:80`, `10.0.0.0/8:80`, `host:80`, or any of them without a port.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']')?;
        return match after.strip_prefix(':') {
            Some(port) => Some((inside, Some(port.parse().ok()?))),
            None if after.is_empty() => Some((inside, None)),
            None => None,
        };
    }
    match text.split_once(':') {
        Some((_, rest)) if rest.contains(':') => Some((text, None)),
        Some((place, port)) => Some((place, Some(port.parse().ok()?))),
        None => Some((text, None)),
    }
}

fn bracketed(place: &str) -> String {
    if place.contains(':') { format!("[{place}]") } else { place.to_owned() }
}

/// Lower case without the root's dot: `Desk.Internal.` is `desk.internal`.
fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[derive(Debug, Default)]
struct Rules {
    allow: Vec<Entry>,
    never: Vec<Entry>,
    /// This process's own listeners, which no replacement opens.
    own: Vec<SocketAddr>,
}

impl Rules {
    fn closes(&self, is_entry: impl Fn(&&Entry) -> bool) -> bool {
        self.never.iter().any(|entry| is_entry(&entry))
    }

    /// Whether a listener of ours would be reached there. One on every address is at each address
    /// of this host.
    fn is_ourselves(&self, to: SocketAddr, is_this_host: impl Fn(IpAddr) -> bool) -> bool {
        self.own.iter().filter(|own| own.port() == to.port()).any(|own| {
            own.ip() == to.ip()
                || (own.ip().is_unspecified() && (to.ip().is_loopback() || is_this_host(to.ip())))
        })
    }
}

/// Whether an address is one of this host's: nothing can be bound to any other.
fn is_this_host(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// The operator's rules. Clones share one list, which may be replaced while the gateway runs.
#[derive(Debug, Clone, Default)]
pub struct UpstreamRules(Arc<ArcSwap<Rules>>);

impl UpstreamRules {
    /// Reads the list of what is allowed, and of what is never reachable even if allowed: our own
    /// listeners, the orchestrator, the database, sandbox pods.
    ///
    /// # Errors
    /// Every entry that cannot be read.
    pub fn new(allow: &[String], never: &[String]) -> Result<Self, Vec<MistakenRule>> {
        let rules = Self::default();
        rules.replace(allow, never)?;
        Ok(rules)
    }

    /// Replaces both lists. Connections that exist stay until they are idle.
    ///
    /// # Errors
    /// Every entry that cannot be read; the lists are then as before.
    pub fn replace(&self, allow: &[String], never: &[String]) -> Result<(), Vec<MistakenRule>> {
        let mut mistakes = Vec::new();
        let mut read = |list: &[String]| -> Vec<Entry> {
            let entries = list.iter().map(|text| Entry::parse(text));
            entries.filter_map(|entry| entry.map_err(|mistake| mistakes.push(mistake)).ok()).collect()
        };
        let (allow, never) = (read(allow), read(never));
        if mistakes.is_empty() {
            self.0.rcu(|rules| Rules { allow: allow.clone(), never: never.clone(), own: rules.own.clone() });
            Ok(())
        } else {
            Err(mistakes)
        }
    }

    /// Adds a listener of this process to what is never reachable. One on every address
    /// (`0.0.0.0`, `[::]`) is unreachable at each address of this host.
    pub fn never_ourselves(&self, own: SocketAddr) {
        let own = SocketAddr::new(own.ip().to_canonical(), own.port());
        self.0.rcu(|rules| Rules {
            allow: rules.allow.clone(),
            never: rules.never.clone(),
            own: rules.own.iter().copied().chain([own]).collect(),
        });
    }

    /// The names whose addresses are closed on this port: they are looked up when we connect, since
    /// what is never reachable must not be reachable by another name either.
    pub(crate) fn never_names(&self, port: u16) -> Vec<String> {
        let rules = self.0.load();
        let names = rules.never.iter().filter(|entry| entry.has_port(port));
        names
            .filter_map(|entry| match &entry.place {
                Place::Name(name) => Some(name.clone()),
                Place::Network(_) => None,
            })
            .collect()
    }

    /// Checks a connection before a byte is sent on it: whatever was looked up, a connection from
    /// an address of this host to the same address ends at this host.
    ///
    /// # Errors
    /// [`RefusedAddress::Never`] if it has reached a listener of this process.
    pub(crate) fn check_connection(&self, from: SocketAddr, to: SocketAddr) -> Result<(), RefusedAddress> {
        let is_ourselves = self.0.load().is_ourselves(to, |address| address == from.ip());
        if is_ourselves { Err(RefusedAddress::ours(to.ip())) } else { Ok(()) }
    }

    /// Checks a backend's URL by its text alone.
    ///
    /// # Errors
    /// [`RefusedAddress`] says what to change, or whom to ask.
    pub fn check_url(&self, url: &Url) -> Result<(), RefusedAddress> {
        let is_plain = matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        let (Some(host), Some(port), true) = (url.host(), url.port_or_known_default(), is_plain) else {
            return Err(RefusedAddress::Url);
        };
        let name = match host {
            Host::Ipv4(address) => return self.check_address(&address.to_string(), (address, port).into()),
            Host::Ipv6(address) => return self.check_address(&address.to_string(), (address, port).into()),
            Host::Domain(name) => canonical(name),
        };
        let rules = self.0.load();
        if rules.closes(|entry| entry.is_name(&name) && entry.has_port(port)) {
            return Err(RefusedAddress::NotAllowed { host: name, port });
        }
        // A name that only a network could admit is judged by its addresses, when we connect.
        let may_be = |entry: &&Entry| entry.is_name(&name) || matches!(entry.place, Place::Network(_));
        if rules.allow.iter().filter(may_be).any(|entry| entry.has_port(port)) {
            Ok(())
        } else {
            Err(RefusedAddress::NotAllowed { host: name, port })
        }
    }

    /// Checks one address that `host` gave, or is. Call it with what is then connected to.
    ///
    /// # Errors
    /// [`RefusedAddress`] if the address is not allowed, or never can be.
    pub fn check_address(&self, host: &str, to: SocketAddr) -> Result<(), RefusedAddress> {
        let address = to.ip();
        let never = |reason| RefusedAddress::Never { address, reason };
        if let Some(reason) = never_reachable(address) {
            return Err(never(reason));
        }
        let rules = self.0.load();
        let host = canonical(host);
        let is_entry =
            |entry: &&Entry| (entry.holds(address) || entry.is_name(&host)) && entry.has_port(to.port());
        if rules.closes(is_entry) || rules.is_ourselves(to, is_this_host) {
            return Err(RefusedAddress::ours(address));
        }
        let is_open = |entry: &Entry| entry.holds(address) || !address.is_loopback() || host == "localhost";
        if rules.allow.iter().filter(is_entry).any(is_open) {
            Ok(())
        } else {
            Err(RefusedAddress::NotAllowed { host, port: to.port() })
        }
    }
}

/// What an address is, if nothing may ever be reached there.
fn never_reachable(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => never_reachable_v4(address),
        IpAddr::V6(address) => never_reachable_v6(address),
    }
}

fn never_reachable_v4(address: Ipv4Addr) -> Option<&'static str> {
    let octets = address.octets();
    match octets {
        [0, ..] => Some("it means this host"),
        [169, 254, ..] => Some("link-local and metadata addresses are closed"),
        // Metadata and host services of Azure, Alibaba Cloud and Oracle Cloud.
        [168, 63, 129, 16] | [100, 100, 100, 200] | [192, 0, 0, _] => Some("metadata addresses are closed"),
        [224..=239, ..] => Some("it is multicast"),
        [240..=255, ..] => Some("it is reserved or broadcast"),
        _ => None,
    }
}

fn never_reachable_v6(address: Ipv6Addr) -> Option<&'static str> {
    const TRANSITION: &str = "it is another spelling of an IPv4 address; use that";
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => None,
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("it means this host"),
        // Compatible, mapped (RFC 4291), translated (RFC 2765), NAT64 (RFC 6052, RFC 8215),
        // Teredo (RFC 4380), 6to4 (RFC 3056).
        [0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, ..] | [0x2001, 0, ..] | [0x2002, ..] => {
            Some(TRANSITION)
        }
        // ISATAP (RFC 5214): an IPv4 address in the interface identifier.
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => Some(TRANSITION),
        [0xfe80..=0xfebf, ..] => Some("link-local and metadata addresses are closed"),
        [0xfec0..=0xfeff, ..] => Some("site-local addresses are closed"),
        // Amazon's and Google's metadata services.
        [0xfd00, 0xec2, ..] | [0xfd20, 0xce, ..] => Some("metadata addresses are closed"),
        [0xff00..=0xffff, ..] => Some("it is multicast"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
