// SPDX-License-Identifier: Apache-2.0
//! Files that retention takes away, on every store.

use super::*;
use crate::retention::{FileRetention, Wanted};
use crate::store::{
    Action, ArchivedPlace, AuditEntry, Cutoffs, FileEvent, HoldRow, Kind, Resource, ResourceChange, Share,
};
use jiff::{SignedDuration, Timestamp};
use postern_common::folder::OnRetired;
use postern_common::retention::{Fate, Report, Why};

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// A tenant with this policy, whom no other case has.
struct Case<'a> {
    bench: &'a Bench,
    tenant: TenantId,
}

impl<'a> Case<'a> {
    async fn new(bench: &'a Bench, name: &str, policy: &str) -> Self {
        crate::store::tests::make(&bench.database.store, name).await;
        let limits: postern_common::folder::LimitsFile = serde_json::from_str(policy).expect("is a policy");
        let body = serde_json::to_string(&limits).expect("serializes");
        let (kind, name_of, digest) = (Kind::Limits, "limits".to_owned(), "d".to_owned());
        let part = Resource { kind, name: name_of, body, component: None, sealed: None, digest };
        let tenant = tenant(name);
        let store = &bench.database.store;
        let put = store.change_resources(&tenant, 1, false, &[ResourceChange::Put(part)], &[]).await;
        assert!(put.expect("answers"));
        Self { bench, tenant }
    }

    fn user(&self, name: &str) -> UserFiles {
        self.bench.storage.of(&self.tenant, &user(name))
    }

    /// A whole run as it would be so many days from now.
    async fn run(&self, days: i32, dry_run: bool) -> Report {
        let retention = FileRetention::new(self.bench.database.store.clone(), self.bench.storage.clone());
        let now = clock::now().saturating_add(DAY * days).expect("in range");
        let (mut report, mut after) = (Report::new(dry_run), None);
        loop {
            let tenant = Some(self.tenant.clone());
            let wanted = Wanted { tenant, dry_run, after, actor: Actor::Orchestrator };
            match report.add(retention.step(&wanted, now).await.expect("is done")) {
                Some(next) => after = Some(next),
                None => return report,
            }
        }
    }

    async fn events(&self, files: &UserFiles) -> Vec<(String, String)> {
        let events = self.bench.database.store.file_events(&files.owner).await.expect("reads");
        events.into_iter().map(|FileEvent { action, path, .. }| (action, path)).collect()
    }

    async fn archived(&self, files: &UserFiles, at: &str) -> Option<String> {
        self.archived_as(files, at, ArchivePlace::First).await
    }

    async fn archived_as(&self, files: &UserFiles, at: &str, place: ArchivePlace) -> Option<String> {
        let key = files.prefix.archived(&path(at), place);
        let opened = self.bench.storage.objects.read(&key, None).await.expect("answers")?;
        Some(String::from_utf8(all(opened.content).await.to_vec()).expect("text"))
    }

    fn case_7(&self, files: &UserFiles) -> HoldRow {
        HoldRow {
            owner: (*files.owner).clone(),
            reason: "case 7".to_owned(),
            set_by: "key:x".to_owned(),
            set_at: crate::store::whole_micros(clock::now()),
        }
    }

    async fn hold(&self, files: &UserFiles) {
        let hold = self.case_7(files);
        files.hold(&hold, &self.audit(Action::HoldSet)).await.expect("is held");
        assert_eq!(self.bench.database.store.hold_on(&files.owner).await.expect("answers"), Some(hold));
    }

    fn audit(&self, action: Action) -> AuditEntry {
        AuditEntry::new(clock::now(), Some(self.tenant.clone()), action, Actor::Orchestrator)
    }
}

pub(super) async fn what_is_unused_goes_to_the_archive_and_from_there_in_time(bench: &Bench) {
    let case = Case::new(bench, "archived", r#"{"retention": {"unused": "30d", "archived": "10d"}}"#).await;
    let files = case.user("alice");
    let large = "x".repeat(3 << 20);
    for (at, text) in [("d/plain", "1"), ("odd\nname", "22"), ("large", &large)] {
        put(&files, at, &Condition::Nothing, text).await.expect("writes");
    }
    files.reshape(&by(), vec![Edit::Mode(path("d/plain"), 0o700)]).await.expect("changes");
    assert_eq!(case.run(29, false).await, Report::new(false), "not yet");
    let would = case.run(31, true).await;
    assert_eq!(would.count(), 3);
    assert_eq!(files.list().await.expect("lists").files.len(), 3, "it was only told");

    let did = case.run(31, false).await;
    assert_eq!((did.tenants.clone(), did.failed.clone()), (would.tenants, vec![]));
    assert!(did.files.iter().all(|file| (file.fate, file.why) == (Fate::Archived, Why::Unused)), "{did:?}");
    assert_eq!(files.list().await.expect("lists"), Listing::default(), "also the mode is forgotten");
    assert_eq!(case.archived(&files, "d/plain").await.as_deref(), Some("1"));
    assert_eq!(case.archived(&files, "odd\nname").await.as_deref(), Some("22"));
    assert_eq!(case.archived(&files, "large").await.map(|text| text.len()), Some(large.len()));
    assert_eq!(bench.database.store.count_archived(&files.owner).await.expect("answers"), 3);
    let events = case.events(&files).await;
    assert_eq!(events.iter().filter(|(action, _)| action == "file.archived").count(), 3, "{events:?}");
    assert_eq!(case.run(31, false).await.count(), 0, "again changes nothing");

    // What comes under the same name lives its own life.
    put(&files, "d/plain", &Condition::Nothing, "new").await.expect("writes");
    let expired = case.run(42, false).await;
    let counts: Vec<_> =
        expired.tenants[&case.tenant].iter().map(|(fate, count)| (*fate, count.files)).collect();
    assert_eq!(counts, [(Fate::Archived, 1), (Fate::ArchiveDeleted, 3)]);
    assert_eq!(case.archived(&files, "odd\nname").await, None);
    let new = later("new");
    assert_eq!(case.archived(&files, "d/plain").await, None);
    assert_eq!(case.archived_as(&files, "d/plain", new).await.as_deref(), Some("new"));
    bench.storage.erase_user(&files.owner).await.expect("erases");
    assert_eq!(case.archived_as(&files, "d/plain", new).await, None, "the archive is the user's too");
}

/// Where a version with this content lies, if another was there before it.
fn later(content: &str) -> ArchivePlace {
    ArchivePlace::Later(Digest::of(content.as_bytes()))
}

pub(super) async fn nothing_in_the_archive_is_written_over(bench: &Bench) {
    let case = Case::new(bench, "versions", r#"{"retention": {"unused": "30d", "archived": "20d"}}"#).await;
    let files = case.user("alice");
    for (name, days) in [("v1", 31), ("v2", 40), ("v2", 41)] {
        for at in ["contract.pdf", "odd\nname"] {
            put(&files, at, &Condition::Nothing, name).await.expect("writes");
        }
        assert_eq!(case.run(days, false).await.count(), 2);
    }
    put(&files, "contract.pdf/is/a/folder/now", &Condition::Nothing, "v3").await.expect("writes");
    let did = case.run(42, false).await;
    assert_eq!(did.count(), 1, "{did:?}");
    for at in ["contract.pdf", "odd\nname"] {
        assert_eq!(case.archived(&files, at).await.as_deref(), Some("v1"), "{at:?}");
        assert_eq!(case.archived_as(&files, at, later("v2")).await.as_deref(), Some("v2"), "{at:?}");
    }
    let count = async || bench.database.store.count_archived(&files.owner).await.expect("answers");
    assert_eq!(count().await, 5, "what has the same content is there once");
    // Each goes in its own time.
    assert_eq!(case.run(52, false).await.count(), 2);
    assert_eq!(case.archived(&files, "contract.pdf").await, None);
    assert_eq!(case.archived_as(&files, "contract.pdf", later("v2")).await.as_deref(), Some("v2"));
    assert_eq!(case.run(70, false).await.count(), 3);
    assert_eq!(count().await, 0);
    assert_eq!(bench.storage.erase_user(&files.owner).await.expect("erases"), 1, "the manifest");
}

pub(super) async fn a_run_takes_nothing_that_another_has_just_archived(bench: &Bench) {
    let case = Case::new(bench, "twice", r#"{"retention": {"unused": "30d", "archived": "10d"}}"#).await;
    let (store, files) = (&bench.database.store, case.user("alice"));
    put(&files, "f", &Condition::Nothing, "1").await.expect("writes");
    assert_eq!(case.run(31, false).await.count(), 1);
    let before = clock::now().saturating_add(DAY * 35).expect("in range");
    let seen = store.due_archived(&case.tenant, before, &ArchivedPlace::default(), 9).await.expect("reads");
    assert_eq!(seen.len(), 1);
    // Another run is faster, and then archives what came under the same name.
    assert_eq!(case.run(45, false).await.count(), 1);
    put(&files, "f", &Condition::Nothing, "2").await.expect("writes");
    assert_eq!(case.run(45, false).await.count(), 1);
    let late = files.expire_archived(&by(), &seen, before).await.expect("answers");
    assert!(matches!(&late, Retirement::Done(went) if matches!(went[..], [Ok(false)])), "{late:?}");
    assert_eq!(case.archived(&files, "f").await.as_deref(), Some("2"));
    assert_eq!(store.count_archived(&files.owner).await.expect("answers"), 1);
}

pub(super) async fn a_copy_of_a_file_that_stays_is_taken_back(bench: &Bench) {
    let case = Case::new(bench, "copies", r#"{"retention": {"unused": "30d"}}"#).await;
    let store = &bench.database.store;
    let now = clock::now().saturating_add(DAY * 31).expect("in range");
    for (name, is_held) in [("rewritten", false), ("held", true)] {
        let files = case.user(name);
        put(&files, "f", &Condition::Nothing, "1").await.expect("writes");
        let cutoffs = Cutoffs { written: None, used: Some(now) };
        let due = store.due_files(&case.tenant, cutoffs, &(name.to_owned(), String::new()), 9).await;
        let due: Vec<_> = due.expect("reads").into_iter().filter(|file| file.user.as_str() == name).collect();
        assert_eq!(due.len(), 1);
        // Whoever holds the user's lock lets the copy be made, and nothing more.
        let user = files.prefix.of_user();
        let lock = bench.storage.locks.hold((&user, Share::Alone), []).await;
        let by = by();
        let retiring = files.retire(&by, &due, OnRetired::Archive, (now, None));
        let meanwhile = async {
            while case.archived(&files, "f").await.is_none() {
                tokio::task::yield_now().await;
            }
            if is_held {
                let held = store.hold_files((name, Share::Together), &[]).await.expect("holds");
                let hold = case.case_7(&files);
                store.set_hold(held, &hold, &case.audit(Action::HoldSet)).await.expect("is held");
            } else {
                let (key, notes) = (files.prefix.file(&path("f")), objects::Notes::default());
                let objects = &bench.storage.objects;
                objects.put(&key, &Condition::Anything, &notes, "new".into()).await.expect("puts");
            }
            drop(lock);
        };
        match (tokio::join!(retiring, meanwhile).0.expect("answers"), is_held) {
            (Retirement::Held(_), true) => {}
            (Retirement::Done(went), false) => assert!(matches!(went[..], [Ok(false)]), "{went:?}"),
            (other, _) => panic!("{other:?}"),
        }
        assert_eq!(case.archived(&files, "f").await, None, "{name}");
        assert_eq!(names(&files.list().await.expect("lists")), ["f"]);
    }
}

pub(super) async fn what_is_old_is_deleted_and_what_was_used_or_written_meanwhile_stays(bench: &Bench) {
    let case = Case::new(bench, "deleted", r#"{"retention": {"age": "30d", "then": "delete"}}"#).await;
    let (files, other) = (case.user("alice"), case.user("bob"));
    put(&files, "old", &Condition::Nothing, "1").await.expect("writes");
    let stale = put(&files, "rewritten", &Condition::Nothing, "2").await.expect("writes");
    put(&other, "theirs", &Condition::Nothing, "3").await.expect("writes");
    // Somebody wrote right into the store since: the database's word is not enough to delete by.
    let key = files.prefix.file(&path("rewritten"));
    let notes = objects::Notes::default();
    bench
        .storage
        .objects
        .put(&key, &Condition::Anything, &notes, Bytes::from_static(b"new"))
        .await
        .expect("puts");
    // A sandbox brought in all of the other's: of no matter to age, but to what is unused.
    bench.database.store.used_files(&other.owner, clock::now()).await.expect("notes");
    let did = case.run(31, false).await;
    let gone: Vec<_> = did.files.iter().map(|file| (file.path.as_str(), file.fate, file.why)).collect();
    assert_eq!(gone, [("old", Fate::Deleted, Why::Age), ("theirs", Fate::Deleted, Why::Age)]);
    assert_eq!(did.in_use, 1);
    let left = files.list().await.expect("lists");
    assert_eq!(names(&left), ["rewritten"]);
    assert_ne!(left.files[0].version, stale.version);
    assert!(case.events(&files).await.contains(&("file.expired".to_owned(), "old".to_owned())));
}

pub(super) async fn what_a_sandbox_brought_in_is_used(bench: &Bench) {
    let case = Case::new(bench, "used", r#"{"retention": {"unused": "30d"}}"#).await;
    let (files, unused) = (case.user("alice"), case.user("bob"));
    for files in [&files, &unused] {
        put(files, "f", &Condition::Nothing, "1").await.expect("writes");
    }
    let later = clock::now().saturating_add(DAY * 20).expect("in range");
    bench.database.store.used_files(&files.owner, later).await.expect("notes");
    let did = case.run(31, false).await;
    assert_eq!(did.files.iter().map(|file| file.user_id.as_str()).collect::<Vec<_>>(), ["bob"]);
    assert_eq!(case.run(51, false).await.count(), 1, "in its time");
}

pub(super) async fn what_is_old_goes_also_from_who_is_always_there(bench: &Bench) {
    let policy = r#"{"retention": {"unused": "30d", "age": "60d", "then": "delete"}}"#;
    let case = Case::new(bench, "both", policy).await;
    let files = case.user("alice");
    put(&files, "old", &Condition::Nothing, "1").await.expect("writes");
    let used = async |days: i32| {
        let at = clock::now().saturating_add(DAY * days).expect("in range");
        bench.database.store.used_files(&files.owner, at).await.expect("notes");
    };
    used(40).await;
    assert_eq!(case.run(45, false).await.count(), 0, "it is used");
    used(60).await;
    let (told, did) = (case.run(61, true).await, case.run(61, false).await);
    assert_eq!((told.files, did.in_use), (did.files.clone(), 0));
    assert_eq!(did.files.iter().map(|file| file.why).collect::<Vec<_>>(), [Why::Age]);
    assert_eq!(files.list().await.expect("lists"), Listing::default());
}

pub(super) async fn a_held_users_files_stay_until_they_are_released(bench: &Bench) {
    let policy = r#"{"retention": {"unused": "30d", "age": "60d", "then": "archive", "archived": "30d"}}"#;
    let case = Case::new(bench, "held", policy).await;
    let (files, other) = (case.user("alice"), case.user("bob"));
    put(&files, "before", &Condition::Nothing, "0").await.expect("writes");
    assert_eq!(case.run(31, false).await.count(), 1, "it lies in the archive when the hold comes");
    for files in [&files, &other] {
        put(files, "a", &Condition::Nothing, "1").await.expect("writes");
        put(files, "b", &Condition::Nothing, "2").await.expect("writes");
    }
    put(&files, "before", &Condition::Nothing, "anew").await.expect("writes");
    case.hold(&files).await;
    for dry_run in [true, false] {
        let told = case.run(365, dry_run).await;
        let held = &told.held[&case.tenant][&user("alice")];
        assert_eq!((held.reason.as_str(), held.files), ("case 7", 4));
        assert_eq!(told.count(), 2, "the other's go: {told:?}");
    }
    assert_eq!(files.list().await.expect("lists").files.len(), 3);
    assert_eq!(case.archived(&files, "before").await.as_deref(), Some("0"), "not that of the same name");
    for (at, place) in [("before", later("anew")), ("a", ArchivePlace::First), ("b", ArchivePlace::First)] {
        assert_eq!(case.archived_as(&files, at, place).await, None, "nothing is copied for nothing");
    }
    // A tenant with a held user stays.
    let store = &bench.database.store;
    let removed = store.remove_tenant(&case.tenant, &case.audit(Action::TenantRemoved)).await;
    assert_eq!(removed.expect("answers"), crate::store::RemovedTenant::Held(1));

    assert!(store.release_hold(&files.owner, &case.audit(Action::HoldReleased)).await.expect("answers"));
    assert!(!store.release_hold(&files.owner, &case.audit(Action::HoldReleased)).await.expect("answers"));
    assert_eq!(case.run(365, false).await.count(), 4, "three are archived, and one is out of the archive");
}

pub(super) async fn a_run_of_many_goes_on_where_a_step_ended_and_repairs_what_was_cut_off(bench: &Bench) {
    let case = Case::new(bench, "many", r#"{"retention": {"unused": "30d"}}"#).await;
    let retention = FileRetention::new(bench.database.store.clone(), bench.storage.clone());
    let mut small = Vec::new();
    for number in 0..230 {
        let about = NewFile::default();
        let content = Bytes::from(format!("{number}"));
        small.push(SmallFile {
            path: path(&format!("f{number:03}")),
            condition: Condition::Nothing,
            about,
            content,
        });
    }
    let files = case.user("alice");
    for written in files.write_many(&by(), small).await {
        written.expect("writes");
    }
    put(&case.user("bob"), "f", &Condition::Nothing, "1").await.expect("writes");
    // As if a run had ended between copy and removal: the copy is there, or that of a file that was
    // written anew since.
    for (at, content) in [("f000", "0"), ("f001", "older")] {
        let key = files.prefix.archived(&path(at), ArchivePlace::First);
        let notes = objects::Notes::default();
        bench.storage.objects.put(&key, &Condition::Anything, &notes, content.into()).await.expect("puts");
    }
    let now = clock::now().saturating_add(DAY * 31).expect("in range");
    let wanted = |after: Option<String>| Wanted {
        tenant: Some(case.tenant.clone()),
        dry_run: false,
        after,
        actor: Actor::Orchestrator,
    };
    let first = retention.step(&wanted(None), now).await.expect("is done");
    assert_eq!(first.files.len(), 200, "a step is bounded");
    let second = retention.step(&wanted(first.next), now).await.expect("is done");
    assert_eq!(second.files.len(), 31, "the rest, and the other user's");
    assert_eq!(retention.step(&wanted(second.next), now).await.expect("is done").next, None);
    assert_eq!(case.archived(&files, "f000").await.as_deref(), Some("0"));
    assert_eq!(case.archived_as(&files, "f000", later("0")).await, None, "it is not copied again");
    assert_eq!(case.archived(&files, "f001").await.as_deref(), Some("older"));
    assert_eq!(case.archived_as(&files, "f001", later("1")).await.as_deref(), Some("1"));
    assert_eq!(files.list().await.expect("lists"), Listing::default());
    let strange = retention.step(&wanted(Some("!".to_owned())), now).await.expect_err("is no place");
    assert!(strange.to_string().contains("`next`"), "{strange}");
    assert!(Timestamp::now() < now);
}
