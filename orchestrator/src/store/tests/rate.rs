// SPDX-License-Identifier: Apache-2.0
//! How fast events are drained into each database. `make test` runs it small, for what it says is true
//! only of a release build on a machine that is let alone: `make bench-audit`.

use super::audit::{file, verified};
use super::policies::decision;
use super::*;
use crate::store::file_audit::FileEntry;
use jiff::SignedDuration;
use std::time::Instant;

/// Events of each kind, unless the benchmark wants more.
const EVENTS: usize = 1_024;
/// Decisions of one batch of a gateway.
const BATCH: usize = 512;
/// Batches after which a gateway's connection has old decisions dropped.
const BATCHES_BETWEEN_TRIMS: usize = 20;
/// Files of one call of a sync.
const CALL: usize = 256;

fn wanted() -> usize {
    std::env::var_os("POSTERN_BENCH_EVENTS").and_then(|text| text.to_str()?.parse().ok()).unwrap_or(EVENTS)
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn tell(name: &str, events: usize, begun: Instant) {
    let rate = events as f64 / begun.elapsed().as_secs_f64();
    println!("measured {{\"name\": \"audit_rate.{name}\", \"value\": {rate:.0}, \"unit\": \"1/s\"}}");
}

async fn drained(store: &Store, database: &str) {
    make(store, "acme").await;
    let count = wanted();
    let decisions: Vec<_> =
        (0..count).map(|_| decision(SignedDuration::ZERO, Some("what policies saw"))).collect();
    let begun = Instant::now();
    for (number, batch) in (1..).zip(decisions.chunks(BATCH)) {
        store.keep_decisions(batch).await.expect("are kept");
        if number % BATCHES_BETWEEN_TRIMS == 0 {
            store.trim_decisions(now()).await.expect("answers");
        }
    }
    tell(&format!("decisions.{database}"), count, begun);
    let last = &decisions.last().expect("some").id;
    assert!(store.decision(Some(&tenant()), last).await.expect("answers").is_some());

    let files: Vec<FileEntry> = (0..count).map(|number| file(u32::try_from(number).expect("few"))).collect();
    let begun = Instant::now();
    for call in files.chunks(CALL) {
        store.record_files(&tenant(), call).await.expect("are written");
    }
    tell(&format!("files.{database}"), count, begun);
    let chains = verified(store).await;
    assert!(chains.iter().all(|chain| chain.mistaken == 0), "and hang together");
}

#[tokio::test]
async fn sqlite_drains_events() {
    drained(&Database::sqlite().await.store, "sqlite").await;
}

#[tokio::test]
async fn postgres_drains_events() {
    match Database::postgres().await {
        Some(database) => drained(&database.store, "postgres").await,
        None => println!("left out: Postgres is not installed"),
    }
}
