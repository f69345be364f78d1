// SPDX-License-Identifier: Apache-2.0
//! One suite over every store: a folder, S3 (versitygw), Azure Blob (Azurite), each a real server that
//! the test starts and ends. `scripts/stores.sh` brings them; without them these tests fail, unless
//! `POSTERN_ALLOW_SKIP=1` leaves them out. Google Cloud Storage has no server that could be run here:
//! its suite runs at the wire (`wire.rs`).

mod bounds;
mod cache;
mod erase;
mod faults;
mod gcs;
mod many;
mod own;
mod retire;
mod servers;
mod through;
mod uploads;
mod wire;

use super::path::Key;
use super::types::{Listing, SmallFile};
use super::uploads::PART_BYTES;
use super::*;
use crate::store::tests::Database;
use crate::store::{Actor, UploadRow};
use bounds::{
    a_full_manifest_refuses_what_would_be_noted_and_nothing_else,
    a_tenants_slow_writes_keep_no_other_from_its_own, the_paths_of_a_user_are_bounded_together,
    what_is_noted_of_a_user_is_bounded, what_others_did_to_many_files_is_followed_some_at_a_time,
};
use bytes::Bytes;
use erase::{an_erasure_waits_for_who_writes, nothing_is_written_of_a_user_who_is_being_erased};
use futures_util::{StreamExt, TryStreamExt, stream};
use many::{
    a_divided_list_has_each_object_once, many_small_files_have_answers_of_their_own,
    many_who_note_something_at_once_are_all_heard,
};
use own::{
    a_file_with_an_odd_name_is_there_when_the_manifest_knows_it,
    a_note_is_believed_only_of_what_it_was_written_with,
    a_write_that_the_database_never_heard_of_is_its_sandboxs,
};
use postern_common::clock;
use postern_common::id::UploadId;
use retire::{
    a_copy_of_a_file_that_stays_is_taken_back, a_held_users_files_stay_until_they_are_released,
    a_run_of_many_goes_on_where_a_step_ended_and_repairs_what_was_cut_off,
    a_run_takes_nothing_that_another_has_just_archived, nothing_in_the_archive_is_written_over,
    what_a_sandbox_brought_in_is_used, what_is_old_goes_also_from_who_is_always_there,
    what_is_old_is_deleted_and_what_was_used_or_written_meanwhile_stays,
    what_is_unused_goes_to_the_archive_and_from_there_in_time,
};
use servers::Server;
use std::time::Duration;
use uploads::{
    a_part_that_comes_when_its_upload_is_over_goes_in_time, an_upload_becomes_a_file_when_it_is_complete,
    an_upload_that_nobody_completes_goes, upload,
};

/// A store of files with a database, gone with the test.
struct Bench {
    storage: Storage,
    database: Database,
    server: Server,
}

impl Bench {
    async fn new(server: Server) -> Self {
        let database = Database::sqlite().await;
        let objects = server.settings().connect().expect("connects");
        let storage = Storage::new(objects, database.store.clone(), Quota::default());
        Self { storage, database, server }
    }

    /// The files of a user whom no other case has.
    fn user(&self, name: &str) -> UserFiles {
        self.storage.of(&tenant("acme"), &user(name))
    }

    /// The same store with a smaller quota.
    fn with_quota(&self, quota: Quota) -> Storage {
        Storage { quota, ..self.storage.clone() }
    }
}

fn tenant(name: &str) -> TenantId {
    name.parse().expect("a tenant")
}

fn user(name: &str) -> UserId {
    name.parse().expect("a user")
}

fn path(text: &str) -> FilePath {
    text.parse().expect("a path")
}

fn by() -> Writer {
    Writer::new(Actor::Sandbox("sandbox-aaaaaaaaaaaa".parse().expect("an id")))
}

fn bytes(size: usize, seed: usize) -> Bytes {
    (0..size).map(|at| u8::try_from((at * 31 + seed) % 251).unwrap_or(0)).collect::<Vec<u8>>().into()
}

async fn text(files: &UserFiles, at: &str) -> String {
    let reading = files.read(&path(at), None, None).await.expect("is there");
    String::from_utf8(all(reading.content).await.to_vec()).expect("text")
}

async fn all(content: Content) -> Bytes {
    content.try_collect::<Vec<Bytes>>().await.expect("reads").concat().into()
}

async fn put(
    files: &UserFiles,
    at: &str,
    condition: &Condition,
    text: &str,
) -> Result<FileEntry, StorageError> {
    let content = whole(Bytes::copy_from_slice(text.as_bytes()));
    files.write(&by(), &path(at), condition, NewFile::default(), content).await
}

fn names(listing: &Listing) -> Vec<&str> {
    listing.files.iter().map(|file| file.path.as_str()).collect()
}

/// A file's bytes that are all there.
fn whole(bytes: Bytes) -> Content {
    stream::once(async { Ok(bytes) }).boxed()
}

/// Runs every case on one server after the other: each has users of its own.
macro_rules! on_each_store {
    ($($case:ident),* $(,)?) => {
        async fn every_case(server: Server) {
            let bench = Bench::new(server).await;
            $(
                println!("case: {}", stringify!($case));
                $case(&bench).await;
            )*
        }
    };
}

on_each_store!(
    what_was_written_is_read_and_listed,
    a_condition_decides_who_wins,
    two_who_write_at_once_do_not_both_win,
    what_is_not_as_announced_never_was,
    ranges_are_cut_where_the_file_ends,
    a_large_file_is_whole_or_not_there,
    odd_names_modes_links_and_folders_are_kept,
    a_name_is_a_file_or_a_folder,
    a_removal_has_a_condition_too,
    files_are_copied_and_moved,
    many_small_files_have_answers_of_their_own,
    many_who_note_something_at_once_are_all_heard,
    a_quota_holds,
    what_is_noted_of_a_user_is_bounded,
    the_paths_of_a_user_are_bounded_together,
    a_divided_list_has_each_object_once,
    a_full_manifest_refuses_what_would_be_noted_and_nothing_else,
    a_tenants_slow_writes_keep_no_other_from_its_own,
    what_somebody_else_did_to_the_store_is_found,
    what_others_did_to_many_files_is_followed_some_at_a_time,
    an_upload_becomes_a_file_when_it_is_complete,
    an_upload_that_nobody_completes_goes,
    a_part_that_comes_when_its_upload_is_over_goes_in_time,
    a_user_and_a_tenant_are_erased_and_nobody_else,
    nothing_is_written_of_a_user_who_is_being_erased,
    an_erasure_waits_for_who_writes,
    no_prefix_is_crossed,
    what_is_unused_goes_to_the_archive_and_from_there_in_time,
    nothing_in_the_archive_is_written_over,
    a_copy_of_a_file_that_stays_is_taken_back,
    a_run_takes_nothing_that_another_has_just_archived,
    what_is_old_goes_also_from_who_is_always_there,
    what_is_old_is_deleted_and_what_was_used_or_written_meanwhile_stays,
    what_a_sandbox_brought_in_is_used,
    a_held_users_files_stay_until_they_are_released,
    a_run_of_many_goes_on_where_a_step_ended_and_repairs_what_was_cut_off,
    a_write_that_the_database_never_heard_of_is_its_sandboxs,
    a_note_is_believed_only_of_what_it_was_written_with,
    a_file_with_an_odd_name_is_there_when_the_manifest_knows_it,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_does_all_of_it() {
    every_case(Server::folder()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_does_all_of_it() {
    if let Some(server) = Server::s3().await {
        every_case(server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_does_all_of_it() {
    if let Some(server) = Server::azure().await {
        every_case(server).await;
    }
}

async fn what_was_written_is_read_and_listed(bench: &Bench) {
    let files = bench.user("reader");
    assert_eq!(files.list().await.expect("lists"), Listing::default());
    assert!(files.find(&path("a/b.txt")).await.expect("looks").is_none());
    let missing = files.read(&path("a/b.txt"), None, None).await.expect_err("is not there");
    assert!(matches!(missing, StorageError::NotFound(_)), "{missing:?}");
    let about = NewFile {
        content_type: Some("text/plain".to_owned()),
        modified: Some("2020-01-02T03:04:05Z".parse().expect("a time")),
        ..NewFile::default()
    };
    let content = whole(Bytes::from_static(b"hello"));
    let written =
        files.write(&by(), &path("a/b.txt"), &Condition::Anything, about, content).await.expect("writes");
    assert_eq!((written.size, written.digest), (5, Some(Digest::of(b"hello"))));
    assert_eq!(files.find(&path("a/b.txt")).await.expect("looks"), Some(written.clone()));
    assert_eq!(files.list().await.expect("lists").files, std::slice::from_ref(&written));
    assert_eq!(text(&files, "a/b.txt").await, "hello");
    put(&files, "empty", &Condition::Nothing, "").await.expect("writes");
    assert_eq!(text(&files, "empty").await, "");
    assert_eq!(names(&files.list().await.expect("lists")), ["a/b.txt", "empty"]);
    assert_eq!(files.usage().await.expect("counts"), Usage { bytes: 5, files: 2, names: 12 });
    // Without the database the store still knows.
    bench.database.store.erase_user(&files.owner, &erased()).await.expect("erases");
    let found = files.find(&path("a/b.txt")).await.expect("looks").expect("is there");
    assert_eq!(
        (found.digest, found.modified, found.content_type),
        (written.digest, written.modified, written.content_type)
    );
}

fn erased() -> crate::store::AuditEntry {
    crate::store::AuditEntry::new(clock::now(), None, crate::store::Action::UserErased, Actor::Folder)
}

async fn a_condition_decides_who_wins(bench: &Bench) {
    let files = bench.user("conditions");
    let conflict = |outcome: Result<FileEntry, StorageError>| match outcome {
        Err(StorageError::Conflict { found, .. }) => found,
        other => panic!("expected a conflict: {other:?}"),
    };
    assert_eq!(conflict(put(&files, "f", &Condition::Something, "0").await), None);
    let first = put(&files, "f", &Condition::Nothing, "1").await.expect("is free").version;
    assert_eq!(conflict(put(&files, "f", &Condition::Nothing, "x").await), Some(first.clone()));
    let second = put(&files, "f", &Condition::Version(first.clone()), "2").await.expect("is as seen").version;
    assert_ne!(first, second);
    assert_eq!(
        conflict(put(&files, "f", &Condition::Version(first.clone()), "x").await),
        Some(second.clone())
    );
    assert_eq!(text(&files, "f").await, "2");
    let third = put(&files, "f", &Condition::Something, "3").await.expect("is there").version;
    assert_ne!(second, third);
    let old = files.read(&path("f"), None, Some(&second)).await.expect_err("is another");
    assert!(matches!(old, StorageError::Conflict { .. }), "{old:?}");
    files.remove(&by(), &path("f"), &Condition::Anything).await.expect("removes");
    conflict(put(&files, "f", &Condition::Version(third), "x").await);
    assert!(files.find(&path("f")).await.expect("looks").is_none());
}

async fn two_who_write_at_once_do_not_both_win(bench: &Bench) {
    let files = bench.user("racers");
    let seen = put(&files, "f", &Condition::Nothing, "start").await.expect("writes").version;
    let condition = Condition::Version(seen);
    let race = (0..8).map(|number| {
        let (files, condition) = (files.clone(), condition.clone());
        async move {
            let content = format!("by {number}");
            put(&files, "f", &condition, &content).await.map(|_| content)
        }
    });
    let won: Vec<String> =
        futures_util::future::join_all(race).await.into_iter().filter_map(Result::ok).collect();
    assert_eq!(won.len(), 1, "{won:?}");
    assert_eq!(text(&files, "f").await, won[0]);
    let race = (0..8).map(|number| {
        let files = files.clone();
        async move { put(&files, "new", &Condition::Nothing, &format!("by {number}")).await }
    });
    let won = futures_util::future::join_all(race).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1);
}

async fn what_is_not_as_announced_never_was(bench: &Bench) {
    let files = bench.user("liar");
    let large = usize::try_from(PART_BYTES / 4).expect("fits");
    for size in [3, large] {
        let content = bytes(size, 1);
        let length = u64::try_from(size).expect("fits");
        for about in [
            NewFile { size: Some(length + 1), ..NewFile::default() },
            NewFile { size: Some(length - 1), ..NewFile::default() },
            NewFile { digest: Some(Digest::of(b"other")), ..NewFile::default() },
        ] {
            let refused = files
                .write(&by(), &path("f"), &Condition::Anything, about, pieces(&content))
                .await
                .expect_err("is not as announced");
            assert!(matches!(refused, StorageError::Differs { .. }), "{refused:?}");
        }
        let broken = pieces(&content).chain(stream::once(async { Err(io::Error::other("broke off")) }));
        let refused = files
            .write(&by(), &path("f"), &Condition::Anything, NewFile::default(), broken.boxed())
            .await
            .expect_err("broke off");
        assert!(matches!(refused, StorageError::Content(_)), "{refused:?}");
    }
    assert!(files.list().await.expect("lists").files.is_empty());
}

/// Content that comes in pieces.
fn pieces(content: &Bytes) -> Content {
    const PIECE: usize = 1 << 20;
    let content = content.clone();
    let pieces: Vec<_> = (0..content.len().div_ceil(PIECE))
        .map(|at| Ok(content.slice(at * PIECE..((at + 1) * PIECE).min(content.len()))))
        .collect();
    stream::iter(pieces).boxed()
}

async fn ranges_are_cut_where_the_file_ends(bench: &Bench) {
    let files = bench.user("ranges");
    put(&files, "f", &Condition::Nothing, "0123456789").await.expect("writes");
    put(&files, "empty", &Condition::Nothing, "").await.expect("writes");
    for (range, wanted) in [(0..3, "012"), (7..99, "789"), (9..10, "9"), (0..10, "0123456789")] {
        let reading = files.read(&path("f"), Some(range.clone()), None).await.expect("reads");
        assert_eq!(reading.about.size, 10);
        assert_eq!(reading.range, range.start..range.end.min(10));
        assert_eq!(all(reading.content).await, wanted);
    }
    for (at, range) in [("f", 10..11), ("f", 99..100), ("empty", 0..1)] {
        let refused = files.read(&path(at), Some(range), None).await.expect_err("is beyond");
        assert!(matches!(refused, StorageError::Range { .. }), "{refused:?}");
    }
}

async fn a_large_file_is_whole_or_not_there(bench: &Bench) {
    let files = bench.user("large");
    let content = bytes(20 << 20, 7);
    let written = files
        .write(&by(), &path("d/large"), &Condition::Nothing, NewFile::default(), pieces(&content))
        .await
        .expect("writes");
    assert_eq!((written.size, written.digest), (20 << 20, Some(Digest::of(&content))));
    let reading = files.read(&path("d/large"), None, None).await.expect("is there");
    assert_eq!(Digest::of(&all(reading.content).await), Digest::of(&content));
    let tail = files.read(&path("d/large"), Some((20 << 20) - 5..u64::MAX), None).await.expect("is there");
    assert_eq!(all(tail.content).await, content.slice(content.len() - 5..));
    let other = bytes(20 << 20, 8);
    let refused = files
        .write(&by(), &path("d/large"), &Condition::Nothing, NewFile::default(), pieces(&other))
        .await
        .expect_err("is taken");
    assert!(matches!(refused, StorageError::Conflict { .. }), "{refused:?}");
    let condition = Condition::Version(written.version);
    files
        .write(&by(), &path("d/large"), &condition, NewFile::default(), pieces(&other))
        .await
        .expect("is as seen");
    let listed = files.list().await.expect("lists").files;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].digest, Some(Digest::of(&other)));
}

async fn odd_names_modes_links_and_folders_are_kept(bench: &Bench) {
    let files = bench.user("odd");
    let long = format!("{}/{}", "d".repeat(255), "n".repeat(255));
    let odd =
        ["a\nb", "ends.", "quote\"'`", "back\\slash", "ünï/e\u{301}", "%2e%2e/x", "sp ace", "#?&=+", &long];
    for name in odd {
        put(&files, name, &Condition::Nothing, name)
            .await
            .unwrap_or_else(|error| panic!("{name:?}: {error:?}"));
    }
    let mut wanted = odd.to_vec();
    wanted.sort_unstable();
    let listing = files.list().await.expect("lists");
    assert_eq!(names(&listing), wanted);
    for name in odd {
        assert_eq!(text(&files, name).await, name);
    }
    let run = NewFile { mode: Some(0o6755), ..NewFile::default() };
    let content = whole(Bytes::from_static(b"#!"));
    let entry = files.write(&by(), &path("run"), &Condition::Nothing, run, content).await.expect("writes");
    assert_eq!(entry.mode, 0o755);
    put(&files, "run", &Condition::Anything, "#!again").await.expect("writes");
    assert_eq!(files.find(&path("run")).await.expect("looks").expect("is there").mode, 0o755, "stays");
    let edits = vec![
        Edit::Folder(path("empty"), 0o755),
        Edit::Folder(path("secret"), 0o700),
        Edit::Link(path("link"), "../../etc/passwd".to_owned()),
        Edit::Mode(path("run"), 0o711),
    ];
    files.reshape(&by(), edits.clone()).await.expect("changes");
    files.reshape(&by(), edits).await.expect("may be repeated");
    let listing = files.list().await.expect("lists");
    assert_eq!(listing.folders, [(path("empty"), 0o755), (path("secret"), 0o700)]);
    assert_eq!(listing.links, [(path("link"), "../../etc/passwd".to_owned())]);
    assert_eq!(files.find(&path("run")).await.expect("looks").expect("is there").mode, 0o711);
    // A file takes the place of what is only told.
    put(&files, "link", &Condition::Nothing, "a file now").await.expect("writes");
    let listing = files.list().await.expect("lists");
    assert_eq!(listing.links, []);
    for name in odd {
        assert!(files.remove(&by(), &path(name), &Condition::Something).await.expect("removes"));
    }
    assert_eq!(names(&files.list().await.expect("lists")), ["link", "run"]);
}

async fn a_name_is_a_file_or_a_folder(bench: &Bench) {
    let files = bench.user("names");
    put(&files, "a", &Condition::Nothing, "file").await.expect("writes");
    put(&files, "d/e/f", &Condition::Nothing, "file").await.expect("writes");
    for name in ["a/b", "a/b/c", "d", "d/e"] {
        let refused = put(&files, name, &Condition::Anything, "x").await.expect_err(name);
        assert!(matches!(refused, StorageError::Obstructed { .. }), "{name}: {refused:?}");
    }
    assert_eq!(names(&files.list().await.expect("lists")), ["a", "d/e/f"]);
    files.remove(&by(), &path("d/e/f"), &Condition::Anything).await.expect("removes");
    put(&files, "d", &Condition::Nothing, "free now").await.expect("writes");
    let both = vec![small("x", "1"), small("x/y", "2")];
    let answers = files.write_many(&by(), both).await;
    assert!(matches!(answers[..], [Ok(_), Err(StorageError::Obstructed { .. })]), "{answers:?}");
}

fn small(at: &str, text: &str) -> SmallFile {
    SmallFile {
        path: path(at),
        condition: Condition::Nothing,
        about: NewFile::default(),
        content: Bytes::copy_from_slice(text.as_bytes()),
    }
}

async fn a_removal_has_a_condition_too(bench: &Bench) {
    let files = bench.user("removals");
    assert!(!files.remove(&by(), &path("f"), &Condition::Anything).await.expect("is not there"));
    let missing = files.remove(&by(), &path("f"), &Condition::Something).await.expect_err("is not there");
    assert!(matches!(missing, StorageError::Conflict { found: None, .. }), "{missing:?}");
    let first = put(&files, "f", &Condition::Nothing, "1").await.expect("writes").version;
    let second = put(&files, "f", &Condition::Anything, "2").await.expect("writes").version;
    let old = files.remove(&by(), &path("f"), &Condition::Version(first)).await.expect_err("is another");
    assert!(matches!(old, StorageError::Conflict { .. }), "{old:?}");
    assert_eq!(text(&files, "f").await, "2");
    assert!(files.remove(&by(), &path("f"), &Condition::Version(second)).await.expect("removes"));
    assert_eq!(files.list().await.expect("lists"), Listing::default());
}

async fn files_are_copied_and_moved(bench: &Bench) {
    let files = bench.user("copies");
    let about =
        NewFile { mode: Some(0o755), content_type: Some("text/x-sh".to_owned()), ..NewFile::default() };
    let content = whole(Bytes::from_static(b"#!/bin/sh"));
    let from = files.write(&by(), &path("a"), &Condition::Nothing, about, content).await.expect("writes");
    let copied =
        files.copy(&by(), (&from.path, None), &path("b/c"), &Condition::Nothing).await.expect("copies");
    assert_eq!((copied.digest, copied.mode, &copied.content_type), (from.digest, 0o755, &from.content_type));
    let taken =
        files.copy(&by(), (&from.path, None), &path("b/c"), &Condition::Nothing).await.expect_err("is taken");
    assert!(matches!(taken, StorageError::Conflict { .. }), "{taken:?}");
    files
        .rename(&by(), (&from.path, Some(&from.version)), &path("d"), &Condition::Nothing)
        .await
        .expect("moves");
    assert_eq!(names(&files.list().await.expect("lists")), ["b/c", "d"]);
    let gone =
        files.rename(&by(), (&from.path, None), &path("e"), &Condition::Anything).await.expect_err("is gone");
    assert!(matches!(gone, StorageError::NotFound(_)), "{gone:?}");
}

async fn a_quota_holds(bench: &Bench) {
    let quota = Quota { bytes: 10, files: 3, file_bytes: 8, ..Quota::default() };
    let files = bench.with_quota(quota).of(&tenant("acme"), &user("quota"));
    let too_much = |outcome: Result<FileEntry, StorageError>| match outcome {
        Err(StorageError::TooMuch { quota, .. }) => quota,
        other => panic!("expected a refusal: {other:?}"),
    };
    assert_eq!(too_much(put(&files, "f", &Condition::Anything, "123456789").await), "largest size of a file");
    put(&files, "a", &Condition::Anything, "12345").await.expect("fits");
    put(&files, "b", &Condition::Anything, "12345").await.expect("fits");
    assert_eq!(too_much(put(&files, "c", &Condition::Anything, "1").await), "bytes of a user's files");
    put(&files, "a", &Condition::Anything, "1").await.expect("is less than before");
    put(&files, "c", &Condition::Anything, "1").await.expect("fits");
    assert_eq!(too_much(put(&files, "d", &Condition::Anything, "").await), "number of files of a user");
    let batch = vec![small("e", "1"), small("f", "1")];
    files.remove(&by(), &path("c"), &Condition::Anything).await.expect("removes");
    let answers = files.write_many(&by(), batch).await;
    assert!(matches!(answers[..], [Ok(_), Err(StorageError::TooMuch { .. })]), "{answers:?}");
}

async fn what_somebody_else_did_to_the_store_is_found(bench: &Bench) {
    let files = bench.user("elsewhere");
    put(&files, "mine", &Condition::Nothing, "1").await.expect("writes");
    put(&files, "gone", &Condition::Nothing, "2").await.expect("writes");
    // Past us: right into the store.
    let objects = &bench.storage.objects;
    let (theirs, mine, gone) = (
        files.prefix.file(&path("theirs")),
        files.prefix.file(&path("mine")),
        files.prefix.file(&path("gone")),
    );
    let notes = objects::Notes::default();
    objects.put(&theirs, &Condition::Anything, &notes, Bytes::from_static(b"new")).await.expect("writes");
    objects.put(&mine, &Condition::Anything, &notes, Bytes::from_static(b"changed")).await.expect("writes");
    objects.remove(&gone, &Condition::Anything).await.expect("removes");
    let listing = files.list().await.expect("lists");
    assert_eq!(names(&listing), ["mine", "theirs"]);
    assert_eq!(listing.files.iter().map(|file| file.size).collect::<Vec<_>>(), [7, 3]);
    assert_eq!(files.usage().await.expect("counts"), Usage { bytes: 10, files: 2, names: 10 });
    let events = bench.database.store.file_events(&files.owner).await.expect("reads");
    let mut found: Vec<_> = events[2..].iter().map(|event| (&*event.action, &*event.path)).collect();
    found.sort_unstable();
    assert_eq!(found, [("file.found", "mine"), ("file.found", "theirs"), ("file.missing", "gone")]);
    let again = files.list().await.expect("lists");
    assert_eq!(again, listing);
    assert_eq!(bench.database.store.file_events(&files.owner).await.expect("reads").len(), events.len());
    // A condition of before does not hold any more.
    let listed = listing.files[0].version.clone();
    put(&files, "mine", &Condition::Version(listed), "2").await.expect("is as seen");
}

async fn a_user_and_a_tenant_are_erased_and_nobody_else(bench: &Bench) {
    let (one, two) = (bench.user("erased"), bench.user("erased2"));
    let other = bench.storage.of(&tenant("other"), &user("erased"));
    for files in [&one, &two, &other] {
        put(files, "a\nb", &Condition::Nothing, "odd").await.expect("writes");
        put(files, "d/f", &Condition::Nothing, "plain").await.expect("writes");
    }
    let row = upload(&one, "f", &bytes(5, 1), 10);
    bench.storage.begin_upload(&row, &erased()).await.expect("begins");
    bench.storage.put_part(&row, 0, whole(bytes(5, 1))).await.expect("comes");
    assert_eq!(bench.storage.erase_user(&one.owner).await.expect("erases"), 3, "two files, one manifest");
    assert_eq!(bench.storage.arrived(&row).await.expect("looks"), [None]);
    bench.database.store.erase_user(&one.owner, &erased()).await.expect("erases");
    assert_eq!(one.list().await.expect("lists"), Listing::default());
    assert_eq!(bench.storage.erase_user(&one.owner).await.expect("may be repeated"), 0);
    assert_eq!(two.list().await.expect("lists").files.len(), 2);
    bench.storage.erase_tenant(&tenant("other")).await.expect("erases");
    assert_eq!(names(&other.list().await.expect("lists")), Vec::<&str>::new());
    assert_eq!(two.list().await.expect("lists").files.len(), 2);
}

async fn no_prefix_is_crossed(bench: &Bench) {
    // Each pair is two users who must not see each other's, however alike they are; the control is
    // that each sees its own.
    let (twin, shorter) = ("ü".repeat(64), "ü".repeat(63));
    let pairs = [
        (("acme", "alice"), ("acme", "Alice")),
        (("acme", "alice"), ("acme", "alice/")),
        (("acme", "alice"), ("acme", "alice/files")),
        (("acme", ".."), ("acme", "../..")),
        (("acme", "é"), ("acme", "e\u{301}")),
        (("acme", "a%2fb"), ("acme", "a/b")),
        (("acme", "a%2Fb"), ("acme", "a/b")),
        (("acme", "alice"), ("acme-2", "alice")),
        (("acme", "alice"), ("acme", "alice.")),
        (("acme", "alice"), ("acme", "alice ")),
        (("acme", "ａlice"), ("acme", "alice")),
        (("acme", twin.as_str()), ("acme", shorter.as_str())),
    ];
    for (number, ((tenant_one, user_one), (tenant_two, user_two))) in pairs.into_iter().enumerate() {
        let one = bench.storage.of(&tenant(tenant_one), &user(user_one));
        let two = bench.storage.of(&tenant(tenant_two), &user(user_two));
        let name = format!("crossing-{number}");
        put(&one, &name, &Condition::Nothing, user_one).await.expect("writes");
        assert!(two.find(&path(&name)).await.expect("looks").is_none(), "{user_one:?} and {user_two:?}");
        assert!(!names(&two.list().await.expect("lists")).contains(&name.as_str()));
        put(&two, &name, &Condition::Nothing, user_two).await.expect("is a file of its own");
        assert_eq!(text(&one, &name).await, user_one, "the control: its own");
        assert_eq!(text(&two, &name).await, user_two, "the control: its own");
    }
    let part = Key::staged(&UploadId::generate(), 0);
    assert!(!part.as_str().starts_with("tenants/"));
}
