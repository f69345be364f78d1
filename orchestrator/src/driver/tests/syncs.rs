// SPDX-License-Identifier: Apache-2.0
//! When syncs begin and end.

use super::*;

#[tokio::test]
async fn the_sync_of_one_that_never_ran_is_not_begun() {
    let bench = Bench::new().await;
    bench.host.has_syncs.store(true, Ordering::Relaxed);
    let begun = || bench.host.begun.load(Ordering::Relaxed);
    let new = new(1);
    let (row, _token) = bench.create(new).await.expect("is written down");
    bench.open_all_doors();
    // It has no agent, so it cannot become more than failed.
    assert_eq!(bench.over(&row.new.id).await.state, State::Failed);
    let is_to_begin = || bench.driver.syncs().keeps(&row.new.id);
    assert!(begun() == 0 && !is_to_begin(), "its user has no files that were to be waited for");
    // The control: that of one that runs is.
    bench.driver.syncs().resume(&row);
    assert!(is_to_begin());
    until("it is begun", async || begun() > 0).await;
}

#[tokio::test]
async fn a_sync_that_cannot_be_begun_is_tried_by_one_task_however_often_it_is_missed() {
    let bench = Bench::new().await;
    let row = bench.running().await;
    bench.host.has_beside.store(true, Ordering::Relaxed);
    let tried = || bench.host.tried.load(Ordering::Relaxed);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let missed = || {
        let before = tasks();
        (0..5).for_each(|_sweep| bench.driver.syncs().resume(&row));
        // No task gets a turn in between: whatever there is more was begun here.
        tasks() - before
    };
    assert_eq!(missed(), 1);
    until("it is tried", async || tried() > 0).await;
    assert_eq!(missed(), 0, "the first holds on");
    bench.open_all_doors();
    until("the control: it fails, and is tried again", async || tried() > 1).await;
}

#[tokio::test]
async fn what_a_pod_flushes_that_is_deleted_is_not_cut_off_by_the_end_of_its_session() {
    let bench = Bench::new().await;
    let row = bench.running().await;
    let id = row.new.id.clone();
    let until_then = clock::now().saturating_add(SignedDuration::from_hours(1)).expect("is a time");
    let session = SyncSessionRow {
        id: new(9).id,
        sandbox: id.clone(),
        tenant: row.new.tenant.clone(),
        user_id: row.new.user_id.clone(),
        conversation_id: row.new.conversation_id.clone(),
        template: row.new.template.clone(),
        peer: Peer::Socket("/nowhere".into()),
        tokens: vec![AcceptedToken { jti: "a".to_owned(), until: until_then }],
        rotate_at: until_then,
    };
    bench.store.add_sync_session(&session).await.expect("is written");
    bench.host.is_leaving.store(true, Ordering::Relaxed);
    bench.destroy(&id).await;
    until("its end is waited for", async || bench.host.waits.load(Ordering::Relaxed) > 0).await;
    assert_eq!(bench.store.sync_sessions(Some(&id)).await.expect("answers").len(), 1);
    bench.host.leaving.add_permits(1000);
    bench.over(&id).await;
    assert_eq!(bench.store.sync_sessions(Some(&id)).await.expect("answers"), []);
}
