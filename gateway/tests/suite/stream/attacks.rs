// SPDX-License-Identifier: Apache-2.0
//! Attacks on the control stream, each refused, and the orchestrator that is not ours.

use super::*;

/// What an attacker does between orchestrator and gateway.
type Attack = fn(&mut Connection, &Recording) -> Vec<(Kind, Vec<u8>)>;

/// What was recorded of an earlier connection of the same gateway.
struct Recording {
    welcome: Vec<u8>,
    message: Vec<u8>,
    heartbeat: Vec<u8>,
}

fn other_gateway(connection: &Connection) -> Vec<u8> {
    let to = (GatewayName::parse("other").expect("a name"), connection.hello.nonce);
    let signer = Arc::new(Signer::from_seed(&[5; 32]).expect("a seed"));
    let (mut sending, _) = Sending::begin(signer, to, connection.hello.wrapping, now()).expect("begins");
    let message = Message { epoch: 1, version: 50, change: alice_ends() };
    sending.message(&message, now()).expect("is sealed").1
}

fn other_signer(connection: &Connection) -> Vec<u8> {
    let to = (connection.hello.name.clone(), connection.hello.nonce);
    let signer = Arc::new(Signer::from_seed(&[6; 32]).expect("a seed"));
    let (mut sending, _) = Sending::begin(signer, to, connection.hello.wrapping, now()).expect("begins");
    let message = Message { epoch: 1, version: 50, change: alice_ends() };
    sending.message(&message, now()).expect("is sealed").1
}

/// What comes after a snapshot that was taken. Each would end alice's session, or hide that it has
/// ended, if it were believed.
const ATTACKS: &[(&str, Attack)] = &[
    ("a message of before, again", |_, recorded| vec![(Kind::Message, recorded.message.clone())]),
    ("a heartbeat of before, again", |_, recorded| vec![(Kind::Heartbeat, recorded.heartbeat.clone())]),
    ("a second welcome", |_, recorded| vec![(Kind::Welcome, recorded.welcome.clone())]),
    ("an older version", |connection, _| vec![(Kind::Message, connection.seal(1, alice_ends()))]),
    ("one is missing", |connection, _| {
        let _held_back = connection.seal(50, Change::TenantRemoved(TenantId::parse("x").expect("a name")));
        vec![(Kind::Message, connection.seal(51, alice_ends()))]
    }),
    ("two in the wrong order", |connection, _| {
        let first = connection.seal(50, Change::TenantRemoved(TenantId::parse("x").expect("a name")));
        vec![(Kind::Message, connection.seal(51, alice_ends())), (Kind::Message, first)]
    }),
    ("one held back behind a heartbeat", |connection, _| {
        let _held_back = connection.seal(50, alice_ends());
        vec![(
            Kind::Heartbeat,
            connection.sending.heartbeat(u64::MAX, Carried::default(), now()).expect("is signed"),
        )]
    }),
    ("another gateway's message", |connection, _| vec![(Kind::Message, other_gateway(connection))]),
    ("another signer's message", |connection, _| vec![(Kind::Message, other_signer(connection))]),
    ("a changed byte", |connection, _| {
        let mut bytes = connection.seal(50, alice_ends());
        bytes[40] ^= 1;
        vec![(Kind::Message, bytes)]
    }),
    ("unsigned bytes", |_, _| vec![(Kind::Message, b"{\"session_ended\":{}}".to_vec())]),
    ("a frame that only gateways send", |_, _| vec![(Kind::Applied, b"{\"sequence\":1}".to_vec())]),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_attack_on_the_stream_is_refused_and_a_fresh_snapshot_taken() {
    let world = World::new(LONG).await;
    let mut first = world.orchestrator.follow(1, world.state()).await;
    let recorded = Recording {
        welcome: first.welcome.clone(),
        message: first.seal(2, alice_ends()),
        heartbeat: first.sending.heartbeat(1, Carried::default(), now()).expect("is signed"),
    };
    drop(first);
    let mut version = 10;
    for (name, attack) in ATTACKS {
        let mut connection = world.orchestrator.follow(version, world.state()).await;
        assert!(connection.hello.last <= Some((1, version)), "{name}");
        for (kind, body) in attack(&mut connection, &recorded) {
            // The gateway may have closed before the last of them.
            drop(frame::write(&mut connection.tls, kind, &body).await);
        }
        assert!(connection.is_closed().await, "{name}: the connection goes on");
        assert_eq!(world.ask(&alice()).await.status, 200, "{name}: it was believed");
        version += 100;
    }
    let mut connection = world.orchestrator.follow(version, world.state()).await;
    connection.tell(version + 1, alice_ends()).await;
    assert_eq!(world.ask(&alice()).await.code(), "token-revoked", "the control: the true one is believed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_orchestrator_gets_no_credential_and_is_not_believed() {
    let mut world = World::new(LONG).await;
    let truth = std::mem::replace(&mut world.orchestrator, Orchestrator::new().await);
    // Whoever takes the true one's address has another authority: the gateway shakes no hand.
    let (socket, _) = timeout(PATIENCE, truth.listener.accept()).await.expect("in time").expect("accepts");
    assert!(world.orchestrator.tls.accept(socket).await.is_err(), "another authority's certificate");
    // A recorded welcome, with the true certificate: another nonce.
    let first = truth.accept().await;
    let recorded = first.welcome.clone();
    drop(first);
    let mut second = truth.accept().await;
    second.put(Kind::Welcome, &recorded).await;
    let snapshot = second.seal(1, Change::Snapshot(Box::new(world.state())));
    drop(frame::write(&mut second.tls, Kind::Message, &snapshot).await);
    assert!(second.is_closed().await);
    // Changes before any snapshot.
    let mut third = truth.accept().await;
    third.welcome().await;
    let bytes = third.seal(2, alice_ends());
    third.put(Kind::Message, &bytes).await;
    assert!(third.is_closed().await);
    assert_eq!(world.ask(&alice()).await.code(), "state-stale");
    world.recorded.assert_untouched("a false orchestrator");
    let _control = truth.follow(3, world.state()).await;
    world.until(200, "").await;
}
