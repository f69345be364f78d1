// SPDX-License-Identifier: Apache-2.0
//! Writing a sandbox down, and its session with it.

use super::*;

#[tokio::test]
async fn a_sandbox_and_its_session_are_written_down_as_one() {
    let bench = Bench::new().await;
    let id = bench.create_and_leave(new(1)).await;
    let session = bench.session(&id).await.expect("whoever sees the one sees the other");
    assert_eq!(session.peer, Peer::Socket("/nowhere".into()));
    assert_eq!(session.tokens.len(), 1);
}

#[tokio::test]
async fn what_is_refused_has_no_session() {
    let bench = Bench::new().await;
    bench.create(new(1)).await.expect("is made");
    let again = NewSandbox { id: new(2).id, ..new(1) };
    let id = again.id.clone();
    assert!(matches!(bench.create(again).await, Err(DriveError::Taken)));
    assert_eq!(bench.session(&id).await, None);
}

#[tokio::test]
async fn one_whose_door_cannot_be_opened_fails_and_its_session_ends() {
    let bench = Bench::new().await;
    bench.open_all_doors();
    bench.host.has_no_doors.store(true, Ordering::Relaxed);
    let new = new(1);
    let id = new.id.clone();
    assert!(matches!(bench.create(new).await, Err(DriveError::Runtime(_))));
    let row = bench.over(&id).await;
    assert_eq!((row.state, row.reason.as_deref()), (State::Failed, Some("its door could not be opened")));
    assert_eq!(bench.session(&id).await, None);
    assert_eq!(bench.host.made(), BTreeSet::new(), "nothing of it was made");
}
