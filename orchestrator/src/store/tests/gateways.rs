// SPDX-License-Identifier: Apache-2.0
use super::*;

pub(super) async fn a_gateways_name_is_given_once_and_free_after_it_is_revoked(store: &Store) {
    let row = |hash: u8| GatewayRow {
        name: "edge".parse().expect("a name"),
        hash: vec![hash; 32],
        created_by: "key:x".to_owned(),
        created_at: whole_micros(now()),
    };
    let (added, revoked) = (audit(Action::GatewayAdded), audit(Action::GatewayRevoked));
    let first = row(1);
    assert!(store.add_gateway(&first, &added).await.expect("answers"));
    assert!(!store.add_gateway(&row(2), &added).await.expect("answers"), "the name is taken");
    assert_eq!(store.gateway(&first.name).await.expect("answers"), Some(first.clone()));
    assert!(store.remove_gateway(&first.name, &revoked).await.expect("answers"));
    assert!(!store.remove_gateway(&first.name, &revoked).await.expect("answers"));
    let second = row(2);
    assert!(store.add_gateway(&second, &added).await.expect("answers"));
    assert_eq!(store.gateways().await.expect("answers"), [second]);
}

pub(super) async fn a_session_of_an_address_ends_for_good_and_goes_with_its_tenant(store: &Store) {
    store.add_tenant(&tenant(), &Owner::Api, &audit(Action::TenantCreated)).await.expect("answers");
    let begun = whole_micros(now());
    let row = |number: u8, seconds: i64| PeerSessionRow {
        id: SandboxId::from_random([number; 12]),
        tenant: tenant(),
        user_id: UserId::parse("älice'; --").expect("an id"),
        conversation_id: ConversationId::parse("c1").expect("an id"),
        operations: vec!["desk/read".parse().expect("a grant")],
        address: "fe80::1".parse().expect("an address"),
        jti: "j1".to_owned(),
        created_by: "key:x".to_owned(),
        created_at: begun,
        expires_at: begun + jiff::SignedDuration::from_secs(seconds),
    };
    let (added, over) = (audit(Action::SessionAdded), audit(Action::SessionEnded));
    let (first, second) = (row(1, 60), row(2, 60));
    for session in [&first, &second] {
        assert!(store.add_peer_session(session, &added).await.expect("answers"));
    }
    assert_eq!(store.peer_sessions(begun, None).await.expect("answers"), [first.clone(), second.clone()]);
    let ended =
        store.end_peer_session(&first.id, begun, &over).await.expect("answers").expect("there is one");
    assert_eq!((ended.sandbox_id.clone(), ended.until), (first.id.clone(), first.expires_at));
    assert_eq!(store.end_peer_session(&first.id, begun, &over).await.expect("answers"), None);
    assert_eq!(store.ended_peer_sessions(begun, None).await.expect("answers"), [ended]);
    assert_eq!(store.peer_sessions(begun, None).await.expect("answers"), std::slice::from_ref(&second));
    let later = second.expires_at;
    assert_eq!(store.peer_sessions(later, None).await.expect("answers"), [], "they end by themselves");
    assert_eq!(store.ended_peer_sessions(later, None).await.expect("answers"), []);
}
