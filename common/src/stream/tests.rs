// SPDX-License-Identifier: Apache-2.0
use super::chain::{Accepted, Carried, Following, Refused, Sending, without_secrets};
use super::frame::{self, FrameError, Kind};
use super::secrets::UnwrappingKey;
use super::*;
use crate::control::budgets::Demand;
use crate::control::{BackendConfig, Change, EndedSession, FilterArtefact, Message, State, TenantConfig};
use crate::decision::Versions;
use crate::id::{BackendName, FilterName, PolicyName, SandboxId, SecretName, TenantId};
use crate::session::{AcceptedToken, Isolation, Peer, Session};
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn gateway(name: &str) -> GatewayName {
    GatewayName::parse(name).expect("a name")
}

fn signer(seed: u8) -> Arc<Signer> {
    Arc::new(Signer::from_seed(&[seed; 32]).expect("a seed"))
}

fn session(user: &str) -> Session {
    Session {
        sandbox_id: SandboxId::from_random([3; 12]),
        tenant: TenantId::parse("acme").expect("a tenant"),
        user_id: user.parse().expect("a user"),
        conversation_id: "c1".parse().expect("a conversation"),
        operations: vec!["desk/read".parse().expect("a grant")],
        tokens: vec![AcceptedToken { jti: "j1".into(), until: NOW }],
        peer: Peer::Address([10, 0, 0, 7].into()),
        expires_at: NOW,
        template: "default".parse().expect("a template"),
        isolation: Isolation::Gvisor,
        labels: BTreeMap::from([("team".into(), "desk".into())]),
        claims: serde_json::Map::from_iter([("plan".to_owned(), json!("gold"))]),
    }
}

fn config(tenant: &str, secret: &str, code: &[u8]) -> TenantConfig {
    let file =
        json!({ "url": "http://10.0.0.1:9000/api", "credential": "desk-key", "limits": { "body": "2 MiB" } });
    let backend = BackendConfig {
        file: serde_json::from_value(file).expect("a backend"),
        document: Some("openapi: 3.1.0".into()),
    };
    TenantConfig {
        revision: 7,
        tenant: TenantId::parse(tenant).expect("a tenant"),
        versions: Versions { routes: "r".into(), policies: "p".into(), filters: "f".into() },
        backends: BTreeMap::from([(BackendName::parse("desk").expect("a name"), backend)]),
        default_backend: None,
        policies: Some(BTreeMap::from([(PolicyName::parse("a").expect("a name"), "permit(…);".into())])),
        shadow_policies: BTreeMap::from([(PolicyName::parse("b").expect("a name"), "forbid(…);".into())]),
        filters: BTreeMap::from([(
            FilterName::parse("guard").expect("a name"),
            FilterArtefact { manifest: "phases = []".into(), artefact: Arc::from(code), version: 4 },
        )]),
        secrets: BTreeMap::from([(
            SecretName::parse("desk-key").expect("a name"),
            Secret::new(secret.to_owned()),
        )]),
        limits: serde_json::from_value(json!({ "session": { "per_second": 2.5 } })).expect("limits"),
    }
}

/// Both ends of one connection.
struct Pair {
    sending: Sending,
    following: Following,
    own: UnwrappingKey,
    welcome: Vec<u8>,
}

fn connect(seed: u8, name: &str, last: Option<(u64, u64)>) -> Pair {
    let own = UnwrappingKey::generate().expect("random");
    let nonce = Nonce::generate().expect("random");
    let (sending, welcome) =
        Sending::begin(signer(seed), (gateway(name), nonce), own.public(), NOW).expect("begins");
    let (following, _) =
        Following::begin(signer(seed).key(), (&gateway(name), nonce), own.public(), last, &welcome)
            .expect("is believed");
    Pair { sending, following, own, welcome }
}

impl Pair {
    fn send(&mut self, version: u64, change: Change) -> Vec<u8> {
        self.sending.message(&Message { epoch: 5, version, change }, NOW).expect("is sealed").1
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Accepted, Refused> {
        self.following.message(bytes, Some(&self.own))
    }
}

fn opened(user: &str) -> Change {
    Change::Session(Box::new(session(user)))
}

fn everything() -> Change {
    Change::Snapshot(Box::new(State {
        tenants: vec![
            Arc::new(config("acme", "hunter2", b"code of a filter")),
            Arc::new(config("other", "swordfish", b"code of a filter")),
        ],
        sessions: vec![session("alice")],
        ended: vec![EndedSession { sandbox_id: SandboxId::from_random([9; 12]), until: NOW }],
    }))
}

/// A change as text, with the secrets that its `Debug` hides.
fn spelled(change: &Change) -> String {
    let secrets: Vec<String> = match change {
        Change::Snapshot(state) => {
            let all = state.tenants.iter().flat_map(|config| config.secrets.values());
            all.map(|secret| secret.reveal().clone()).collect()
        }
        Change::Tenant(config) | Change::Try(config) => {
            config.secrets.values().map(|secret| secret.reveal().clone()).collect()
        }
        _ => Vec::new(),
    };
    format!("{change:?} {secrets:?}")
}

#[test]
fn every_kind_of_change_arrives_as_it_was_sent() {
    let changes = [
        everything(),
        opened("alice"),
        Change::SessionEnded(EndedSession { sandbox_id: SandboxId::from_random([1; 12]), until: NOW }),
        Change::Tenant(Arc::new(config("acme", "hunter3", b"other code"))),
        Change::Try(Arc::new(config("acme", "hunter4", b"code that is only tried"))),
        Change::TenantRemoved(TenantId::parse("other").expect("a tenant")),
    ];
    let mut pair = connect(1, "edge", None);
    for (change, version) in changes.into_iter().zip(1..) {
        let bytes = pair.send(version, change.clone());
        let accepted = pair.take(&bytes).expect("is accepted");
        assert_eq!((accepted.sequence, accepted.message.version), (version, version));
        assert_eq!(spelled(&accepted.message.change), spelled(&change));
        let ping = pair.sending.heartbeat(version, Carried::default(), NOW).expect("is signed");
        assert_eq!(pair.following.heartbeat(&ping).expect("is believed").echo, version);
    }
    assert_eq!(pair.following.last(), Some((5, 6)));
}

#[test]
fn no_secret_is_readable_on_the_way_and_none_is_kept() {
    let mut pair = connect(1, "edge", None);
    let bytes = pair.send(1, everything());
    let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(!holds(&bytes, "hunter2") && !holds(&bytes, "swordfish"));
    let kept = without_secrets(&bytes).expect("a message");
    assert!(kept.len() < bytes.len());
    let (mut later, _) =
        Following::resume(signer(1).key(), &gateway("edge"), &pair.welcome).expect("is believed");
    let Change::Snapshot(state) = later.message(&kept, None).expect("is believed").message.change else {
        panic!("is a snapshot")
    };
    assert!(state.tenants.iter().all(|config| config.secrets.is_empty() && config.filters.len() == 1));
    assert_eq!(pair.take(&kept).expect_err("secrets are missing"), Refused::Contents);
}

#[test]
fn a_message_of_another_signer_is_refused() {
    let mut pair = connect(1, "edge", None);
    pair.following = connect(2, "edge", None).following;
    let bytes = pair.send(1, opened("alice"));
    assert_eq!(pair.take(&bytes).expect_err("is refused"), Refused::Signature);
}

#[test]
fn a_message_to_another_gateway_is_refused() {
    let mut other = connect(1, "other", None);
    let bytes = other.send(1, opened("alice"));
    let refused = connect(1, "edge", None).take(&bytes).expect_err("is refused");
    assert_eq!(refused, Refused::OtherGateway(gateway("other")));
}

#[test]
fn a_recorded_message_fits_no_later_connection() {
    let bytes = connect(1, "edge", None).send(1, opened("alice"));
    assert_eq!(connect(1, "edge", None).take(&bytes).expect_err("is refused"), Refused::OtherConnection);
}

#[test]
fn a_recorded_welcome_fits_no_later_connection() {
    let recorded = connect(1, "edge", None);
    let (own, nonce) = (recorded.own.public(), Nonce::generate().expect("random"));
    let begun = Following::begin(signer(1).key(), (&gateway("edge"), nonce), own, None, &recorded.welcome);
    assert_eq!(begun.expect_err("is refused"), Refused::OtherConnection);
}

#[test]
fn a_welcome_with_another_wrapping_key_is_refused() {
    let (own, foreign) =
        (UnwrappingKey::generate().expect("random"), UnwrappingKey::generate().expect("random"));
    let nonce = Nonce::generate().expect("random");
    let (_, welcome) =
        Sending::begin(signer(1), (gateway("edge"), nonce), foreign.public(), NOW).expect("begins");
    let begun = Following::begin(signer(1).key(), (&gateway("edge"), nonce), own.public(), None, &welcome);
    assert_eq!(begun.expect_err("is refused"), Refused::OtherConnection);
}

#[test]
fn what_comes_twice_too_early_or_not_at_all_is_refused() {
    let mut pair = connect(1, "edge", None);
    let all: Vec<_> = (1..=3).map(|version| pair.send(version, opened("alice"))).collect();
    assert_eq!(pair.take(&all[1]).expect_err("early"), Refused::Order { expected: 1, found: 2 });
    pair.take(&all[0]).expect("is due");
    assert_eq!(pair.take(&all[0]).expect_err("twice"), Refused::Order { expected: 2, found: 1 });
    assert_eq!(pair.take(&all[2]).expect_err("a gap"), Refused::Order { expected: 2, found: 3 });
    pair.take(&all[1]).expect("what was due is still taken");
}

#[test]
fn a_heartbeat_does_not_hide_a_message_that_was_held_back() {
    let mut pair = connect(1, "edge", None);
    let bytes = pair.send(1, opened("alice"));
    let ping = pair.sending.heartbeat(1, Carried::default(), NOW).expect("is signed");
    assert_eq!(pair.following.heartbeat(&ping).expect_err("a message is missing"), Refused::Chain);
    pair.take(&bytes).expect("is due");
    pair.following.heartbeat(&ping).expect("now all has come");
}

#[test]
fn within_and_across_connections_nothing_goes_back() {
    let older = |version| Refused::Older { epoch: 5, version, last_epoch: 5, last_version: 7 };
    let mut pair = connect(1, "edge", Some((5, 7)));
    for version in [1, 7] {
        let bytes = pair.send(version, everything());
        assert_eq!(pair.take(&bytes).expect_err("is older"), older(version));
        pair.sending = reconnected(&pair);
    }
    let mut pair = connect(1, "edge", Some((6, 1)));
    let bytes = pair.send(9, everything());
    assert!(matches!(pair.take(&bytes), Err(Refused::Older { last_epoch: 6, .. })), "an older epoch");
    let mut pair = connect(1, "edge", Some((4, 1000)));
    let bytes = pair.send(1, everything());
    pair.take(&bytes).expect("a newer epoch begins anew");
}

/// The sending end of the pair's connection as it was at its beginning.
fn reconnected(pair: &Pair) -> Sending {
    let welcome = Following::resume(signer(1).key(), &gateway("edge"), &pair.welcome).expect("is ours").1;
    let to = (welcome.gateway, welcome.nonce);
    Sending::begin(signer(1), to, pair.own.public(), NOW).expect("begins").0
}

#[test]
fn secrets_wrapped_for_another_gateway_or_key_do_not_open() {
    let mut pair = connect(1, "edge", None);
    let bytes = pair.send(1, everything());
    let other = UnwrappingKey::generate().expect("random");
    let refused = pair.following.message(&bytes, Some(&other)).expect_err("is refused");
    assert_eq!(refused, Refused::Secrets(secrets::Unopened));
    pair.take(&bytes).expect("a refused message changes nothing");
}

#[test]
fn a_credential_reads_back_and_shows_nothing() {
    let credential = Credential {
        name: gateway("edge"),
        secret: Secret::new("s3cret".into()),
        authority: vec![48, 1, 2, 3],
        signer: signer(1).key(),
    };
    let line = credential.to_line();
    let read = Credential::parse(&format!(" {}\n", line.reveal())).expect("is one");
    assert_eq!(
        (read.name, read.authority, read.signer),
        (credential.name, credential.authority, credential.signer)
    );
    assert_eq!(read.secret.reveal(), "s3cret");
    assert!(!format!("{line:?}").contains("s3cret"));
    for wrong in ["", "postern-gateway_", "postern-gateway_e30", line.reveal().trim_start_matches('p')] {
        assert!(Credential::parse(wrong).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn frames_are_bounded_and_cut_ones_are_noticed() {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, Kind::Ping, b"{\"echo\":1}").await.expect("is written");
    let (kind, body) = frame::read(&mut bytes.as_slice(), frame::SMALL_BYTES).await.expect("is read");
    assert_eq!(
        (kind, frame::parse::<Ping>(&body).expect("is one")),
        (Kind::Ping, Ping { echo: 1, demand: Demand::new() })
    );
    for length in 0..bytes.len() {
        let cut = frame::read(&mut &bytes[..length], frame::SMALL_BYTES).await;
        assert!(matches!(cut, Err(FrameError::Cut(_))), "cut to {length}");
    }
    assert!(matches!(frame::read(&mut bytes.as_slice(), 10).await, Err(FrameError::TooLong(11))));
    bytes[4] = 99;
    assert!(matches!(frame::read(&mut bytes.as_slice(), 99).await, Err(FrameError::Unknown(99))));
    let endless = [0xff, 0xff, 0xff, 0xff, 1];
    assert!(matches!(frame::read(&mut &endless[..], 1 << 20).await, Err(FrameError::TooLong(_))));
}

proptest! {
    #[test]
    fn a_changed_byte_is_always_refused(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let mut pair = connect(1, "edge", None);
        let mut bytes = pair.send(1, everything());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(pair.take(&bytes).is_err(), "byte {at}");
    }

    #[test]
    fn a_cut_or_lengthened_message_is_always_refused(at in any::<prop::sample::Index>(), more in 1_usize..9) {
        let mut pair = connect(1, "edge", None);
        let bytes = pair.send(1, everything());
        prop_assert!(pair.take(&bytes[..at.index(bytes.len())]).is_err());
        let longer = [bytes.as_slice(), &vec![0; more]].concat();
        prop_assert!(pair.take(&longer).is_err());
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut pair = connect(1, "edge", None);
        prop_assert!(pair.take(&bytes).is_err());
        prop_assert!(pair.following.heartbeat(&bytes).is_err());
        prop_assert!(Following::resume(signer(1).key(), &gateway("edge"), &bytes).is_err());
        drop(without_secrets(&bytes));
    }

    #[test]
    fn text_of_any_kind_survives(user in "\\PC{1,20}", secret in "\\PC{0,40}", code in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut pair = connect(1, "edge", None);
        for (change, version) in [opened(&user), Change::Tenant(Arc::new(config("acme", &secret, &code)))].into_iter().zip(1..) {
            let bytes = pair.send(version, change.clone());
            prop_assert_eq!(spelled(&pair.take(&bytes).expect("is accepted").message.change), spelled(&change));
        }
    }
}
