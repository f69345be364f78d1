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
