// SPDX-License-Identifier: Apache-2.0
//! Several orchestrators on one Postgres: who holds what, who writes, and what each place's are.

use super::*;
use std::collections::BTreeSet;

/// A database with two orchestrators; `None` where Postgres is not installed.
async fn two() -> Option<(Database, Store)> {
    let Some(database) = Database::postgres().await else {
        println!("left out: Postgres is not installed");
        return None;
    };
    let other = Store::open(&database.url).await.expect("opens");
    Some((database, other))
}

impl Store {
    /// Ends every lease as time would.
    pub(crate) async fn let_claims_end(&self) {
        let end =
            "UPDATE leases SET until = clock_timestamp() - make_interval(secs => 1) WHERE until > 'epoch'";
        sqlx::query(end).execute(&self.pool).await.expect("is written");
    }
}

#[tokio::test]
async fn a_claim_is_its_holders_until_it_is_released_or_ends() {
    let Some((database, other)) = two().await else { return };
    let (one, id) = (&database.store, sandbox(1, "c1").id);
    assert!(!one.has_claimed(&id).await.expect("answers"), "nobody has claimed it");
    assert!(one.claim(&id).await.expect("answers"));
    assert!(one.claim(&id).await.expect("answers"), "again");
    assert!(!other.claim(&id).await.expect("answers"), "it is the other's");
    assert!(one.has_claimed(&id).await.expect("answers") && !other.has_claimed(&id).await.expect("answers"));
    assert_eq!(other.claimed_elsewhere().await.expect("answers"), [id.clone()].into());
    assert_eq!(one.claimed_elsewhere().await.expect("answers"), BTreeSet::new());

    one.release(&id).await.expect("answers");
    one.keep_claims().await.expect("answers");
    assert!(!one.has_claimed(&id).await.expect("answers"), "what is released is not kept");
    assert!(other.claim(&id).await.expect("answers"), "it is free");
    assert!(!one.claim(&id).await.expect("answers"));

    other.let_claims_end().await;
    other.keep_claims().await.expect("answers");
    assert!(!one.claim(&id).await.expect("answers"), "nobody took it meanwhile: it is kept");
    other.let_claims_end().await;
    assert!(one.claim(&id).await.expect("answers"), "its holder was silent");
    assert!(!other.has_claimed(&id).await.expect("answers"));
    one.give_leases_back().await.expect("answers");
    assert!(other.claim(&id).await.expect("answers"), "its holder has ended well");
}

#[tokio::test]
async fn who_has_lost_a_claim_writes_nothing_for_its_sandbox() {
    let Some((database, other)) = two().await else { return };
    let (one, new) = (&database.store, sandbox(1, "c1"));
    make(one, "acme").await;
    assert!(one.claim(&new.id).await.expect("answers"));
    assert_eq!(added(one, &new, &Quotas::default()).await, AddedSandbox::Added);
    let session = sessions::session_of(&new);
    assert!(one.put_session(&session).await.expect("it is ours"));

    one.let_claims_end().await;
    assert!(other.claim(&new.id).await.expect("answers"));
    // Also after the other is done with it.
    for _ in 0..2 {
        let lost = |error: Option<StoreError>| matches!(error, Some(StoreError::TakenOver { .. }));
        assert!(lost(one.put_session(&session).await.err()));
        assert!(lost(one.rotate_session_at(&new.id, now()).await.err()));
        assert!(lost(one.note_kept(&new.id, &Kept::Files).await.err()));
        let started = Transition {
            from: State::Creating,
            to: State::Running,
            reason: None,
            running: None,
            is_claimed: true,
        };
        let entry = audit(Action::SandboxChanged);
        assert!(lost(one.move_sandbox(&new.id, &started, &entry).await.err()));
        other.release(&new.id).await.expect("answers");
    }
    assert_eq!(one.sandbox(&new.id).await.expect("answers").expect("is there").state, State::Creating);
    assert!(other.put_session(&session).await.expect("answers"), "whoever had it last may");
    assert!(go(&other, &new.id, State::Creating, State::Running).await);
    // And who claims it anew.
    assert!(one.claim(&new.id).await.expect("answers"));
    assert!(one.put_session(&session).await.expect("answers"));
}

#[tokio::test]
async fn claims_go_with_their_sandboxes() {
    let Some((database, _other)) = two().await else { return };
    let (one, new) = (&database.store, sandbox(1, "c1"));
    make(one, "acme").await;
    let never = sandbox(2, "c2").id;
    assert!(one.claim(&new.id).await.expect("answers") && one.claim(&never).await.expect("answers"));
    assert_eq!(added(one, &new, &Quotas::default()).await, AddedSandbox::Added);
    assert_eq!(one.forget_claims().await.expect("answers"), 0, "they are held");
    one.release(&never).await.expect("answers");
    one.release(&new.id).await.expect("answers");
    assert_eq!(one.forget_claims().await.expect("answers"), 1, "that of the one that never was");
    for (from, to) in [
        (State::Creating, State::Destroying(Outcome::Failed)),
        (State::Destroying(Outcome::Failed), State::Failed),
    ] {
        assert!(go(one, &new.id, from, to).await);
    }
    assert_eq!(one.forget_claims().await.expect("answers"), 1);
}

#[tokio::test]
async fn orchestrators_that_start_at_once_get_numbers_of_their_own() {
    let Some((database, other)) = two().await else { return };
    let mut numbers = Vec::new();
    for _ in 0..10 {
        let both = tokio::join!(database.store.next_number("epoch", 7), other.next_number("epoch", 7));
        numbers.extend([both.0.expect("answers"), both.1.expect("answers")]);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (7..27).collect::<Vec<_>>());
}

#[tokio::test]
async fn each_place_has_its_own_sandboxes() {
    let Some((database, other)) = two().await else { return };
    let (here, there) = (database.store.clone().at("here"), other.at("there"));
    make(&here, "acme").await;
    let (ours, theirs) = (sandbox(1, "c1"), sandbox(2, "c2"));
    assert_eq!(added(&here, &ours, &Quotas::default()).await, AddedSandbox::Added);
    assert_eq!(added(&there, &theirs, &Quotas::default()).await, AddedSandbox::Added);
    for (store, new) in [(&here, &ours), (&there, &theirs)] {
        let own = store.own_sandboxes().await.expect("answers");
        assert_eq!(own.iter().map(|row| &row.new.id).collect::<Vec<_>>(), [&new.id]);
        assert_eq!(store.live_sandboxes().await.expect("answers").len(), 2, "all are known");
        assert!(store.put_session(&sessions::session_of(new)).await.expect("answers"));
        assert!(go(store, &new.id, State::Creating, State::Running).await);
        let long_after = now().saturating_add(jiff::SignedDuration::from_hours(48)).expect("in range");
        let due = store.due_sandboxes(long_after).await.expect("answers");
        let due: Vec<_> = due.into_iter().map(|(id, _)| id).collect();
        assert_eq!(due, std::slice::from_ref(&new.id));
        let rotated = store.sessions_to_rotate(now()).await.expect("answers");
        assert!(rotated.iter().all(|id| *id == new.id), "{rotated:?}");
    }
}
