// SPDX-License-Identifier: Apache-2.0
use super::*;
use jiff::Timestamp;
use postern_common::id::DecisionId;
use std::time::Duration;
use tokio::time::timeout;

const ROOMY: u64 = 1 << 20;

fn record(verdict: Verdict) -> DecisionRecord {
    DecisionRecord { verdict, ..DecisionRecord::begin(Timestamp::UNIX_EPOCH, "GET") }
}

fn records(verdict: Verdict, count: usize) -> Vec<DecisionRecord> {
    std::iter::repeat_with(|| record(verdict)).take(count).collect()
}

fn ids(records: &[DecisionRecord]) -> Vec<DecisionId> {
    records.iter().map(|record| record.id.clone()).collect()
}

/// All that waits, the oldest first.
fn waiting(spool: &Spool) -> Vec<DecisionRecord> {
    let numbers: Vec<u64> = spool.files().batches.keys().copied().collect();
    numbers.into_iter().flat_map(|number| spool.read(number).expect("can be read")).collect()
}

fn is_full(spool: &Spool) -> bool {
    spool.audit.is_full.load(Ordering::Relaxed)
}

#[tokio::test]
async fn batches_survive_the_process_and_leave_when_they_are_acknowledged() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (records(Verdict::Allow, 3), records(Verdict::Deny, 2));
    let spool = Spool::open(folder.path(), ROOMY, Audit::default()).expect("opens");
    spool.add(first.clone());
    drop(spool);
    std::fs::write(folder.path().join("00000000000000000009.new"), "[{").expect("half a batch");
    let spool = Spool::open(folder.path(), ROOMY, Audit::default()).expect("opens again");
    assert!(spool.audit.spool_bytes.get() > 0);
    spool.add(second.clone());
    let (number, sent) = spool.oldest().await;
    assert_eq!(ids(&sent), ids(&first));
    assert_eq!(ids(&spool.oldest().await.1), ids(&first), "the same until it is acknowledged");
    spool.kept(number);
    let (number, sent) = spool.oldest().await;
    assert_eq!(ids(&sent), ids(&second));
    spool.kept(number);
    assert_eq!(spool.audit.spool_bytes.get(), 0);
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
}

#[test]
fn a_full_spool_drops_allowed_records_first_and_counts_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = json(&records(Verdict::Allow, 1)).len() as u64;
    let spool = Spool::open(folder.path(), one * 10, Audit::default()).expect("opens");
    let denied = records(Verdict::Deny, 4);
    spool.add(records(Verdict::Allow, 4));
    spool.add(denied.clone());
    assert!(!is_full(&spool));
    assert_eq!(spool.audit.dropped.get(), 0);
    let late = records(Verdict::Deny, 4);
    spool.add(late.clone());
    assert_eq!(spool.audit.dropped.get(), 4);
    let all: Vec<_> = denied.iter().chain(&late).cloned().collect();
    assert_eq!(ids(&waiting(&spool)), ids(&all), "the denied ones are all there");
    spool.add([records(Verdict::Allow, 3), records(Verdict::Deny, 1)].concat());
    assert_eq!(spool.audit.dropped.get(), 7, "of a batch without room the denied one is kept");
    assert_eq!(waiting(&spool).len(), 9);
    spool.add(records(Verdict::Deny, 5));
    assert_eq!(spool.audit.dropped.get(), 12, "and when nothing else can go, the newest");
    assert_eq!(waiting(&spool).len(), 9);
}

#[test]
fn it_is_called_full_before_it_loses_anything_and_no_more_when_it_has_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = json(&records(Verdict::Deny, 1)).len() as u64;
    let spool = Spool::open(folder.path(), one * 10, Audit::default()).expect("opens");
    for _ in 0..9 {
        assert!(!is_full(&spool));
        spool.add(records(Verdict::Deny, 1));
    }
    assert!(is_full(&spool));
    assert_eq!(spool.audit.dropped.get(), 0);
    spool.kept(1);
    assert!(!is_full(&spool));
}

#[tokio::test]
async fn a_batch_that_cannot_be_read_is_counted_and_does_not_stop_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = Spool::open(folder.path(), ROOMY, Audit::default()).expect("opens");
    let good = records(Verdict::Deny, 1);
    spool.add(records(Verdict::Deny, 1));
    spool.add(good.clone());
    std::fs::write(spool.path(1), "not ours").expect("is overwritten");
    assert_eq!(ids(&spool.oldest().await.1), ids(&good));
    assert_eq!(spool.audit.dropped.get(), 1);
}

#[test]
fn large_batches_are_split_to_fit_a_frame() {
    let mut large = records(Verdict::Deny, 5);
    for record in &mut large {
        record.method = "x".repeat(BATCH_BYTES / 2);
    }
    let expected = ids(&large);
    let batches = split(large);
    assert!(batches.iter().all(|batch| json(batch).len() <= BATCH_BYTES) && batches.len() >= 3);
    assert_eq!(batches.iter().flat_map(|batch| ids(batch)).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn what_waits_in_the_channel_is_written_when_the_process_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = Spool::open(folder.path(), ROOMY, Audit::default()).expect("opens");
    let (sender, receiver) = mpsc::channel(64);
    let sent = records(Verdict::Allow, 40);
    for record in sent.clone() {
        sender.send(record).await.expect("has room");
    }
    let stop = Stop::new();
    stop.cancel();
    let collecting = collect(Arc::clone(&spool), receiver, stop);
    timeout(Duration::from_secs(20), collecting).await.expect("ends");
    assert_eq!(ids(&waiting(&spool)), ids(&sent));
    drop(sender);
}

/// What a request pays for its record, while the spool writes all of them down. `make test` runs it
/// small; what it says is true only of a release build: `make bench-audit`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::cast_precision_loss, reason = "a mean")]
async fn handing_a_record_over_waits_for_nothing() {
    let count = std::env::var_os("POSTERN_BENCH_EVENTS").and_then(|text| text.to_str()?.parse().ok());
    let count: usize = count.unwrap_or(2_000);
    let folder = tempfile::tempdir().expect("a folder");
    let spool = Spool::open(folder.path(), u64::MAX / 200, Audit::default()).expect("opens");
    let (sender, receiver) = mpsc::channel(8192);
    let tasks = postern_common::tasks::Tasks::new();
    let collecting = Arc::clone(&spool);
    tasks.spawn(move |stop| collect(collecting, receiver, stop));
    let (mut took, mut left) = (Duration::ZERO, count);
    let mut costs = Vec::with_capacity(count);
    while left > 0 {
        // As many as requests hand over in some 50 ms; then the spool's turn, as when they come slower.
        let burst = records(Verdict::Allow, left.min(1_000));
        left -= burst.len();
        for record in burst {
            let begun = std::time::Instant::now();
            let handed = sender.try_send(record);
            costs.push(begun.elapsed());
            took += begun.elapsed();
            assert!(handed.is_ok(), "there is room");
        }
        while sender.capacity() < 8192 {
            tokio::task::yield_now().await;
        }
    }
    drop(sender);
    tasks.shut_down(Duration::from_secs(60)).await.expect("ends");
    assert_eq!(waiting(&spool).len(), count, "all of them are on disk");
    costs.sort_unstable();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let mean = micros(took) / count as f64;
    println!("measured {{\"name\": \"audit_handover.mean\", \"value\": {mean:.3}, \"unit\": \"us\"}}");
    let p99 = micros(costs[count * 99 / 100]);
    println!("measured {{\"name\": \"audit_handover.p99\", \"value\": {p99:.3}, \"unit\": \"us\"}}");
}
