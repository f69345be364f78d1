// SPDX-License-Identifier: Apache-2.0
use super::*;

fn rules(allow: &[&str], never: &[&str]) -> UpstreamRules {
    let owned = |list: &[&str]| list.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>();
    UpstreamRules::new(&owned(allow), &owned(never)).expect("readable rules")
}

fn url(text: &str) -> Url {
    Url::parse(text).expect("a URL")
}

/// Everything is listed; what is still refused can never be opened.
fn wide_open() -> UpstreamRules {
    rules(&["0.0.0.0/0", "[::/0]", "localhost", "metadata.internal"], &[])
}

#[test]
fn no_spelling_of_a_closed_address_is_ever_allowed() {
    for host in [
        "169.254.169.254",
        "169.254.169.254.",
        "2852039166",
        "0xa9fea9fe",
        "0xa9.0xfe.0xa9.0xfe",
        "0251.0376.0251.0376",
        "169.254.43518",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[::169.254.169.254]",
        "[::ffff:0:169.254.169.254]",
        "[64:ff9b::169.254.169.254]",
        "[64:ff9b:1::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[2001:0:a9fe:a9fe::1]",
        "[2001:db8::5efe:a9fe:a9fe]",
        "[fe80::1]",
        "[fec0::1]",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "0.0.0.0",
        "0",
        "0.1.2.3",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:0.0.0.0]",
        "224.0.0.1",
        "255.255.255.255",
        "[ff02::1]",
        "１６９.254.169.254",
    ] {
        let refused = wide_open().check_url(&url(&format!("http://{host}/")));
        assert!(matches!(refused, Err(RefusedAddress::Never { .. })), "{host}: {refused:?}");
    }
}

#[test]
fn ordinary_addresses_are_allowed_once_listed() {
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "[::1]", "10.1.2.3", "93.184.216.34", "[2606:2800::1]"]
    {
        assert_eq!(wide_open().check_url(&url(&format!("http://{host}/"))), Ok(()), "{host}");
        let closed = rules(&["desk.internal"], &[]).check_url(&url(&format!("http://{host}/")));
        assert!(matches!(closed, Err(RefusedAddress::NotAllowed { .. })), "{host}");
    }
}

#[test]
fn a_name_is_judged_again_by_the_address_that_it_gives() {
    let rules = rules(&["desk.internal:80"], &[]);
    assert_eq!(rules.check_url(&url("http://Desk.Internal./")), Ok(()));
    let reached = |address: &str| rules.check_address("desk.internal", address.parse().expect("an address"));
    assert_eq!(reached("10.0.0.7:80"), Ok(()));
    for rebound in ["127.0.0.1:80", "[::1]:80", "169.254.169.254:80", "0.0.0.0:80", "[::ffff:10.0.0.7]:80"] {
        assert!(reached(rebound).is_err(), "{rebound}");
    }
    assert!(reached("10.0.0.7:443").is_err(), "another port");
    assert!(rules.check_address("evil.internal", "10.0.0.7:80".parse().expect("an address")).is_err());
}

#[test]
fn loopback_must_be_listed_as_such() {
    let by_name = rules(&["localhost:8000"], &[]);
    let loopback = "127.0.0.1:8000".parse().expect("an address");
    assert_eq!(by_name.check_address("localhost", loopback), Ok(()));
    assert!(by_name.check_address("desk.internal", loopback).is_err());
    assert_eq!(rules(&["127.0.0.1:8000"], &[]).check_address("desk.internal", loopback), Ok(()));
}

#[test]
fn what_is_closed_stays_closed_even_if_listed_or_replaced() {
    let rules = rules(&["10.0.0.0/8", "db.internal"], &["10.0.0.5:5432", "db.internal"]);
    rules.never_ourselves("10.0.0.9:9091".parse().expect("an address"));
    rules.never_ourselves("0.0.0.0:8081".parse().expect("an address"));
    let check =
        |rules: &UpstreamRules, address: &str| rules.check_address("x", address.parse().expect("an address"));
    assert!(check(&rules, "10.0.0.5:5432").is_err());
    assert_eq!(check(&rules, "10.0.0.5:80"), Ok(()));
    assert!(rules.check_url(&url("http://db.internal/")).is_err());
    rules.replace(&["0.0.0.0/0".to_owned()], &[]).expect("rules");
    assert!(check(&rules, "10.0.0.9:9091").is_err());
    assert!(check(&rules, "127.0.0.1:8081").is_err());
    assert_eq!(check(&rules, "10.0.0.5:5432"), Ok(()), "the operator opened it");
}

#[test]
fn urls_with_more_than_host_port_and_path_are_refused() {
    let open = wide_open();
    for text in [
        "ftp://localhost/",
        "file:///etc/passwd",
        "http://user@localhost/",
        "http://user:secret@localhost/",
        "http://localhost/?a=b",
        "http://localhost/#a",
        "unix:/run/x.sock",
    ] {
        assert_eq!(open.check_url(&url(text)), Err(RefusedAddress::Url), "{text}");
    }
}

#[test]
fn unreadable_entries_are_all_named_and_change_nothing() {
    let rules = rules(&["desk.internal"], &[]);
    let bad =
        ["".to_owned(), "a b".to_owned(), "x:99999".to_owned(), "[::1".to_owned(), "good:80".to_owned()];
    let mistakes = rules.replace(&bad, &[]).expect_err("four mistakes");
    assert_eq!(mistakes.len(), 4);
    assert_eq!(rules.check_url(&url("http://desk.internal/")), Ok(()));
}

#[test]
fn an_empty_list_allows_nothing() {
    let rules = UpstreamRules::default();
    assert!(rules.check_url(&url("http://desk.internal/")).is_err());
    assert!(rules.check_address("desk.internal", "10.0.0.1:80".parse().expect("an address")).is_err());
}

#[test]
fn a_listener_on_every_address_is_unreachable_at_each_address_of_this_host() {
    for own in ["0.0.0.0:8081", "[::]:8081", "[::ffff:0.0.0.0]:8081"] {
        let rules = wide_open();
        rules.never_ourselves(own.parse().expect("an address"));
        let mut here: Vec<IpAddr> =
            vec![[127, 0, 0, 1].into(), [127, 1, 2, 3].into(), Ipv6Addr::LOCALHOST.into()];
        here.extend(own_address());
        for address in here {
            let to = SocketAddr::new(address, 8081);
            let refused = rules.check_address("localhost", to);
            assert!(matches!(refused, Err(RefusedAddress::Never { .. })), "{own} at {to}: {refused:?}");
            assert!(
                rules.check_address("localhost", SocketAddr::new(address, 9000)).is_ok(),
                "{to}: the control"
            );
        }
        let elsewhere = SocketAddr::new([203, 0, 113, 7].into(), 8081);
        assert!(rules.check_address("203.0.113.7", elsewhere).is_ok(), "another host's port is not ours");
    }
}

/// An address of this machine that is not loopback, if it has one: no packet is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("203.0.113.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_unspecified())
}

#[test]
fn a_connection_that_has_come_back_to_us_is_refused() {
    let rules = wide_open();
    rules.never_ourselves(([0, 0, 0, 0], 8081).into());
    let here = |port: u16| SocketAddr::from(([198, 51, 100, 4], port));
    assert!(rules.check_connection(here(50_000), here(8081)).is_err());
    assert!(rules.check_connection(here(50_000), here(9000)).is_ok());
    assert!(rules.check_connection(([198, 51, 100, 9], 50_000).into(), here(8081)).is_ok());
}

#[test]
fn own_listeners_stay_closed_when_the_lists_are_replaced() {
    let rules = wide_open();
    rules.never_ourselves(([127, 0, 0, 1], 8081).into());
    rules.replace(&["127.0.0.1".to_owned()], &[]).expect("readable rules");
    assert!(rules.check_url(&url("http://127.0.0.1:8081/")).is_err());
    assert!(rules.check_url(&url("http://127.0.0.1:8082/")).is_ok());
}
