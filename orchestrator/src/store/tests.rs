// SPDX-License-Identifier: Apache-2.0
//! The store's suite: the same tests over SQLite and a real Postgres.

use super::*;
use crate::lifecycle::{Outcome, State};
use crate::runtime::{Isolation, Limits, Wanted};
use postern_common::clock::now;
use postern_common::control::EndedSession;
use postern_common::id::{ApiKeyId, ConversationId, SandboxId, SecretName, TemplateName, TenantId, UserId};
use postern_common::session::{AcceptedToken, Peer};
use std::collections::BTreeMap;

mod database;
pub(crate) use database::Database;

/// Makes one test for each database out of each function.
macro_rules! on_each_database {
    ($($name:ident),* $(,)?) => {
        mod sqlite {$(
            #[tokio::test]
            async fn $name() {
                super::$name(&super::Database::sqlite().await.store).await;
            }
        )*}
        mod postgres {$(
            #[tokio::test]
            async fn $name() {
                match super::Database::postgres().await {
                    Some(database) => super::$name(&database.store).await,
                    None => println!("left out: Postgres is not installed"),
                }
            }
        )*}
    };
}

on_each_database!(
    a_conversation_has_one_live_sandbox,
    a_sandbox_moves_only_from_the_state_it_is_in,
    a_sandbox_reads_back_as_it_was_written,
    an_ended_session_never_lives_again,
    a_session_is_written_only_while_its_sandbox_lives,
    a_quota_holds_however_many_ask_at_once,
    deadlines_are_found_when_they_have_come,
    keys_tenants_and_secrets_are_kept_and_go_with_their_tenant,
    changes_of_a_configuration_rest_on_a_version,
    a_gateways_name_is_given_once_and_free_after_it_is_revoked,
    a_session_of_an_address_ends_for_good_and_goes_with_its_tenant,
    an_epoch_never_falls_behind_the_clock,
    opening_again_changes_nothing,
    every_set_that_was_in_force_is_a_version,
    decisions_are_kept_within_their_bounds,
    a_removed_tenant_leaves_nothing_to_who_comes_after,
    a_tenant_with_a_live_sandbox_or_a_folder_is_not_removed,
    every_change_of_any_tenant_has_a_higher_revision,
    lists_are_filtered_by_what_was_asked_for,
    what_ended_long_ago_is_forgotten_and_what_lives_is_not,
    an_idempotency_key_belongs_to_the_first_call_that_got_a_sandbox,
    idempotency_keys_are_forgotten_by_age_and_number,
    files_are_kept_as_they_were_written_and_paged_byte_by_byte,
    what_happened_to_a_file_is_written_with_its_row,
    who_holds_a_file_holds_it_alone,
    an_upload_is_remembered_until_it_expires_or_its_user_is_erased,
    a_ticket_is_used_once_and_forgotten_when_it_is_too_old,
);

mod audit;
mod claims;
mod connections;
mod deadlines;
mod erasures;
mod files;
mod gateways;
mod idempotency;
mod memory;
mod migrating;
use files::{
    an_upload_is_remembered_until_it_expires_or_its_user_is_erased,
    files_are_kept_as_they_were_written_and_paged_byte_by_byte,
    what_happened_to_a_file_is_written_with_its_row, who_holds_a_file_holds_it_alone,
};
use gateways::{
    a_gateways_name_is_given_once_and_free_after_it_is_revoked,
    a_session_of_an_address_ends_for_good_and_goes_with_its_tenant,
};
mod policies;
mod rate;
mod sessions;
mod tickets;
mod turns;
use idempotency::{
    an_idempotency_key_belongs_to_the_first_call_that_got_a_sandbox,
    idempotency_keys_are_forgotten_by_age_and_number,
};
use policies::{decisions_are_kept_within_their_bounds, every_set_that_was_in_force_is_a_version};
use sessions::{a_session_is_written_only_while_its_sandbox_lives, an_ended_session_never_lives_again};
use tickets::a_ticket_is_used_once_and_forgotten_when_it_is_too_old;

fn tenant() -> TenantId {
    TenantId::parse("acme").expect("a name")
}

fn audit(action: Action) -> AuditEntry {
    AuditEntry::new(now(), Some(tenant()), action, Actor::Orchestrator)
}

pub(crate) fn sandbox(number: u8, conversation: &str) -> NewSandbox {
    let limits = Limits { memory_bytes: 1 << 30, cpu_millis: 500, pids: 64, disk_bytes: 1 << 30 };
    NewSandbox {
        id: SandboxId::from_random([number; 12]),
        tenant: tenant(),
        user_id: UserId::parse("älice'; DROP TABLE sandboxes --").expect("an id"),
        conversation_id: ConversationId::parse(conversation).expect("an id"),
        template: TemplateName::parse("default").expect("a name"),
        operations: vec!["desk/read".parse().expect("a grant")],
        claims: serde_json::Map::from_iter([("plan".to_owned(), "gold".into())]),
        labels: BTreeMap::from([("team".to_owned(), "désk".to_owned())]),
        env_sealed: Some(vec![0, 1, 255]),
        env_digest: "digest".to_owned(),
        asked: Asked {
            isolation: Wanted::AtLeast(Isolation::Namespaces),
            limits,
            kubernetes: None,
            image: Some("tools".to_owned()),
        },
        created_by: "key:x".to_owned(),
        expires_at: now().saturating_add(jiff::SignedDuration::from_hours(1)).expect("in range"),
        idle: Duration::from_secs(60),
        on_idle: OnIdle::Pause,
        paused: Some(Duration::from_secs(600)),
    }
}

async fn add(store: &Store, new: &NewSandbox) -> bool {
    make(store, new.tenant.as_str()).await;
    added(store, new, &Quotas::default()).await == AddedSandbox::Added
}

pub(crate) async fn added(store: &Store, new: &NewSandbox, quotas: &Quotas) -> AddedSandbox {
    store
        .add_sandbox(
            new,
            &Terms { quotas: quotas.clone(), ..Terms::default() },
            &audit(Action::SandboxCreated),
        )
        .await
        .expect("answers")
}

pub(crate) async fn make(store: &Store, name: &str) -> MadeTenant {
    let name = TenantId::parse(name).expect("a name");
    store.add_tenant(&name, &Owner::Api, &audit(Action::TenantCreated)).await.expect("answers")
}

async fn remove(store: &Store) -> RemovedTenant {
    store.remove_tenant(&tenant(), &audit(Action::TenantRemoved)).await.expect("answers")
}

pub(crate) async fn go(store: &Store, id: &SandboxId, from: State, to: State) -> bool {
    let transition =
        Transition { from, to, reason: Some("a reason".to_owned()), running: None, is_claimed: true };
    store.move_sandbox(id, &transition, &audit(Action::SandboxChanged)).await.expect("answers")
}

async fn an_epoch_never_falls_behind_the_clock(store: &Store) {
    assert_eq!(store.next_number("epoch", 1_700_000_000).await.expect("answers"), 1_700_000_000);
    assert_eq!(store.next_number("epoch", 1_700_000_000).await.expect("answers"), 1_700_000_001);
    assert_eq!(store.next_number("epoch", 5).await.expect("answers"), 1_700_000_002, "nor behind itself");
}

async fn a_conversation_has_one_live_sandbox(store: &Store) {
    let (first, second) = (sandbox(1, "c1"), sandbox(2, "c1"));
    assert!(add(store, &first).await);
    assert!(!add(store, &second).await, "the conversation is taken");
    assert!(add(store, &sandbox(3, "c2")).await, "another conversation is not");
    let mut other = sandbox(4, "c1");
    other.tenant = TenantId::parse("other").expect("a name");
    assert!(add(store, &other).await, "another tenant's is another conversation");
    assert!(go(store, &first.id, State::Creating, State::Destroying(Outcome::Failed)).await);
    assert!(!add(store, &second).await, "what is being destroyed still counts");
    assert!(go(store, &first.id, State::Destroying(Outcome::Failed), State::Failed).await);
    assert!(add(store, &second).await);
    let live = store.live_sandbox(&tenant(), &second.conversation_id).await.expect("answers").expect("one");
    assert_eq!(live.new.id, second.id);
}

async fn a_sandbox_moves_only_from_the_state_it_is_in(store: &Store) {
    let new = sandbox(1, "c1");
    add(store, &new).await;
    assert!(!go(store, &new.id, State::Running, State::Paused).await);
    assert!(go(store, &new.id, State::Creating, State::Running).await);
    assert!(!go(store, &new.id, State::Creating, State::Running).await, "somebody was faster");
    let events = store.events(&AuditFilter::default()).await.expect("answers");
    let actions: Vec<&str> = events.iter().map(|event| event.action.as_str()).collect();
    assert_eq!(
        actions,
        ["tenant.created", "sandbox.created", "sandbox.changed"],
        "what did not happen is not in the log"
    );
}

async fn a_sandbox_reads_back_as_it_was_written(store: &Store) {
    let new = sandbox(1, "c1");
    add(store, &new).await;
    let row = store.sandbox(&new.id).await.expect("answers").expect("is there");
    assert_eq!(format!("{:?}", row.new.asked), format!("{:?}", new.asked));
    assert_eq!(
        (&row.new.user_id, &row.new.labels, &row.new.claims),
        (&new.user_id, &new.labels, &new.claims)
    );
    assert_eq!((row.new.env_sealed.as_ref(), row.state), (new.env_sealed.as_ref(), State::Creating));
    for (from, to) in [
        (State::Creating, State::Destroying(Outcome::Destroyed)),
        (State::Destroying(Outcome::Destroyed), State::Destroyed),
    ] {
        assert!(go(store, &new.id, from, to).await);
        assert_eq!(store.sandbox(&new.id).await.expect("answers").expect("is there").state, to);
    }
    let row = store.sandbox(&new.id).await.expect("answers").expect("is there");
    assert_eq!(
        (row.new.env_sealed, row.reason.as_deref()),
        (None, Some("a reason")),
        "its environment is wiped"
    );
}

async fn a_quota_holds_however_many_ask_at_once(store: &Store) {
    store.add_tenant(&tenant(), &Owner::Api, &audit(Action::TenantCreated)).await.expect("answers");
    let quotas = Quotas { sandboxes: Some(3), creates_per_minute: Some(100), ..Quotas::default() };
    let wanted: Vec<_> = (0..12).map(|number| sandbox(number, &format!("c{number}"))).collect();
    let all = futures_util::future::join_all(wanted.iter().map(|new| added(store, new, &quotas))).await;
    let made = all.iter().filter(|added| **added == AddedSandbox::Added).count();
    assert_eq!(made, 3, "{all:?}");
    let over = |name, unit, quota, used, asked| {
        AddedSandbox::OverQuota(OverQuota { name, unit, quota, used, asked })
    };
    assert!(all.contains(&over("sandboxes", "", 3, 3, 1)), "{all:?}");
    // Three live ones of 1 GiB and half a core each.
    const GIB: u64 = 1 << 30;
    let ask = async |quotas: serde_json::Value| {
        let quotas: Quotas = serde_json::from_value(quotas).expect("quotas");
        added(store, &sandbox(20, "another"), &quotas).await
    };
    let json = |name: &str, quota: u64| serde_json::json!({ name: quota });
    assert_eq!(ask(json("creates_per_minute", 3)).await, over("creates_per_minute", "", 3, 3, 1));
    assert_eq!(ask(json("memory", 4 * GIB - 1)).await, over("memory", " bytes", 4 * GIB - 1, 3 * GIB, GIB));
    assert_eq!(ask(json("disk", 3 * GIB)).await, over("disk", " bytes", 3 * GIB, 3 * GIB, GIB));
    assert_eq!(ask(json("cpu", 1)).await, over("cpu", " millicores", 1000, 1500, 500));
    let enough = serde_json::json!({ "cpu": 2, "memory": "4GiB", "disk": "4GiB" });
    assert_eq!(ask(enough).await, AddedSandbox::Added);
}

async fn deadlines_are_found_when_they_have_come(store: &Store) {
    let new = sandbox(1, "c1");
    add(store, &new).await;
    let after = |seconds| now().saturating_add(jiff::SignedDuration::from_secs(seconds)).expect("in range");
    assert_eq!(store.due_sandboxes(after(7200)).await.expect("answers"), [], "it does not run yet");
    go(store, &new.id, State::Creating, State::Running).await;
    assert_eq!(store.due_sandboxes(after(30)).await.expect("answers"), []);
    assert_eq!(
        store.due_sandboxes(after(61)).await.expect("answers"),
        [(new.id.clone(), Due::Unused(OnIdle::Pause))]
    );
    store.touch_sandbox(&new.id, after(30)).await.expect("answers");
    assert_eq!(store.due_sandboxes(after(61)).await.expect("answers"), [], "it was in use");
    assert_eq!(store.due_sandboxes(after(3601)).await.expect("answers"), [(new.id.clone(), Due::Over)]);
    go(store, &new.id, State::Running, State::Paused).await;
    assert_eq!(store.due_sandboxes(after(599)).await.expect("answers"), []);
    let due = store.due_sandboxes(after(601)).await.expect("answers");
    assert_eq!(due, [(new.id.clone(), Due::PausedTooLong)]);
    go(store, &new.id, State::Paused, State::Running).await;
    assert_eq!(store.due_sandboxes(after(59)).await.expect("answers"), [], "it is used from now on");
    assert_eq!(store.due_sandboxes(after(61)).await.expect("answers").len(), 1);
}

async fn keys_tenants_and_secrets_are_kept_and_go_with_their_tenant(store: &Store) {
    assert_eq!(make(store, "acme").await, MadeTenant::Made);
    assert_eq!(make(store, "acme").await, MadeTenant::Exists);
    let key = ApiKeyRow {
        id: ApiKeyId::from_random([7; 16]),
        tenant: Some(tenant()),
        role: Role::Developer,
        label: "ci".to_owned(),
        operations: Some(vec!["*".parse().expect("a grant")]),
        scope: KeyScope {
            templates: Some(vec!["small".to_owned()]),
            labels: Some(BTreeMap::from([("team".to_owned(), "a".to_owned())])),
        },
        created_by: "x".to_owned(),
        created_at: now(),
        hash: vec![1, 2, 3],
    };
    store.add_key(&key, &audit(Action::KeyCreated)).await.expect("answers");
    let found = store.key(&key.id).await.expect("answers").expect("is there");
    assert_eq!(
        (found.role, found.operations, found.hash, found.scope),
        (key.role, key.operations.clone(), key.hash.clone(), key.scope.clone())
    );
    let secret = SecretName::parse("desk").expect("a name");
    for version in 1..=2 {
        store.set_secret(&tenant(), &secret, vec![9], &audit(Action::SecretSet)).await.expect("answers");
        assert_eq!(store.secrets(&tenant()).await.expect("answers")[0].version, version);
    }
    assert_eq!(remove(store).await, RemovedTenant::Removed);
    assert!(store.key(&key.id).await.expect("answers").is_none());
    assert!(store.secrets(&tenant()).await.expect("answers").is_empty());
}

async fn changes_of_a_configuration_rest_on_a_version(store: &Store) {
    store.add_tenant(&tenant(), &Owner::Api, &audit(Action::TenantCreated)).await.expect("answers");
    let part = |name: &str| Resource {
        kind: Kind::Template,
        name: name.to_owned(),
        body: "{}".to_owned(),
        component: Some(vec![0, 255]),
        sealed: Some(vec![255, 0]),
        digest: "d".to_owned(),
    };
    let put = |name: &str| [ResourceChange::Put(part(name))];
    assert!(store.change_resources(&tenant(), 1, true, &put("a"), &[]).await.expect("answers"));
    assert!(
        !store.change_resources(&tenant(), 1, true, &put("b"), &[]).await.expect("answers"),
        "version 1 is past"
    );
    assert!(store.change_resources(&tenant(), 2, true, &put("b"), &[]).await.expect("answers"));
    let remove = [ResourceChange::Remove(Kind::Template, "a".to_owned())];
    assert!(store.change_resources(&tenant(), 3, false, &remove, &[]).await.expect("answers"));
    assert_eq!(store.resources(&tenant()).await.expect("answers"), [part("b")]);
    let row = store.tenant(&tenant()).await.expect("answers").expect("is there");
    assert_eq!((row.version, row.has_policies), (4, false));
}

async fn opening_again_changes_nothing(store: &Store) {
    assert_eq!(store.fact("a", vec![1]).await.expect("answers"), [1]);
    assert_eq!(store.fact("a", vec![2]).await.expect("answers"), [1], "the first stays");
    assert_eq!(store.next_number("n", 0).await.expect("answers"), 1);
    assert_eq!(store.next_number("n", 0).await.expect("answers"), 2);
    migrations::bring_up(store).await.expect("is up to date");
    assert_eq!(store.fact("a", vec![3]).await.expect("answers"), [1]);
}

#[tokio::test]
async fn an_interrupted_migration_of_another_tool_is_refused_with_the_repair() {
    let database = Database::sqlite().await;
    let store = &database.store;
    sqlx::raw_sql("UPDATE schema_migrations SET version = 5, dirty = 1")
        .execute(&store.pool)
        .await
        .expect("writes");
    let refused = migrations::bring_up(store).await.expect_err("refused").to_string();
    assert!(refused.contains("migration 5") && refused.contains("force 4"), "{refused}");
    sqlx::raw_sql("UPDATE schema_migrations SET version = 99, dirty = 0")
        .execute(&store.pool)
        .await
        .expect("writes");
    let refused = migrations::bring_up(store).await.expect_err("refused").to_string();
    assert!(refused.contains("99"), "{refused}");
}

#[tokio::test]
async fn a_database_begun_by_another_tool_is_gone_on_with() {
    let database = Database::sqlite().await;
    let store = &database.store;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations/sqlite");
    let entries = std::fs::read_dir(folder).expect("is there").flatten();
    let mut undo: Vec<_> = entries.map(|entry| entry.path()).collect();
    undo.retain(|path| {
        let name = path.file_name().expect("has one").to_string_lossy();
        name.ends_with(".down.sql") && *name > *"000006"
    });
    undo.sort();
    for path in undo.into_iter().rev() {
        let script = std::fs::read_to_string(path).expect("is there");
        // A connection that has not looked since the tables changed finds no column to drop: DROP COLUMN
        // alone does not make SQLite read its tables again, as any query does.
        let looked = format!("SELECT version FROM schema_migrations;\n{script}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(looked)).execute(&store.pool).await.expect("goes down");
    }
    sqlx::raw_sql("UPDATE schema_migrations SET version = 5").execute(&store.pool).await.expect("writes");
    migrations::bring_up(store).await.expect("goes on from 5");
    assert!(add(store, &sandbox(1, "c1")).await);
}

#[test]
fn both_databases_have_the_same_migrations() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    let names = |folder: &Path| -> std::collections::BTreeSet<String> {
        let entries = std::fs::read_dir(folder).expect("is there").flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".sql"))
            .collect()
    };
    assert_eq!(names(&folder), names(&folder.join("sqlite")));
    for name in names(&folder) {
        let other = name.replace(".up.", ".down.");
        assert!(folder.join(&other).is_file(), "{other} is missing");
    }
}

async fn a_removed_tenant_leaves_nothing_to_who_comes_after(store: &Store) {
    assert_eq!(make(store, "acme").await, MadeTenant::Made);
    assert_eq!(store.tenants_to_erase().await.expect("answers"), []);
    assert_eq!(remove(store).await, RemovedTenant::Removed);
    assert_eq!(remove(store).await, RemovedTenant::Unknown);
    assert_eq!(added(store, &sandbox(1, "c1"), &Quotas::default()).await, AddedSandbox::NoTenant);
    assert_eq!(make(store, "acme").await, MadeTenant::Retired, "its name is never given again");
    assert_eq!(store.tenant(&tenant()).await.expect("answers"), None);
    let secret = SecretName::parse("desk").expect("a name");
    assert!(
        !store.set_secret(&tenant(), &secret, vec![9], &audit(Action::SecretSet)).await.expect("answers")
    );
    assert_eq!(store.tenants_to_erase().await.expect("answers"), [tenant()], "until it is done");
    store.tenant_erased(&tenant(), now()).await.expect("answers");
    assert_eq!(store.tenants_to_erase().await.expect("answers"), []);
    assert_eq!(make(store, "acme").await, MadeTenant::Retired);
}

async fn a_tenant_with_a_live_sandbox_or_a_folder_is_not_removed(store: &Store) {
    let new = sandbox(1, "c1");
    add(store, &new).await;
    assert_eq!(remove(store).await, RemovedTenant::Lives(1));
    assert!(go(store, &new.id, State::Creating, State::Destroying(Outcome::Failed)).await);
    assert_eq!(remove(store).await, RemovedTenant::Lives(1), "its files are still to be kept");
    assert!(go(store, &new.id, State::Destroying(Outcome::Failed), State::Failed).await);
    let folder = Owner::Folder("/config".to_owned());
    store.give_tenant(&tenant(), &folder).await.expect("answers");
    assert_eq!(remove(store).await, RemovedTenant::Owned(folder));
    let left = Released { folder: "/a folder".to_owned(), version: 7 };
    store.release_tenant(&tenant(), &left).await.expect("answers");
    let row = store.tenant(&tenant()).await.expect("answers").expect("is there");
    assert_eq!((row.owner, row.released), (Owner::Api, Some(left)), "whose it was is kept");
    assert_eq!(remove(store).await, RemovedTenant::Removed);
}

async fn every_change_of_any_tenant_has_a_higher_revision(store: &Store) {
    let revision = async |name: &str| {
        let name = TenantId::parse(name).expect("a name");
        store.tenant(&name).await.expect("answers").expect("is there").revision
    };
    make(store, "acme").await;
    make(store, "other").await;
    let mut seen = vec![revision("acme").await, revision("other").await];
    assert!(store.change_resources(&tenant(), 1, true, &[], &[]).await.expect("answers"));
    seen.push(revision("acme").await);
    assert!(!store.change_resources(&tenant(), 1, true, &[], &[]).await.expect("answers"));
    assert_eq!(revision("acme").await, seen[2], "what did not happen has none");
    let secret = SecretName::parse("desk").expect("a name");
    store.set_secret(&tenant(), &secret, vec![9], &audit(Action::SecretSet)).await.expect("answers");
    seen.push(revision("acme").await);
    assert!(store.remove_secret(&tenant(), &secret, &audit(Action::SecretRemoved)).await.expect("answers"));
    seen.push(revision("acme").await);
    assert!(seen.is_sorted_by(|left, right| left < right), "{seen:?}");
}

async fn lists_are_filtered_by_what_was_asked_for(store: &Store) {
    for number in 1..=4 {
        let mut new = sandbox(number, &format!("c{number}"));
        if number == 4 {
            new.tenant = TenantId::parse("other").expect("a name");
        }
        new.labels.insert("it\"s '=\\ ü".to_owned(), format!("{number}%_\""));
        assert!(add(store, &new).await);
    }
    let id = |number: u8| SandboxId::from_random([number; 12]);
    go(store, &id(2), State::Creating, State::Running).await;
    let list = async |filter: SandboxFilter| {
        let listing = store.list_sandboxes(&filter).await.expect("answers");
        listing.sandboxes.into_iter().map(|row| row.new.id).collect::<Vec<_>>()
    };
    let of_tenant = || SandboxFilter { tenant: Some(tenant()), ..SandboxFilter::default() };
    assert_eq!(list(SandboxFilter::default()).await, [id(4), id(3), id(2), id(1)]);
    assert_eq!(list(of_tenant()).await, [id(3), id(2), id(1)]);
    assert_eq!(list(SandboxFilter { after: Some(id(3)), ..of_tenant() }).await, [id(2), id(1)]);
    let running = SandboxFilter { status: Some("running".to_owned()), ..SandboxFilter::default() };
    assert_eq!(list(running).await, [id(2)]);
    let conversation = Some(ConversationId::parse("c1").expect("an id"));
    assert_eq!(list(SandboxFilter { conversation, ..of_tenant() }).await, [id(1)]);
    let user = Some(UserId::parse("nobody").expect("an id"));
    assert_eq!(list(SandboxFilter { user, ..of_tenant() }).await, []);
    let labelled = async |name: &str, value: &str| {
        list(SandboxFilter { label: Some((name.to_owned(), value.to_owned())), ..of_tenant() }).await
    };
    assert_eq!(labelled("team", "désk").await, [id(3), id(2), id(1)]);
    assert_eq!(labelled("it\"s '=\\ ü", "2%_\"").await, [id(2)], "compared as it is");
    assert_eq!((labelled("team", "desk").await, labelled("it\"s '", "\\ ü").await), (vec![], vec![]));
    let events = async |filter: AuditFilter| store.events(&filter).await.expect("answers").len();
    let of_tenant = || AuditFilter { tenant: Some(tenant()), ..AuditFilter::default() };
    let all = events(of_tenant()).await;
    assert_eq!(events(AuditFilter { after: 1, ..of_tenant() }).await, all - 1);
    assert_eq!(events(AuditFilter { limit: Some(1), ..of_tenant() }).await, 1);
    assert_eq!(events(AuditFilter { sandbox: Some(id(2)), ..of_tenant() }).await, 0, "these name none");
}

async fn what_ended_long_ago_is_forgotten_and_what_lives_is_not(store: &Store) {
    let (ended, lives) = (sandbox(1, "c1"), sandbox(2, "c2"));
    add(store, &ended).await;
    add(store, &lives).await;
    go(store, &ended.id, State::Creating, State::Destroying(Outcome::Failed)).await;
    go(store, &ended.id, State::Destroying(Outcome::Failed), State::Failed).await;
    assert_eq!(store.forget_sandboxes(Timestamp::UNIX_EPOCH, 10).await.expect("answers"), 0);
    assert_eq!(store.forget_sandboxes(Timestamp::MAX, 10).await.expect("answers"), 1);
    assert!(store.sandbox(&ended.id).await.expect("answers").is_none());
    assert!(store.sandbox(&lives.id).await.expect("answers").is_some());
    assert!(!store.events(&AuditFilter::default()).await.expect("answers").is_empty(), "the log says so");
}

#[tokio::test]
async fn what_is_asked_all_the_time_reads_no_sandbox_that_ended() {
    let database = Database::sqlite().await;
    for (statement, index) in [
        (sandboxes::LIVE, "sandboxes_live_by_age"),
        (quotas::LIVE_LIMITS, "sandboxes_live "),
        (quotas::COUNT_RECENT, "sandboxes_of_tenant"),
    ] {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
        let mut plan = sqlx::query(explain);
        for _ in 0..statement.matches('$').count() {
            plan = plan.bind(0_i64);
        }
        let rows = plan.fetch_all(&database.store.pool).await.expect("explains");
        let plan: Vec<String> = rows.iter().map(|row| row.text("detail").expect("text")).collect();
        assert!(plan.iter().any(|line| format!("{line} ").contains(index)), "{statement}: {plan:?}");
    }
}
