// SPDX-License-Identifier: Apache-2.0
use super::*;

on_each_database!(a_deadline_that_comes_soon_is_told_of_once, an_end_is_told_of_whatever_else_comes_before);

fn after(seconds: i64) -> Timestamp {
    now().saturating_add(jiff::SignedDuration::from_secs(seconds)).expect("in range")
}

async fn running(store: &Store, idle: Duration) -> NewSandbox {
    let new = NewSandbox { idle, ..sandbox(1, "c1") };
    assert!(add(store, &new).await);
    assert!(go(store, &new.id, State::Creating, State::Running).await);
    new
}

async fn soon(store: &Store, seconds: i64) -> Vec<Timestamp> {
    let soon = store.deadlines_soon(after(seconds)).await.expect("answers");
    soon.into_iter().map(|(_, deadline)| deadline).collect()
}

async fn told(store: &Store, id: &SandboxId, deadline: Timestamp) -> bool {
    store.tell_deadline(id, deadline, &audit(Action::DeadlineNear)).await.expect("answers")
}

async fn a_deadline_that_comes_soon_is_told_of_once(store: &Store) {
    let new = running(store, Duration::from_secs(600)).await;
    store.touch_sandbox(&new.id, after(0)).await.expect("answers");
    assert_eq!(soon(store, 400).await, [], "there is time left");
    let first = soon(store, 550).await;
    assert_eq!(first.len(), 1);
    assert!(told(store, &new.id, first[0]).await);
    assert!(!told(store, &new.id, first[0]).await, "once");
    assert_eq!(soon(store, 551).await, []);
    // Its use puts it off: that is another deadline, and the one before is none any more.
    store.touch_sandbox(&new.id, after(560)).await.expect("answers");
    assert_eq!(soon(store, 700).await, []);
    let second = soon(store, 1100).await;
    assert!(second.len() == 1 && second[0] > first[0], "{first:?} {second:?}");
    assert!(!told(store, &new.id, after(5)).await, "that is no deadline of it");
    assert!(told(store, &new.id, second[0]).await);
    let events = store.events(&AuditFilter::default()).await.expect("answers");
    assert_eq!(events.iter().filter(|event| event.action == "sandbox.deadline-near").count(), 2);
}

async fn an_end_is_told_of_whatever_else_comes_before(store: &Store) {
    let new = running(store, Duration::from_secs(60)).await;
    assert_eq!(soon(store, 30).await, [], "who has but a minute knows");
    store.touch_sandbox(&new.id, after(3520)).await.expect("answers");
    let end = whole_micros(new.expires_at);
    assert_eq!(soon(store, 3530).await, [end]);
    assert!(told(store, &new.id, end).await);
    assert_eq!(soon(store, 3531).await, []);
    // Extended, it has another end; stopped, it still has.
    let later = whole_micros(after(9000));
    let change = SandboxChange { expires_at: Some(later), ..SandboxChange::default() };
    assert!(store.change_sandbox(&new.id, &change, &audit(Action::SandboxPatched)).await.expect("answers"));
    assert!(go(store, &new.id, State::Running, State::Stopped).await);
    assert_eq!(soon(store, 8950).await, [later]);
    assert_eq!(soon(store, 9001).await, [], "it has come");
}
