// SPDX-License-Identifier: Apache-2.0
//! Users who are being erased, what may not come beside that, and who waits for whom.

use super::*;
use crate::storage::{ArchivePlace, Condition, Version, Writer};
use postern_common::id::{SnapshotId, UploadId};

on_each_database!(
    who_has_a_user_alone_waits_for_all_and_all_for_them,
    nothing_comes_of_a_user_who_is_being_erased,
    of_a_hold_an_erasure_and_a_new_sandbox_one_is_first,
    a_hold_and_the_end_of_its_tenant_exclude_each_other,
    who_was_erased_is_in_no_table_but_the_logs,
    of_a_removed_tenants_files_nothing_is_known_any_more,
);

fn owner() -> FileOwner {
    let new = sandbox(1, "c1");
    FileOwner { tenant: new.tenant, user: new.user_id }
}

async fn begin(store: &Store) -> BegunErasure {
    let held = store.hold_files(("u", Share::Alone), &[]).await.expect("holds");
    store.begin_erasure(held, &owner(), now()).await.expect("answers")
}

fn case() -> HoldRow {
    let (reason, set_by) = ("case 7".to_owned(), "key:x".to_owned());
    HoldRow { owner: owner(), reason, set_by, set_at: whole_micros(now()) }
}

async fn hold(store: &Store) -> SetHold {
    let held = store.hold_files(("u", Share::Together), &[]).await.expect("holds");
    store.set_hold(held, &case(), &audit(Action::HoldSet)).await.expect("answers")
}

async fn end(store: &Store, id: &SandboxId) {
    go(store, id, State::Creating, State::Destroying(Outcome::Failed)).await;
    go(store, id, State::Destroying(Outcome::Failed), State::Failed).await;
}

async fn erase(store: &Store) {
    store.erase_user(&owner(), &audit(Action::UserErased)).await.expect("answers");
}

async fn who_has_a_user_alone_waits_for_all_and_all_for_them(store: &Store) {
    const SOON: Duration = Duration::from_millis(200);
    let hold = |user: &'static str, share| store.hold_files((user, share), &[]);
    let (one, two) = (hold("u", Share::Together).await, hold("u", Share::Together).await);
    let (one, two) = (one.expect("holds"), two.expect("beside the other"));
    assert!(tokio::time::timeout(SOON, hold("u", Share::Alone)).await.is_err(), "two are there");
    drop(one);
    assert!(tokio::time::timeout(SOON, hold("u", Share::Alone)).await.is_err(), "one is there");
    drop(two);
    let alone = hold("u", Share::Alone).await.expect("holds");
    for share in [Share::Together, Share::Alone] {
        assert!(tokio::time::timeout(SOON, hold("u", share)).await.is_err(), "{share:?}");
    }
    hold("u2", Share::Alone).await.expect("another user is another lock");
    drop(alone);
    hold("u", Share::Together).await.expect("nobody is left");
}

async fn nothing_comes_of_a_user_who_is_being_erased(store: &Store) {
    let (first, second) = (sandbox(1, "c1"), sandbox(2, "c2"));
    assert!(add(store, &first).await);
    assert_eq!(begin(store).await, BegunErasure::Lives(vec![first.id.clone()]));
    assert!(!store.is_being_erased(&owner()).await.expect("answers"));
    end(store, &first.id).await;
    assert_eq!(hold(store).await, SetHold::Set);
    assert!(matches!(begin(store).await, BegunErasure::Held(held) if held.reason == "case 7"));
    store.release_hold(&owner(), &audit(Action::HoldReleased)).await.expect("answers");

    for _again in 0..2 {
        assert_eq!(begin(store).await, BegunErasure::Begun);
    }
    assert!(store.is_being_erased(&owner()).await.expect("answers"));
    assert_eq!(hold(store).await, SetHold::BeingErased);
    assert_eq!(store.hold_on(&owner()).await.expect("answers"), None);
    let quotas = [Quotas::default(), Quotas { sandboxes: Some(9), ..Quotas::default() }];
    for quotas in &quotas {
        assert_eq!(added(store, &second, quotas).await, AddedSandbox::BeingErased);
    }
    let other = NewSandbox { user_id: UserId::parse("bob").expect("an id"), ..sandbox(3, "c3") };
    assert_eq!(added(store, &other, &Quotas::default()).await, AddedSandbox::Added, "the control");

    erase(store).await;
    assert!(!store.is_being_erased(&owner()).await.expect("answers"));
    assert_eq!(added(store, &second, &Quotas::default()).await, AddedSandbox::Added, "they may come back");
    assert_eq!(hold(store).await, SetHold::Set);
}

async fn of_a_hold_an_erasure_and_a_new_sandbox_one_is_first(store: &Store) {
    make(store, "acme").await;
    for number in 0..12 {
        let new = sandbox(number, &format!("c{number}"));
        let (begun, held, came) =
            tokio::join!(begin(store), hold(store), async { added(store, &new, &Quotas::default()).await });
        let is_erased = begun == BegunErasure::Begun;
        assert!(!(is_erased && held == SetHold::Set), "{begun:?} {held:?}");
        assert!(!(is_erased && came == AddedSandbox::Added), "{begun:?} {came:?}");
        if came == AddedSandbox::Added {
            end(store, &new.id).await;
        }
        if held == SetHold::Set {
            store.release_hold(&owner(), &audit(Action::HoldReleased)).await.expect("answers");
        }
        erase(store).await;
    }
}

async fn a_hold_and_the_end_of_its_tenant_exclude_each_other(store: &Store) {
    let tenants: Vec<TenantId> =
        (0..8).map(|number| TenantId::parse(&format!("t{number}")).expect("a name")).collect();
    for name in &tenants {
        make(store, name.as_str()).await;
        let mut hold = case();
        hold.owner.tenant = name.clone();
        let set = async {
            let held = store.hold_files(("u", Share::Together), &[]).await.expect("holds");
            store.set_hold(held, &hold, &audit(Action::HoldSet)).await.expect("answers")
        };
        let entry = audit(Action::TenantRemoved);
        let (set, removed) = tokio::join!(set, store.remove_tenant(name, &entry));
        match (set, removed.expect("answers")) {
            (SetHold::Set, RemovedTenant::Held(1)) | (SetHold::NoTenant, RemovedTenant::Removed) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn file(at: &str) -> FileRow {
    FileRow {
        path: at.parse().expect("a path"),
        size: 1,
        digest: None,
        mode: 0o644,
        version: Version::from("v".to_owned()),
        modified: whole_micros(now()),
        content_type: None,
    }
}

async fn record(store: &Store, changes: &[FileChange]) {
    let held = store.hold_files(("u", Share::Together), &[]).await.expect("holds");
    store.end_files(held, &owner(), &Writer::new(Actor::Folder), now(), changes).await.expect("writes");
}

/// Puts something of the user into every table that has users.
async fn fill(store: &Store, new: &NewSandbox) {
    assert!(add(store, new).await);
    let (tenant, user_id, conversation_id) =
        (new.tenant.clone(), new.user_id.clone(), new.conversation_id.clone());
    let (at, until) = (whole_micros(now()), new.expires_at);
    record(store, &[FileChange::Written(file("a")), FileChange::Written(file("b"))]).await;
    record(store, &[FileChange::Archived(file("a"), ArchivePlace::First)]).await;
    store.used_files(&owner(), at).await.expect("writes");
    let peer = PeerSessionRow {
        id: SandboxId::from_random([7; 12]),
        tenant: tenant.clone(),
        user_id: user_id.clone(),
        conversation_id: conversation_id.clone(),
        operations: Vec::new(),
        address: "127.0.0.1".parse().expect("an address"),
        jti: "j".to_owned(),
        created_by: "key:x".to_owned(),
        created_at: at,
        expires_at: until,
    };
    assert!(store.add_peer_session(&peer, &audit(Action::SessionAdded)).await.expect("writes"));
    let (sandbox, template) = (new.id.clone(), new.template.clone());
    let sync = SyncSessionRow {
        id: SandboxId::from_random([8; 12]),
        sandbox: sandbox.clone(),
        tenant: tenant.clone(),
        user_id: user_id.clone(),
        conversation_id,
        template: template.clone(),
        peer: Peer::Address("127.0.0.1".parse().expect("an address")),
        tokens: Vec::new(),
        rotate_at: at,
    };
    store.add_sync_session(&sync).await.expect("writes");
    let (id, labels) = (SnapshotId::generate(), BTreeMap::new());
    let snapshot = SnapshotRow {
        id,
        tenant,
        user_id,
        sandbox_id: sandbox,
        template,
        labels,
        size_bytes: 1,
        memory: None,
        at,
    };
    assert!(store.add_snapshot(&snapshot, 9).await.expect("writes"));
    store.add_upload(&upload(at, until), u64::MAX, &audit(Action::UploadBegun)).await.expect("writes");
}

fn upload(created_at: Timestamp, expires_at: Timestamp) -> UploadRow {
    UploadRow {
        id: UploadId::generate(),
        owner: owner(),
        path: "up".parse().expect("a path"),
        size: 1,
        part_bytes: 1,
        digest: None,
        content_type: None,
        mode: None,
        condition: Condition::Anything,
        created_by: "key:x".to_owned(),
        created_at,
        expires_at,
        completed: None,
    }
}

/// How many rows of the user each table has that has users.
async fn rows(store: &Store) -> BTreeMap<String, i64> {
    let tables = match store.dialect {
        Dialect::Sqlite => {
            "SELECT m.name AS name FROM sqlite_master m JOIN pragma_table_info(m.name) c \
             WHERE m.type = 'table' AND c.name = 'user_id'"
        }
        Dialect::Postgres => {
            "SELECT CAST(table_name AS TEXT) AS name FROM information_schema.columns \
             WHERE table_schema = current_schema() AND column_name = 'user_id'"
        }
    };
    let mut counts = BTreeMap::new();
    for table in sqlx::query(tables).fetch_all(&store.pool).await.expect("answers") {
        let table = table.text("name").expect("text");
        let count = format!("SELECT COUNT(*) AS count FROM {table} WHERE user_id = $1");
        let count = sqlx::query(sqlx::AssertSqlSafe(count)).bind(owner().user.as_str().to_owned());
        let count = count.fetch_one(&store.pool).await.expect("answers");
        counts.insert(table, count.number("count").expect("a number"));
    }
    counts
}

async fn who_was_erased_is_in_no_table_but_the_logs(store: &Store) {
    let new = sandbox(1, "c1");
    fill(store, &new).await;
    end(store, &new.id).await;
    assert_eq!(begin(store).await, BegunErasure::Begun);
    let peer = store.peer_sessions(now(), None).await.expect("reads").remove(0);
    let again = PeerSessionRow { id: SandboxId::from_random([9; 12]), ..peer };
    assert!(!store.add_peer_session(&again, &audit(Action::SessionAdded)).await.expect("answers"));
    let before = rows(store).await;
    let empty: Vec<_> = before.iter().filter(|(_, count)| **count == 0).map(|(table, _)| table).collect();
    // The fixture's lines of that log name no user.
    assert_eq!(empty, ["sandbox_audit_log", "user_holds"], "the control: all others have something");
    let erased = store.erase_user(&owner(), &audit(Action::UserErased)).await.expect("answers");
    assert_eq!((erased.files, erased.archived, erased.snapshots), (1, 1, 1));
    assert_eq!((erased.sandboxes, erased.sessions), (1, 2));
    let left = rows(store).await.into_iter().filter(|(_, count)| *count > 0).map(|(table, _)| table);
    assert_eq!(left.collect::<Vec<_>>(), ["file_audit_log"]);
}

async fn of_a_removed_tenants_files_nothing_is_known_any_more(store: &Store) {
    let new = sandbox(1, "c1");
    fill(store, &new).await;
    end(store, &new.id).await;
    assert_eq!(begin(store).await, BegunErasure::Begun);
    let removed = store.remove_tenant(&tenant(), &audit(Action::TenantRemoved)).await;
    assert_eq!(removed.expect("answers"), RemovedTenant::Removed);
    store.tenant_erased(&tenant(), now()).await.expect("answers");
    let left = rows(store).await;
    for table in ["file_metadata", "archived_files", "user_uses", "user_erasures", "snapshots"] {
        assert_eq!(left[table], 0, "{table}");
    }
}
