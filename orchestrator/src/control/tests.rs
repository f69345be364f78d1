// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::store::tests::Database;
use jiff::Timestamp;
use postern_common::control::{Delivery, Follower, link};

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
    assert!(known.apply(&Change::Tenant(configuration(5))));
    assert!(!known.apply(&Change::Tenant(configuration(4))), "an older one");
    assert!(known.apply(&Change::Tenant(configuration(5))), "the same again");
    assert!(known.apply(&Change::Try(configuration(6))));
    assert_eq!(known.snapshot().tenants[0].revision, 5, "a trial changes nothing");
    assert!(known.apply(&Change::TenantRemoved(configuration(5).tenant.clone())));
    assert!(!known.apply(&Change::Tenant(configuration(9))), "a name is never given again");
    assert!(known.snapshot().tenants.is_empty());
}
