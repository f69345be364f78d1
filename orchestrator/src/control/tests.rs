// SPDX-License-Identifier: Apache-2.0
use super::standing::Stand;
use super::*;
use crate::store::tests::Database;
use jiff::Timestamp;
use postern_common::control::{Delivery, EndedSession, Follower, TenantConfig, link};

fn ended(number: u8) -> Change {
    let sandbox_id = SandboxId::from_random([number; 12]);
    Change::SessionEnded(EndedSession { sandbox_id, until: Timestamp::MAX })
}

async fn next(follower: &mut Follower) -> Delivery {
    let received = timeout(Duration::from_secs(10), follower.deliveries.recv());
    received.await.expect("in time").expect("connected")
}

#[tokio::test]
async fn a_gateway_gets_a_snapshot_then_each_change_in_order() {
    let (database, tasks) = (Database::sqlite().await, Tasks::new());
    let (gateways, _uses) = Gateways::start(7, State::default(), database.store.clone(), &tasks);
    let before = gateways.publish(ended(1), ACKNOWLEDGE_TIME).await;
    assert_eq!(before, Acknowledged::default(), "nobody is connected");
    let (publisher, mut follower) = link();
    gateways.connect(publisher).await;
    let first = next(&mut follower).await;
    let Change::Snapshot(state) = &first.message.change else { panic!("{:?}", first.message) };
    assert_eq!(state.ended.len(), 1, "what was before is in the snapshot");
    let (told, second) = tokio::join!(gateways.publish(ended(2), Duration::from_secs(10)), async {
        let delivery = next(&mut follower).await;
        delivery.applied.send(Applied::InForce).expect("waits");
        delivery.message
    });
    assert_eq!((told.in_force, told.pending), (1, 0));
    assert_eq!((first.message.epoch, second.epoch), (7, 7));
    assert!(second.version > first.message.version);
    tasks.shut_down(Duration::from_secs(10)).await.expect("ends");
}

#[tokio::test]
async fn a_gateway_that_does_not_answer_holds_an_answer_up_for_a_bounded_time() {
    let (database, tasks) = (Database::sqlite().await, Tasks::new());
    // Paused only now: a database lives by the real clock.
    tokio::time::pause();
    let (gateways, _uses) = Gateways::start(1, State::default(), database.store.clone(), &tasks);
    let (publisher, mut follower) = link();
    gateways.connect(publisher).await;
    let snapshot = next(&mut follower).await;
    let started = tokio::time::Instant::now();
    let told = gateways.publish(ended(1), ACKNOWLEDGE_TIME).await;
    assert_eq!((told.in_force, told.pending), (0, 1));
    // By the paused clock, whose timers wake at the next whole millisecond.
    assert!(started.elapsed() <= ACKNOWLEDGE_TIME + Duration::from_millis(1));
    drop((snapshot, follower));
    let told = gateways.publish(ended(2), ACKNOWLEDGE_TIME).await;
    assert_eq!((told.pending, gateways.connected()), (0, 0), "who left is not waited for");
}

#[tokio::test]
async fn a_gateway_that_was_dropped_connects_again_and_gets_a_snapshot() {
    let (database, tasks) = (Database::sqlite().await, Tasks::new());
    let (gateways, _uses) = Gateways::start(1, State::default(), database.store.clone(), &tasks);
    let (publisher, mut follower) = link();
    gateways.connect(publisher).await;
    let first = next(&mut follower).await.message;
    // Its end of the link breaks; the next change finds nobody there.
    follower.deliveries.close();
    let told = gateways.publish(ended(1), Duration::from_secs(10)).await;
    assert_eq!((told.in_force, gateways.connected()), (0, 0));
    follower.deliveries = follower.link.redial().await.expect("there is an orchestrator");
    let again = next(&mut follower).await.message;
    let Change::Snapshot(state) = &again.change else { panic!("{again:?}") };
    assert_eq!(state.ended.len(), 1, "what it missed is in the snapshot");
    assert!(again.version > first.version);
    tasks.shut_down(Duration::from_secs(10)).await.expect("ends");
    assert!(follower.link.redial().await.is_none(), "nobody is there any more");
}

#[tokio::test]
async fn what_a_gateway_refuses_is_told() {
    let (database, tasks) = (Database::sqlite().await, Tasks::new());
    let (gateways, _uses) = Gateways::start(1, State::default(), database.store.clone(), &tasks);
    let (publisher, mut follower) = link();
    gateways.connect(publisher).await;
    drop(next(&mut follower).await);
    let (told, ()) = tokio::join!(gateways.publish(ended(1), Duration::from_secs(10)), async {
        let delivery = next(&mut follower).await;
        delivery.applied.send(Applied::Refused(vec!["no such filter".to_owned()])).expect("waits");
    });
    assert_eq!(told.refused, ["no such filter"]);
}

fn configuration(revision: u64) -> Arc<TenantConfig> {
    Arc::new(TenantConfig {
        tenant: TenantId::parse("acme").expect("a name"),
        revision,
        versions: Default::default(),
        backends: BTreeMap::new(),
        default_backend: None,
        policies: None,
        shadow_policies: BTreeMap::new(),
        filters: BTreeMap::new(),
        secrets: BTreeMap::new(),
        limits: Default::default(),
    })
}

#[test]
fn what_comes_too_late_is_not_told_and_a_removed_tenant_stays_so() {
    let mut known = Known::default();
    let mut apply = |change| {
        let counts = known.apply(&Publication { change, others: Arc::default() });
        (counts, known.snapshot("any").0.tenants)
    };
    assert!(apply(Change::Tenant(configuration(5))).0);
    assert!(!apply(Change::Tenant(configuration(4))).0, "an older one");
    assert!(apply(Change::Tenant(configuration(5))).0, "the same again");
    let (counts, tenants) = apply(Change::Try(configuration(6)));
    assert_eq!((counts, tenants[0].revision), (true, 5), "a trial changes nothing");
    assert!(apply(Change::TenantRemoved(configuration(5).tenant.clone())).0);
    let (counts, tenants) = apply(Change::Tenant(configuration(9)));
    assert!(!counts, "a name is never given again");
    assert!(tenants.is_empty());
}

/// A configuration with a filter whose code is one byte.
fn filtered(revision: u64, code: u8) -> Arc<TenantConfig> {
    Arc::new(TenantConfig { filters: one_filter(code), ..TenantConfig::clone(&configuration(revision)) })
}

fn one_filter(code: u8) -> BTreeMap<FilterName, FilterArtefact> {
    let artefact = FilterArtefact { manifest: Arc::from(""), artefact: Arc::from([code]), version: 3 };
    BTreeMap::from([(FilterName::parse("guard").expect("a name"), artefact)])
}

fn code_of(change: &Change) -> u8 {
    let config = match change {
        Change::Tenant(config) | Change::Try(config) => config,
        Change::Snapshot(state) => &state.tenants[0],
        other => panic!("{other:?}"),
    };
    config.filters.values().next().expect("one").artefact[0]
}

fn stand_of(gateways: &Gateways, gateway: &str) -> GatewayStand {
    let stands = gateways.standing(&configuration(1).tenant);
    stands.into_iter().find(|stand| stand.gateway == gateway).expect("it follows")
}

/// Waits until a gateway stands so: its answers are noted beside who waits for them.
async fn stands(gateways: &Gateways, gateway: &str, wanted: Stand) -> GatewayStand {
    let noted = async {
        loop {
            let found = stand_of(gateways, gateway);
            if found.stand == wanted {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), noted).await.expect("in time")
}

#[tokio::test]
async fn each_gateway_is_told_the_filters_of_its_own_engine_and_stands_by_its_name() {
    let (database, tasks) = (Database::sqlite().await, Tasks::new());
    let (gateways, _uses) = Gateways::start(1, State::default(), database.store.clone(), &tasks);
    let (publisher, mut own) = link();
    gateways.connect(publisher).await;
    let mut distant = Vec::new();
    for (name, engine) in [("newer", "engine-2"), ("older", "engine-0")] {
        let (publisher, follower) = link();
        let connection = gateways
            .connect_distant(&GatewayName::parse(name).expect("a name"), engine, None, &publisher)
            .await;
        distant.push((connection, publisher, follower));
    }
    let [(_newer_stays, _, newer), (_older_stays, _, older)] = &mut *distant else { panic!("two") };
    for follower in [&mut own, newer, older] {
        next(follower).await.applied.send(Applied::InForce).expect("is awaited");
    }
    let mut engines = gateways.other_engines();
    let all = |engines: &BTreeSet<String>| engines.len() == 2;
    assert_eq!(
        *engines.wait_for(all).await.expect("lives"),
        BTreeSet::from(["engine-0".to_owned(), "engine-2".to_owned()])
    );

    let others = OtherEngines::from([("engine-2".to_owned(), one_filter(2))]);
    let trial =
        gateways.publish_for_all(Change::Try(filtered(4, 1)), others.clone(), Duration::from_secs(10));
    let (tried, ()) = tokio::join!(trial, async {
        for (follower, code) in [(&mut own, 1), (&mut *newer, 2)] {
            let delivery = next(follower).await;
            assert_eq!(code_of(&delivery.message.change), code);
            delivery.applied.send(Applied::InForce).expect("is awaited");
        }
    });
    assert_eq!((tried.in_force, tried.pending), (2, 0), "who cannot judge is not asked");
    let told = gateways.publish_for_all(Change::Tenant(filtered(4, 1)), others, Duration::from_secs(10));
    let (told, ()) = tokio::join!(told, async {
        for (follower, code) in [(&mut own, 1), (&mut *newer, 2)] {
            let delivery = next(follower).await;
            assert_eq!(code_of(&delivery.message.change), code);
            delivery.applied.send(Applied::InForce).expect("is awaited");
        }
        let unserved = next(older).await;
        assert!(matches!(unserved.message.change, Change::Tenant(_)), "the trial never came");
        unserved.applied.send(Applied::Refused(vec!["another engine".to_owned()])).expect("is awaited");
    });
    assert_eq!((told.in_force, told.refused.len()), (2, 1));
    for name in [OWN_PROCESS, "newer"] {
        let stand = stand_of(&gateways, name);
        assert_eq!((stand.stand, stand.reasons.len()), (Stand::InForce, 0), "{name}");
        let in_force = stand.in_force.expect("it has one");
        assert_eq!((in_force.revision, in_force.filters.values().copied().collect()), (4, vec![3]));
    }
    let stand = stand_of(&gateways, "older");
    assert_eq!(
        (stand.stand, stand.in_force, stand.reasons),
        (Stand::Unserved, None, vec!["another engine".to_owned()])
    );

    tasks.shut_down(Duration::from_secs(10)).await.expect("ends");
}

#[tokio::test]
async fn who_connects_gets_a_snapshot_for_its_engine_and_stands_as_it_answers() {
    let (database, tasks) = (Database::sqlite().await, Tasks::new());
    let (gateways, _uses) = Gateways::start(1, State::default(), database.store.clone(), &tasks);
    let others = OtherEngines::from([("engine-2".to_owned(), one_filter(2))]);
    gateways.publish_for_all(Change::Tenant(filtered(4, 1)), others, Duration::ZERO).await;
    for (name, engine, code) in [("newer", "engine-2", 2), ("older", "engine-0", 1)] {
        let (publisher, mut follower) = link();
        let connection = gateways
            .connect_distant(&GatewayName::parse(name).expect("a name"), engine, None, &publisher)
            .await;
        let delivery = next(&mut follower).await;
        assert_eq!(code_of(&delivery.message.change), code, "{name}");
        assert_eq!(stand_of(&gateways, name).stand, Stand::Pending);
        let is_served = code == 2;
        let refused = postern_common::control::of_tenant(&configuration(4).tenant, "another engine");
        let answer = if is_served { Applied::InForce } else { Applied::Refused(vec![refused]) };
        delivery.applied.send(answer).expect("is awaited");
        let wanted = if is_served { Stand::InForce } else { Stand::Unserved };
        assert_eq!(stands(&gateways, name, wanted).await.in_force.is_some(), is_served);
        drop(connection);
    }
    assert!(gateways.standing(&configuration(1).tenant).is_empty(), "both have left");
    tasks.shut_down(Duration::from_secs(10)).await.expect("ends");
}

#[tokio::test]
async fn a_gateway_that_comes_from_another_orchestrator_is_told_in_an_epoch_above_all() {
    let (database, tasks) = (Database::sqlite().await, Tasks::new());
    let ours = database.store.next_number("epoch", 100).await.expect("answers");
    let (gateways, _uses) = Gateways::start(ours, State::default(), database.store.clone(), &tasks);
    let theirs = database.store.next_number("epoch", 0).await.expect("answers");
    let name = GatewayName::parse("edge").expect("a name");
    let connect = async |last| {
        let (publisher, mut follower) = link();
        let connection = gateways.connect_distant(&name, "engine", last, &publisher).await;
        let message = next(&mut follower).await.message;
        drop(connection);
        (message.epoch, message.version)
    };
    assert_eq!(connect(None).await.0, ours);
    assert_eq!(connect(Some((ours, 1))).await.0, ours, "it was told here");
    let told = connect(Some((theirs, 7))).await;
    assert!(told > (theirs, 7), "{told:?}");
    assert!(connect(Some((u64::MAX, 7))).await.0 < u64::MAX / 2, "a lie lifts nothing to the end of numbers");
    tasks.shut_down(Duration::from_secs(10)).await.expect("ends");
}
