// SPDX-License-Identifier: Apache-2.0
//! Two drivers on one Postgres, for one cluster or for two machines.

use super::*;
use crate::store::{SandboxChange, StoreError};

/// Two orchestrators; `None` where Postgres is not installed.
async fn two(shared: bool) -> Option<(Bench, Bench)> {
    let Some(database) = Database::postgres().await else {
        println!("left out: Postgres is not installed");
        return None;
    };
    make(&database.store, sandbox(1, "c1").tenant.as_str()).await;
    let other = Store::open(&database.url).await.expect("opens");
    let host = Stand::new(shared);
    let (here, there) = if shared { ("cluster", "cluster") } else { ("here", "there") };
    let first = Bench::on(database.store.clone().at(here), Arc::clone(&host)).await;
    let other_host = if shared { host } else { Stand::new(false) };
    let second = Bench::on(other.at(there), other_host).await;
    Some((Bench { _database: Some(database), ..first }, second))
}

async fn written(bench: &Bench, id: &SandboxId) {
    until("it is written down", async || bench.store.sandbox(id).await.expect("answers").is_some()).await;
    until("it is being made", async || bench.host.made().contains(id)).await;
}

#[tokio::test]
async fn what_one_is_making_another_that_starts_leaves_alone() {
    let Some((first, second)) = two(true).await else { return };
    let id = new(1).id;
    let created = first.create(new(1));
    let (made, ()) = tokio::join!(created, written(&first, &id));
    made.expect("is written down");
    // As at its start, then as at every sweep.
    assert_eq!(second.driver.reconcile().await.expect("answers").ended, []);
    second.driver.sweep().await.expect("answers");
    assert_eq!(second.row(&id).await.state, State::Creating);
    assert!(second.host.made().contains(&id));
    // Its maker goes on: without an agent it becomes no more than failed, by its own word.
    first.open_all_doors();
    assert_eq!(
        first.over(&id).await.reason.as_deref(),
        Some("it did not start; the orchestrator's log says why")
    );
}

#[tokio::test]
async fn what_a_silent_one_was_making_is_taken_over_and_the_silent_one_writes_no_more() {
    let Some((first, second)) = two(true).await else { return };
    let id = new(1).id;
    let (made, ()) = tokio::join!(first.create(new(1)), written(&first, &id));
    made.expect("is written down");
    second.driver.sweep().await.expect("answers");
    assert_eq!(second.row(&id).await.state, State::Creating, "its claim holds");
    first.store.let_claims_end().await;
    second.driver.sweep().await.expect("answers");
    let over = second.over(&id).await;
    assert_eq!((over.state, over.reason.as_deref()), (State::Failed, Some("making it was interrupted")));
    // The first wakes, and finds that nothing is its own any more.
    let lost = first.driver.happen(&id, Event::Started, None, Cause::own("")).await;
    assert!(matches!(lost, Err(DriveError::Refused(_))), "{lost:?}");
    first.open_all_doors();
    until("its turn ends", async || !first.driver.0.lanes.is_busy(&id)).await;
    assert_eq!(first.row(&id).await.state, State::Failed);
}

#[tokio::test]
async fn one_works_on_a_sandbox_at_a_time_and_a_dead_ones_turn_passes_on() {
    let Some((first, second)) = two(true).await else { return };
    let id = first.running().await.new.id;
    let turn = first.driver.turn(&id).await.expect("is free");
    let mut waiting = std::pin::pin!(second.driver.turn(&id));
    for _ in 0..20 {
        assert!(poll_once(waiting.as_mut()).await.is_pending(), "the first has it");
        assert!(!second.store.claim(&id).await.expect("answers"));
    }
    drop(turn);
    let turn = tokio::time::timeout(PATIENCE, waiting).await.expect("passes on").expect("is free");
    assert!(second.driver.still_ours(&id).await.is_ok());
    second.store.let_claims_end().await;
    let again = tokio::time::timeout(PATIENCE, first.driver.turn(&id)).await;
    let _again = again.expect("passes on").expect("is free");
    let lost = second.driver.still_ours(&id).await;
    assert!(matches!(lost, Err(StoreError::TakenOver { .. })), "{lost:?}");
    drop(turn);
    until("the late release does no harm", async || !second.driver.0.lanes.is_busy(&id)).await;
    assert!(first.store.has_claimed(&id).await.expect("answers"));
}

#[tokio::test]
async fn a_token_goes_into_a_sandbox_only_while_it_is_claimed() {
    let Some((first, second)) = two(true).await else { return };
    let row = first.running().await;
    let id = &row.new.id;
    let turn = first.driver.turn(id).await.expect("is free");
    first.store.let_claims_end().await;
    assert!(second.store.claim(id).await.expect("answers"));
    let handed = first.driver.hand_over(id, &Secret::new("old".to_owned())).await;
    assert!(matches!(handed, Err(DriveError::Store(StoreError::TakenOver { .. }))), "{handed:?}");
    let again = first.driver.replace_in_turn(id, Cause::own("")).await.expect_err("is the other's");
    assert!(again.to_string().contains("taken over"), "{again}");
    drop(turn);
}

#[tokio::test]
async fn a_start_is_called_off_by_whoever_destroys_the_sandbox_elsewhere() {
    let Some((first, second)) = two(true).await else { return };
    let id = new(1).id;
    let (made, ()) = tokio::join!(first.create(new(1)), written(&first, &id));
    made.expect("is written down");
    // Nobody opens a door: only a start that is called off leaves its turn.
    second.destroy(&id).await;
    first.driver.changed_elsewhere(&id).await.expect("answers");
    assert_eq!(second.over(&id).await.state, State::Failed);
    first.driver.changed_elsewhere(&id).await.expect("answers");
    assert_eq!((first.driver.0.lanes.count(), first.host.made()), (0, BTreeSet::new()));
}

#[tokio::test]
async fn one_that_ends_waits_for_no_turn() {
    let Some((first, second)) = two(true).await else { return };
    let id = first.running().await.new.id;
    let _turn = first.driver.turn(&id).await.expect("is free");
    second.destroy(&id).await;
    second.tasks.shut_down(PATIENCE).await.expect("ends at once");
    assert!(matches!(second.driver.turn(&id).await, Err(DriveError::Ending)));
    assert_eq!(first.row(&id).await.state, State::Destroying(Outcome::Destroyed), "for the other to finish");
}

#[tokio::test]
async fn one_of_a_cluster_watches_and_another_when_it_is_gone() {
    let Some((first, second)) = two(true).await else { return };
    assert!(first.driver.watches().await.expect("answers"));
    assert!(!second.driver.watches().await.expect("answers"));
    first.store.give_leases_back().await.expect("answers");
    assert!(second.driver.watches().await.expect("answers"));
    assert!(!first.driver.watches().await.expect("answers"));
}

#[tokio::test]
async fn sandboxes_of_another_machine_are_seen_and_ended_and_else_left_to_it() {
    let Some((first, second)) = two(false).await else { return };
    let row = first.running().await;
    let id = &row.new.id;
    // The other machine has nothing of it, and does not take that for its end.
    assert_eq!(second.driver.reconcile().await.expect("answers"), Reconciled::default());
    second.driver.sweep().await.expect("answers");
    assert_eq!(second.driver.destroy_all("ends", Duration::ZERO).await.expect("answers"), 0);
    assert_eq!(second.row(id).await.state, State::Running);
    let elsewhere = |error: Option<DriveError>| matches!(error, Some(DriveError::Elsewhere(_)));
    assert!(elsewhere(second.driver.refresh(id, Cause::own("")).await.err()));
    assert!(elsewhere(second.driver.freeze(id, Event::Pause, Cause::own("")).await.err()));
    assert!(elsewhere(second.driver.stop(id, Keep::Best, Cause::own("")).await.err()));
    assert!(elsewhere(second.driver.wake(id, Cause::own("")).await.err()));
    let change = SandboxChange { idle: Some(Duration::from_secs(9)), ..SandboxChange::default() };
    assert!(elsewhere(second.driver.change(id, change, Cause::own("")).await.err()));
    // Its end is written, its session is over; the machine does the rest once it hears.
    second.destroy(id).await;
    until("its session has ended", async || second.session(id).await.is_none()).await;
    assert_eq!(first.row(id).await.state, State::Destroying(Outcome::Destroyed));
    first.driver.changed_elsewhere(id).await.expect("answers");
    assert_eq!(first.over(id).await.state, State::Destroyed);
}
