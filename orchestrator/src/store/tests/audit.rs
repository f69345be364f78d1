// SPDX-License-Identifier: Apache-2.0
//! The chains of the audit logs, and who may change what of them.

use super::*;
use crate::store::file_audit::FileEntry;
use postern_common::audit::verify::{Verdict, Verifier};
use postern_common::audit::{Log, Mark, MarkSigner};

on_each_database!(
    lines_of_both_logs_are_chained_for_each_tenant,
    chains_stay_whole_however_many_write_at_once,
    heads_are_signed_when_they_have_grown_and_an_hour_has_passed,
    what_is_forgotten_by_age_is_vouched_for_and_nothing_else_can_go,
    what_vouched_for_lines_that_are_cut_goes_with_them_and_no_other_mark,
    who_owns_the_database_leaves_traces,
);

fn signer() -> MarkSigner {
    MarkSigner::from_seed(&[7; 32]).expect("a key")
}

pub(super) fn sign(mark: &mut Mark) {
    mark.installation = "here".to_owned();
    signer().sign(mark);
}

pub(super) fn line_filter(log: Log) -> LineFilter {
    LineFilter { log, tenant: None, user: None, sandbox: None, after: 0, limit: Some(1000) }
}

pub(super) fn file(number: u32) -> FileEntry {
    FileEntry {
        at: now(),
        tenant: tenant(),
        user: UserId::parse("älice'; --").expect("an id"),
        path: format!("notes/{number}.txt"),
        action: if number.is_multiple_of(2) { "file.written" } else { "file.removed" },
        actor: Actor::Orchestrator,
        sandbox: number.is_multiple_of(3).then(|| SandboxId::from_random([1; 12])),
        decision: None,
        digest: number.is_multiple_of(2).then(|| "d".repeat(64)),
        size_bytes: number.is_multiple_of(2).then_some(u64::from(number)),
    }
}

fn files(count: u32) -> Vec<FileEntry> {
    (0..count).map(file).collect()
}

/// What a reader of both logs makes of them.
pub(super) async fn verified(store: &Store) -> Vec<Verdict> {
    let mut verifier = Verifier::new(Some(signer().key()));
    for log in Log::ALL {
        let filter = MarkFilter { log, tenant: None, after: 0, limit: Some(1000) };
        for (_, mark) in store.audit_marks(&filter).await.expect("answers") {
            verifier.mark(mark);
        }
        for line in store.audit_lines(&line_filter(log)).await.expect("answers") {
            verifier.line(&line);
        }
    }
    let (verdicts, strays) = verifier.finish();
    assert_eq!(strays, 0);
    verdicts
}

pub(super) async fn write_files(store: &Store, count: u32) {
    store.record_files(&tenant(), &files(count)).await.expect("is written");
}

fn mistakes(verdicts: &[Verdict]) -> u64 {
    verdicts.iter().map(|verdict| verdict.mistaken).sum()
}

async fn lines_of_both_logs_are_chained_for_each_tenant(store: &Store) {
    add(store, &sandbox(1, "c1")).await;
    make(store, "other").await;
    store.record_files(&tenant(), &files(120)).await.expect("is written");
    store.record_files(&tenant(), &[]).await.expect("nothing is fine");
    store.record_files(&tenant(), &files(1)).await.expect("is written");
    let verdicts = verified(store).await;
    assert_eq!(mistakes(&verdicts), 0, "{verdicts:?}");
    let told: Vec<_> =
        verdicts.iter().map(|it| (it.log, it.tenant.as_str(), it.lines, it.unsigned)).collect();
    let expected = [(Log::Sandboxes, "acme", 3, 3), (Log::Files, "acme", 121, 121)];
    assert_eq!(told, expected, "all of the fixture's entries are of one tenant");
    let lines = store.audit_lines(&line_filter(Log::Files)).await.expect("answers");
    assert_eq!(lines[0]["path"], "notes/0.txt");
    assert_eq!((lines[2]["size_bytes"].as_u64(), lines[1].get("size_bytes")), (Some(2), None));
    let of_sandbox = LineFilter { sandbox: Some(SandboxId::from_random([1; 12])), ..line_filter(Log::Files) };
    assert_eq!(store.audit_lines(&of_sandbox).await.expect("answers").len(), 41);
}

async fn chains_stay_whole_however_many_write_at_once(store: &Store) {
    make(store, "acme").await;
    let writing = (0..8).map(|_| async {
        for number in 0..10 {
            let entry = audit(Action::ResourcePut).subject(format!("backend/b{number}"));
            store.record(&entry).await.expect("is written");
            store.record_files(&tenant(), &files(3)).await.expect("is written");
        }
    });
    futures_util::future::join_all(writing).await;
    let verdicts = verified(store).await;
    assert_eq!(mistakes(&verdicts), 0, "{verdicts:?}");
    assert_eq!(verdicts.iter().map(|it| it.lines).sum::<u64>(), 81 + 240);
}

async fn heads_are_signed_when_they_have_grown_and_an_hour_has_passed(store: &Store) {
    make(store, "acme").await;
    let hour = jiff::SignedDuration::from_hours(1);
    let at = |hours: i64| now().saturating_add(hour * i32::try_from(hours).expect("few")).expect("in range");
    let signed = async |hours: i64| {
        let times = (at(hours - 1), at(hours));
        store.sign_audit_heads(times, &sign).await.expect("answers").len()
    };
    assert_eq!(signed(0).await, 1);
    assert_eq!(signed(2).await, 0, "nothing has grown");
    store.record(&audit(Action::ResourcePut)).await.expect("is written");
    assert_eq!(signed(0).await, 0, "not within the hour");
    assert_eq!(signed(2).await, 1);
    store.record(&audit(Action::ResourcePut)).await.expect("is written");
    let verdict = verified(store).await.remove(0);
    assert_eq!((verdict.checkpoints, verdict.unsigned, verdict.mistaken), (2, 1, 0), "{verdict:?}");
}

async fn what_is_forgotten_by_age_is_vouched_for_and_nothing_else_can_go(store: &Store) {
    make(store, "acme").await;
    store.record_files(&tenant(), &files(10)).await.expect("is written");
    let gone = |before, most| store.forget_lines(Log::Files, before, most, &sign);
    assert_eq!(gone(Timestamp::UNIX_EPOCH, 10).await.expect("answers"), 0);
    assert_eq!(gone(Timestamp::MAX, 4).await.expect("answers"), 4, "in batches");
    assert_eq!(gone(Timestamp::MAX, 3).await.expect("answers"), 3);
    let verdict = verified(store).await.into_iter().find(|it| it.log == Log::Files).expect("one");
    assert_eq!((verdict.lines, verdict.cut, verdict.mistaken), (3, 7, 0), "{verdict:?}");
    for attack in [
        "DELETE FROM file_audit_log",
        "DELETE FROM sandbox_audit_log",
        "UPDATE file_audit_log SET path = 'other'",
        "UPDATE sandbox_audit_log SET actor = 'nobody'",
        "UPDATE audit_marks SET sequence = 1000000",
        "DELETE FROM audit_marks",
    ] {
        let refused = sqlx::raw_sql(attack).execute(&store.pool).await.expect_err(attack).to_string();
        assert!(refused.contains("append-only"), "{attack}: {refused}");
    }
    assert_eq!(gone(Timestamp::MAX, 10).await.expect("answers"), 3, "all of it may be old");
    store.record_files(&tenant(), &files(2)).await.expect("is written");
    let verdict = verified(store).await.into_iter().find(|it| it.log == Log::Files).expect("one");
    assert_eq!((verdict.lines, verdict.cut, verdict.mistaken), (2, 10, 0), "{verdict:?}");
}

async fn who_owns_the_database_leaves_traces(store: &Store) {
    make(store, "acme").await;
    for _ in 0..5 {
        store.record(&audit(Action::ResourcePut)).await.expect("is written");
    }
    store.sign_audit_heads((Timestamp::MAX, now()), &sign).await.expect("answers");
    assert_eq!(mistakes(&verified(store).await), 0, "the control");
    let (off, on) = match store.dialect {
        Dialect::Sqlite => (
            "CREATE TABLE kept AS SELECT * FROM sqlite_master WHERE type = 'trigger'; \
             DROP TRIGGER sandbox_audit_log_unchanged; DROP TRIGGER sandbox_audit_log_kept",
            "",
        ),
        Dialect::Postgres => (
            "ALTER TABLE sandbox_audit_log DISABLE TRIGGER ALL",
            "ALTER TABLE sandbox_audit_log ENABLE TRIGGER ALL",
        ),
    };
    let owner = async |script: &'static str| {
        sqlx::raw_sql(script).execute(&store.pool).await.expect("an owner may");
    };
    owner(off).await;
    owner("UPDATE sandbox_audit_log SET actor = 'nobody' WHERE sequence = 3").await;
    assert_eq!(mistakes(&verified(store).await), 1, "one line is not what was written");
    owner("DELETE FROM sandbox_audit_log WHERE sequence = 3").await;
    assert_eq!(mistakes(&verified(store).await), 1, "one line does not follow");
    owner("DELETE FROM sandbox_audit_log WHERE sequence > 4").await;
    let verdicts = verified(store).await;
    assert!(verdicts[0].mistakes.iter().any(|told| told.contains("is gone")), "{verdicts:?}");
    owner(on).await;
}

#[tokio::test]
async fn a_line_that_is_committed_later_is_not_passed_over_by_who_reads_all_tenants() {
    let Some(database) = Database::postgres().await else {
        println!("left out: Postgres is not installed");
        return;
    };
    let store = &database.store;
    make(store, "acme").await;
    make(store, "other").await;
    let of = |name: &str| AuditEntry { tenant: Some(named(name)), ..audit(Action::ResourcePut) };
    let begun = store.events(&AuditFilter::default()).await.expect("answers").last().expect("some").sequence;
    let after = |tenant: Option<&str>| AuditFilter {
        after: begun,
        tenant: tenant.map(named),
        ..AuditFilter::default()
    };
    let mut first = store.change().await.expect("begins");
    first.record(&of("acme")).await.expect("is written");
    store.record(&of("other")).await.expect("is written");
    assert_eq!(store.events(&after(None)).await.expect("answers"), [], "one before it may still come");
    assert_eq!(store.events(&after(Some("other"))).await.expect("answers").len(), 1, "none of its tenant");
    let lines = LineFilter { after: begun, ..line_filter(Log::Sandboxes) };
    assert_eq!(store.audit_lines(&lines).await.expect("answers").len(), 0);
    first.commit().await.expect("is committed");
    let tenants: Vec<_> =
        store.events(&after(None)).await.expect("answers").into_iter().map(|event| event.tenant).collect();
    assert_eq!(tenants, ["acme", "other"]);
    assert_eq!(store.audit_lines(&lines).await.expect("answers").len(), 2);
}

fn named(tenant: &str) -> TenantId {
    TenantId::parse(tenant).expect("a name")
}

async fn what_vouched_for_lines_that_are_cut_goes_with_them_and_no_other_mark(store: &Store) {
    make(store, "acme").await;
    let hours = |hours| now().saturating_add(jiff::SignedDuration::from_hours(hours)).expect("in range");
    let marks = async || {
        let filter = MarkFilter { log: Log::Files, tenant: None, after: 0, limit: Some(1000) };
        let marks = store.audit_marks(&filter).await.expect("answers").into_iter();
        marks.map(|(_, mark)| (mark.mark.as_str(), mark.length)).collect::<Vec<_>>()
    };
    for round in 1..=4 {
        write_files(store, 3).await;
        store.sign_audit_heads((hours(2 * round - 1), hours(2 * round)), &sign).await.expect("signs");
    }
    let each = [("checkpoint", 3), ("checkpoint", 6), ("checkpoint", 9), ("checkpoint", 12)];
    assert_eq!(marks().await, each);
    for gone in [4, 4] {
        assert_eq!(store.forget_lines(Log::Files, Timestamp::MAX, gone, &sign).await.expect("cuts"), 4);
    }
    assert_eq!(marks().await, [("checkpoint", 9), ("checkpoint", 12), ("cut", 8)]);
    assert_eq!(mistakes(&verified(store).await), 0);
    for attack in [
        "DELETE FROM audit_marks WHERE length = 9",
        "DELETE FROM audit_marks WHERE mark = 'cut'",
        "DELETE FROM audit_marks",
    ] {
        let refused = sqlx::raw_sql(attack).execute(&store.pool).await.expect_err(attack).to_string();
        assert!(refused.contains("append-only"), "{attack}: {refused}");
    }
    assert_eq!(marks().await.len(), 3);
}
