// SPDX-License-Identifier: Apache-2.0
use super::*;

pub(super) fn session_of(new: &NewSandbox) -> SessionRow {
    let until = now().saturating_add(jiff::SignedDuration::from_mins(5)).expect("in range");
    let until = Timestamp::from_microsecond(until.as_microsecond()).expect("in range");
    SessionRow {
        sandbox_id: new.id.clone(),
        peer: Peer::Socket("/run/x".into()),
        tokens: vec![AcceptedToken { jti: "a".to_owned(), until }],
        expires_at: until,
        rotate_at: until,
    }
}

pub(super) async fn an_ended_session_never_lives_again(store: &Store) {
    let new = sandbox(1, "c1");
    add(store, &new).await;
    let row = session_of(&new);
    let until = row.expires_at;
    assert!(store.put_session(&row).await.expect("answers"));
    assert_eq!(store.session(&new.id).await.expect("answers").as_ref(), Some(&row));
    let ended = EndedSession { sandbox_id: new.id.clone(), until };
    assert_eq!(store.end_session(&new.id, now()).await.expect("answers"), Some(ended.clone()));
    assert!(!store.put_session(&row).await.expect("answers"), "it has ended");
    assert_eq!(store.session(&new.id).await.expect("answers"), None);
    assert_eq!(store.ended_sessions(now(), None).await.expect("answers"), [ended]);
    store.forget_sessions(now()).await.expect("answers");
    assert_eq!(
        store.ended_sessions(now(), None).await.expect("answers").len(),
        1,
        "its tokens have not expired"
    );
    store.forget_sessions(until).await.expect("answers");
    assert_eq!(store.ended_sessions(now(), None).await.expect("answers"), []);
}

pub(super) async fn a_session_is_written_only_while_its_sandbox_lives(store: &Store) {
    let new = sandbox(1, "c1");
    let row = session_of(&new);
    assert!(!store.put_session(&row).await.expect("answers"), "there is no such sandbox");
    add(store, &new).await;
    assert!(go(store, &new.id, State::Creating, State::Destroying(Outcome::Failed)).await);
    assert!(!store.put_session(&row).await.expect("answers"), "it is on its way out");
    assert_eq!(store.session(&new.id).await.expect("answers"), None);
    // One that slipped through all the same is found once its sandbox is over.
    let other = sandbox(2, "c2");
    add(store, &other).await;
    assert!(store.put_session(&session_of(&other)).await.expect("answers"));
    assert!(go(store, &other.id, State::Creating, State::Destroying(Outcome::Failed)).await);
    assert_eq!(store.sessions_of_the_over().await.expect("answers"), []);
    assert!(go(store, &other.id, State::Destroying(Outcome::Failed), State::Failed).await);
    let left = store.sessions_of_the_over().await.expect("answers");
    assert_eq!(left, std::slice::from_ref(&other.id));
    store.end_session(&other.id, now()).await.expect("answers");
    assert_eq!(store.sessions_of_the_over().await.expect("answers"), []);
}
