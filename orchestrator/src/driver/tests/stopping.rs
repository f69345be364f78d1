// SPDX-License-Identifier: Apache-2.0
//! What goes wrong while a sandbox is stopped, woken or pictured, and who waits for it.

use super::*;
use crate::snapshots::Snapshots;

#[tokio::test]
async fn a_snapshot_whose_guest_does_not_answer_holds_up_no_end() {
    let bench = Bench::new().await;
    bench.host.keeps_memory.store(true, Ordering::Relaxed);
    let id = bench.running().await.new.id;
    let (keys, folder) = (Arc::clone(&bench.driver.parts().keys), bench.folder.path().join("snapshots"));
    let snapshots = Snapshots::open(bench.store.clone(), keys, folder).await.expect("opens");
    // Nobody opens the way into it.
    let mut taking = std::pin::pin!(bench.driver.snapshot(Arc::new(snapshots), &id, Cause::own("")));
    until("it is being taken", async || {
        assert!(poll_once(taking.as_mut()).await.is_pending());
        bench.driver.0.lanes.is_busy(&id)
    })
    .await;
    bench.destroy(&id).await;
    assert_eq!(bench.over(&id).await.state, State::Destroyed);
    taking.await.expect_err("it was called off");
}

#[tokio::test]
async fn a_wake_that_takes_long_holds_up_no_end() {
    let bench = Bench::new().await;
    let id = bench.running().await.new.id;
    bench.driver.stop(&id, Keep::Best, Cause::own("")).await.expect("is stopped");
    // It is never made.
    let mut waking = std::pin::pin!(bench.driver.wake(&id, Cause::own("")));
    until("it is being made", async || {
        assert!(poll_once(waking.as_mut()).await.is_pending());
        bench.host.made().contains(&id)
    })
    .await;
    bench.destroy(&id).await;
    assert_eq!(bench.over(&id).await.state, State::Destroyed);
    waking.await.expect_err("it was called off");
}

#[tokio::test]
async fn an_unused_sandbox_that_cannot_be_stopped_right_now_is_not_destroyed() {
    let bench = Bench::new().await;
    let id = bench.running().await.new.id;
    let unused = SandboxChange { idle: Some(Duration::ZERO), ..SandboxChange::default() };
    let audit = entry(&bench.row(&id).await.new, Action::SandboxPatched, &Cause::own(""));
    assert!(bench.store.change_sandbox(&id, &unused, &audit).await.expect("answers"));
    bench.host.fails_to_end.store(true, Ordering::Relaxed);
    bench.driver.stop_unused(id.clone());
    let has_changed = async || bench.row(&id).await.state != State::Running;
    until("it is written down", has_changed).await;
    until("nobody works on it", async || !bench.driver.0.lanes.is_busy(&id)).await;
    // Whoever would destroy it has the turn next.
    drop(bench.driver.0.lanes.turn(&id).await);
    assert_eq!(bench.row(&id).await.state, State::Stopped);
    bench.host.fails_to_end.store(false, Ordering::Relaxed);
    assert!(bench.driver.rest(&id, Keep::Best).await.expect("is done later"));
    assert_eq!(bench.row(&id).await.kept, Some(Kept::Files));
}

#[tokio::test]
async fn a_sandbox_that_does_not_answer_is_not_ended_by_the_sweep_nor_by_a_restart() {
    let bench = Bench::new().await;
    let id = bench.running().await.new.id;
    bench.host.made.lock().expect("no panic").insert(id.clone());
    bench.host.is_silent.store(true, Ordering::Relaxed);
    bench.driver.sweep().await.expect("answers");
    let reconciled = bench.driver.reconcile().await.expect("answers");
    assert_eq!((reconciled.adopted, reconciled.ended), (vec![id.clone()], Vec::new()));
    assert_eq!(bench.row(&id).await.state, State::Running);
    // The control: once it is known to have ended, it is.
    bench.host.is_silent.store(false, Ordering::Relaxed);
    bench.driver.sweep().await.expect("answers");
    assert_eq!(bench.over(&id).await.state, State::Destroyed);
}

#[tokio::test]
async fn a_deadline_is_an_event_before_it_comes_once() {
    let bench = Bench::new().await;
    let row = bench.running().await;
    let before = |end: jiff::Timestamp| end.saturating_sub(SignedDuration::from_secs(60)).expect("in range");
    bench.driver.tell_deadlines(clock::now()).await.expect("answers");
    assert_eq!(bench.reasons(Action::DeadlineNear).await, Vec::<String>::new(), "there is time left");
    for _ in 0..2 {
        bench.driver.tell_deadlines(before(row.new.expires_at)).await.expect("answers");
        let told = format!("its time is over at {}", row.new.expires_at);
        assert_eq!(bench.reasons(Action::DeadlineNear).await, [told]);
    }
    let later = row.new.expires_at.saturating_add(SignedDuration::from_secs(3600)).expect("in range");
    let change = SandboxChange { expires_at: Some(later), ..SandboxChange::default() };
    let audit = entry(&row.new, Action::SandboxPatched, &Cause::own(""));
    assert!(bench.store.change_sandbox(&row.new.id, &change, &audit).await.expect("answers"));
    bench.driver.tell_deadlines(before(later)).await.expect("answers");
    assert_eq!(bench.reasons(Action::DeadlineNear).await.len(), 2, "another deadline");
}

#[tokio::test]
async fn what_is_asked_of_a_stopped_sandbox_is_what_it_keeps() {
    let bench = Bench::new().await;
    let id = bench.running().await.new.id;
    bench.driver.stop(&id, Keep::Best, Cause::own("")).await.expect("is stopped");
    let refused = bench.driver.stop(&id, Keep::Memory, Cause::own("")).await;
    assert!(matches!(refused, Err(DriveError::NotKept(_, "memory"))), "{refused:?}");
    // As one is that was stopped with its memory.
    assert!(bench.store.note_kept(&id, &Kept::Memory(memory())).await.expect("answers"));
    let folder = bench.folder.path().join("memory");
    std::fs::create_dir_all(&folder).expect("makes");
    std::fs::write(folder.join(format!("{id}.one.pages")), "sealed").expect("writes");
    let kept = bench.driver.stop(&id, Keep::Memory, Cause::own("")).await.expect("is kept already").kept;
    assert_eq!(kept.expect("is known").as_str(), "memory");
    let kept = bench.driver.stop(&id, Keep::Files, Cause::own("")).await.expect("drops it").kept;
    assert_eq!(kept, Some(Kept::Files));
    assert_eq!(std::fs::read_dir(&folder).expect("lists").count(), 0, "it is gone");
}

#[tokio::test]
async fn memory_that_is_to_be_kept_of_what_does_not_run_is_not() {
    let bench = Bench::new().await;
    bench.host.keeps_memory.store(true, Ordering::Relaxed);
    let id = bench.running().await.new.id;
    let refused = bench.driver.stop(&id, Keep::Memory, Cause::own("")).await;
    assert!(matches!(refused, Err(DriveError::NotKept(_, "memory"))), "{refused:?}");
    assert_eq!(bench.row(&id).await.state, State::Running, "whoever looks finds out what became of it");
}

#[tokio::test]
async fn a_destroyed_sandbox_is_over_when_the_picture_of_its_memory_is_gone() {
    let bench = Bench::new().await;
    let id = bench.running().await.new.id;
    let folder = bench.folder.path().join("memory");
    std::fs::create_dir_all(folder.join(format!("{id}.one.pages"))).expect("makes what no file is");
    bench.destroy(&id).await;
    until("it was tried", async || {
        bench.row(&id).await.state.outcome().is_some() && !bench.driver.0.lanes.is_busy(&id)
    })
    .await;
    for _ in 0..3 {
        bench.driver.sweep().await.expect("answers");
        drop(bench.driver.0.lanes.turn(&id).await);
        assert!(!bench.row(&id).await.state.is_over());
    }
    std::fs::remove_dir(folder.join(format!("{id}.one.pages"))).expect("removes");
    until("it is over", async || {
        bench.driver.sweep().await.expect("answers");
        bench.row(&id).await.state == State::Destroyed
    })
    .await;
}

#[tokio::test]
async fn a_picture_is_noted_to_be_none_before_anything_may_run_on_from_it() {
    let bench = Bench::new().await;
    bench.host.making.add_permits(1000);
    let id = bench.running().await.new.id;
    bench.driver.stop(&id, Keep::Best, Cause::own("")).await.expect("is stopped");
    assert!(bench.store.note_kept(&id, &Kept::Memory(memory())).await.expect("answers"));
    let mut waking = std::pin::pin!(bench.driver.wake(&id, Cause::own("")));
    // It is being told who it is: nobody knows whether that has arrived.
    until("it is noted", async || {
        assert!(poll_once(waking.as_mut()).await.is_pending());
        bench.row(&id).await.kept == Some(Kept::Files)
    })
    .await;
    assert_eq!(bench.row(&id).await.state, State::Waking);
    bench.host.connecting.add_permits(1000);
    waking.await.expect_err("it has no agent");
    until("it is stopped again", async || bench.row(&id).await.state == State::Stopped).await;
    assert_eq!(bench.row(&id).await.kept, Some(Kept::Files));
}

#[tokio::test]
async fn what_could_not_be_made_ready_keeps_the_picture_that_it_had() {
    let bench = Bench::new().await;
    let id = bench.running().await.new.id;
    bench.driver.stop(&id, Keep::Best, Cause::own("")).await.expect("is stopped");
    let kept = Kept::Memory(memory());
    assert!(bench.store.note_kept(&id, &kept).await.expect("answers"));
    bench.host.making.close();
    bench.driver.wake(&id, Cause::own("")).await.expect_err("it cannot be made");
    until("nobody works on it", async || {
        bench.row(&id).await.state == State::Stopped && !bench.driver.0.lanes.is_busy(&id)
    })
    .await;
    assert_eq!(bench.row(&id).await.kept, Some(kept));
}

fn memory() -> crate::store::KeptMemory {
    let (generation, fingerprint) = ("one".to_owned(), "print".to_owned());
    crate::store::KeptMemory { generation, fingerprint, size_bytes: 1 }
}
