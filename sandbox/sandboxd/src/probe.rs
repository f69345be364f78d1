// SPDX-License-Identifier: Apache-2.0
//! What a pod can reach, found out by a pod: `postern-sandboxd probe --closed TARGET … --open TARGET …`.
//!
//! For Helm's tests: one pod where sandboxes are must find everything closed, one where the release is
//! must find the API server open, or the first one's silence proves nothing. It only connects; nothing is
//! sent but one question to a name server.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// How long a target may take: a firewall that drops says nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who knows the names in a pod.
const RESOLVER: &str = "/etc/resolv.conf";
/// A question for the address of `kubernetes.default.svc.cluster.local`, with recursion.
const QUESTION: &[u8] = b"\x70\x6f\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\
    \x0akubernetes\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01";

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    /// A TCP connection.
    Address(SocketAddr),
    /// The cluster's API server.
    ApiServer,
    /// The pod's name servers, by UDP and TCP.
    Names,
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("`{0}` is no target: expected IP:PORT, `api-server` or `dns`")]
    Target(String),
    #[error("probe wants --closed TARGET or --open TARGET, each as often as needed")]
    Usage,
    #[error("the network is not what it should be:\n{0}")]
    Wrong(String),
}

/// What is known of the cluster from the pod's environment: host and port of its API server.
pub(crate) type ApiServer = Option<(String, String)>;

/// Tries everything at once, and tells how it went.
///
/// # Errors
/// [`ProbeError`].
pub(crate) fn run(arguments: impl Iterator<Item = OsString>, api: &ApiServer) -> Result<String, ProbeError> {
    let wanted = parse(arguments)?;
    let found: Vec<bool> = std::thread::scope(|scope| {
        let tried: Vec<_> =
            wanted.iter().map(|(target, _)| scope.spawn(|| is_reached(target, api))).collect();
        // A thread that panics has reached nothing; none of them can.
        tried.into_iter().map(|thread| thread.join().unwrap_or(false)).collect()
    });
    let (mut report, mut is_right) = (String::new(), true);
    for ((target, should_be_open), is_open) in wanted.iter().zip(found) {
        let verdict = if is_open == *should_be_open { "ok" } else { "NOT OK" };
        is_right &= is_open == *should_be_open;
        let state = if is_open { "open" } else { "closed" };
        // Writing to a `String` cannot fail.
        let _ = writeln!(report, "{verdict}: {target:?} is {state}").is_ok();
    }
    if is_right { Ok(report) } else { Err(ProbeError::Wrong(report)) }
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Vec<(Target, bool)>, ProbeError> {
    let mut wanted = Vec::new();
    while let Some(word) = arguments.next() {
        let should_be_open = match word.to_str() {
            Some("--open") => true,
            Some("--closed") => false,
            _ => return Err(ProbeError::Usage),
        };
        let text = arguments.next().ok_or(ProbeError::Usage)?.to_string_lossy().into_owned();
        let target = match text.as_str() {
            "api-server" => Target::ApiServer,
            "dns" => Target::Names,
            _ => Target::Address(text.parse().map_err(|_malformed| ProbeError::Target(text))?),
        };
        wanted.push((target, should_be_open));
    }
    if wanted.is_empty() { Err(ProbeError::Usage) } else { Ok(wanted) }
}

fn is_reached(target: &Target, api: &ApiServer) -> bool {
    match target {
        Target::Address(address) => connects(*address),
        Target::ApiServer => {
            let address = api.as_ref().and_then(|(host, port)| {
                Some(SocketAddr::new(host.trim_matches(['[', ']']).parse().ok()?, port.parse().ok()?))
            });
            address.is_some_and(connects)
        }
        Target::Names => {
            let text = std::fs::read_to_string(RESOLVER).unwrap_or_default();
            name_servers(&text).into_iter().any(|server| answers(server) || connects(server))
        }
    }
}

fn connects(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, PATIENCE).is_ok()
}

fn name_servers(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    words.filter_map(|word| Some(SocketAddr::new(word.trim().parse().ok()?, 53))).collect()
}

/// Whether a name server says anything to a question.
fn answers(server: SocketAddr) -> bool {
    let own: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let asked = || {
        let socket = UdpSocket::bind(own)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(server)?;
        socket.send(QUESTION)?;
        socket.recv(&mut [0; 512])
    };
    asked().is_ok_and(|length| length > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn probe(words: &[&str], api: &ApiServer) -> Result<String, ProbeError> {
        run(words.iter().map(OsString::from), api)
    }

    /// A port that listens, and one that nobody has any more.
    fn ports() -> (TcpListener, String, String) {
        let open = TcpListener::bind("127.0.0.1:0").expect("a port");
        let gone = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (at, closed) = (open.local_addr().expect("bound"), gone.local_addr().expect("bound"));
        drop(gone);
        (open, at.to_string(), closed.to_string())
    }

    #[test]
    fn what_is_open_and_what_is_closed_is_found_out() {
        let (_listener, open, closed) = ports();
        let report = probe(&["--open", &open, "--closed", &closed], &None).expect("both as wanted");
        assert_eq!(report.matches("ok: ").count(), 2, "{report}");
        let told = probe(&["--closed", &open], &None).expect_err("it is open").to_string();
        assert!(told.contains("NOT OK") && told.contains(&open), "{told}");
        assert!(probe(&["--open", &closed], &None).is_err(), "nobody listens");
    }

    #[test]
    fn the_api_server_is_where_the_pod_is_told() {
        let (listener, open, _) = ports();
        let (host, port) = open.rsplit_once(':').expect("a port");
        let api = Some((host.to_owned(), port.to_owned()));
        assert!(probe(&["--open", "api-server"], &api).is_ok());
        assert!(probe(&["--closed", "api-server"], &api).is_err());
        drop(listener);
        assert!(probe(&["--open", "api-server"], &None).is_err(), "no cluster at all is no proof");
    }

    #[test]
    fn name_servers_are_read_as_resolvers_read_them() {
        let text = "search a.b\nnameserver 10.96.0.10\n  nameserver fd00::a\noptions ndots:5\n";
        let found: Vec<_> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.96.0.10:53", "[fd00::a]:53"]);
    }

    #[test]
    fn a_name_server_is_open_if_it_says_anything() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let at = server.local_addr().expect("bound");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut asked = [0; 512];
                let (length, from) = server.recv_from(&mut asked).expect("a question");
                assert_eq!(asked.get(..length), Some(QUESTION));
                server.send_to(b"no", from).expect("answers");
            });
            assert!(answers(at));
        });
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for words in
            [&[][..], &["--open"], &["open"], &["--closed", "example.com"], &["--closed", "10.0.0.1"]]
        {
            assert!(
                matches!(probe(words, &None), Err(ProbeError::Usage | ProbeError::Target(_))),
                "{words:?}"
            );
        }
    }
}
