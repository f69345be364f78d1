// SPDX-License-Identifier: Apache-2.0
//! Used tickets, over both databases.

use super::*;
use jiff::SignedDuration;

pub(super) async fn a_ticket_is_used_once_and_forgotten_when_it_is_too_old(store: &Store) {
    let begun = now();
    let until = begun + SignedDuration::from_secs(30);
    let spend = async |nonce: &str, at| store.spend_ticket(nonce, until, at).await.expect("answers");
    assert!(spend("a", begun).await);
    assert!(!spend("a", begun).await);
    assert!(!spend("a", until).await, "it is still good at that moment");
    assert!(spend("b", begun).await, "another one is another one");
    let both = (store.spend_ticket("c", until, begun), store.spend_ticket("c", until, begun));
    let (one, other) = tokio::join!(both.0, both.1);
    assert_ne!(one.expect("answers"), other.expect("answers"), "of two at once one is first");
    let later = until + SignedDuration::from_secs(1);
    let good = later + SignedDuration::from_secs(30);
    assert!(store.spend_ticket("d", good, later).await.expect("answers"));
    let left = sqlx::query("SELECT nonce FROM spent_tickets").fetch_all(&store.pool).await.expect("answers");
    assert_eq!(left.len(), 1, "the others were forgotten");
}
