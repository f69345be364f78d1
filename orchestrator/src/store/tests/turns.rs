// SPDX-License-Identifier: Apache-2.0
//! Changes of one process: they take turns where the database takes one at a time.

use super::*;
use futures_util::future::join_all;

#[tokio::test]
async fn who_waits_for_a_turn_to_write_keeps_no_reader_from_a_connection() {
    let database = Database::sqlite().await;
    let store = &database.store;
    let first = store.change().await.expect("begins");
    // More than there are connections.
    let waiting = join_all((0..8).map(|_| store.change()));
    tokio::select! {
        biased;
        _ = waiting => panic!("two write at once"),
        answered = store.ping() => answered.expect("a reader is answered"),
    }
    drop(first);
}

#[tokio::test]
async fn turns_come_one_after_the_other_and_each_change_is_written() {
    let database = Database::sqlite().await;
    let store = &database.store;
    let count = || async { store.next_number("turns", 0).await.expect("answers") };
    let mut numbers = join_all((0..16).map(|_| count())).await;
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 16, "{numbers:?}");
    // Who gave up left its turn to the next.
    drop(store.change().await.expect("begins"));
    let next = count().await;
    assert!(numbers.last().is_some_and(|last| *last < next), "{numbers:?} {next}");
}

#[tokio::test]
async fn a_sandbox_that_is_kept_ready_is_written_in_its_turn() {
    let database = Database::sqlite().await;
    let store = &database.store;
    make(store, tenant().as_str()).await;
    let new = sandbox(1, "c1");
    let warm = WarmRow {
        id: new.id.clone(),
        tenant: new.tenant.clone(),
        template: new.template.clone(),
        state: WarmState::Making,
        asked: new.asked.clone(),
        running: None,
    };
    let first = store.change().await.expect("begins");
    let mut waiting = std::pin::pin!(store.add_warm(&warm, now()));
    tokio::select! {
        biased;
        _ = waiting.as_mut() => panic!("two write at once"),
        read = store.warm_sandboxes() => assert_eq!(read.expect("answers"), []),
    }
    first.commit().await.expect("is written");
    waiting.await.expect("is written");
    assert_eq!(store.warm_sandboxes().await.expect("answers"), std::slice::from_ref(&warm));
}

#[tokio::test]
async fn a_connection_to_sqlite_is_not_asked_first_and_keeps_little_in_memory() {
    let database = Database::sqlite().await;
    let pool = &database.store.pool;
    assert!(!pool.options().get_test_before_acquire());
    let row = sqlx::query("SELECT cache_size AS size FROM pragma_cache_size").fetch_one(pool).await;
    assert_eq!(row.expect("answers").number("size").expect("a number"), -512);
    if let Some(postgres) = Database::postgres().await {
        assert!(postgres.store.pool.options().get_test_before_acquire(), "its server may have gone");
    }
}
