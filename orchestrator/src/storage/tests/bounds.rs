// SPDX-License-Identifier: Apache-2.0
//! What one user may take of what all share.

use super::*;
use std::sync::atomic::Ordering;

/// Somebody wrote hundreds of files right into the store, and removed others.
pub(super) async fn what_others_did_to_many_files_is_followed_some_at_a_time(bench: &Bench) {
    /// More than one change concerns.
    const FILES: usize = 150;
    let files = bench.user("followed");
    let gone: Vec<_> = (0..FILES).map(|number| small(&format!("gone/{number}"), "x")).collect();
    bench.storage.locks.most.store(0, Ordering::Relaxed);
    let written = files.write_many(&by(), gone.clone()).await;
    assert!(written.iter().all(Result::is_ok), "{written:?}");
    let objects = &bench.storage.objects;
    for (number, gone) in gone.iter().enumerate() {
        objects.remove(&files.prefix.file(&gone.path), &Condition::Anything).await.expect("removes");
        let new = files.prefix.file(&path(&format!("new/{number}")));
        let notes = objects::Notes::default();
        objects.put(&new, &Condition::Anything, &notes, Bytes::from_static(b"x")).await.expect("writes");
    }
    let listed = files.list().await.expect("lists");
    let most = bench.storage.locks.most.load(Ordering::Relaxed);
    assert!(most <= 128, "one change held the locks of {most} files");
    assert_eq!(listed.files.len(), FILES);
    let events = bench.database.store.file_events(&files.owner).await.expect("reads");
    for action in ["file.found", "file.missing"] {
        assert_eq!(events.iter().filter(|event| event.action == action).count(), FILES, "{action}");
    }
    assert_eq!(files.usage().await.expect("counts").files, FILES as u64);
}

fn too_much<Done: std::fmt::Debug>(outcome: Result<Done, StorageError>) -> &'static str {
    match outcome {
        Err(StorageError::TooMuch { quota, .. }) => quota,
        other => panic!("expected a refusal: {other:?}"),
    }
}

/// Links cost no quota of files: what they come to is bounded by itself, and refused for good.
pub(super) async fn what_is_noted_of_a_user_is_bounded(bench: &Bench) {
    let quota = Quota { manifest_bytes: 2_000, ..Quota::default() };
    let files = bench.with_quota(quota).of(&tenant("acme"), &user("links"));
    let link = |number: usize| Edit::Link(path(&format!("l{number}")), "\u{1}".repeat(50));
    files.reshape(&by(), (0..5).map(link).collect()).await.expect("fit");
    let refused = too_much(files.reshape(&by(), (0..9).map(link).collect()).await);
    assert!(refused.contains("links"), "{refused}");
    assert_eq!(files.list().await.expect("lists").links.len(), 5, "nothing of it was noted");
    files.reshape(&by(), vec![Edit::NoLink(path("l0"))]).await.expect("makes room");
    files.reshape(&by(), vec![link(8)]).await.expect("has room");
}

/// What only the manifest could name must not be in the store when that is full.
pub(super) async fn a_full_manifest_refuses_what_would_be_noted_and_nothing_else(bench: &Bench) {
    let quota = Quota { manifest_bytes: 300, ..Quota::default() };
    let files = bench.with_quota(quota).of(&tenant("acme"), &user("full"));
    files.reshape(&by(), vec![Edit::Link(path("l"), "t".repeat(230))]).await.expect("fits");
    for odd in ["ends.", "line\nbreak"] {
        too_much(put(&files, odd, &Condition::Nothing, "free of charge").await);
    }
    let large = NewFile::default();
    let content = whole(bytes(content::SMALL_BYTES + 1, 1));
    too_much(files.write(&by(), &path("large."), &Condition::Nothing, large, content).await);
    let run = NewFile { mode: Some(0o755), ..NewFile::default() };
    let content = whole(Bytes::from_static(b"#!"));
    too_much(files.write(&by(), &path("r".repeat(60).as_str()), &Condition::Nothing, run, content).await);
    let found = bench.storage.objects.list(&files.prefix, &[]).await.expect("lists");
    assert_eq!(found, [], "an object that nothing names is there");
    let pack = vec![small("plain", "1"), small("odd.", "2")];
    let answers = files.write_many(&by(), pack).await;
    assert!(matches!(answers[..], [Ok(_), Err(StorageError::TooMuch { .. })]), "{answers:?}");
    // Two that were judged at the same time: what the slower one has put is taken back.
    let larger = Quota { manifest_bytes: 450, ..Quota::default() };
    let files = bench.with_quota(larger).of(&tenant("acme"), &user("full"));
    let (one, two) = ("1".repeat(50) + ".", "2".repeat(50) + ".");
    let nothing = Condition::Nothing;
    let (one, two) = tokio::join!(put(&files, &one, &nothing, "1"), put(&files, &two, &nothing, "2"));
    assert!(one.is_ok() != two.is_ok(), "{one:?}, {two:?}");
    let found = bench.storage.objects.list(&files.prefix, &[]).await.expect("lists");
    assert_eq!(found.len(), 2, "one plain, one odd");
}

/// Each list has all of them.
pub(super) async fn the_paths_of_a_user_are_bounded_together(bench: &Bench) {
    let quota = Quota { names: 20, ..Quota::default() };
    let files = bench.with_quota(quota).of(&tenant("acme"), &user("paths"));
    put(&files, "ü/345678", &Condition::Nothing, "1").await.expect("has nine bytes");
    let pack = vec![small("d/3456789", "2"), small("d/34", "3"), small("f", "4"), small("g", "5")];
    let answers = files.write_many(&by(), pack).await;
    assert!(matches!(answers[..], [Ok(_), Err(_), Ok(_), Ok(_)]), "{answers:?}");
    let refused = too_much(put(&files, "h", &Condition::Nothing, "1").await);
    assert!(refused.contains("paths"), "{refused}");
    put(&files, "f", &Condition::Something, "more").await.expect("it is there already");
    files.remove(&by(), &path("d/3456789"), &Condition::Something).await.expect("removes");
    put(&files, "h", &Condition::Nothing, "1").await.expect("there is room again");
}

/// Polls what never ends until so many places are left.
async fn until_left(stalled: &mut (impl Future + Unpin), places: &Semaphore, left: usize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while places.available_permits() != left {
        assert!(tokio::time::Instant::now() < deadline, "{} places are left", places.available_permits());
        tokio::select! {
            biased;
            _ended = &mut *stalled => panic!("what comes has no end"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
}

/// One tenant sends more than there are places, and never comes to an end.
pub(super) async fn a_tenants_slow_writes_keep_no_other_from_its_own(bench: &Bench) {
    /// More than there are places for.
    const SLOW: usize = 80;
    let slow = bench.storage.of(&tenant("slow"), &user("u"));
    let other = bench.storage.of(&tenant("other"), &user("patient"));
    let write = async |number: usize, begin: Bytes| {
        let content = whole(begin).chain(stream::pending()).boxed();
        let at = path(&number.to_string());
        slow.write(&by(), &at, &Condition::Nothing, NewFile::default(), content).await
    };
    let small = (0..SLOW).map(|number| write(number, Bytes::new()));
    let mut stalled = Box::pin(futures_util::future::join_all(small));
    until_left(&mut stalled, &bench.storage.incoming, INCOMING / 2).await;
    put(&other, "f", &Condition::Nothing, "its own").await.expect("is not kept waiting");
    drop(stalled);
    let Objects::Cloud(cloud) = &bench.storage.objects else { return };
    let large = (0..SLOW).map(|number| write(number, bytes(content::SMALL_BYTES + 1, number)));
    let mut stalled = Box::pin(futures_util::future::join_all(large.take(cloud::LARGE + 2)));
    until_left(&mut stalled, &cloud.large, cloud::LARGE / 2).await;
    let own = async {
        let content = whole(bytes(content::SMALL_BYTES + 1, 1));
        other.write(&by(), &path("large"), &Condition::Nothing, NewFile::default(), content).await
    };
    let own = tokio::time::timeout(Duration::from_secs(60), own).await.expect("is not kept waiting");
    assert_eq!(own.expect("writes").size, content::SMALL_BYTES as u64 + 1);
}
