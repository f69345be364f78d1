// SPDX-License-Identifier: Apache-2.0
//! Idempotency keys, over both databases.

use super::*;
use jiff::SignedDuration;

fn key(name: &str, asked: &str) -> IdempotencyKey {
    IdempotencyKey { key: name.to_owned(), fingerprint: asked.to_owned() }
}

async fn wish(store: &Store, new: &NewSandbox, key: &IdempotencyKey) -> AddedSandbox {
    let audit = audit(Action::SandboxCreated);
    let terms = Terms { key: Some(key.clone()), ..Terms::default() };
    store.add_sandbox(new, &terms, &audit).await.expect("answers")
}

async fn kept(store: &Store, key: &IdempotencyKey) -> Option<KeptAnswer> {
    store.kept_answer(&tenant(), key, now()).await.expect("answers")
}

pub(super) async fn an_idempotency_key_belongs_to_the_first_call_that_got_a_sandbox(store: &Store) {
    make(store, "acme").await;
    let (first, second) = (sandbox(1, "c1"), sandbox(2, "c2"));
    let (ours, theirs) = (key("k", "a wish"), key("k", "another"));
    assert_eq!(kept(store, &ours).await, None);
    assert_eq!(wish(store, &first, &ours).await, AddedSandbox::Added);
    assert_eq!(wish(store, &second, &theirs).await, AddedSandbox::Repeated);
    assert!(store.sandbox(&second.id).await.expect("answers").is_none(), "all or nothing");
    let answer = kept(store, &theirs).await.expect("is remembered");
    let wanted = KeptAnswer { fingerprint: "a wish".to_owned(), sandbox: first.id.clone(), status: 201 };
    assert_eq!(answer, wanted);

    // It never ran, so the call got nothing.
    assert!(go(store, &first.id, State::Creating, State::Destroying(Outcome::Failed)).await);
    assert_eq!(kept(store, &ours).await, None);
    assert!(go(store, &first.id, State::Destroying(Outcome::Failed), State::Failed).await);
    assert_eq!(kept(store, &ours).await, None);
    assert_eq!(wish(store, &second, &theirs).await, AddedSandbox::Added);
    assert_eq!(kept(store, &ours).await.expect("is remembered").sandbox, second.id);

    assert!(go(store, &second.id, State::Creating, State::Running).await);
    assert!(go(store, &second.id, State::Running, State::Destroying(Outcome::Destroyed)).await);
    assert!(kept(store, &ours).await.is_some(), "what ran and ended is what the call got");
}

pub(super) async fn idempotency_keys_are_forgotten_by_age_and_number(store: &Store) {
    make(store, "acme").await;
    let new = sandbox(1, "c1");
    assert_eq!(wish(store, &new, &key("fresh", "a")).await, AddedSandbox::Added);
    let old = now().saturating_sub(SignedDuration::from_hours(25)).expect("in range");
    let found = (&new.id, 200);
    assert!(store.keep_found(&tenant(), &key("old", "a"), found, old).await.expect("answers"));
    assert_eq!(kept(store, &key("old", "a")).await, None, "it is too old");
    store.forget_answers(now()).await.expect("answers");
    let count = "SELECT COUNT(*) AS count FROM idempotency_keys";
    let left = sqlx::query(count).fetch_one(&store.pool).await.expect("answers").number("count");
    assert_eq!(left.expect("a number"), 1);
    // Of too many, the newest stay: each here is a second older than the one before.
    let mut change = store.change().await.expect("begins");
    for age in 1..=10_000 {
        let at = now().saturating_sub(SignedDuration::from_secs(age)).expect("in range");
        let name = key(&format!("k{age}"), "a");
        assert!(change.keep_answer(&tenant(), &name, found, at).await.expect("answers"));
    }
    change.commit().await.expect("commits");
    store.forget_answers(now()).await.expect("answers");
    assert!(kept(store, &key("fresh", "a")).await.is_some());
    assert!(kept(store, &key("k9999", "a")).await.is_some());
    assert_eq!(kept(store, &key("k10000", "a")).await, None, "it is one too many");
}
