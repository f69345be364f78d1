// SPDX-License-Identifier: Apache-2.0
use super::*;
use postern_common::session::Isolation;
use std::collections::BTreeMap;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
}

fn session(user: &str, ends: i64) -> Session {
    Session {
        sandbox_id: SandboxId::from_random([1; 12]),
        tenant: "acme".parse().expect("a tenant"),
        user_id: user.parse().expect("a user"),
        conversation_id: "talk".parse().expect("a conversation"),
        operations: Vec::new(),
        tokens: vec![AcceptedToken { jti: "first".into(), until: at(ends + 100) }],
        peer: Peer::Address([10, 0, 0, 1].into()),
        expires_at: at(ends),
        template: "default".parse().expect("a name"),
        isolation: Isolation::Namespaces,
        labels: BTreeMap::new(),
        claims: serde_json::Map::new(),
    }
}

fn id() -> SandboxId {
    SandboxId::from_random([1; 12])
}

/// A caller with the session's first token, from its first address.
fn caller(live: &Arc<LiveSession>) -> Caller {
    let session = &live.session;
    let claims = Claims {
        iss: "postern".into(),
        aud: "postern-gateway".into(),
        sub: session.sandbox_id.clone(),
        sandbox_id: session.sandbox_id.clone(),
        tenant: session.tenant.clone(),
        user_id: session.user_id.clone(),
        conversation_id: session.conversation_id.clone(),
        operations: session.operations.clone(),
        jti: "first".into(),
        iat: 0,
        nbf: 0,
        exp: u64::MAX,
    };
    let source = Source::Address([10, 0, 0, 1].into());
    Caller { session: Arc::clone(live), claims: Arc::new(claims), ended: live.ended.clone(), source }
}

#[test]
fn a_session_ends_at_its_time_and_is_forgotten_after_its_last_token() {
    let registry = Registry::default();
    let live = registry.open(session("alice", 10)).expect("opens");
    registry.sweep(at(9));
    assert!(registry.judge_again(&caller(&live), at(9)).is_ok());
    assert!(registry.judge_again(&caller(&live), at(10)).is_err(), "also before the sweep");
    registry.sweep(at(10));
    assert!(live.ended.is_cancelled());
    assert!(matches!(registry.find(&id()), Lookup::Ended));
    registry.sweep(at(110));
    assert!(matches!(registry.find(&id()), Lookup::Unknown));
}

#[test]
fn a_change_keeps_what_is_in_flight_and_an_end_does_not() {
    let registry = Registry::default();
    let first = registry.open(session("alice", 10)).expect("opens");
    let longer = registry.open(session("alice", 100)).expect("changes");
    registry.sweep(at(50));
    assert!(registry.judge_again(&caller(&first), at(50)).is_ok(), "extended");
    registry.end(EndedSession { sandbox_id: id(), until: at(60) });
    assert!(first.ended.is_cancelled() && longer.ended.is_cancelled());
    assert!(registry.open(session("alice", 1000)).is_none(), "an ended session stays ended");
}

#[test]
fn a_caller_is_judged_again_by_what_its_session_has_become() {
    let registry = Registry::default();
    let grant = |name: &str| name.parse::<Grant>().expect("a grant");
    let full =
        Session { operations: vec![grant("desk/list"), grant("desk/refund")], ..session("alice", 100) };
    let let_in = caller(&registry.open(full.clone()).expect("opens"));
    let again = |changed: Session, now: i64| {
        registry.open(changed).expect("changes");
        registry.judge_again(&let_in, at(now))
    };
    assert!(again(full.clone(), 0).is_ok(), "the control");
    let fewer = Session { operations: vec![grant("desk/list")], ..full.clone() };
    assert!(matches!(again(fewer, 0), Err(Reject::TokenClaimsMore(_))), "an operation was taken away");
    let moved = Session { peer: Peer::Address([10, 0, 0, 2].into()), ..full.clone() };
    assert!(matches!(again(moved, 0), Err(Reject::WrongPeer)), "bound to another peer");
    let token = |jti: &str, until| AcceptedToken { jti: jti.into(), until: at(until) };
    let rotated = Session { tokens: vec![token("second", 200), token("first", 60)], ..full.clone() };
    assert!(again(rotated.clone(), 59).is_ok(), "the overlap");
    assert!(matches!(again(rotated, 60), Err(Reject::TokenReplaced)), "its end");
    assert!(again(full, 0).is_ok(), "the control");
    let other = registry.open(session("bob", 100)).expect("opens");
    assert!(matches!(registry.judge_again(&let_in, at(0)), Err(Reject::SessionEnded)), "another session");
    assert!(registry.judge_again(&caller(&other), at(0)).is_ok());
}

#[test]
fn another_principal_under_the_same_id_ends_the_first() {
    let registry = Registry::default();
    let alice = registry.open(session("alice", 10)).expect("opens");
    let bob = registry.open(session("bob", 10)).expect("opens");
    assert!(alice.ended.is_cancelled() && !bob.ended.is_cancelled());
}

#[test]
fn a_snapshot_ends_what_it_does_not_hold() {
    let registry = Registry::default();
    let gone = registry.open(session("alice", 10)).expect("opens");
    let mut other = session("bob", 10);
    other.sandbox_id = SandboxId::from_random([2; 12]);
    registry.replace(vec![other.clone()], Vec::new());
    assert!(gone.ended.is_cancelled());
    assert!(matches!(registry.find(&id()), Lookup::Unknown));
    let kept = match registry.find(&other.sandbox_id) {
        Lookup::Live(live) => live,
        found => panic!("{found:?}"),
    };
    registry.replace(vec![other], vec![EndedSession { sandbox_id: id(), until: at(99) }]);
    assert!(!kept.ended.is_cancelled(), "one that stays goes on");
    assert!(matches!(registry.find(&id()), Lookup::Ended));
}

#[test]
fn a_snapshot_is_one_change_and_says_which_sessions_had_ended() {
    let registry = Registry::default();
    let numbered =
        |number: u8| Session { sandbox_id: SandboxId::from_random([number; 12]), ..session("alice", 100) };
    let ended = EndedSession { sandbox_id: numbered(3).sandbox_id, until: at(99) };
    let changes = registry.changes.subscribe();
    let before = *changes.borrow();
    let live = registry.replace((1..=5).map(numbered).collect(), vec![ended]);
    assert_eq!(*changes.borrow(), before + 1, "whoever waits wakes once");
    let ids: Vec<_> = live.iter().map(|live| live.as_ref().map(|live| &live.session.sandbox_id)).collect();
    let expected: Vec<_> = (1..=5).map(|number| numbered(number).sandbox_id).collect();
    assert_eq!(ids, [Some(&expected[0]), Some(&expected[1]), None, Some(&expected[3]), Some(&expected[4])]);
}

#[test]
fn only_the_bound_peer_may_use_a_session() {
    let bound = |peer: Peer| LiveSession::new(Session { peer, ..session("alice", 10) }, None);
    let (here, there): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let socket = |path: &str| Source::Socket(Arc::from(Path::new(path)));
    let pod =
        bound(Peer::Pod { uid: "u".into(), addresses: vec![here, "fd00::1".parse().expect("an address")] });
    assert!(pod.is_bound_to(&Source::Address(here)));
    assert!(!pod.is_bound_to(&Source::Address(there)) && !pod.is_bound_to(&socket("/a")));
    let local = bound(Peer::Socket("/a".into()));
    assert!(local.is_bound_to(&socket("/a")));
    assert!(!local.is_bound_to(&socket("/b")) && !local.is_bound_to(&Source::Address([127, 0, 0, 1].into())));
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_the_session_comes_or_the_time_is_over() {
    let registry = Arc::new(Registry::default());
    let bound = Duration::from_millis(500);
    assert!(matches!(registry.find_with_token(&id(), "first", bound).await, Lookup::Unknown));
    let sandbox = id();
    let waiting = registry.find_with_token(&sandbox, "first", bound);
    let opening = async { registry.open(session("alice", 10)).is_some() };
    let (found, _) = tokio::join!(waiting, opening);
    assert!(matches!(found, Lookup::Live(_)));
    let unknown_token = registry.find_with_token(&id(), "second", bound).await;
    assert!(matches!(unknown_token, Lookup::Live(_)), "the session is known, the token is for `accepts`");
}

#[test]
fn what_an_admitted_token_has_in_flight_ends_with_it_and_not_with_the_session() {
    let registry = Registry::default();
    let now = at(0);
    let admitted = |jti: &str, until: i64| {
        let tokens = vec![AcceptedToken { jti: jti.to_owned(), until: at(until) }];
        let session =
            Session { tokens, peer: Peer::Unbound, expires_at: at(until), ..session("alice", until) };
        registry.admit(session, now).expect("is let in")
    };
    let first = admitted("stolen", 300).end_of_token("stolen", at(300));
    let second = admitted("fresh", 600).end_of_token("fresh", at(600));
    registry.sweep(at(299));
    assert!(!first.is_cancelled());
    registry.sweep(at(301));
    assert!(first.is_cancelled() && !second.is_cancelled(), "the session lives on for the other");
    registry.end_tokens(|jti, _until| jti == "fresh");
    assert!(second.is_cancelled(), "denied by name");
    let third = admitted("third", 900).end_of_token("third", at(900));
    registry.end(EndedSession { sandbox_id: id(), until: at(900) });
    assert!(third.is_cancelled(), "and all with the session");
}
