// SPDX-License-Identifier: Apache-2.0
use super::*;

on_each_database!(
    what_is_kept_is_noted_while_it_is_stopped_and_forgotten_when_it_runs,
    what_is_stopped_has_no_deadline_but_its_end,
    what_wakes_is_listed_as_what_is_being_made,
);

fn kept(generation: &str) -> Kept {
    let (generation, fingerprint) = (generation.to_owned(), "print".to_owned());
    Kept::Memory(KeptMemory { generation, fingerprint, size_bytes: 1 << 40 })
}

async fn row(store: &Store, id: &SandboxId) -> SandboxRow {
    store.sandbox(id).await.expect("answers").expect("is there")
}

/// A sandbox that is stopped.
async fn stopped(store: &Store) -> NewSandbox {
    let new = sandbox(1, "c1");
    add(store, &new).await;
    for (from, to) in [(State::Creating, State::Running), (State::Running, State::Stopped)] {
        assert!(go(store, &new.id, from, to).await);
    }
    new
}

async fn what_is_kept_is_noted_while_it_is_stopped_and_forgotten_when_it_runs(store: &Store) {
    let new = stopped(store).await;
    assert_eq!(row(store, &new.id).await.kept, None, "nobody knows yet");
    for kept in [kept("first"), Kept::Files, kept("second")] {
        assert!(store.note_kept(&new.id, &kept).await.expect("answers"));
        assert_eq!(row(store, &new.id).await.kept, Some(kept));
    }
    assert!(go(store, &new.id, State::Stopped, State::Waking).await);
    assert_eq!(row(store, &new.id).await.kept, Some(kept("second")), "it is what is woken from");
    assert!(go(store, &new.id, State::Waking, State::Running).await);
    assert_eq!(row(store, &new.id).await.kept, None, "what ran on is never gone on from again");
    assert!(!store.note_kept(&new.id, &kept("third")).await.expect("answers"), "it is not stopped");
    assert!(go(store, &new.id, State::Running, State::Stopped).await);
    assert_eq!(row(store, &new.id).await.kept, None);
}

async fn what_is_stopped_has_no_deadline_but_its_end(store: &Store) {
    let new = stopped(store).await;
    let ends = row(store, &new.id).await.new.expires_at;
    assert_eq!(row(store, &new.id).await.idle_at, ends);
    let after = |seconds| now().saturating_add(jiff::SignedDuration::from_secs(seconds)).expect("in range");
    assert_eq!(store.due_sandboxes(after(3000)).await.expect("answers"), [], "however long it is unused");
    assert_eq!(store.due_sandboxes(after(3601)).await.expect("answers"), [(new.id.clone(), Due::Over)]);
    // Whoever moves its end or its idle time while it is stopped changes that.
    let later = whole_micros(after(9000));
    let change = |expires_at, idle| SandboxChange { expires_at, idle, labels: None };
    for change in [change(Some(later), None), change(None, Some(Duration::from_secs(5)))] {
        let audit = audit(Action::SandboxPatched);
        assert!(store.change_sandbox(&new.id, &change, &audit).await.expect("answers"));
        assert_eq!(row(store, &new.id).await.idle_at, later);
    }
    assert!(go(store, &new.id, State::Stopped, State::Waking).await);
    assert!(go(store, &new.id, State::Waking, State::Running).await);
    assert_eq!(store.due_sandboxes(after(3)).await.expect("answers"), [], "it is used from now on");
    assert_eq!(store.due_sandboxes(after(6)).await.expect("answers").len(), 1);
}

async fn what_wakes_is_listed_as_what_is_being_made(store: &Store) {
    let new = stopped(store).await;
    let with = async |status: &str| {
        let filter = SandboxFilter { status: Some(status.to_owned()), ..SandboxFilter::default() };
        store.list_sandboxes(&filter).await.expect("answers").sandboxes.len()
    };
    assert_eq!((with("stopped").await, with("creating").await), (1, 0));
    assert!(go(store, &new.id, State::Stopped, State::Waking).await);
    assert_eq!((with("stopped").await, with("creating").await), (0, 1));
}
