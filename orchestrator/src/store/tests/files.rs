// SPDX-License-Identifier: Apache-2.0
//! What is known of files, over both databases.

use super::*;
use crate::storage::{Condition, Digest, FilePath, Usage, Version, Writer};
use postern_common::decision::DecisionRecord;
use postern_common::id::UploadId;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn owner(user: &str) -> FileOwner {
    FileOwner { tenant: tenant(), user: UserId::parse(user).expect("an id") }
}

fn path(text: &str) -> FilePath {
    text.parse().expect("a path")
}

fn row(at: &str, size: u64, version: &str) -> FileRow {
    FileRow {
        path: path(at),
        size,
        digest: (size > 0).then(|| Digest::of(at.as_bytes())),
        mode: 0o755,
        version: Version::from(version.to_owned()),
        modified: whole_micros(now()),
        content_type: Some("text/plain".to_owned()),
    }
}

async fn record(store: &Store, owner: &FileOwner, changes: &[FileChange]) {
    let held = store.hold_files(("u", Share::Together), &["a", "b"]).await.expect("holds");
    store.end_files(held, owner, &Writer::new(Actor::Folder), now(), changes).await.expect("writes");
}

pub(super) async fn files_are_kept_as_they_were_written_and_paged_byte_by_byte(store: &Store) {
    let (one, two) = (owner("u'1"), owner("u'"));
    // In an order that no language has: bytes.
    let names = ["A", "B/a", "Z", "a", "a b", "a/b", "a0", "é", "\u{10348}"];
    let rows: Vec<FileRow> = (1..).zip(names).map(|(size, name)| row(name, size, name)).collect();
    let written: Vec<FileChange> = rows.iter().rev().cloned().map(FileChange::Written).collect();
    record(store, &one, &written).await;
    record(store, &two, &[FileChange::Written(row("a", 0, "x"))]).await;
    assert_eq!(store.file(&one, &path("a/b")).await.expect("reads"), Some(rows[5].clone()));
    assert_eq!(store.file(&two, &path("a")).await.expect("reads").expect("is there").digest, None);
    let paths = |page: Vec<FileRow>| page.iter().map(|row| row.path.to_string()).collect::<Vec<_>>();
    let all = store.files_page(&one, "", None, 100).await.expect("reads");
    assert_eq!(all, rows);
    let page = store.files_page(&one, "", Some(&path("Z")), 3).await.expect("reads");
    assert_eq!(paths(page), ["a", "a b", "a/b"]);
    assert_eq!(
        paths(store.files_page(&one, "a", Some(&path("a")), 9).await.expect("reads")),
        ["a b", "a/b", "a0"]
    );
    assert_eq!(paths(store.files_page(&one, "é", None, 9).await.expect("reads")), ["é"]);
    let nth = |paths: Vec<FilePath>| paths.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(nth(store.nth_files(&one, 4).await.expect("reads")), ["a", "é"]);
    assert_eq!(nth(store.nth_files(&two, 4).await.expect("reads")), [""; 0]);
    assert_eq!(store.file_usage(&one).await.expect("counts"), Usage { bytes: 45, files: 9, names: 20 });
    let asked: Vec<FilePath> = ["B", "C", "B/b", "B/a b", "a", "a1", "Z", "é"].map(path).to_vec();
    let below = store.folders_among(&one, &asked).await.expect("looks");
    assert_eq!(below, [path("B"), path("a")].into(), "something lies below them");
    let many: Vec<FilePath> = (0..250).map(|number| path(&format!("none/{number}"))).chain(asked).collect();
    let found = store.files_among(&one, &many).await.expect("reads");
    let mut found: Vec<String> = found.keys().map(|path| path.as_str().to_owned()).collect();
    found.sort();
    assert_eq!(found, ["Z", "a", "é"]);
}

pub(super) async fn what_happened_to_a_file_is_written_with_its_row(store: &Store) {
    let owner = owner("u");
    let changes = [
        FileChange::Written(row("a", 1, "1")),
        FileChange::Mode(path("a"), 0o644),
        FileChange::Written(row("b", 1, "1")),
        FileChange::Missing(path("b"), Version::from("0".to_owned())),
        FileChange::Found(row("c", 1, "1")),
        FileChange::Removed(path("c")),
        FileChange::Shaped(path("d")),
    ];
    record(store, &owner, &changes).await;
    let rows = store.files(&owner).await.expect("reads");
    let mut left: Vec<_> = rows.iter().map(|row| (row.path.to_string(), row.mode)).collect();
    left.sort();
    assert_eq!(left, [("a".to_owned(), 0o644), ("b".to_owned(), 0o755)], "another version of b is there");
    let events = store.file_events(&owner).await.expect("reads");
    let told: Vec<_> = events.iter().map(|event| format!("{} {}", event.action, event.path)).collect();
    let wanted = [
        "file.written a",
        "file.mode a",
        "file.written b",
        "file.missing b",
        "file.found c",
        "file.removed c",
        "file.shaped d",
    ];
    assert_eq!(told, wanted);
    assert!(events.iter().all(|event| event.actor == "folder"));
    assert!(events.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
}

/// SQLite has one orchestrator, whose own locks do; Postgres holds several apart.
pub(super) async fn who_holds_a_file_holds_it_alone(store: &Store) {
    let inside = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let enter = (0..6).map(|number| {
        let (inside, most) = (Arc::clone(&inside), Arc::clone(&most));
        async move {
            // In different orders, which must not be the end of both.
            let keys = if number % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
            let held = store.hold_files(("u", Share::Together), &keys).await.expect("holds");
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            store.ping().await.expect("answers");
            inside.fetch_sub(1, Ordering::SeqCst);
            let change = [FileChange::Written(row("a", number, &number.to_string()))];
            store
                .end_files(held, &owner("u"), &Writer::new(Actor::Folder), now(), &change)
                .await
                .expect("writes");
        }
    });
    futures_util::future::join_all(enter).await;
    if store.dialect == Dialect::Postgres {
        assert_eq!(most.load(Ordering::SeqCst), 1);
        // The control: another file is another lock.
        let one = store.hold_files(("u", Share::Together), &["a"]).await.expect("holds");
        let two = store.hold_files(("u", Share::Together), &["c"]).await.expect("holds");
        drop((one, two));
    }
    assert_eq!(store.file_events(&owner("u")).await.expect("reads").len(), 6);
}

fn upload(user: &str, seconds: i64) -> UploadRow {
    let created_at = whole_micros(now());
    UploadRow {
        id: UploadId::generate(),
        owner: owner(user),
        path: path("in/a\nb"),
        size: 70,
        part_bytes: 64,
        digest: Some(Digest::of(b"x")),
        content_type: None,
        mode: Some(0o600),
        condition: Condition::Version(Version::from("v\":1".to_owned())),
        created_by: "key:x".to_owned(),
        created_at,
        expires_at: created_at.saturating_add(jiff::SignedDuration::from_secs(seconds)).expect("in range"),
        completed: None,
    }
}

pub(super) async fn an_upload_is_remembered_until_it_expires_or_its_user_is_erased(store: &Store) {
    let (one, two) = (upload("u", 60), upload("u2", 120));
    for upload in [&one, &two] {
        assert!(store.add_upload(upload, u64::MAX, &audit(Action::UploadBegun)).await.expect("writes"));
    }
    assert_eq!(store.upload(&one.id).await.expect("reads"), Some(one.clone()));
    let version = Version::from("w".to_owned());
    store.upload_completed(&one.id, &version).await.expect("writes");
    assert_eq!(store.upload(&one.id).await.expect("reads").expect("is there").completed, Some(version));
    assert_eq!(store.expired_uploads(one.created_at, 9).await.expect("reads"), []);
    assert_eq!(store.expired_uploads(one.expires_at, 9).await.expect("reads"), std::slice::from_ref(&one.id));
    assert_eq!(store.uploads_of(&two.owner).await.expect("reads"), std::slice::from_ref(&two.id));
    store.forget_upload(&one.id).await.expect("forgets");
    record(store, &two.owner, &[FileChange::Written(row("a", 1, "1"))]).await;
    let decided = |user: &str| DecisionRecord {
        tenant: Some(tenant()),
        user_id: Some(UserId::parse(user).expect("an id")),
        ..DecisionRecord::begin(now(), "GET")
    };
    let (theirs, other) = (decided("u2"), decided("u"));
    store.keep_decisions(&[theirs.clone(), other.clone()]).await.expect("keeps");
    let erased = store.erase_user(&two.owner, &audit(Action::UserErased)).await.expect("erases");
    assert_eq!((erased.files, erased.decisions), (1, 1));
    assert!(store.decision(None, &theirs.id).await.expect("reads").is_none());
    assert!(store.decision(None, &other.id).await.expect("reads").is_some());
    assert_eq!(store.upload(&two.id).await.expect("reads"), None);
    assert_eq!(store.files(&two.owner).await.expect("reads"), []);
    assert_eq!(store.file_events(&two.owner).await.expect("reads").len(), 1, "the log stays");
}
